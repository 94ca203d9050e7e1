"""From the log back to queues: what a start does before the first client may come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from broker.budget import Account
from broker.core.broker import Broker
from broker.core.entries import DELIVERIES_MAX, Entry, pack_counts, runs_of, unpack_counts
from broker.core.positions import Runs, Singles
from broker.errors import CheckpointDoubted, DataDamaged
from broker.journal import (
    Acked,
    CarriedRun,
    Delivered,
    Log,
    Lost,
    Moved,
    Part,
    RecordType,
    Replayed,
    Returned,
    Run,
    delivered_payload,
    returned_payload,
)


def replayed(log: Log, positions: Account, tell: Callable[[int, int], None] = lambda records, messages: None) -> Replay:
    """Everything that the log holds. A checkpoint that does not fit is left out, and the reading begins again.

    positions: the account that they are booked on. tell: called now and then with how far it is. Raises what
    `Log.replay` does.
    """
    replay = Replay(positions)
    while True:
        try:
            for count, item in enumerate(log.replay(skim=True), 1):
                replay.apply(item)
                if not count & 0xFFF:
                    tell(count, replay.message_count)
            replay.check(log.numbers)
            return replay
        except CheckpointDoubted as error:
            if log.checkpoint is None:
                raise DataDamaged(str(error)) from error
            log.doubt(str(error))
            replay.forget()


class _Restored:
    """A queue while it is being replayed: where its live messages are."""

    __slots__ = ("counted", "fresh", "mark")

    def __init__(self, account: Account) -> None:
        self.fresh = Runs(account)
        self.counted = Singles(account)
        self.mark = 0

    def discard(self, first: int, last: int) -> None:
        if self.fresh:
            self.fresh.discard(first, last)
        if self.counted:
            self.counted.discard(first, last)

    def take_out(self, first: int, last: int) -> list[Entry]:
        """Every message from `first` to `last`, as entries of `Singles` with one message each; they are gone here."""
        found: list[Entry] = []
        for seq, place, mask, size in self.fresh.slice(first, last):
            count = mask.bit_count()
            for bit in range(mask.bit_length()):
                if mask >> bit & 1:
                    found.append((seq + bit, place, 0, pack_counts(0, 0, size // count)))
        found += self.counted.slice(first, last)
        self.discard(first, last)
        return found

    def flag(self) -> list[tuple[int, int, int, int]]:
        """Whatever stands below the mark counts as delivered once: (first seq, last seq, 1, 0) for a record."""
        flagged: list[tuple[int, int, int, int]] = []
        for seq, place, mask, size in list(self.fresh.slice(0, self.mark)):
            count = mask.bit_count()
            for bit in range(mask.bit_length()):
                if mask >> bit & 1:
                    one = seq + bit
                    each = size // count  # together as much as before: segments count it so
                    size, count = size - each, count - 1
                    self.counted.add(one, place, 0, pack_counts(1, 0, each))
                    joins = flagged and flagged[-1][1] == one - 1
                    flagged.append((flagged.pop()[0] if joins else one, one, 1, 0))
        self.fresh.discard(0, self.mark)
        return flagged


class Replay:
    """Feed it every item in order, then `finish`. positions: the account of the budget that they are booked on.

    Everything that it is told sets or removes what is known of some messages, and later wins: so a checkpoint that
    was taken while records went on being written is right once those are applied to it (journal-format.md).
    """

    def __init__(self, positions: Account) -> None:
        self._account = positions
        self._queues: dict[bytes, _Restored] = {}
        self._held: dict[int, list[int]] = {}  # what is wanted of each segment: messages, bytes

    @property
    def message_count(self) -> int:
        return sum(queue.fresh.count + queue.counted.count for queue in self._queues.values())

    def forget(self) -> None:
        """Begin anew: what was applied cannot be trusted."""
        for queue in self._queues.values():
            queue.fresh.clear()
            queue.counted.clear()
        self._queues.clear()

    def apply(self, item: Replayed | Part) -> None:
        """Raises DataDamaged for a record that no writer of this version makes."""
        if isinstance(item, Part):
            self._part(item)
            return
        value = item.value
        if isinstance(value, Run):
            self._run(value, item.place)
        elif isinstance(value, Acked | Lost):
            queue = self._queue(value.queue)
            for first, last in value.seqs:
                queue.discard(first, last)
        elif isinstance(value, Returned):
            queue = self._queue(value.queue)
            for first, last, deliveries, failures in value.entries:
                self._count(queue, queue, first, last, deliveries, failures, None)
        elif isinstance(value, Delivered):
            self._queue(value.queue).mark = value.seq
        elif isinstance(value, Moved):
            source, target = self._queue(value.source), self._queue(value.target)
            for first, last, deliveries, failures in value.entries:
                self._count(source, target, first, last, deliveries, failures, item.place)
        elif isinstance(value, CarriedRun):
            self._carried(value, item.place)
        else:
            raise DataDamaged(f"record {item.lsn} is of a kind that the broker does not know: {item.type!r}")

    def _queue(self, name: bytes) -> _Restored:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Restored(self._account)
        return queue

    def _part(self, part: Part) -> None:
        queue = self._queue(part.queue)
        queue.mark = max(queue.mark, part.mark)
        try:
            if part.fresh:
                queue.fresh.load(part.fresh)
            if part.counted:
                queue.counted.load(part.counted)
        except ValueError as error:
            raise CheckpointDoubted(f"what it says of {part.queue!r} makes no sense: {error}") from error

    def _run(self, value: Run, place: int) -> None:
        first, count = value.first_seq, len(value.sizes)
        entry = (first, place, (1 << count) - 1, sum(value.sizes))
        for name in value.queues or (value.destination,):
            queue = self._queue(name)
            if not queue.counted.all_before(first):
                queue.counted.discard(first, first + count - 1)
            if not queue.fresh.all_before(first):
                if queue.fresh.holds(entry):
                    continue  # the usual case where the record was written while its queue was dumped
                queue.fresh.discard(first, first + count - 1)
            queue.fresh.add(*entry)

    @staticmethod
    def _count(
        source: _Restored, target: _Restored, first: int, last: int, deliveries: int, failures: int, note: int | None
    ) -> None:
        """New counts for messages of `source`, which are in `target` from here on; note: None leaves it."""
        for seq, place, old, counts in source.take_out(first, last):
            size = unpack_counts(counts)[2]
            target.counted.discard(seq, seq)
            kept = old if note is None else note
            target.counted.add(seq, place, kept, pack_counts(min(deliveries, DELIVERIES_MAX), failures, size))

    def _carried(self, value: CarriedRun, place: int) -> None:
        queue = self._queue(value.queue)
        fresh: list[tuple[int, int, int]] = []
        for (seq, deliveries, failures), size in zip(value.entries, value.sizes, strict=True):
            queue.discard(seq, seq)
            if deliveries or failures or value.note:
                note = place if value.note else 0
                queue.counted.add(seq, place, note, pack_counts(deliveries, failures, size))
            else:
                fresh.append((seq, place, size))
        for entry in runs_of(fresh):
            queue.fresh.add(*entry)

    # --- the end ------------------------------------------------------------------------------------------------------

    def check(self, known: Iterable[int]) -> None:
        """Every message must lie in one of the segments with these numbers. Raises CheckpointDoubted: the log alone
        cannot say otherwise.
        """
        held = self._held = {}
        for queue in self._queues.values():
            for positions in (queue.fresh, queue.counted):
                positions.share(held)
                for number in positions.note_numbers():
                    held.setdefault(number, [0, 0])[0] += 1
        if lost := held.keys() - set(known):
            raise CheckpointDoubted(f"messages lie in segment {min(lost)}, which is not there")

    def finish(self, broker: Broker, *, clean: bool) -> None:
        """Give the queues to the broker.

        After a stop that was not clean, whatever stands below a delivered mark may have been with a client, so it is
        flagged (reliability.md 2.7), and that is journaled: the flag has to survive the next clean stop.
        """
        journal = broker.journal
        for key, restored in self._queues.items():
            fresh, counted = restored.fresh, restored.counted
            if not (fresh or counted):
                if restored.mark >= journal.next_seq:  # or what comes next would be flagged after a crash
                    journal.append(RecordType.DELIVERED, delivered_payload(key, 0))
                continue
            first = min(positions.first for positions in (fresh, counted) if positions)
            if not clean and (flagged := restored.flag()):
                journal.append(RecordType.RETURNED, returned_payload(key, flagged))
            if restored.mark >= first:
                # What the old mark said is said by the counts now; a new one comes with the next delivery.
                journal.append(RecordType.DELIVERED, delivered_payload(key, 0))
            broker.restore(key.decode(), fresh, counted)
        broker.hold(self._held)
        self._queues.clear()
