"""Between the core and the journal: what is written, what waits until it is durable, what each segment still holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import groupby

from broker.budget import Account
from broker.core.catalogue import Catalogue
from broker.core.entries import Entry, Removed
from broker.core.message import MESSAGE_COST, SETTLED, Message
from broker.core.queue import Queue
from broker.core.subscription import Outlet
from broker.core.topics import Topics
from broker.journal import Journal, RecordType, delivered_payload, number_of, transaction_payload

Target = Queue | str  # a queue, or the name of a topic
Arrival = list[Message] | Entry  # an entry: a run that waits on disk as soon as it is visible


class Ledger:
    """Owns everything that waits for an LSN: messages that are not visible yet, delivered marks, sessions' receipts.

    waiting: (LSN, target, what arrives) in the order of the LSNs; `pending` of a queue counts its messages here.
    memory: the account of messages in memory: MESSAGE_COST each, and the size of those that hold their bodies.
    """

    def __init__(self, journal: Journal, catalogue: Catalogue, topics: Topics, memory: Account) -> None:
        self.journal = journal
        self.memory = memory
        self.waiting: deque[tuple[int, Target, Arrival]] = deque()
        self._catalogue = catalogue
        self._topics = topics
        self._topics_waiting: dict[str, int] = {}  # how often a topic is in `waiting`
        self._marks: deque[tuple[int, Queue, int]] = deque()
        self._watchers: deque[tuple[int, Outlet]] = deque()
        # While a transaction is gathered: its record's parts, and what becomes visible with it in the order of its
        # frames. The messages marked True have their record in it.
        self._parts: list[tuple[RecordType, list[bytes]]] | None = None
        self._arrivals: list[tuple[Target, list[Message], bool]] = []

    # --- writing ------------------------------------------------------------------------------------------------------

    @property
    def gathering(self) -> bool:
        return self._parts is not None

    def begin(self) -> None:
        """From here to `end`, all that is appended is one record."""
        self._parts = []

    def append(self, kind: RecordType, payload: list[bytes]) -> int:
        """The LSN of a record of its own; 0 where it becomes part of a transaction. Raises StorageFailed."""
        if self._parts is None:
            return self.journal.append(kind, payload)
        self._parts.append((kind, payload))
        return 0

    def end(self) -> int:
        """Write what was gathered as one record; its LSN, 0 where there was nothing. Raises StorageFailed."""
        parts, self._parts = self._parts, None
        arrivals, self._arrivals = self._arrivals, []
        lsn = self.journal.append(RecordType.TRANSACTION, transaction_payload(parts)) if parts else 0
        place = self.journal.place
        for target, messages, here in arrivals:
            if here:
                for message in messages:
                    message.place = place
                self.hold(place, len(messages), sum(message.size for message in messages))
            elif parts:
                self.noted(messages, place)
            self._wait(lsn, target, messages)
        return lsn

    def cancel(self) -> None:
        """Forget what was gathered: something went wrong in the middle of it."""
        self._parts = None
        for _, messages, here in self._arrivals:
            if here:
                self.memory.book(-sum(message.size + MESSAGE_COST for message in messages))
        self._arrivals = []

    def arrive(self, lsn: int, target: Target, messages: list[Message]) -> None:
        """Messages become visible when `lsn` is durable, 0: now; but never before what was accepted earlier."""
        if self._parts is not None:
            self._arrivals.append((target, messages, False))
        else:
            self._wait(lsn, target, messages)

    def arrive_here(self, queue: Queue, messages: list[Message]) -> None:
        """The same for messages whose record is part of the transaction that is gathered."""
        self._arrivals.append((queue, messages, True))

    def noted(self, messages: list[Message], place: int) -> None:
        """The record at `place` says why these became dead letters; it is needed as long as they are."""
        for message in messages:
            if message.place and message.envelope.extra and not message.envelope.note:
                message.envelope.note = place
        for message in messages:
            if message.envelope.note == place:
                self.hold(place, 1, 0)

    def _wait(self, lsn: int, target: Target, messages: list[Message]) -> None:
        if isinstance(target, str):
            if not lsn and target not in self._topics_waiting:
                self._topics.publish(target, messages)
                return
            self._topics_waiting[target] = self._topics_waiting.get(target, 0) + 1
        elif not lsn and not target.pending:
            self._show(target, messages)
            return
        else:
            target.pending += len(messages)
        self.waiting.append((lsn or self.journal.lsn, target, messages))

    def _show(self, queue: Queue, messages: list[Message]) -> None:
        if queue.gone:
            self.let_go_all(queue, messages)
            return
        if messages[0].deliveries:  # dead letters, which wait on disk
            for message in messages:
                if message.place or message.deliveries == SETTLED:
                    self.memory.book(-MESSAGE_COST)
                queue.put_back(message)
        else:
            queue.show(messages)
        self._catalogue.dirty[queue] = None

    def find_pending(self, queue: Queue, seq: int) -> Message | None:
        """The message with this seq that is on its way to the queue as a dead letter."""
        for _, target, messages in self.waiting:
            if target is queue and type(messages) is list and messages[0].deliveries:
                for message in messages:
                    if message.seq == seq and message.deliveries != SETTLED:
                        return message
        return None

    # --- what segments hold -------------------------------------------------------------------------------------------

    def hold(self, place: int, count: int, size: int) -> None:
        """So many messages whose record is at `place` are wanted; `size` is the bytes of their bodies and own lines."""
        segment = self.journal.by_number[number_of(place)]
        segment.live += count
        segment.live_bytes += size

    def let_go(self, place: int, count: int, size: int) -> None:
        """They are not wanted any more."""
        segment = self.journal.by_number[number_of(place)]
        segment.live -= count
        segment.live_bytes -= size

    def let_go_all(self, queue: Queue, messages: list[Message]) -> list[int]:
        """The same for messages of a queue. The seqs of those that the journal knows. Hot: once per run of ACKs."""
        self.memory.book(-MESSAGE_COST * len(messages))
        seqs = [message.seq for message in messages]
        places = [message.place for message in messages]
        number = min(places) >> 32
        if number and number == max(places) >> 32 and not queue.dead:
            segment = self.journal.by_number[number]
            segment.live -= len(seqs)
            segment.live_bytes -= sum([message.size for message in messages])
            return seqs
        for number, group in groupby(messages, lambda message: message.place >> 32):
            if number:
                some = list(group)
                self.let_go(number << 32, len(some), sum(message.size for message in some))
            else:
                self.memory.book(-sum(message.size for message in group))
        for message in messages:
            if (note := message.envelope.note) and note != message.place:
                self.let_go(note, 1, 0)
        return [message.seq for message in messages if message.place]

    def let_go_removed(self, removed: Iterable[Removed]) -> bool:
        """The same for messages that were on disk; returns whether the journal knows any of them."""
        known = False
        for place, note, count, size in removed:
            if place:
                known = True
                self.let_go(place, count, size)
                if note and note != place:
                    self.let_go(note, count, 0)
        return known

    # --- waiting ------------------------------------------------------------------------------------------------------

    def ask_mark(self, queue: Queue, seq: int) -> None:
        """Journal that messages up to `seq` may have been delivered; `queue.mark` follows when it is durable."""
        lsn = self.journal.append(RecordType.DELIVERED, delivered_payload(queue.key, seq))
        queue.mark_asked = seq
        queue.mark_segment = self.journal.segment.number
        self._marks.append((lsn, queue, seq))

    def carry_marks(self, numbers: set[int]) -> None:
        """The segments with these numbers are about to go: what still holds in them is written again."""
        for queue in list(self._catalogue.by_name.values()):
            if queue.mark_segment not in numbers:
                continue
            if queue.in_use:
                self.ask_mark(queue, queue.mark_asked)
            else:
                # The journal will not know of it any more: the next delivery has to ask for a new one.
                queue.mark = queue.mark_asked = queue.mark_segment = 0

    def watch(self, lsn: int, outlet: Outlet) -> None:
        """Call `outlet.durable` once the journal is synced up to `lsn`."""
        self._watchers.append((lsn, outlet))

    def reached(self, durable: int) -> None:
        """The journal is synced up to here."""
        dirty = self._catalogue.dirty
        marks = self._marks
        while marks and marks[0][0] <= durable:
            _, queue, seq = marks.popleft()
            queue.mark = seq
            dirty[queue] = None
        waiting = self.waiting
        while waiting and waiting[0][0] <= durable:
            _, target, arrival = waiting.popleft()
            if isinstance(target, str):
                self._topics_waiting[target] -= 1
                if not self._topics_waiting[target]:
                    del self._topics_waiting[target]
                if isinstance(arrival, list):
                    self._topics.publish(target, arrival)
            elif isinstance(arrival, list):
                target.pending -= len(arrival)
                self._show(target, arrival)
            else:
                target.pending -= arrival[2].bit_count()
                self._store(target, arrival)
        watchers = self._watchers
        told: dict[Outlet, None] = {}
        while watchers and watchers[0][0] <= durable:
            told[watchers.popleft()[1]] = None
        for outlet in told:
            outlet.durable(durable)

    def _store(self, queue: Queue, entry: Entry) -> None:
        """A run becomes visible, on disk: behind what is in the tail, which goes there first."""
        if queue.tail:
            self.memory.book(-queue.spill_tail())
        queue.stored.add(*entry)
        self._catalogue.dirty[queue] = None
