"""Which messages wait in which queue, as the records say: for the tools that work on a log without a broker.

The broker's own replay does the same for its own ends, with positions packed for many millions of messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from struct import Struct
from typing import Final

from broker.journal.checkpoint import Part
from broker.journal.records import (
    RUN_MAX,
    Acked,
    Carried,
    CarriedRun,
    Delivered,
    Lost,
    Messages,
    Moved,
    Returned,
    Run,
    Value,
)

_POSITION: Final = Struct("<QQQQ")
_SEQ_MAX: Final = (1 << 64) - 1


class Line:
    """A queue: place of the record of each message by seq, and what is more to be known of some of them.

    counts: (deliveries, failures). notes: place of the record that holds a dead letter's note. mark: no message above
    it was ever delivered.
    """

    __slots__ = ("counts", "mark", "notes", "places")

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        self.counts: dict[int, tuple[int, int]] = {}
        self.notes: dict[int, int] = {}
        self.mark = 0

    def drop(self, seq: int) -> int | None:
        """Its place; None where it did not wait here."""
        self.counts.pop(seq, None)
        self.notes.pop(seq, None)
        return self.places.pop(seq, None)

    def within(self, first: int, last: int) -> list[int]:
        """The seqs from `first` to `last` that wait here."""
        if last - first < 2 * len(self.places):
            return [seq for seq in range(first, last + 1) if seq in self.places]
        return [seq for seq in self.places if first <= seq <= last]


class Waiting:
    """Feed it a checkpoint's parts, then all values in order.

    orphans: (queue, seq) that a record moved there, and of which nothing was known: its MESSAGES record is gone.
    next_seq: above all that were seen.
    """

    def __init__(self, first: int = 0, last: int = _SEQ_MAX) -> None:
        """Only messages with a seq from `first` to `last` are looked at."""
        self._first = first
        self._last = last
        self.lines: dict[bytes, Line] = {}
        self.orphans: dict[tuple[bytes, int], None] = {}
        self.next_seq = 1

    def fresh(self) -> Waiting:
        """An empty one that looks at the same seqs."""
        return Waiting(self._first, self._last)

    def line(self, queue: bytes) -> Line:
        line = self.lines.get(queue)
        if line is None:
            line = self.lines[queue] = Line()
        return line

    def take_part(self, part: Part) -> None:
        line = self.line(part.queue)
        line.mark = part.mark
        for first, place, mask, _ in _POSITION.iter_unpack(part.fresh):
            for bit in range(mask.bit_length()):
                if mask >> bit & 1:
                    self._set(line, first + bit, place, 0, 0, 0)
        for seq, place, note, counts in _POSITION.iter_unpack(part.counted):
            self._set(line, seq, place, note, counts & 0xFFFF, counts >> 16 & 0xFF)

    def apply(self, value: Value, place: int) -> None:
        """place: of the record that the value is in."""
        if isinstance(value, Run | Messages):
            count = len(value.sizes if isinstance(value, Run) else value.bodies)
            self._arrived(value.queues or (value.destination,), value.first_seq, count, place)
        elif isinstance(value, CarriedRun | Carried):
            line = self.line(value.queue)
            for seq, deliveries, failures in value.entries:
                self._set(line, seq, place, place if value.note else 0, deliveries, failures)
        elif isinstance(value, Acked | Lost):
            line = self.line(value.queue)
            for first, last in value.seqs:
                for seq in line.within(*self._cut(first, last)):
                    line.drop(seq)
                if self.orphans:
                    self._bury(value.queue, first, last)
        elif isinstance(value, Returned):
            line = self.line(value.queue)
            for first, last, deliveries, failures in value.entries:
                for seq in line.within(*self._cut(first, last)):
                    line.counts[seq] = deliveries, failures
        elif isinstance(value, Delivered):
            self.line(value.queue).mark = value.seq
        else:
            self._moved(value, place)

    def _cut(self, first: int, last: int) -> tuple[int, int]:
        return max(first, self._first), min(last, self._last)

    def _arrived(self, queues: Iterable[bytes], seq: int, count: int, place: int) -> None:
        self.next_seq = max(self.next_seq, seq + count)
        first, last = self._cut(seq, seq + count - 1)
        for name in queues:
            line = self.line(name)
            line.places.update(zip(range(first, last + 1), repeat(place), strict=False))

    def _set(self, line: Line, seq: int, place: int, note: int, deliveries: int, failures: int) -> None:
        """Whatever was known of it is replaced."""
        self.next_seq = max(self.next_seq, seq + 1)
        if not self._first <= seq <= self._last:
            return
        line.drop(seq)
        line.places[seq] = place
        if note:
            line.notes[seq] = note
        if deliveries or failures:
            line.counts[seq] = deliveries, failures

    def _moved(self, value: Moved, place: int) -> None:
        source, target = self.line(value.source), self.line(value.target)
        for first, last, deliveries, failures in value.entries:
            first, last = self._cut(first, last)
            known = source.within(first, last)
            for seq in known:
                body = source.drop(seq)
                self._set(target, seq, body or 0, place, deliveries, failures)
            if len(known) <= last - first < RUN_MAX:
                for seq in set(range(first, last + 1)).difference(known):
                    self.orphans[value.target, seq] = None
                    self.orphans.pop((value.source, seq), None)

    def _bury(self, queue: bytes, first: int, last: int) -> None:
        for key in [key for key in self.orphans if key[0] == queue and first <= key[1] <= last]:
            del self.orphans[key]
