"""What waits on disk: what goes there for want of memory, and what is read back ahead of the consumers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.budget import Budget
from broker.core.catalogue import Catalogue
from broker.core.counters import Counters, Events
from broker.core.entries import Entry
from broker.core.jobs import Read
from broker.core.ledger import Ledger
from broker.core.message import MESSAGE_COST, Message
from broker.core.queue import Loading, Queue
from broker.core.restoring import Restorer, Values
from broker.errors import DataDamaged
from broker.journal import Damage, Record, number_of

LOAD_MESSAGES: Final = 2048  # read back at a time, in one queue
LOAD_BYTES: Final = 1 << 20
RECORDS_FACTOR: Final = 4  # how much larger the records may be of which these are what is left
READS_MAX: Final = 2  # under way at once: one is read while the results of the other are handed out
HEAD: Final = 256  # messages of each queue that stay in memory as long as there are others to spill
QUEUE_COST: Final = 2500  # bytes that a queue takes without its messages, roughly; there may be 10,000 of them
SPILL_END: Final = 4096  # messages on disk; with fewer of them new messages stay in memory again


class Backlog:
    """Owns the share of memory that waiting messages may take, and the reads under way. It is the queues' `Keeper`.

    soft: bytes of messages in memory from which on the queues that were not served for longest go to disk.
    """

    def __init__(
        self, ledger: Ledger, catalogue: Catalogue, budget: Budget, counters: Counters, events: Events, prefix: bytes
    ) -> None:
        self._ledger = ledger
        self._catalogue = catalogue
        self._counters = counters
        self._events = events
        self._restorer = Restorer(prefix, budget.account("headers"))
        self._memory = ledger.memory
        self._budget = budget
        self.soft = budget.limit * 15 // 16
        self._high = budget.limit * 31 // 32  # of all accounts together: before producers are held back, these give way
        self._load_bytes = min(LOAD_BYTES, budget.limit // 64)
        self._wanted: dict[Queue, None] = {}
        self._later: dict[Queue, None] = {}
        self._unwritten: dict[Queue, None] = {}
        self._again = 0
        self._reads = 0
        self.turn = 0
        self.ask_mark = ledger.ask_mark

        catalogue.forgotten = self.forget

    def forget(self, queue: Queue) -> None:
        """A queue is going, and with it whatever of it was in memory only."""
        left = [*queue.ready, *queue.tail, *queue.again.values(), *queue.kept.values()]
        self._memory.book(-sum(message.size + MESSAGE_COST for message in left))
        queue.stored.clear()
        queue.counted.clear()

    # --- to disk ------------------------------------------------------------------------------------------------------

    def relieve(self) -> None:
        """Over the soft mark: messages that wait go to disk, those of the queue served longest ago first."""
        memory = self._memory
        queues = self._catalogue.by_name
        excess = max(memory.used - self.soft, self._budget.used + QUEUE_COST * len(queues) - self._high)
        if excess <= 0:
            self._again = 0
            return
        if self._budget.used < self._again:
            return
        goal = memory.used - excess - self.soft // 8
        holders = [q for q in queues.values() if q.ready or q.tail or q.again]
        holders.sort(key=lambda queue: queue.served)
        for keep in (HEAD, 0):
            for queue in holders:
                freed = queue.spill_tail() if queue.tail and queue.stored else 0
                freed += queue.spill_ready(keep)
                if not keep:
                    freed += queue.spill_again()
                if freed:
                    self._counters.spilled += 1
                    queue.spilled = queue.stored.count > SPILL_END
                    self._catalogue.dirty[queue] = None
                    memory.book(-freed)
                    if memory.used <= goal:
                        return
        # What is left is in flight or in memory only: it is of no use to look again before more has come.
        self._again = self._budget.used + self.soft // 16

    # --- and back -----------------------------------------------------------------------------------------------------

    def ask_load(self, queue: Queue) -> None:
        if queue.loading is None and queue not in self._later:
            self._wanted[queue] = None

    def jobs(self) -> list[Read]:
        """What the reader is to do next."""
        jobs: list[Read] = []
        readable = self._ledger.journal.readable
        while self._wanted and self._reads < READS_MAX and (self._memory.used <= self.soft or not self._reads):
            queue = next(iter(self._wanted))
            del self._wanted[queue]
            if queue.gone or queue.loading is not None or queue.damage:
                continue
            fresh = not queue.counted
            entries = (queue.stored if fresh else queue.counted).take(LOAD_MESSAGES, self._load_bytes)
            if not entries:
                continue
            if any(entry[1] >= readable for entry in entries):
                # Copied forward a moment ago, and not written yet; the end of the batch brings us here again.
                (queue.stored if fresh else queue.counted).add_front(entries)
                self._unwritten[queue] = None
                continue
            queue.loading = Loading(entries, fresh=fresh)
            if fresh:
                queue.spilled = queue.stored.count > SPILL_END
            self._memory.book(self._cost(queue, entries, fresh=fresh))
            places: dict[int, None] = {}
            for _, place, note, _ in entries:  # a message's note next to it: the read may end early
                if place:
                    places[place] = None
                    if note and not fresh:
                        places[note] = None
            if not places:
                self._settle_load(queue, {})
                continue
            for number in {number_of(place) for place in places}:
                self._ledger.journal.by_number[number].readers += 1
            self._reads += 1
            jobs.append(Read(queue, list(places), RECORDS_FACTOR * self._load_bytes))
        return jobs

    def _cost(self, queue: Queue, entries: Sequence[Entry], *, fresh: bool) -> int:
        """What the messages of these entries take in memory; those in `kept` are there anyway."""
        weigh = (queue.stored if fresh else queue.counted).weigh
        total = 0
        for _, place, a, b in entries:
            if place:
                count, size = weigh(a, b)
                total += size + MESSAGE_COST * count
        return total

    def read(self, job: Read, results: Sequence[Record | Damage]) -> None:
        """The reader is through with one of `jobs`."""
        self._reads -= 1
        for number in {number_of(place) for place in job.places}:
            self._ledger.journal.by_number[number].readers -= 1
        self._settle_load(job.queue, {result.place: result for result in results})

    def _settle_load(self, queue: Queue, found: dict[int, Record | Damage]) -> None:
        loading = queue.loading
        if loading is None:
            raise RuntimeError(f"{queue.name} did not ask for anything")
        if queue.gone:
            self._memory.book(-self._cost(queue, loading.entries, fresh=loading.fresh))
            queue.loading = None
            return
        self._cut_short(queue, loading, found)
        try:
            messages = self._made(queue, loading, found)
        except DataDamaged as error:
            queue.loading = None
            self._put_back(queue, loading, loading.entries)
            if isinstance(error, _Passing):
                self._later[queue] = None
            else:
                self.close(queue, str(error))
            return
        self._correct(queue, loading, messages)
        if loading.gone:
            left = [message for message in messages if message.seq not in loading.gone]
            self._memory.book(-sum(m.size + MESSAGE_COST for m in messages if m.seq in loading.gone))
            messages = left
        self._counters.loaded += len(messages)
        queue.loaded(messages, fresh=loading.fresh)
        self._catalogue.dirty[queue] = None

    def _cut_short(self, queue: Queue, loading: Loading, found: dict[int, Record | Damage]) -> None:
        """The reader stops where the records would be too much for the memory: the rest is for another time."""
        for at, (_, place, note, _) in enumerate(loading.entries):
            if place and (place not in found or (note and not loading.fresh and note not in found)):
                self._put_back(queue, loading, loading.entries[at:])
                del loading.entries[at:]
                return

    def _put_back(self, queue: Queue, loading: Loading, entries: list[Entry]) -> None:
        """These were not read, and wait on disk again."""
        self._memory.book(-self._cost(queue, entries, fresh=loading.fresh))
        if loading.fresh:
            queue.stored.add_front(entries)
            return
        for entry in entries:  # others may have come back to places before them meanwhile
            if entry[0] not in loading.gone:
                queue.counted.add(*entry)

    def _made(self, queue: Queue, loading: Loading, found: dict[int, Record | Damage]) -> list[Message]:
        """The messages of all entries, in order. Raises DataDamaged."""
        made: list[Message] = []
        restorer, key = self._restorer, queue.key
        for entry in loading.entries:
            seq, place, note, _ = entry
            if not place:
                made.append(queue.kept[seq])
                continue
            if loading.fresh:
                made += restorer.fresh(key, entry, _sound(found[place]))
            else:
                notes = _sound(found[note]) if note else None
                made.append(restorer.counted(key, entry, _sound(found[place]), notes))
        restorer.forget()
        for seq, place, _, _ in loading.entries:
            if not place:
                del queue.kept[seq]
        return made

    def _correct(self, queue: Queue, loading: Loading, messages: list[Message]) -> None:
        """What is left of a run after some of it went is an average; now that they are here, their sizes are exact."""
        weigh = (queue.stored if loading.fresh else queue.counted).weigh
        at = 0
        for seq, place, a, b in loading.entries:
            count, size = weigh(a, b)
            off = sum(message.size for message in messages[at : at + count]) - size
            at += count
            if off and place:
                self._memory.book(off)
                if seq not in loading.gone:  # else it was let go of as it was held
                    self._ledger.hold(place, 0, off)

    def written(self) -> None:
        """A batch is done: what was copied forward with it can be read."""
        for queue in self._unwritten:
            self._catalogue.dirty[queue] = None
        self._unwritten.clear()

    def retry(self) -> None:
        """What could not be read for want of a file descriptor or memory is tried again."""
        for queue in self._later:
            self._catalogue.dirty[queue] = None
        self._later.clear()

    @property
    def must_retry(self) -> bool:
        return bool(self._later)

    def close(self, queue: Queue, text: str) -> None:
        """A message of this queue is damaged: it fails closed, the others go on."""
        if queue.damage:
            return
        queue.damage = text
        self._catalogue.dirty[queue] = None
        self._events.event("error", "damaged", f"{queue.name} hands out nothing more: {text}", queue=queue.name)

    # --- what is handed out -------------------------------------------------------------------------------------------

    def handed(self, queue: Queue, messages: list[Message]) -> None:
        """They are with a consumer now; a body that is on disk is not kept. Hot: once per delivery of a run."""
        queue.served = self.turn
        size = 0
        for message in messages:
            if message.place:
                size += message.size
                message.body = message.own = b""
                if message.envelope.weight:
                    message.envelope = message.envelope.light
        self._memory.book(-size)


class _Passing(DataDamaged):
    """It could not be read this time, for want of something else than sound bytes."""


def _sound(result: Record | Damage) -> Values:
    if isinstance(result, Damage):
        raise _Passing(result.text) if result.passing else DataDamaged(result.text)
    return result.values
