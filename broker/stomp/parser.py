"""Bytes in, frames out. No socket, no clock: the same bytes give the same frames however they are cut."""

from __future__ import annotations

import re
from typing import Final

from broker.errors import BadFrame, BodyTooLong, HeaderTooLong, NotAllowedNow, NotStomp, ProtocolError, shown
from broker.stomp.ackshape import ID_NAMES, AckMemory, emit_acks
from broker.stomp.escapes import escape
from broker.stomp.frames import Frame, Version
from broker.stomp.half import Half, Item
from broker.stomp.headers import (
    Lines,
    body_size,
    check_head,
    choose_version,
    find_end,
    first_wins,
    parse_content_length,
    parse_lines,
)
from broker.stomp.limits import Role, WireLimits
from broker.stomp.memory import Memory
from broker.stomp.opening import (
    CLIENT_COMMANDS,
    CONNECT_COMMANDS,
    EOLS_BEFORE_CONNECT,
    SERVER_COMMANDS,
    check_opening,
)

LF: Final = 0x0A
CR: Final = 0x0D
COMMAND_BYTES: Final = 13  # the longest command is UNSUBSCRIBE, then CR LF
SMALL: Final = 512  # a piece that is collected without a look at what is there already

_COMMANDS: Final = {
    Role.SERVER: {name.encode(): name for name in CLIENT_COMMANDS},
    Role.CLIENT: {name.encode(): name for name in SERVER_COMMANDS},
}
_EOLS: Final = re.compile(rb"[\r\n]*")
_EMPTY_LINES: Final = re.compile(rb"(?:\r?\n){0,2}")


_Places = tuple[int, int, int]  # in the buffer: a frame's first byte, its first header line, its body


class Parser:
    """One direction of one connection.

    `feed` gives every whole frame in the bytes so far. It never raises: where the peer broke the protocol the
    list ends with the error, and all input after it is dropped. In the SERVER role it stops behind CONNECT,
    because the version decides how the rest is read: the owner sets `version`, then calls `resume`. In the
    CLIENT role the version is taken from CONNECTED.

    steering: names of headers that do not differ within a run, e.g. `destination`. One that is not among them
    may become each message's own line. The `headers` of an AckRun and a Block are shared between runs: read
    them only.
    """

    __slots__ = (
        "_acks", "_dead", "_eols", "_fast", "_gap", "_half", "_handshake", "_limits", "_line", "_memory",
        "_paused", "_rest", "_role", "_steering", "_tail", "version",
    )  # fmt: skip

    def __init__(
        self, limits: WireLimits, *, steering: frozenset[str] = frozenset(), role: Role = Role.SERVER
    ) -> None:
        self.version = Version.V1_0
        self._limits = limits
        self._steering = steering
        self._role = role
        self._handshake = True
        self._paused = False
        self._dead = False
        self._fast = True  # off in tests only, to compare with the general path
        self._eols = 0  # before CONNECT
        self._gap = b""
        self._tail = bytearray()  # a frame whose headers are not all there, from its first byte on
        self._line = 0  # where in the tail the line in the making begins; -1: look at each new byte
        self._half: Half | None = None
        self._rest = b""  # behind CONNECT
        # Made with the first frame that needs them, so that an idle connection stays small.
        self._memory: Memory | None = None
        self._acks: AckMemory | None = None

    @property
    def held(self) -> int:
        """Bytes that were fed and are not handed out yet."""
        half = self._half
        return len(self._tail) + len(self._rest) + (half.head_bytes + half.got if half is not None else 0)

    @property
    def wanted(self) -> int:
        """Bytes that the frame in the making needs in all, NUL included; `held` where nobody can know."""
        half = self._half
        if half is None or half.size < 0:
            return self.held
        return half.head_bytes + half.size + 1

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._half is not None or bool(self._tail)

    def feed(self, data: bytes) -> list[Item]:
        """Every frame that `data` completes, in the order of the bytes."""
        if (
            (memory := self._memory) is not None
            and memory.last is not None
            and not self._tail
            and self._half is None
            and self._fast
            and (run := memory.last.lone(data)) is not None
        ):
            return [run]
        out: list[Item] = []
        if self._dead:
            return out
        if self._paused:
            self._rest += data
            return out
        try:
            self._take(data, out)
        except ProtocolError as error:
            out.append(error)
            self._dead = True
            self._drop()
        return out

    def resume(self) -> list[Item]:
        """Go on behind CONNECT, after the owner has set `version`; elsewhere the same as feeding nothing."""
        rest, self._rest = self._rest, b""
        self._paused = False
        return self.feed(rest)

    def _drop(self) -> None:
        self._tail = bytearray()
        self._half = None
        self._rest = b""
        self._memory = None
        self._acks = None

    def _take(self, data: bytes, out: list[Item]) -> None:
        pos = 0
        if self._half is not None:
            pos = self._more_body(self._half, data, out)
            if pos < 0:
                return
        elif self._tail:
            if len(data) < SMALL:
                if not self._gather(data):
                    return
                data = bytes(self._tail)
            else:
                data = b"".join((self._tail, data))
        self._line = 0
        pos = self._frames(data, pos, out)
        if self._paused:
            self._rest = data[pos:]
            self._tail = bytearray()
        elif self._half is not None or pos == len(data):
            self._tail = bytearray()
        else:
            self._tail = bytearray(memoryview(data)[pos:])
            if self._line >= 0:
                self._line = self._tail.rfind(b"\n") + 1

    def _gather(self, data: bytes) -> bool:
        """Add a small piece to the tail, and say whether there is anything new to find out.

        Only ends of lines, NULs, and a line or block at its limit are: so a byte at a time is linear.
        """
        tail = self._tail
        before = len(tail)
        tail += data
        if before <= COMMAND_BYTES or self._line < 0 or b"\n" in data or b"\0" in data:
            return True
        limits = self._limits
        block = limits.preauth_frame if self._handshake else limits.header_block
        return len(tail) - self._line > limits.header_line or len(tail) > block

    def _frames(self, buf: bytes, pos: int, out: list[Item]) -> int:
        """Take whole frames from `pos` on; returns where the first one that is not whole begins."""
        size = len(buf)
        follows = False
        while pos < size:
            first = buf[pos]
            if first in (LF, CR):
                end = self._eols_end(buf, pos)
                if end < size and follows:
                    self._gap = buf[pos : min(end, pos + 2)]
                if end == pos:  # a CR whose LF is still to come
                    break
                pos = end
                follows = False
                continue
            if follows:
                self._gap = b""
            follows = True
            end = pos
            if first == 0x53 and self._memory is not None and self._fast:  # S
                end = self._memory.run(buf, pos, self._gap, out)
                if self._memory.half is not None:
                    self._half, self._memory.half = self._memory.half, None
            elif first == 0x41 and self._acks is not None and self._fast:  # A
                end = self._acks.run(buf, pos, self._gap, out)
            if end == pos:
                end = self._frame(buf, pos, out)
                if end < 0:
                    break
            pos = end
            if self._paused:
                break
        return pos

    def _eols_end(self, buf: bytes, pos: int) -> int:
        """Behind the EOLs at `pos`: heart-beats, or line ends after a frame."""
        match = _EOLS.match(buf, pos)
        end = match.end() if match is not None else pos
        if buf.find(b"\r", pos, end) >= 0:
            if end == len(buf) and buf[end - 1] == CR:
                end -= 1
            if b"\r" in buf[pos:end].replace(b"\r\n", b""):
                raise BadFrame("between frames a CR must be followed by LF")
        if self._handshake and self._role is Role.SERVER:
            self._eols += buf.count(b"\n", pos, end)
            if self._eols > EOLS_BEFORE_CONNECT:
                raise NotStomp(f"expected CONNECT or STOMP after at most {EOLS_BEFORE_CONNECT} line ends")
        return end

    def _frame(self, buf: bytes, pos: int, out: list[Item]) -> int:
        """One frame by the general path; returns the place behind it, -1 where its headers are not all there.

        A frame whose body is not all there takes the whole buffer with it and goes on in `_half`.
        """
        limits = self._limits
        connecting = self._handshake and self._role is Role.SERVER
        if connecting and not check_opening(buf[pos : pos + COMMAND_BYTES]):
            return -1
        crlf = self._handshake or self.version is Version.V1_2
        lf = buf.find(b"\n", pos, pos + COMMAND_BYTES)
        command = self._command(buf[pos : lf if lf >= 0 else pos + COMMAND_BYTES], lf >= 0, crlf)
        if command is None:
            return -1
        block_limit = limits.header_block
        if connecting:
            block_limit = min(block_limit, limits.preauth_frame - (lf + 1 - pos) - 2)
        found = find_end(buf, lf, block_limit, crlf)
        if found is None:
            check_head(buf[lf + 1 : lf + block_limit + 3], limits, block_limit, crlf)
            return -1
        block_end, body = found
        raw = buf[lf + 1 : block_end]
        if (
            len(raw) >= min(limits.header_line, block_limit)
            or raw.count(b"\n") >= limits.headers
            or b"\0" in raw
        ):
            check_head(buf[lf + 1 : block_end + 1], limits, block_limit, crlf)
        plain = connecting or command == "CONNECTED"
        lines = parse_lines(raw, self.version, connecting=plain, crlf=crlf)
        headers = first_wins(lines)
        if self._role is Role.CLIENT:
            return self._from_server(buf, pos, body, Frame(command, headers), out)
        if command == "SEND":
            return self._send(buf, (pos, lf + 1, body), raw, lines, headers, out)
        frame = Frame(command, headers, b"", self._receipt(headers, plain))
        return self._bodiless(buf, (pos, lf + 1, body), lines, frame, out)

    def _command(self, line: bytes, whole: bool, crlf: bool) -> str | None:
        """The command of a line, None where more bytes are needed. Raises BadFrame, NotAllowedNow."""
        known = _COMMANDS[self._role]
        if whole:
            name = line.removesuffix(b"\r") if crlf else line
            command = known.get(name)
            if command is not None:
                return command
            text = name.decode("latin-1")
            if self._role is Role.SERVER and text in CONNECT_COMMANDS:
                if self._handshake:
                    return text
                raise NotAllowedNow(f"{text} is allowed once, as the first frame")
            if text in SERVER_COMMANDS + CLIENT_COMMANDS:
                raise BadFrame(f"{text} is a frame that only the other side sends")
            raise BadFrame(f"expected a STOMP command, got {shown(name)}")
        begun = (*known, *(name.encode() for name in SERVER_COMMANDS + CLIENT_COMMANDS + CONNECT_COMMANDS))
        end = b"\r" if crlf else b""
        if len(line) < COMMAND_BYTES and any((name + end).startswith(line) for name in begun):
            return None
        raise BadFrame(f"expected a STOMP command, got {shown(line)}")

    def _receipt(self, headers: dict[str, str], plain: bool) -> bytes | None:
        value = headers.get("receipt")
        if value is None:
            return None
        return (value if plain else escape(value, self.version)).encode()

    def _send(
        self, buf: bytes, places: _Places, raw: bytes, lines: Lines, headers: dict[str, str], out: list[Item]
    ) -> int:
        pos, _, body = places
        size = body_size(headers, self._limits)
        memory = self._memory
        if memory is None:
            memory = self._memory = Memory(self.version, self._limits, self._steering)
        block, own = memory.learn(raw, lines, len(headers) != len(lines[0]), size)
        half = Half(size, body - pos, block=block, receipt=self._receipt(headers, False), own=own)
        return self._body(buf, body, half, out)

    def _from_server(self, buf: bytes, pos: int, body: int, frame: Frame, out: list[Item]) -> int:
        half = Half(body_size(frame.headers, self._limits), body - pos, frame=frame)
        if self._handshake:
            self._handshake = False
            if frame.command == "CONNECTED":
                self.version = choose_version(frame.headers.get("version")) or Version.V1_0
        return self._body(buf, body, half, out)

    def _bodiless(self, buf: bytes, places: _Places, lines: Lines, frame: Frame, out: list[Item]) -> int:
        """A frame that may have no body: an empty line or two before the NUL is none, more is refused."""
        pos, block_at, body = places
        headers = frame.headers
        length = parse_content_length(headers["content-length"]) if "content-length" in headers else 0
        if self._handshake and length:
            raise BadFrame(f"{frame.command} must have no body, its content-length is {length}")
        if frame.command == "SUBSCRIBE" and self.version is Version.V1_0:
            return self._body(buf, body, Half(-1, body - pos, frame=frame, drop=True), out)
        match = _EMPTY_LINES.match(buf, body)
        end = match.end() if match is not None else body
        if buf[end : end + 1] != b"\0":
            if end == len(buf) or (buf[end:] == b"\r" and buf.count(b"\n", body, end) < 2):
                self._line = -1
                return -1
            raise BadFrame(f"{frame.command} has no body: expected NUL, got {shown(buf[end : end + 16])}")
        end += 1
        if self._handshake:
            if end - pos > self._limits.preauth_frame:
                raise HeaderTooLong(f"{frame.command} has more than limits.preauth_frame = "
                                    f"{self._limits.preauth_frame} bytes")  # fmt: skip
            self._handshake = False
            self._paused = True
        if frame.command != "ACK" or not self._ack(buf[pos:end], block_at - pos, lines[0], headers, out):
            out.append(frame)
        return end

    def _ack(
        self, raw: bytes, block_at: int, names: tuple[str, ...], headers: dict[str, str], out: list[Item]
    ) -> bool:
        """An ACK that says nothing but which message; False for any other."""
        ids = [name for name in ID_NAMES if name in headers]
        if len(ids) != 1 or "receipt" in headers or "transaction" in headers:
            return False
        repeats = len(headers) != len(names)
        value = headers.pop(ids[0])
        emit_acks(out, [value.encode()], headers)
        if not repeats:
            if self._acks is None:
                self._acks = AckMemory(self.version, self._limits)
            self._acks.learn(raw, block_at, names, headers)
        return True

    def _body(self, buf: bytes, body: int, half: Half, out: list[Item]) -> int:
        """The body at `body`, as far as it is there."""
        if half.size >= 0:
            end = body + half.size
            if end < len(buf):
                if buf[end]:
                    raise _no_nul(half.size, buf[end])
                half.finish(buf[body:end], out)
                return end + 1
        else:
            end = buf.find(b"\0", body, body + self._limits.body + 1)
            if end >= 0:
                half.finish(buf[body:end], out)
                return end + 1
            self._check_open_body(len(buf) - body)
        half.keep(buf[body:])
        self._half = half
        return len(buf)

    def _more_body(self, half: Half, data: bytes, out: list[Item]) -> int:
        """Go on with a body; returns the place behind its NUL, -1 where it is not complete."""
        if half.size >= 0:
            end = half.size - half.got
            if end >= len(data):
                half.keep(data)
                return -1
            if data[end]:
                raise _no_nul(half.size, data[end])
        else:
            end = data.find(b"\0", 0, self._limits.body - half.got + 1)
            if end < 0:
                self._check_open_body(half.got + len(data))
                half.keep(data)
                return -1
        self._half = None
        half.finish(data[:end], out)
        return end + 1

    def _check_open_body(self, size: int) -> None:
        if size > self._limits.body:
            raise BodyTooLong(f"no NUL within the {self._limits.body} bytes that limits.body allows")


def _no_nul(size: int, octet: int) -> BadFrame:
    return BadFrame(f"expected NUL behind the {size} bytes of the body, got {octet:#04x}")
