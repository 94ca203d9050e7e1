"""What the journal hands to the writer: steps in the order in which they must reach the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from broker.journal.segment import Segment, SegmentHeader


class StorageSettings(Protocol):
    """The part of the configuration that the journal reads."""

    @property
    def fsync(self) -> str:
        """ "always", "interval" or "never"."""

    @property
    def interval(self) -> float:
        """Seconds between syncs where fsync is "interval"."""

    @property
    def segment_size(self) -> int:
        """Bytes of a segment, its header included."""


@dataclass(slots=True)
class Append:
    """Put `buffers` into `segment` from `offset` on; `size` bytes in all."""

    segment: Segment
    offset: int
    buffers: list[bytes]
    size: int = 0

    @property
    def past_half(self) -> bool:
        """Whether the segment is more than half full behind it."""
        return 2 * (self.offset + self.size) > self.segment.size


@dataclass(slots=True)
class Roll:
    """`segment` takes over, with `header`. `old`, None at a start, is synced before the new file gets its
    name. The size in the header is what the writer is to allocate if there is room.
    """

    old: Segment | None
    segment: Segment
    header: SegmentHeader


class Batch:
    """Records that become durable together.

    first_lsn, last_lsn: what is in it. end: the place behind it. sync: whether it ends with a sync. synced_lsn:
    highest LSN that is on the medium when the batch is done. unlink: segments to remove after the sync, oldest
    first. prepare: (path, bytes) of a segment to make ready for the next roll, or None. What the writer has to
    tell: no_room: the disk was full somewhere, whatever became of it. shrunk: segments that got fewer bytes
    than they were to have, and how many.
    """

    __slots__ = (
        "end",
        "first_lsn",
        "last_lsn",
        "must_sync",
        "no_room",
        "prepare",
        "shrunk",
        "size",
        "steps",
        "sync",
        "synced_lsn",
        "unlink",
    )

    def __init__(self, first_lsn: int) -> None:
        self.steps: list[Append | Roll] = []
        self.end = 0
        self.first_lsn = first_lsn
        self.last_lsn = first_lsn - 1
        self.size = 0
        self.must_sync = False
        self.sync = False
        self.synced_lsn = 0
        self.unlink: list[Segment] = []
        self.prepare: tuple[str, int] | None = None
        self.no_room = False
        self.shrunk: list[tuple[Segment, int]] = []

    def need(self, segment: Segment) -> int:
        """Bytes that a segment must have to take what this batch appends to it; 0 for nothing."""
        ends = [s.offset + s.size for s in self.steps if isinstance(s, Append) and s.segment is segment]
        return max(ends, default=0)
