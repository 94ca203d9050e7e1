"""The fast path for SENDs: frames that look like one before them, but for a few values.

A shape is the bytes of a frame's header with holes in it. It is made from a frame that the general path has
parsed and checked, so its constant bytes need no second look; only what fills the holes does, once for a
whole run. On any doubt the shape stops in front of the frame in question and the general path decides.
"""

from __future__ import annotations

import re
from typing import Final

from broker.errors import BadEscape
from broker.stomp.escapes import escape, unescape
from broker.stomp.frames import Block, SendRun, Version
from broker.stomp.half import RUN_MESSAGES, Half, Item, emit_sends
from broker.stomp.headers import parse_content_length
from broker.stomp.limits import WireLimits

HOLE_BYTES: Final = 256  # a longer value goes the general way
SIZES: Final = 1024  # content-lengths remembered for a shape
# What needs no look in any version: printable ASCII but backslash and colon. A space is trimmed in 1.0.
SAFE: Final = bytes(octet for octet in range(0x20, 0x7F) if octet not in b"\\:")
SAFE_IN_1_0: Final = SAFE.replace(b" ", b"")

Hole = tuple[int, str, str]  # line, name, and "receipt", "size" or "own"


# Values with an LF between any two, none of them doubtful but perhaps for its UTF-8. No escape reaches across
# two values, because a backslash before LF is none.
_SOUND_RUN: Final = {
    Version.V1_0: re.compile(rb"[^\\\r\0 ]*"),
    Version.V1_1: re.compile(rb"[^\\\r\0]*(?:\\[nc\\][^\\\r\0]*)*"),
    Version.V1_2: re.compile(rb"[^\\\r\0]*(?:\\[nrc\\][^\\\r\0]*)*"),
}


def is_sound(value: bytes, version: Version) -> bool:
    """Whether a raw value means itself but for its colons; False also where only a closer look can tell."""
    if b"\n" in value or b"\r" in value or b"\0" in value:
        return False
    if version is Version.V1_0 and (b"\\" in value or b" " in value):
        return False
    try:
        unescape(value.decode(), version)
    except (UnicodeDecodeError, BadEscape):
        return False
    return True


class Shape:
    """What SENDs of one kind look like.

    Frames are taken in batches: small ones after a doubt, so that frames which are looked at here and then
    left to the general path are never many (the work stays linear), growing again while all goes well.

    lead:  the bytes before the first hole.
    after: the shape that last followed this one.
    half:  the frame at the end of the buffer, where its headers are there and its body is not.
    """

    __slots__ = (
        "_batch", "_body_limit", "_eol", "_gap", "_holes", "_own_at", "_own_form", "_receipt_at", "_safe",
        "_size", "_size_at", "_sizes", "_tail", "_version", "_window", "after", "block", "half", "lead",
    )  # fmt: skip

    def __init__(
        self,
        version: Version,
        limits: WireLimits,
        block: Block,
        lines: list[bytes],
        holes: list[Hole],
        eol: bytes,
        size: int,
    ) -> None:
        """`lines`: the raw header lines without line ends; `holes`: in frame order.

        `size`: the content-length where it is no hole, -1 where there is none.
        """
        self.block = block
        self.after: Shape | None = None
        self.half: Half | None = None
        self._version = version
        self._safe = SAFE_IN_1_0 if version is Version.V1_0 else SAFE
        self._body_limit = limits.body
        self._batch = 4
        self._eol = eol
        self._size = size
        self._sizes: dict[bytes, int] = {}
        segments, longest = _segments(lines, {line for line, _, _ in holes}, eol)
        self.lead = segments[0]
        self._holes = tuple((segment, len(segment)) for segment in segments[1:])
        # No value that is found within the window can break a limit, so none is measured in the loops.
        room = (limits.header_block - sum(map(len, segments))) // len(holes) if holes else 0
        self._window = min(HOLE_BYTES, limits.header_line - longest, room) + len(eol)
        kinds = [kind for _, _, kind in holes]
        self._receipt_at = kinds.index("receipt") if "receipt" in kinds else -1
        self._size_at = kinds.index("size") if "size" in kinds else -1
        self._own_at = tuple(index for index, kind in enumerate(kinds) if kind == "own")
        names = [escape(name, Version.V1_2).encode() for _, name, kind in holes if kind == "own"]
        self._own_form = b"".join(name.replace(b"%", b"%%") + b":%b\n" for name in names)
        self._gap = b""
        self._tail = b"\0" + self.lead

    @property
    def has_room(self) -> bool:
        """Whether a value of some use fits into a hole without breaking a limit."""
        return not self._holes or self._window >= 8

    def run(self, buf: bytes, pos: int, gap: bytes, out: list[Item]) -> int:
        """Take frames from `pos` on, where `lead` was found; `gap`: the EOLs this sender puts between two.

        Returns the place behind the last one taken (the buffer's end where `half` has the last), else `pos`.
        """
        if gap != self._gap:
            self._gap = gap
            self._tail = b"\0" + gap + self.lead
        values: list[bytes] = []
        bodies: list[bytes] = []
        if len(self._holes) == 1 and self._size >= 0:
            end = self._take_plain(buf, pos, values, bodies)
        else:
            end = self._take(buf, pos, values, bodies)
        taken = len(bodies)
        if not taken:
            return end
        colons = False
        if values:
            joined = b"".join(values)
            if joined.translate(None, self._safe):
                good = self._sound_frames(values, taken)
                if good < taken:
                    end = self._place_of(good, pos, values, bodies)
                    self.half = None
                    self._batch = 1
                    if not good:
                        return pos
                    del values[good * len(self._holes) :], bodies[good:]
                colons = b":" in joined
        if len(bodies) == taken and self._batch < RUN_MESSAGES:
            self._batch = min(4 * self._batch, RUN_MESSAGES)
        receipts, owns = self._values(values, colons)
        emit_sends(out, self.block, receipts, owns, bodies)
        return end

    def lone(self, buf: bytes) -> SendRun | None:
        """The run of one that `buf` is, where it is one frame of this shape and nothing else; None on any doubt.

        A producer that waits for each receipt sends its frames one by one: they need no loop and no look ahead.
        """
        if not buf.startswith(self.lead):
            return None
        p = len(self.lead)
        values: list[bytes] = []
        for segment, width in self._holes:
            hole = buf.find(self._eol, p, p + self._window)
            if not buf.startswith(segment, hole):
                return None
            values.append(buf[p:hole])
            p = hole + width
        size = self._size if self._size_at < 0 else self._sizes.get(values[self._size_at], -1)
        end = p + size
        if size < 0 or end + 1 != len(buf) or buf[end] or b"".join(values).translate(None, self._safe):
            return None
        receipts, owns = self._values(values, False)
        return SendRun(self.block, receipts, owns, [buf[p:end]])

    def _take_plain(self, buf: bytes, pos: int, values: list[bytes], bodies: list[bytes]) -> int:
        """The tight loop for one hole and bodies of one size. `p` is always behind a lead that was found."""
        find, starts = buf.find, buf.startswith
        add_value, add_body = values.append, bodies.append
        ((segment, width),) = self._holes
        eol, window, size, tail = self._eol, self._window, self._size, self._tail
        step, lead = len(tail), len(self.lead)
        p = pos + lead
        for _ in range(self._batch):
            hole = find(eol, p, p + window)
            # Where there is no EOL this looks at the last byte (-1), which no segment fits into.
            if not starts(segment, hole):
                break
            body = hole + width
            end = body + size
            if starts(tail, end):  # the NUL, and the next frame begins as this one did
                add_value(buf[p:hole])
                add_body(buf[body:end])
                p = end + step
                continue
            if end >= len(buf):
                if self._cut(buf, p - lead, body, [buf[p:hole]], size):
                    return len(buf)
            elif not buf[end]:
                add_value(buf[p:hole])
                add_body(buf[body:end])
                return end + 1
            break
        return p - lead

    def _take(self, buf: bytes, pos: int, values: list[bytes], bodies: list[bytes]) -> int:
        """The same for any number of holes, and for bodies of each its own size or up to the first NUL."""
        find, starts = buf.find, buf.startswith
        add_value, add_body = values.append, bodies.append
        holes, eol, window, size, sizes = self._holes, self._eol, self._window, self._size, self._sizes
        size_at, stride = self._size_at - len(holes), len(holes)
        until_nul = size < 0 and self._size_at < 0
        tail, step, lead = self._tail, len(self._tail), len(self.lead)
        p = pos + lead
        start = pos
        length = size
        for _ in range(self._batch):
            for segment, width in holes:
                hole = find(eol, p, p + window)
                if not starts(segment, hole):
                    break
                add_value(buf[p:hole])
                p = hole + width
            else:
                if until_nul:
                    end = find(b"\0", p, p + self._body_limit + 1)
                    if end < 0:
                        end = len(buf)
                        if end - p > self._body_limit:
                            break
                else:
                    if size < 0:
                        length = sizes.get(values[size_at], -1)
                        if length < 0:
                            length = self._new_size(values[size_at])
                            if length < 0:
                                break
                    end = p + length
                if starts(tail, end):
                    add_body(buf[p:end])
                    p = end + step
                    start = p - lead
                    continue
                if end >= len(buf):
                    if self._cut(buf, start, p, values[len(bodies) * stride :], length):
                        start = len(buf)
                elif not buf[end]:
                    add_body(buf[p:end])
                    start = end + 1
            break
        del values[len(bodies) * stride :]
        return start

    def _cut(self, buf: bytes, start: int, body: int, values: list[bytes], size: int) -> bool:
        """Keep a frame whose body is not all there in `half`; False where its values need a closer look."""
        if b"".join(values).translate(None, self._safe):
            return False
        receipts, owns = self._values(values, False)
        receipt = receipts[0] if receipts is not None else None
        own = owns[0] if owns is not None else None
        self.half = Half(size, body - start, block=self.block, receipt=receipt, own=own)
        self.half.keep(buf[body:])
        return True

    def _new_size(self, value: bytes) -> int:
        """A content-length not seen before, -1 where the general path has to refuse it."""
        if not 0 < len(value) <= 10 or value.translate(None, b"0123456789"):
            return -1
        size = parse_content_length(value.decode())
        if size > self._body_limit:
            return -1
        if len(self._sizes) >= SIZES:
            self._sizes.clear()
        self._sizes[value] = size
        return size

    def _sound_frames(self, values: list[bytes], frames: int) -> int:
        """How many frames from the first on have sound values only."""
        joined = b"\n".join(values)
        if joined.count(b"\n") == len(values) - 1 and _SOUND_RUN[self._version].fullmatch(joined):
            try:
                joined.decode()
            except UnicodeDecodeError:
                pass
            else:
                return frames
        for index, value in enumerate(values):
            if value.translate(None, self._safe) and not is_sound(value, self._version):
                return index // len(self._holes)
        return frames

    def _place_of(self, frame: int, pos: int, values: list[bytes], bodies: list[bytes]) -> int:
        """Where in the buffer frame number `frame` of this batch begins."""
        fixed = len(self.lead) + sum(width for _, width in self._holes) + 1 + len(self._gap)
        filled = sum(map(len, values[: frame * len(self._holes)]))
        return pos + frame * fixed + filled + sum(map(len, bodies[:frame]))

    def _values(self, values: list[bytes], colons: bool) -> tuple[list[bytes] | None, list[bytes] | None]:
        """Receipts and own lines of whole frames. `colons`: there are raw ones, which 1.2 escapes."""
        stride = len(self._holes)
        canonical = b"\n".join(values).replace(b":", b"\\c").split(b"\n") if colons else values
        receipts: list[bytes] | None = None
        if self._receipt_at >= 0:
            source = values if self._version is Version.V1_0 else canonical  # 1.0 writes colons as they are
            receipts = source if stride == 1 else source[self._receipt_at :: stride]
        owns: list[bytes] | None = None
        form = self._own_form
        if len(self._own_at) == 1:
            owns = [form % value for value in canonical[self._own_at[0] :: stride]]
        elif self._own_at:
            owns = [form % own for own in zip(*(canonical[at::stride] for at in self._own_at), strict=True)]
        return receipts, owns


def _segments(lines: list[bytes], holes: set[int], eol: bytes) -> tuple[list[bytes], int]:
    """The constant bytes of a frame's header around its holes, and the longest name that has one."""
    segments = [b"SEND" + eol]
    longest = 0
    for number, line in enumerate(lines):
        if number in holes:
            prefix = line[: line.index(b":") + 1]
            longest = max(longest, len(prefix))
            segments[-1] += prefix
            segments.append(eol)
        else:
            segments[-1] += line + eol
    segments[-1] += eol
    return segments, longest
