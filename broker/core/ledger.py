"""Between the core and the journal: what is written, and what waits until it is durable."""

from __future__ import annotations

from collections import deque

from broker.core.catalogue import Catalogue
from broker.core.message import Message
from broker.core.queue import Queue
from broker.core.subscription import Outlet
from broker.core.topics import Topics
from broker.journal import Journal, RecordType, delivered_payload, transaction_payload

Target = Queue | str  # a queue, or the name of a topic


class Ledger:
    """Owns everything that waits for an LSN: messages that are not visible yet, delivered marks, sessions' receipts.

    waiting: (LSN, target, messages) in the order of the LSNs; `pending` of a queue counts its messages here.
    """

    def __init__(self, journal: Journal, catalogue: Catalogue, topics: Topics) -> None:
        self.journal = journal
        self.waiting: deque[tuple[int, Target, list[Message]]] = deque()
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
        segment = self.journal.segment
        for target, messages, here in arrivals:
            if here:
                segment.live += len(messages)
                for message in messages:
                    message.segment = segment
            self._wait(lsn, target, messages)
        return lsn

    def cancel(self) -> None:
        """Forget what was gathered: something went wrong in the middle of it."""
        self._parts = None
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
        if messages[0].deliveries:  # dead letters, one at a time
            for message in messages:
                queue.put_back(message)
        else:
            queue.ready += messages
        self._catalogue.dirty[queue] = None

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
            _, target, messages = waiting.popleft()
            if isinstance(target, str):
                self._topics_waiting[target] -= 1
                if not self._topics_waiting[target]:
                    del self._topics_waiting[target]
                self._topics.publish(target, messages)
            else:
                target.pending -= len(messages)
                self._show(target, messages)
        watchers = self._watchers
        told: dict[Outlet, None] = {}
        while watchers and watchers[0][0] <= durable:
            told[watchers.popleft()[1]] = None
        for outlet in told:
            outlet.durable(durable)
