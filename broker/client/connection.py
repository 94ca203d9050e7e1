"""One connection to a broker, blocking, made of `broker.stomp`.

Reading goes on while writing waits, so that a broker held up by its own output cannot stop us for good.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ..errors import ConnectionLost, ProtocolError, RefusedByBroker, Unreachable
from ..stomp import Frame, Parser, Role, Version, WireLimits, encode
from .target import Target

READ_BYTES: Final = 256 * 1024
OUTPUT_BYTES_MAX: Final = 256 * 1024  # kept here before send() waits until the socket has taken it
# What a broker may send us: it may be another one, or have higher limits than ours.
LIMITS: Final = WireLimits(header_line=1 << 20, headers=10_000, header_block=4 << 20, body=1 << 30)

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Message:
    """One MESSAGE. `ack` names the delivery, None where nothing is to be acknowledged."""

    headers: dict[str, str]
    body: bytes
    ack: str | None


class Client:
    """Owns its socket, the receipts that it waits for, and the messages that nobody has taken yet.

    Any method may raise RefusedByBroker (an ERROR came) or ConnectionLost; the connection is of no use after.
    """

    def __init__(self, connected: socket.socket, target: Target) -> None:
        self._socket = connected
        self._socket.setblocking(False)
        self._target = target
        self._parser = Parser(LIMITS, role=Role.CLIENT)
        self._parser.version = Version.V1_2
        self._selector = selectors.DefaultSelector()
        self._mask = selectors.EVENT_READ
        self._selector.register(self._socket, self._mask)
        self._out = bytearray()
        self._inbox: deque[Message] = deque()
        self._waiting: dict[str, None] = {}  # receipts that we asked for, in order
        self._receipts = 0
        self._subscriptions = 0
        self._connected: Frame | None = None
        self._open = True
        # Heart-beats, seconds; 0 is never.
        self._beat_every = 0.0
        self._dead_after = 0.0
        self._wrote = self._heard = time.monotonic()

    @classmethod
    def connect(
        cls, target: Target, *, heart_beat: tuple[int, int] = (0, 0), timeout: float = 10.0
    ) -> Client:
        """Open and log in. `heart_beat`: (can send, wants) in ms. `timeout`: seconds for all of it.

        Raises Unreachable where nobody answers, RefusedByBroker where the login is refused.
        """
        deadline = time.monotonic() + timeout
        try:
            opened = socket.create_connection((target.address.host, target.address.port), timeout)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _keep_alive(opened)
        except ConnectionRefusedError:
            raise Unreachable(
                f"nobody listens at {target}: is the broker running? `stompd serve` starts one"
            ) from None
        except TimeoutError:
            raise Unreachable(f"{target} did not answer within {timeout:g} s") from None
        except OSError as error:
            raise Unreachable(f"cannot connect to {target}: {error.strerror or error}") from None
        client = cls(opened, target)
        try:
            client._log_in(heart_beat, deadline)
        except BaseException:
            client.close()
            raise
        return client

    def _log_in(self, heart_beat: tuple[int, int], deadline: float) -> None:
        headers = [("accept-version", "1.2"), ("host", self._target.address.host)]
        if self._target.login:
            headers += [("login", self._target.login), ("passcode", self._target.passcode)]
        headers.append(("heart-beat", f"{heart_beat[0]},{heart_beat[1]}"))
        self._put("CONNECT", headers)
        if not self._until(lambda: self._connected is not None, deadline) or self._connected is None:
            raise Unreachable(
                f"{self._target} took the connection but does not answer; is it a STOMP broker?"
            )
        answer = self._connected.headers
        if answer.get("version") != "1.2":
            raise Unreachable(
                f"{self._target} speaks STOMP {answer.get('version', '1.0')!r}, this client needs 1.2"
            )
        theirs = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9})", answer.get("heart-beat", "0,0"))
        if theirs is not None:
            sends, wants = int(theirs[1]), int(theirs[2])
            self._beat_every = max(heart_beat[0], wants) / 1000 if heart_beat[0] and wants else 0.0
            # Twice what was agreed: it may have been on its way, and the machine may be busy.
            self._dead_after = 2 * max(heart_beat[1], sends) / 1000 if heart_beat[1] and sends else 0.0
        self._heard = time.monotonic()

    @property
    def unconfirmed(self) -> int:
        """How many receipts are still to come."""
        return len(self._waiting)

    def send(
        self,
        destination: str,
        body: bytes,
        headers: Headers = (),
        *,
        receipt: bool = True,
        window: int = 1000,
    ) -> None:
        """One SEND. Waits while `window` receipts are to come; `settle` waits for all."""
        lines = [("destination", destination), *headers]
        if receipt:
            lines.append(("receipt", self._new_receipt()))
        self._put("SEND", lines, body)
        self._until(lambda: len(self._waiting) < window and len(self._out) < OUTPUT_BYTES_MAX, None)

    def settle(self, timeout: float | None = None) -> bool:
        """Wait for every receipt; False where `timeout` (seconds, None: for ever) was over before."""
        return self._until(lambda: not self._waiting and not self._out, _after(timeout))

    def subscribe(
        self,
        destination: str,
        *,
        ack: str = "client-individual",
        prefetch: int | None = None,
        headers: Headers = (),
    ) -> str:
        """SUBSCRIBE; returns its id. `ack` is "auto", "client" or "client-individual"."""
        self._subscriptions += 1
        name = f"s{self._subscriptions}"
        lines = [("id", name), ("destination", destination), ("ack", ack)]
        if prefetch is not None:
            lines.append(("prefetch", f"{prefetch}"))
        self._put("SUBSCRIBE", [*lines, *headers])
        return name

    def unsubscribe(self, subscription: str) -> None:
        self._put("UNSUBSCRIBE", [("id", subscription)])

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message, or None after `timeout` seconds (None: wait for ever, 0: only what is here)."""
        if not self._inbox:
            self._until(lambda: bool(self._inbox), _after(timeout))
        return self._inbox.popleft() if self._inbox else None

    def ack(self, message: Message) -> None:
        """Acknowledge; goes out with the next wait. Nothing where there is nothing to acknowledge."""
        if message.ack is not None:
            self._put("ACK", [("id", message.ack)])

    def nack(self, message: Message) -> None:
        if message.ack is not None:
            self._put("NACK", [("id", message.ack)])

    def disconnect(self, timeout: float = 30.0, *, receipt: bool = True) -> None:
        """DISCONNECT and close.

        Its receipt says that all before it is durable. Without one we only wait for the connection's end, so
        that an ERROR for what was sent is still seen.
        """
        deadline = time.monotonic() + timeout
        self._put("DISCONNECT", [("receipt", self._new_receipt())] if receipt else [])
        try:
            if not receipt:
                with contextlib.suppress(ConnectionLost):
                    self._until(lambda: False, deadline)
            elif not self._until(lambda: not self._waiting and not self._out, deadline):
                raise ConnectionLost(f"{self._target} did not confirm within {timeout:g} s; {self._unsure()}")
        finally:
            self.close()

    def close(self) -> None:
        """Drop the connection, without a word to the broker."""
        if self._open:
            self._open = False
            self._selector.close()
            self._socket.close()

    def _new_receipt(self) -> str:
        self._receipts += 1
        name = f"r{self._receipts}"
        self._waiting[name] = None
        return name

    def _put(self, command: str, headers: Headers, body: bytes = b"") -> None:
        self._out += encode(Version.V1_2, command, headers, body)

    def _until(self, reached: Callable[[], bool], deadline: float | None) -> bool:
        """Write and read until `reached`, or until the deadline (None: never) is over: then False."""
        while not reached():
            now = time.monotonic()
            if deadline is not None and now >= deadline and not self._step(0.0):
                return reached()
            self._step(min(deadline - now, 60.0) if deadline is not None else 60.0)
        return True

    def _step(self, wait: float) -> bool:
        """Write what goes out, read what is there, after at most `wait` seconds; False: there was nothing."""
        wait = self._beat(wait)
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if mask != self._mask:
            self._selector.modify(self._socket, mask)
            self._mask = mask
        ready = self._selector.select(max(wait, 0.0))
        for _, events in ready:
            if events & selectors.EVENT_READ:
                self._read()
            if events & selectors.EVENT_WRITE:
                self._write()
        return bool(ready)

    def _beat(self, wait: float) -> float:
        """Send a heart-beat where one is due, notice a silent broker; returns how long we may wait."""
        now = time.monotonic()
        if self._beat_every:
            if now - self._wrote >= self._beat_every / 2 and not self._out:
                self._out += b"\n"
            wait = min(wait, self._beat_every / 4)
        if self._dead_after:
            if now - self._heard > self._dead_after:
                raise ConnectionLost(
                    f"{self._target} is silent for {now - self._heard:.0f} s; {self._unsure()}"
                )
            wait = min(wait, self._dead_after / 4)
        return wait

    def _write(self) -> None:
        try:
            with memoryview(self._out) as view:
                taken = self._socket.send(view[: 4 * OUTPUT_BYTES_MAX])
        except BlockingIOError:
            return
        except OSError:
            # The broker closed. Why it did may lie in what it wrote before: an ERROR is the better answer.
            while self._read():
                pass
            raise ConnectionLost(f"{self._target} closed the connection; {self._unsure()}") from None
        del self._out[:taken]
        self._wrote = time.monotonic()

    def _read(self) -> bool:
        """Take what is there; False where there is nothing now."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConnectionLost(f"{self._target}: {error.strerror or error}; {self._unsure()}") from None
        if not data:
            raise ConnectionLost(f"{self._target} closed the connection; {self._unsure()}")
        self._heard = time.monotonic()
        for item in self._parser.feed(data):
            if isinstance(item, ProtocolError):
                raise ConnectionLost(f"{self._target} sent what is not STOMP: {item}; {self._unsure()}")
            if isinstance(item, Frame):
                self._take(item)
        return True

    def _take(self, frame: Frame) -> None:
        if frame.command == "MESSAGE":
            self._inbox.append(Message(frame.headers, frame.body, frame.headers.get("ack")))
        elif frame.command == "RECEIPT":
            self._waiting.pop(frame.headers.get("receipt-id", ""), None)
        elif frame.command == "CONNECTED":
            self._connected = frame
        elif frame.command == "ERROR":
            summary = frame.headers.get("message", "ERROR")
            detail = frame.body.decode(errors="replace").strip("\0\r\n ")
            text = summary if not detail or detail in summary else f"{summary}: {detail}"
            raise RefusedByBroker(f"{self._target} refused: {text}", frame.headers.get("receipt-id"))

    def _unsure(self) -> str:
        count = len(self._waiting)
        return (
            f"{count} frame{'s' if count != 1 else ''} without a receipt" if count else "no receipt was due"
        )


def _after(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _keep_alive(opened: socket.socket) -> None:
    """Without heart-beats, TCP itself finds a machine that is gone: after 60 s, asked 3 times, 10 s apart."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
