"""RECEIPTs: what they look like, and the line in which they wait for the journal."""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.stomp import Frame, SendRun

_START: Final = b"RECEIPT\nreceipt-id:"
_END: Final = b"\n\n\0\n"
_DROPPED_END: Final = b"\ndropped:true" + _END
_BETWEEN: Final = _END + _START


def receipt(id: bytes) -> bytes:
    """A RECEIPT frame. `id` is escaped for the connection's version already."""
    return _START + id + _END


def receipts(ids: list[bytes], *, dropped: bool) -> bytes:
    """One RECEIPT for each; `dropped`: they say that there was nobody left to send to."""
    if dropped:
        return b"".join([_START + id + _DROPPED_END for id in ids])
    return _START + _BETWEEN.join(ids) + _END


class Waiting:
    """The FIFO of one connection: each entry leaves when the journal is synced up to its LSN, and never before another.

    An entry is bytes to write, and whether the connection is to be closed behind them.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: deque[tuple[int, bytes, bool]] = deque()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, lsn: int, data: bytes, close: bool) -> None:
        self._entries.append((lsn, data, close))

    def take(self, durable: int, out: list[bytes]) -> bool:
        """Move to `out` what waits for no more than `durable`; returns whether to close behind it."""
        entries = self._entries
        closing = False
        while entries and entries[0][0] <= durable:
            _, data, close = entries.popleft()
            out.append(data)
            closing = closing or close
        return closing

    def clear(self) -> bytes | None:
        """Nothing of it will ever be true. Returns the id of the first receipt that will not come, None for none."""
        first = None
        for _, data, _ in self._entries:
            if data.startswith(_START):
                first = data[len(_START) :].partition(b"\n")[0]
                break
        self._entries.clear()
        return first


def asked_for(item: object) -> bytes | None:
    """The receipt that a frame, or the first of a run, asked for."""
    if isinstance(item, SendRun):
        return item.receipts[0] if item.receipts else None
    return item.receipt if isinstance(item, Frame) else None
