"""The fast path for ACKs: split at the bytes between two ids, which are the same as last time."""

from __future__ import annotations

from typing import Final

from broker.stomp.frames import AckRun, Version
from broker.stomp.half import Item
from broker.stomp.limits import WireLimits
from broker.stomp.shape import SAFE, SAFE_IN_1_0

ID_BYTES: Final = 256  # a longer id goes the general way
WINDOW_LEAST: Final = 64  # after a doubt: what is looked at here and left to the general path stays little
WINDOW_MOST: Final = 8192
SHAPES: Final = 8
SHAPE_BYTES: Final = 1024
ID_NAMES: Final = ("id", "ack", "message-id")


def emit_acks(out: list[Item], ids: list[bytes], headers: dict[str, str]) -> None:
    """Append to the run before where its headers are the same, else as a new run."""
    last = out[-1] if out else None
    if type(last) is AckRun and last.headers == headers:
        last.ids += ids
    else:
        out.append(AckRun(ids, headers))


class AckShape:
    """An ACK's bytes before (`lead`) and behind its id, NUL included."""

    __slots__ = ("_gap", "_headers", "_most", "_safe", "_sep", "_tail", "_window", "lead")

    def __init__(
        self, version: Version, lead: bytes, tail: bytes, most: int, headers: dict[str, str]
    ) -> None:
        """`most`: bytes of an id at most; what is longer goes the general way."""
        self.lead = lead
        self._tail = tail
        self._most = most
        self._headers = headers
        self._safe = SAFE_IN_1_0 if version is Version.V1_0 else SAFE
        self._window = WINDOW_LEAST
        self._gap = b""
        self._sep = tail + lead

    def has_tail(self, tail: bytes) -> bool:
        return tail == self._tail

    def run(self, buf: bytes, pos: int, gap: bytes, out: list[Item]) -> int:
        """Take ACKs from `pos` on, where `lead` was found; `gap`: the EOLs that this sender puts between two.

        Returns the place behind the last one taken, else `pos`.
        """
        if gap != self._gap:
            self._gap = gap
            self._sep = self._tail + gap + self.lead
        lead, sep, tail = len(self.lead), self._sep, self._tail
        p = pos + lead
        ids: list[bytes] = []
        # First at the next frame only: ACK, SEND, ACK, SEND must not look through a window for each ACK.
        end = buf.find(tail, p, p + self._most + len(tail))
        while end >= 0 and buf.startswith(sep, end):
            piece = buf[p : p + self._window]
            parts = piece.split(sep)
            rest = parts.pop()
            if not parts:  # the window ends before the first separator does: a long id
                break
            good = self._sound(parts)
            if good < len(parts):
                self._window = WINDOW_LEAST
                ids += parts[:good]
                p += sum(map(len, parts[:good])) + good * len(sep)
                end = -1
                break
            ids += parts
            p += len(piece) - len(rest)
            self._window = min(2 * self._window, WINDOW_MOST)
            end = buf.find(tail, p, p + self._most + len(tail))
        # The last of a run: its end is there, and something else follows.
        if end >= 0 and self._sound([buf[p:end]]):
            ids.append(buf[p:end])
            p = end + len(tail) + lead
        if not ids:
            return pos
        emit_acks(out, ids, self._headers)
        return p - lead

    def _sound(self, ids: list[bytes]) -> int:
        """How many ids from the first on need no closer look."""
        safe, most = self._safe, self._most
        if not b"".join(ids).translate(None, safe) and max(map(len, ids)) <= most:
            return len(ids)
        for index, value in enumerate(ids):
            if len(value) > most or value.translate(None, safe):
                return index
        return len(ids)


class AckMemory:
    """Remembers the last few kinds of ACK of one connection."""

    __slots__ = ("_limits", "_shapes", "_version")

    def __init__(self, version: Version, limits: WireLimits) -> None:
        self._version = version
        self._limits = limits
        self._shapes: list[AckShape] = []

    def run(self, buf: bytes, pos: int, gap: bytes, out: list[Item]) -> int:
        """Take ACKs from `pos` on that look like earlier ones.

        Returns the place behind the last one taken, `pos` where none looks so.
        """
        for shape in self._shapes:
            if buf.startswith(shape.lead, pos):
                end = shape.run(buf, pos, gap, out)
                if end > pos:
                    return end
        return pos

    def learn(self, frame: bytes, block_at: int, names: tuple[str, ...], headers: dict[str, str]) -> None:
        """Remember an ACK. `frame`: its bytes with the NUL; its header lines begin at `block_at`."""
        if len(frame) > SHAPE_BYTES:
            return
        at = next(number for number, name in enumerate(names) if name in ID_NAMES)
        start = block_at
        for _ in range(at):
            start = frame.index(b"\n", start) + 1
        start = frame.index(b":", start) + 1
        end = frame.index(b"\n", start)
        if self._version is Version.V1_2 and frame[end - 1 : end] == b"\r":
            end -= 1
        lead, tail = frame[:start], frame[end:]
        most = min(ID_BYTES, self._limits.header_line - (start - frame.rfind(b"\n", 0, start)))
        if most < 8 or len(lead) + len(tail) + most > self._limits.header_block:
            return
        for shape in self._shapes:
            if shape.lead == lead and shape.has_tail(tail):
                return
        self._shapes.insert(0, AckShape(self._version, lead, tail, most, headers))
        del self._shapes[SHAPES:]
