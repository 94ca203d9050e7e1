"""A STOMP client for tests on a raw socket, with a parser of its own.

It shares no code with the broker, so that a mistake of one is not hidden by the other. It is strict:
whatever the broker writes must be a well-formed frame of the version in use.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PATIENCE = 10.0  # seconds; a deadline for what must come, generous since machines are shared
SERVER_COMMANDS = ("CONNECTED", "MESSAGE", "RECEIPT", "ERROR")
UNESCAPES = {
    "1.0": {},
    "1.1": {"\\n": "\n", "\\c": ":", "\\\\": "\\"},
    "1.2": {"\\n": "\n", "\\c": ":", "\\\\": "\\", "\\r": "\r"},
}


class WireError(AssertionError):
    """What came is not what the specification allows, or nothing came in time."""


class WireClosed(WireError):
    """The other side closed the connection where a frame was expected."""


@dataclass(frozen=True)
class Got:
    """One frame from the broker. `headers`: unescaped, first wins; `lines`: all of them as on the wire."""

    command: str
    headers: dict[str, str]
    body: bytes
    lines: tuple[str, ...]

    def __getitem__(self, name: str) -> str:
        if name not in self.headers:
            raise WireError(f"{self.command} has no header {name!r}: {self.headers}")
        return self.headers[name]

    def get(self, name: str) -> str | None:
        return self.headers.get(name)


def escape(text: str, version: str) -> str:
    """A header name or value as it goes on the wire in that version."""
    if version == "1.0":
        return text
    text = text.replace("\\", "\\\\").replace("\n", "\\n").replace(":", "\\c")
    return text.replace("\r", "\\r") if version == "1.2" else text


def unescape(raw: str, version: str) -> str:
    """The opposite; WireError where the escape is not one of this version."""
    known = UNESCAPES[version]
    if not known or "\\" not in raw:
        return raw

    def replace(match: re.Match[str]) -> str:
        if match[0] not in known:
            raise WireError(f"undefined escape {match[0]!r} in {raw!r} (STOMP {version})")
        return known[match[0]]

    return re.sub(r"\\.?", replace, raw, flags=re.DOTALL)


def frame(
    command: str, headers: Mapping[str, str] | None = None, body: bytes = b"", version: str = "1.2"
) -> bytes:
    """A whole frame; `content-length` is added where there is a body and it is not given."""
    fields = dict(headers or {})
    if body and "content-length" not in fields:
        fields["content-length"] = str(len(body))
    plain = "1.0" if command in ("CONNECT", "STOMP") else version
    lines = "".join(f"{escape(name, plain)}:{escape(value, plain)}\n" for name, value in fields.items())
    return f"{command}\n{lines}\n".encode() + body + b"\0"


def take_frame(data: bytes, version: str, start: int = 0) -> tuple[Got | None, int]:
    """The first whole frame of `data` from `start` on (None where more is needed), and where to go on."""
    while data[start : start + 1] in (b"\n", b"\r"):
        start += 1
    end = data.find(b"\n\n", start)
    if end < 0:
        return None, start
    command, lines, headers = take_head(data[start:end], version)
    body_at = end + 2
    if "content-length" in headers:
        if not re.fullmatch("[0-9]{1,10}", headers["content-length"]):
            raise WireError(f"content-length {headers['content-length']!r}")
        stop = body_at + int(headers["content-length"])
        if len(data) <= stop:
            return None, start
        if data[stop] != 0:
            raise WireError(f"no NUL after {stop - body_at} bytes of body: {data[start : stop + 20]!r}")
    else:
        stop = data.find(b"\0", body_at)
        if stop < 0:
            return None, start
    body = data[body_at:stop]
    if body and command in ("CONNECTED", "RECEIPT"):
        raise WireError(f"{command} with a body: {body!r}")
    return Got(command, headers, body, lines), stop + 1


def take_head(block: bytes, version: str) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Command, header lines as they are, and headers. WireError where a server may not write such a block."""
    try:
        head = block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"header block is no UTF-8: {block!r}") from error
    command, *lines = head.split("\n")
    if command not in SERVER_COMMANDS:
        raise WireError(f"no command of a server: {head!r}")
    if "\0" in head:
        raise WireError(f"NUL in a header block: {head!r}")
    rules = "1.0" if command == "CONNECTED" else version
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name:
            raise WireError(f"no header line: {line!r} in {head!r}")
        if rules != "1.0" and ":" in value:
            raise WireError(f"raw colon in a value: {line!r} (STOMP {version})")
        headers.setdefault(unescape(name, rules), unescape(value, rules))
    return command, tuple(lines), headers


class Wire:
    """One connection. Every wait has a deadline of `PATIENCE` seconds unless another is given."""

    def __init__(self, address: tuple[str, int], *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.version = "1.0"
        self.buffer = b""
        self._at = 0  # what of the buffer is used up
        self.pending: deque[Got] = deque()
        self._names = itertools.count(1)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with a RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.settimeout(PATIENCE)
        self.socket.sendall(data)

    def tell(self, command: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Send one frame, escaped as the version of this connection says."""
        self.send(frame(command, headers, body, self.version))

    def connect(self, version: str = "1.2", headers: Mapping[str, str] | None = None) -> Got:
        """CONNECT and take the CONNECTED."""
        self.tell("CONNECT", {"accept-version": version, "host": "test", **(headers or {})})
        got = self.expect("CONNECTED")
        self.version = got["version"]
        return got

    def frame(self, seconds: float = PATIENCE) -> Got:
        """The next frame; WireClosed at the end of the stream."""
        if self.pending:
            return self.pending.popleft()
        got = self._read(time.monotonic() + seconds)
        if got is None:
            raise WireError(f"no frame within {seconds} s, only {self._unread()!r}")
        return got

    def expect(self, command: str, seconds: float = PATIENCE) -> Got:
        got = self.frame(seconds)
        if got.command != command:
            raise WireError(f"expected {command}, got {got}")
        return got

    def idle(self, seconds: float) -> bool:
        """True if no frame comes for that long. For promises about silence only; prefer a marker message."""
        if self.pending:
            return False
        got = self._read(time.monotonic() + seconds)
        if got is not None:
            self.pending.append(got)
        return got is None

    def call(self, command: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Got:
        """Send one frame with a receipt and wait for it; what comes before it is kept for `frame`."""
        name = f"call-{next(self._names)}"
        self.tell(command, {**(headers or {}), "receipt": name}, body)
        return self.receipt(name)

    def receipt(self, name: str) -> Got:
        """Wait for the RECEIPT of that name; other frames that come before it are kept for `frame`."""
        deadline = time.monotonic() + PATIENCE
        kept: list[Got] = []
        while True:
            got = self._read(deadline)
            if got is None:
                raise WireError(f"no receipt {name!r} within {PATIENCE} s, but {kept}")
            if got.command == "RECEIPT" and got.get("receipt-id") == name:
                self.pending.extend(kept)
                return got
            if got.command == "ERROR":
                raise WireError(f"ERROR instead of receipt {name!r}: {got}")
            kept.append(got)

    def subscribe(self, destination: str, ack: str = "auto", name: str = "s", **headers: str) -> None:
        extra = {key.replace("_", "-"): value for key, value in headers.items()}
        self.call("SUBSCRIBE", {"id": name, "destination": destination, "ack": ack, **extra})

    def publish(self, destination: str, *bodies: str | bytes, **headers: str) -> None:
        """SEND each body and wait for its receipt."""
        extra = {key.replace("_", "-"): value for key, value in headers.items()}
        for body in bodies:
            data = body if isinstance(body, bytes) else body.encode()
            self.call("SEND", {"destination": destination, **extra}, data)

    def messages(self, count: int) -> list[Got]:
        return [self.expect("MESSAGE") for _ in range(count)]

    def bodies(self, count: int) -> list[str]:
        return [got.body.decode() for got in self.messages(count)]

    def ack(self, got: Got, command: str = "ACK", **headers: str) -> None:
        """Settle one delivery the way of this connection's version, and wait for the receipt."""
        extra = {key.replace("_", "-"): value for key, value in headers.items()}
        self.call(command, {**ack_headers(got, self.version), **extra})

    def rest(self, seconds: float = PATIENCE) -> bytes:
        """Everything until the other side closes, a RST included; WireError if it stays open."""
        deadline = time.monotonic() + seconds
        parts = [self._unread()]
        self.buffer, self._at = b"", 0
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                return b"".join(parts)
            except TimeoutError:
                break
            if not data:
                return b"".join(parts)
            parts.append(data)
        raise WireError(f"still open after {seconds} s; it sent {b''.join(parts)!r}")

    def expect_closed(self, seconds: float = PATIENCE) -> None:
        """No frame any more, and the end of the stream."""
        left = self.rest(seconds).strip(b"\r\n")
        if left or self.pending:
            raise WireError(f"expected the close, got {list(self.pending)} {left!r}")

    def expect_error(self, seconds: float = PATIENCE) -> Got:
        """An ERROR frame, then the close."""
        got = self.expect("ERROR", seconds)
        self.expect_closed(seconds)
        return got

    def poll(self, seconds: float = 0.0) -> Got | None:
        """The next frame if there is one within that time. WireClosed at the end of the stream."""
        if self.pending:
            return self.pending.popleft()
        return self._read(time.monotonic() + seconds)

    def _read(self, deadline: float) -> Got | None:
        while True:
            got, self._at = take_frame(self.buffer, self.version, self._at)
            if got is not None:
                return got
            readable = select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not readable:
                return None
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionError as error:
                raise WireClosed(f"connection lost ({error}) after {self._unread()!r}") from None
            if not data:
                raise WireClosed(f"closed after {self._unread()!r}")
            self.buffer, self._at = self._unread() + data, 0

    def _unread(self) -> bytes:
        return self.buffer[self._at :]


def ack_headers(got: Got, version: str) -> dict[str, str]:
    """What an ACK or NACK of this delivery carries in that version."""
    if version == "1.2":
        return {"id": got["ack"]}
    if version == "1.1":
        return {"message-id": got["message-id"], "subscription": got["subscription"]}
    return {"message-id": got["message-id"]}


def close_all(wires: Iterable[Wire]) -> None:
    for wire in wires:
        with contextlib.suppress(OSError):
            wire.close()
