"""Space comes back: what is still wanted of the oldest segment is copied forward, so that the segment can go.

Segments are only ever removed from the old end of the log, so one old message would keep everything behind it.
A copy (CARRIED) has all of a message's state; to decide that a message is wanted, to append its copy and to change its
place is one step of the loop, so nothing can settle it in between (reliability.md 2.6).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from broker.core.catalogue import Catalogue
from broker.core.counters import Counters
from broker.core.entries import Entry, pack_counts, runs_of
from broker.core.jobs import Read
from broker.core.ledger import Ledger
from broker.core.message import Envelope, Message
from broker.core.queue import Queue
from broker.core.restoring import Restorer, Values
from broker.errors import DataDamaged
from broker.journal import Damage, Record, RecordType, Segment, carried_payload
from broker.system import Clock

LOOK_EVERY: Final = 0.5  # s
LIVE_SHARE: Final = 0.3  # of a segment; with less of it wanted it is copied forward
MESSAGE_BYTES: Final = 100  # what a message takes in the log beside its body and own lines, roughly
PORTION_BYTES: Final = 1 << 20  # copied in one turn
PORTION_MESSAGES: Final = 1024
QUEUES_A_TURN: Final = 200
RECORDS_BYTES: Final = 4 << 20  # read for that, of records of which little may be left
RECORD_MESSAGES: Final = 64
ALLOWANCE_MAX: Final = 16 << 20


class Compaction:
    """Owns the copying of the oldest segment. One read is under way at most.

    rate: bytes/s that may be copied while little else is written; beside that a third of what else is written.
    urgent: the disk is nearly full: it goes on at any rate.
    """

    def __init__(
        self,
        ledger: Ledger,
        catalogue: Catalogue,
        clock: Clock,
        counters: Counters,
        restorer: Restorer,
        rate: int,
        segment_size: int,
    ) -> None:
        self._ledger = ledger
        self._journal = ledger.journal
        self._catalogue = catalogue
        self._clock = clock
        self._counters = counters
        self._restorer = restorer
        self._rate = rate
        self._segment_size = segment_size
        self.urgent = False
        self._segment: Segment | None = None  # the one whose messages are being copied
        self._queues: Iterator[Queue] = iter(())
        self._queue: Queue | None = None
        self._reading = False
        self._allowance = float(min(rate, ALLOWANCE_MAX))
        self._seen = (clock.monotonic(), 0)  # when the allowance was last reckoned, and the bytes written until then
        self._look_at = 0.0
        self._looked_lsn = 0
        self._stuck: set[int] = set()  # segments with a damaged message: they stay

    @property
    def due(self) -> float:
        """When `jobs` is to be called next even if nothing happens; 0 for never."""
        if self._reading:
            return 0.0
        if self._segment is not None:
            now = self._clock.monotonic()
            return now if self._allowance > 0 or self.urgent else now + max(-self._allowance / self._rate, 0.01)
        return self._look_at if self._looked_lsn != self._journal.lsn else 0.0

    def jobs(self) -> list[Read]:
        """The next portion to be read. Raises StorageFailed."""
        if self._reading:
            return []
        if self._segment is None:
            self._choose()
            if self._segment is None:
                return []
        self._reckon()
        if self._allowance <= 0 and not self.urgent:
            return []
        return self._next(self._segment)

    def _reckon(self) -> None:
        now, written = self._clock.monotonic(), self._journal.written
        then, before = self._seen
        self._seen = (now, written)
        self._allowance = min(ALLOWANCE_MAX, self._allowance + (now - then) * self._rate + (written - before) / 3)

    def _choose(self) -> None:
        """The oldest segment, if little of it is wanted, or little of the whole log."""
        now, journal = self._clock.monotonic(), self._journal
        if now < self._look_at or self._looked_lsn == journal.lsn:
            return
        self._look_at = now + LOOK_EVERY
        self._looked_lsn = journal.lsn
        oldest = journal.segments[0]
        if not oldest.live or oldest is journal.segment or oldest.last_lsn > journal.synced:
            return
        if oldest.number in self._stuck:
            return
        if _live(oldest) >= LIVE_SHARE * oldest.end:  # also when urgent: a copy takes room before it gives some
            size = sum(segment.end for segment in journal.segments)
            live = sum(_live(segment) for segment in journal.segments)
            if size <= 2 * live + 2 * self._segment_size:
                return
        self._segment = oldest
        self._queues = iter(list(self._catalogue.by_name.values()))
        self._queue = None

    def _next(self, segment: Segment) -> list[Read]:
        """Looks for messages of the segment, queue by queue, a turn's worth of them."""
        for _ in range(QUEUES_A_TURN):
            if self._queue is None:
                self._queue = next(self._queues, None)
                if self._queue is None or not segment.live:
                    self._segment = None  # if anything is left, e.g. it was being read, the next look finds it
                    self._looked_lsn = 0
                    return []
            if not self._queue.gone and (places := self._wanted(self._queue, segment.number)):
                for each in places:
                    self._journal.by_number[each >> 32].readers += 1
                self._reading = True
                return [Read(self._queue, places, RECORDS_BYTES, copying=True)]
            self._queue = None
        return []

    def _wanted(self, queue: Queue, number: int) -> list[int]:
        """Places of records in the segment, some portion of those that hold messages of the queue; and of their notes,
        each behind the first message that has it, for the read may end early.
        """
        found: dict[tuple[int, int], None] = {}
        size = 0
        for place, note, weight in self._lying(queue, number << 32, (number + 1) << 32):
            found[place, note] = None
            size += weight
            if size >= PORTION_BYTES or len(found) >= PORTION_MESSAGES:
                break
        places: dict[int, None] = {}
        for place, note in sorted(found):
            places[place] = None
            if note:
                places[note] = None
        return list(places)

    @staticmethod
    def _lying(queue: Queue, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """(place, note, bytes) of the queue's messages that lie from `low` up to `high`."""
        for _, place, _, size in queue.stored.within(low, high, PORTION_MESSAGES):
            yield place, 0, size
        for _, place, note, counts in queue.counted.within(low, high, PORTION_MESSAGES):
            yield place, note, counts >> 32
        for message in queue.in_memory():
            if low <= message.place < high and message.deliveries >= 0:
                yield message.place, message.envelope.note, message.size

    # --- copying ------------------------------------------------------------------------------------------------------

    def read(self, job: Read, results: Sequence[Record | Damage]) -> tuple[Queue, str] | None:
        """What was asked for is there: copy what is wanted of it now. Returns a queue that is damaged, and why.

        Raises StorageFailed.
        """
        self._reading = False
        for place in job.places:
            self._journal.by_number[place >> 32].readers -= 1
        segment, queue = self._segment, job.queue
        if segment is None or queue.gone:
            return None
        found: dict[int, Values] = {}
        for result in results:
            if isinstance(result, Record):
                found[result.place] = result.values
            else:
                self._segment = None  # the next look tries again
                self._looked_lsn = 0
                if result.passing:
                    return None
                self._stuck.add(segment.number)
                return queue, result.text
        try:
            self._copy(queue, segment.number, found)
        except DataDamaged as error:
            self._stuck.add(segment.number)
            self._segment = None
            return queue, str(error)
        return None

    def _copy(self, queue: Queue, number: int, found: dict[int, Values]) -> None:
        low, high = number << 32, (number + 1) << 32
        for entry in queue.stored.within(low, high, PORTION_MESSAGES):
            if entry[1] in found:
                self._copy_run(queue, entry, found[entry[1]])
        singles = [e for e in queue.counted.within(low, high, PORTION_MESSAGES) if e[1] in found]
        made = [(self._single(queue, entry, found), entry) for entry in singles if _complete(entry[1], entry[2], found)]
        self._carry(queue, made)
        held = [
            message
            for message in queue.in_memory()
            if message.place in found
            and low <= message.place < high
            and message.deliveries >= 0
            and _complete(message.place, message.envelope.note, found)
        ]
        self._carry(queue, [(self._again(queue, message, found), message) for message in held])
        self._restorer.forget()

    def _single(self, queue: Queue, entry: Entry, found: dict[int, Values]) -> Message:
        return self._restorer.counted(queue.key, entry, found[entry[1]], found.get(entry[2]))

    def _again(self, queue: Queue, message: Message, found: dict[int, Values]) -> Message:
        """A message that is in memory, as its record has it: it may be in flight, without its body."""
        counts = pack_counts(message.deliveries, message.failures, message.size)
        return self._single(queue, (message.seq, message.place, message.envelope.note, counts), found)

    def _copy_run(self, queue: Queue, entry: Entry, values: Values) -> None:
        seq, old, mask, size = entry
        copied: list[tuple[int, int, int]] = []
        # Those of a transaction may have been sent with different headers: a record each, and an entry each.
        for _, group in groupby(self._restorer.fresh(queue.key, entry, values), lambda message: id(message.envelope)):
            some = list(group)
            place = self._append(queue, some)
            copied += [(message.seq, place, message.size) for message in some]
        queue.stored.discard(seq, seq + mask.bit_length() - 1)
        for new in runs_of(copied):
            queue.stored.add(*new)
            self._ledger.hold(new[1], new[2].bit_count(), new[3])
        self._ledger.let_go(old, mask.bit_count(), size)

    def _carry(self, queue: Queue, made: Sequence[tuple[Message, Entry | Message]]) -> None:
        """made: each message with its body, and what stands for it: an entry of `counted`, or the object in memory."""
        for _, group in groupby(made, lambda pair: id(pair[0].envelope)):
            some = list(group)
            for start in range(0, len(some), RECORD_MESSAGES):
                portion = some[start : start + RECORD_MESSAGES]
                place = self._append(queue, [message for message, _ in portion])
                moved: dict[Envelope, Envelope] = {}
                for message, stands in portion:
                    self._move(queue, message, stands, place, moved)

    def _move(
        self, queue: Queue, copy: Message, stands: Entry | Message, place: int, moved: dict[Envelope, Envelope]
    ) -> None:
        ledger, old, note = self._ledger, copy.place, copy.envelope.note
        size = copy.size  # as it is held: what a start knows of one message in a run is an average
        if isinstance(stands, Message):
            stands.place = place
            if note:
                envelope = stands.envelope
                if envelope not in moved:  # others share the old one, and are not copied yet
                    moved[envelope] = _noted(envelope, place)
                stands.envelope = moved[envelope]
        else:
            size = stands[3] >> 32
            new = (stands[0], place, place if note else 0, stands[3])
            if not queue.counted.replace(stands, new):
                raise RuntimeError(f"{queue.name}: an entry went while it was copied")
        ledger.hold(place, 1, size)
        ledger.let_go(old, 1, size)
        if note and note != old:
            ledger.let_go(note, 1, 0)

    def _append(self, queue: Queue, messages: list[Message]) -> int:
        """One record for messages of one envelope; its place."""
        envelope = messages[0].envelope
        destination, note = envelope.destination, b""
        if envelope.extra:  # a dead letter: the record names what it was, and why it is one
            (_, destination), *why = envelope.extra
            note = json.dumps(why).encode()
        owns = [message.own for message in messages] if any(message.own for message in messages) else None
        size = sum(message.size + MESSAGE_BYTES for message in messages)
        payload = carried_payload(
            queue.key,
            destination.encode(),
            envelope.head,
            envelope.stamp,
            note,
            [(message.seq, message.deliveries, message.failures) for message in messages],
            owns,
            [message.body for message in messages],
        )
        self._journal.append(RecordType.CARRIED, payload)
        self._allowance -= size
        self._counters.carried += len(messages)
        return self._journal.place


def _live(segment: Segment) -> int:
    """Bytes of it that are wanted, roughly."""
    return segment.live_bytes + MESSAGE_BYTES * segment.live


def _complete(place: int, note: int, found: dict[int, Values]) -> bool:
    return place in found and (not note or note in found)


def _noted(old: Envelope, place: int) -> Envelope:
    envelope = Envelope(old.destination, old.head, old.stamp, old.prefix, old.extra, old.account)
    envelope.note = place
    return envelope
