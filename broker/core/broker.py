"""The broker: takes messages in, has them journaled, hands them out, settles them.

Nothing here waits or does I/O. What has to happen outside is a job that `turn()` returns; the shell runs it and
comes back with `written()` or `tick()`. In a simulation the seed decides when that is.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from broker.budget import Account, Budget
from broker.config import Settings
from broker.core.destination import DEAD_LETTER_PREFIX, Kind
from broker.core.jobs import Job, Timer, Write
from broker.core.message import SETTLED, Envelope, Message
from broker.core.queue import Queue
from broker.core.route import Route
from broker.core.subscription import AckMode, Broadcast, Outlet, Subscription
from broker.core.topics import Topics
from broker.errors import LimitReached
from broker.journal import (
    Batch,
    Journal,
    RecordType,
    acked_payload,
    delivered_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    transaction_payload,
)
from broker.system import Clock

RECORD_MESSAGES: Final = 64  # what one flipped bit can cost
RECORD_BYTES: Final = 1 << 20  # a record of several messages ends at this size
MAX_DELIVERIES: Final = 10  # failed ones, then a message is a dead letter
WITNESS_AFTER: Final = 0.25  # s without a write; then the last batch gets its witness (reliability.md 2.3)
QUEUE_IDLE: Final = 600.0  # s; a queue without messages and consumers is forgotten
SWEEP_EVERY: Final = 60.0  # s
TOPIC_BACKLOG: Final = 1 << 20  # bytes kept for a slow topic subscriber, beside one message of any size

Sends = list[tuple[Route, list[bytes] | None, list[bytes]]]
Settled = list[tuple[Queue, list[Message]]]
Rejects = list[tuple[Queue, list[Message], bool, str]]  # queue, messages, whether they return, failure-reason
Part = tuple[RecordType, list[bytes]]


class Events(Protocol):
    def event(self, level: str, name: str, text: str, /, **fields: object) -> None:
        """Tell the operator."""


class Counters:
    """What an operator counts; only ever grows."""

    __slots__ = ("acknowledged", "dead_lettered", "delivered", "dropped_replies", "dropped_slow", "received", "returned")

    def __init__(self) -> None:
        self.received = 0
        self.delivered = 0
        self.acknowledged = 0
        self.returned = 0
        self.dead_lettered = 0
        self.dropped_slow = 0  # topic messages that a slow subscriber did not get
        self.dropped_replies = 0  # sent to a temporary queue that is gone


class Broker:
    """Owns the queues and topics. Sessions call it; it calls them back as `Outlet`s only."""

    DROPPED: Final = -1  # what `publish` returns where the destination is gone and the message with it

    def __init__(self, settings: Settings, clock: Clock, journal: Journal, budget: Budget, events: Events) -> None:
        self.settings = settings
        self.clock = clock
        self.journal = journal
        self.budget = budget
        self.events = events
        self.counters = Counters()
        self.draining = False  # the broker is about to stop: nothing more is handed out
        self.queues: dict[str, Queue] = {}
        self.topics = Topics()
        log = journal.log_id.hex()[:12].encode()
        self.prefix = log + b"-"
        # Messages that are in memory only take their seq from the same counter, but a restart may give it again: the
        # number of this start keeps their ids apart.
        self.volatile_prefix = b"%bv%d-" % (log, journal.boot)
        self._waiting: deque[tuple[int, Queue | str, list[Message]]] = deque()
        self._marks: deque[tuple[int, Queue, int]] = deque()
        self._waiting_topics: dict[str, int] = {}  # how often a topic is in `_waiting`
        self._staged: list[Part] | None = None  # what a COMMIT that is under way journals
        self._watchers: deque[tuple[int, Outlet]] = deque()
        self._dirty: dict[Queue, None] = {}
        self._slow: dict[Subscription, None] = {}
        self._backlogs: Account = budget.account("slow topic subscribers")
        self._journal_account: Account = budget.account("journal")
        self._last_write = clock.monotonic()
        self._next_sweep = self._last_write + SWEEP_EVERY
        self._due = 0.0

    # --- destinations ---------------------------------------------------------------------------------------------

    def queue(self, name: str, owner: str = "") -> Queue:
        """The queue of that name, made if it is not there. Raises LimitReached."""
        queue = self.queues.get(name)
        if queue is None:
            if len(self.queues) >= self.settings.limits.queues:
                self._forget_queues(idle=0.0)
            if len(self.queues) >= self.settings.limits.queues:
                raise LimitReached(f"there are {len(self.queues)} queues, limits.queues allows no more")
            queue = self.queues[name] = Queue(name, owner)
            queue.idle_since = self.clock.monotonic()
        return queue

    def drop_temporary(self, owner: str) -> None:
        """The connection with this token has gone, and its temporary queues with it."""
        for queue in [queue for queue in self.queues.values() if queue.owner == owner]:
            self._forget(queue)

    def _forget_queues(self, idle: float) -> None:
        before = self.clock.monotonic() - idle
        for queue in list(self.queues.values()):
            if queue.in_use:
                queue.idle_since = self.clock.monotonic()
            elif queue.idle_since <= before and not queue.owner:
                self._forget(queue)

    def _forget(self, queue: Queue) -> None:
        queue.gone = True
        del self.queues[queue.name]
        self._dirty.pop(queue, None)

    # --- messages in ------------------------------------------------------------------------------------------------

    def publish(self, route: Route, owns: list[bytes] | None, bodies: list[bytes]) -> int:
        """Take in messages of one header block. Returns the LSN that their receipts wait for (0: none), or DROPPED.

        Raises LimitReached where the queue would be one too many, StorageFailed where nothing can be kept any more.
        """
        self.counters.received += len(bodies)
        if route.destination.kind is not Kind.QUEUE:
            return self._publish_volatile(route, owns, bodies)
        queue = route.queue
        if queue is None or queue.gone:
            queue = route.queue = self.queue(route.destination.name)
        if not route.persistent:
            return self._publish_volatile(route, owns, bodies)
        journal = self.journal
        count = len(bodies)
        seq = journal.take_seqs(count)
        envelope = route.envelope(self.clock.wall_ms(), self.prefix)
        if queue.subscriptions and seq + count - 1 + (queue.step >> 1) > queue.mark_asked:
            # In the batch of the messages themselves, so that a quiet queue needs no second sync.
            self.ask_mark(queue, seq + count - 1 + queue.step)
        if count == 1:
            own = owns[0] if owns else b""
            lsn = journal.append(
                RecordType.MESSAGES,
                messages_payload(route.key, route.queues, route.head, envelope.stamp, seq, owns, bodies),
            )
            segment = journal.segment
            segment.live += 1
            messages = [Message(seq, bodies[0], own, envelope, segment)]
        else:
            messages = []
            for start, end in _records(bodies):
                some = bodies if end - start == count else bodies[start:end]
                mine = owns[start:end] if owns else None
                lsn = journal.append(
                    RecordType.MESSAGES,
                    messages_payload(route.key, route.queues, route.head, envelope.stamp, seq, mine, some),
                )
                segment = journal.segment
                segment.live += end - start
                numbers = range(seq, seq + end - start)
                if mine is None:
                    messages += [
                        Message(n, body, b"", envelope, segment) for n, body in zip(numbers, some, strict=True)
                    ]
                else:
                    messages += [
                        Message(n, body, own, envelope, segment)
                        for n, body, own in zip(numbers, some, mine, strict=True)
                    ]
                seq += end - start
        queue.pending += count
        self._waiting.append((lsn, queue, messages))
        return lsn

    def _publish_volatile(self, route: Route, owns: list[bytes] | None, bodies: list[bytes]) -> int:
        target = self._volatile_target(route)
        if target is None:
            self.counters.dropped_replies += len(bodies)
            return self.DROPPED
        self._show_volatile(0, target, self._volatile_messages(route, owns, bodies))
        return 0

    def _volatile_target(self, route: Route) -> Queue | str | None:
        """The queue, the name of the topic, or None for a temporary queue that is gone."""
        if route.destination.kind is Kind.TOPIC:
            return route.destination.name.removeprefix(Kind.TOPIC.value)
        if route.destination.kind is Kind.TEMP_QUEUE:
            return self.queues.get(route.destination.name)
        if route.queue is None or route.queue.gone:
            route.queue = self.queue(route.destination.name)
        return route.queue

    def _volatile_messages(self, route: Route, owns: list[bytes] | None, bodies: list[bytes]) -> list[Message]:
        seq = self.journal.take_seqs(len(bodies))
        envelope = route.envelope(self.clock.wall_ms(), self.volatile_prefix)
        if owns is None:
            return [Message(n, body, b"", envelope, None) for n, body in enumerate(bodies, seq)]
        return [
            Message(n, body, own, envelope, None) for n, (body, own) in enumerate(zip(bodies, owns, strict=True), seq)
        ]

    def _show_volatile(self, lsn: int, target: Queue | str, messages: list[Message]) -> None:
        """Make visible, but not before what was accepted earlier, nor before the transaction's record is synced."""
        if isinstance(target, Queue):
            if target.pending or lsn:
                target.pending += len(messages)
                self._waiting.append((lsn or self.journal.lsn, target, messages))
            else:
                target.ready += messages
                self._dirty[target] = None
        elif lsn or target in self._waiting_topics:
            self._waiting_topics[target] = self._waiting_topics.get(target, 0) + 1
            self._waiting.append((lsn or self.journal.lsn, target, messages))
        else:
            self._broadcast(target, messages)

    def commit(self, sends: Sends, acks: Settled, late: Sequence[tuple[Queue, Message]], rejects: Rejects) -> int:
        """A transaction: all of it in one record. Returns the LSN that its receipt waits for (0: nothing was journaled).

        Raises LimitReached before anything has changed.
        """
        self._find_queues(sends)
        parts: list[Part] = []
        arrivals: list[tuple[Queue | str, list[Message], bool]] = []  # in the order of the SENDs
        for route, owns, bodies in sends:
            self.counters.received += len(bodies)
            if route.persistent and (queue := route.queue) is not None:
                messages = self._stage(parts, route, owns, bodies)
                if queue.subscriptions and messages[-1].seq + (queue.step >> 1) > queue.mark_asked:
                    self.ask_mark(queue, messages[-1].seq + queue.step)
                arrivals.append((queue, messages, True))
            elif (target := self._volatile_target(route)) is not None:
                arrivals.append((target, self._volatile_messages(route, owns, bodies), False))
            else:
                self.counters.dropped_replies += len(bodies)
        for queue, messages in acks:
            if seqs := self._kill(queue, messages):
                parts.append((RecordType.ACKED, acked_payload(queue.key, seqs)))
        for queue, message in late:
            if (killed := self._kill_late(queue, message)) is not None:
                parts.append((RecordType.ACKED, acked_payload(killed.key, [message.seq])))
        self._staged = parts
        try:
            for queue, messages, requeue, failure in rejects:
                self.reject(queue, messages, requeue=requeue, failure=failure)
        finally:
            self._staged = None
        lsn = self.journal.append(RecordType.TRANSACTION, transaction_payload(parts)) if parts else 0
        self._arrive(lsn, arrivals)
        return lsn or self._settled_before([*(m for _, some in acks for m in some), *(m for _, m in late)])

    def _find_queues(self, sends: Sends) -> None:
        """Every queue of a transaction is there afterwards. Raises LimitReached before the first one is made."""
        names = {route.destination.name for route, _, _ in sends if route.destination.kind is Kind.QUEUE}
        most = self.settings.limits.queues
        missing = names - self.queues.keys()
        if missing and len(self.queues) + len(missing) > most:
            self._forget_queues(idle=0.0)
            missing = names - self.queues.keys()
            if len(self.queues) + len(missing) > most:
                raise LimitReached(f"there are {len(self.queues)} queues, limits.queues allows no {len(missing)} more")
        for route, _, _ in sends:
            if route.destination.kind is Kind.QUEUE and (route.queue is None or route.queue.gone):
                route.queue = self.queue(route.destination.name)

    def _arrive(self, lsn: int, arrivals: list[tuple[Queue | str, list[Message], bool]]) -> None:
        """The messages of a transaction whose record was just appended: (target, messages, whether they are in it)."""
        segment = self.journal.segment
        for target, messages, persistent in arrivals:
            if not persistent or isinstance(target, str):
                self._show_volatile(lsn, target, messages)
                continue
            segment.live += len(messages)
            for message in messages:
                message.segment = segment
            target.pending += len(messages)
            self._waiting.append((lsn, target, messages))

    def _log(self, kind: RecordType, payload: list[bytes]) -> int:
        """Into the transaction that is being committed (0), else a record of its own (its LSN)."""
        if self._staged is None:
            return self.journal.append(kind, payload)
        self._staged.append((kind, payload))
        return 0

    def _stage(
        self,
        parts: list[Part],
        route: Route,
        owns: list[bytes] | None,
        bodies: list[bytes],
    ) -> list[Message]:
        seq = self.journal.take_seqs(len(bodies))
        envelope = route.envelope(self.clock.wall_ms(), self.prefix)
        for start, end in _records(bodies):
            payload = messages_payload(
                route.key,
                route.queues,
                route.head,
                envelope.stamp,
                seq + start,
                owns[start:end] if owns else None,
                bodies[start:end],
            )
            parts.append((RecordType.MESSAGES, payload))
        mine: Iterable[bytes] = owns or [b""] * len(bodies)
        return [
            Message(n, body, own, envelope, None) for n, (body, own) in enumerate(zip(bodies, mine, strict=True), seq)
        ]

    # --- subscriptions ----------------------------------------------------------------------------------------------

    def subscribe_queue(self, subscription: Subscription, queue: Queue) -> None:
        queue.attach(subscription)
        self._dirty[queue] = None

    def subscribe_topic(self, subscription: Subscription, pattern: str) -> None:
        subscription.pattern = pattern
        self.topics.add(subscription)

    def end_subscription(self, subscription: Subscription, *, lost: bool) -> int:
        """Its deliveries go back to their places. `lost`: the connection broke, so the oldest one may have done it.

        Returns the LSN of what was written about it, 0 for none.
        """
        queue = subscription.queue
        if queue is None:
            self.topics.remove(subscription)
            self._slow.pop(subscription, None)
            self._backlogs.book(-subscription.backlog_bytes)
            subscription.backlog.clear()
            subscription.backlog_bytes = 0
            subscription.in_flight.clear()
            subscription.held.clear()
            return 0
        queue.detach(subscription)
        held = subscription.held  # these go with their transaction
        messages = [message for id, message in subscription.in_flight.items() if id not in held]
        subscription.in_flight.clear()
        held.clear()
        queue.idle_since = self.clock.monotonic()
        return self.give_back(queue, messages, failures=1 if lost else 0)

    def give_back(self, queue: Queue, messages: list[Message], *, failures: int) -> int:
        """Messages that were in flight return to their places; the first `failures` of them count as failed.

        A message that failed too often becomes a dead letter. Returns the LSN of the record, 0 for none.
        """
        if queue.gone or not messages:
            return 0
        self.counters.returned += len(messages)
        queue.in_flight -= len(messages)
        lsn = 0
        stays: list[Message] = []
        for message in messages:
            if message.deliveries == SETTLED:
                queue.put_back(message)
                continue
            message.deliveries += 1
            if failures > 0:
                failures -= 1
                message.failures += 1
                if message.failures >= MAX_DELIVERIES and self._has_dead_letters(queue):
                    lsn = self._dead_letter(queue, message, "max-deliveries", "")
                    continue
            stays.append(message)
            queue.put_back(message)
        entries = _counts(stays)
        if entries and not self.journal.failed:
            lsn = self._log(RecordType.RETURNED, returned_payload(queue.key, entries))
        self._dirty[queue] = None
        return lsn

    # --- acknowledgements -------------------------------------------------------------------------------------------

    def settle(self, queue: Queue, messages: list[Message]) -> int:
        """Messages in flight are done with, for ever. Returns the LSN that the receipts wait for (0: none)."""
        seqs = self._kill(queue, messages)
        if not seqs:
            return self._settled_before(messages)
        return self.journal.append(RecordType.ACKED, acked_payload(queue.key, seqs))

    def _kill(self, queue: Queue, messages: list[Message]) -> list[int]:
        """Forget messages that were in flight; the seqs of those that the journal knows."""
        self.counters.acknowledged += len(messages)
        queue.in_flight -= len(messages)
        if queue.late:
            alive = [message for message in messages if message.deliveries != SETTLED]
            queue.late -= len(messages) - len(alive)
            messages = alive
        self._dirty[queue] = None
        seqs = []
        for message in messages:
            if message.deliveries:
                # A late ACK of an earlier delivery may still name it, and holds on to it until then.
                message.deliveries = SETTLED
                message.body = b""
            if (segment := message.segment) is not None:
                segment.live -= 1
                seqs.append(message.seq)
        return seqs

    def settle_late(self, queue: Queue, message: Message) -> int:
        """An ACK after the subscription's end: the message is done with, wherever it is by now."""
        killed = self._kill_late(queue, message)
        if killed is None:
            return self._settled_before([message])
        return self.journal.append(RecordType.ACKED, acked_payload(killed.key, [message.seq]))

    def _settled_before(self, messages: Sequence[Message]) -> int:
        """What the receipt of an ACK waits for that journals nothing itself: somebody else's record of it may not be
        synced yet. Messages in memory only wait for nothing.
        """
        return self.journal.lsn if any(message.segment is not None for message in messages) else 0

    def _kill_late(self, queue: Queue, message: Message) -> Queue | None:
        """Mark it as settled where it is; the queue in whose name that is to be journaled, None for nothing to journal."""
        if message.deliveries == SETTLED:
            return None
        if message.envelope.extra:  # it has become a dead letter meanwhile, under that name
            queue = self.queues.get(message.envelope.destination, queue)
        if queue.gone:
            return None
        message.deliveries = SETTLED
        message.body = b""
        queue.late += 1
        self.counters.acknowledged += 1
        if message.segment is None:
            return None
        message.segment.live -= 1
        return queue

    def reject(self, queue: Queue, messages: list[Message], *, requeue: bool, failure: str) -> int:
        """A NACK: back to their places, or dead letters after the last try or at once where `requeue` is false."""
        if requeue or not self._has_dead_letters(queue):
            return self.give_back(queue, messages, failures=len(messages))
        queue.in_flight -= len(messages)
        lsn = 0
        for message in messages:
            if message.deliveries == SETTLED:
                queue.put_back(message)
                continue
            message.deliveries += 1
            lsn = self._dead_letter(queue, message, "rejected", failure)
        self._dirty[queue] = None
        return lsn

    def _has_dead_letters(self, queue: Queue) -> bool:
        # Dead letters never loop: in a dead-letter queue a NACK only returns. Temporary queues end with their owner.
        return not queue.name.startswith(DEAD_LETTER_PREFIX) and not queue.owner

    def _dead_letter(self, queue: Queue, message: Message, reason: str, failure: str) -> int:
        """Move to the dead-letter queue, with the reason. Returns the LSN of the record, 0 for none."""
        # Made past limits.queues: the message has to go somewhere.
        name = DEAD_LETTER_PREFIX + queue.name.removeprefix(Kind.QUEUE.value)
        target = self.queues.get(name)
        if target is None:
            target = self.queues[name] = Queue(name)
        extra = [
            ("dead-letter-reason", reason),
            ("dead-letter-queue", queue.name),
            ("dead-letter-time", str(self.clock.wall_ms())),
        ]
        if failure:
            extra.append(("failure-reason", failure))
        message.envelope = dead_envelope(message.envelope, name, extra)
        message.failures = 0
        self.counters.dead_lettered += 1
        self.events.event(
            "warning", "dead-letter", f"a message of {queue.name} went to {name}: {reason}", queue=queue.name
        )
        lsn = 0
        if message.segment is not None and not self.journal.failed:
            entry = (message.seq, message.seq, message.deliveries, 0)
            note = json.dumps(extra).encode()
            lsn = self._log(RecordType.MOVED, moved_payload(queue.key, target.key, [entry], note))
        target.put_back(message)
        self._dirty[target] = None
        return lsn

    # --- topics -----------------------------------------------------------------------------------------------------

    def _broadcast(self, topic: str, messages: list[Message]) -> None:
        receivers = self.topics.receivers(topic)
        if not receivers:
            return
        broadcast = Broadcast(messages)
        for subscription in receivers:
            if subscription.ack is AckMode.AUTO and subscription.outlet.room > 0 and not subscription.backlog:
                subscription.outlet.broadcast(subscription, broadcast)
            else:
                self._keep_for(subscription, messages)

    def _keep_for(self, subscription: Subscription, messages: list[Message]) -> None:
        """For a subscriber that is not ready now; what does not fit is dropped and counted."""
        for message in messages:
            size = len(message.body) + 256
            if subscription.backlog_bytes >= TOPIC_BACKLOG or self.budget.over:
                subscription.dropped += 1
                self.counters.dropped_slow += 1
                if subscription.dropped == 1:
                    self.events.event(
                        "warning",
                        "slow-subscriber",
                        f"a subscriber of /topic/{subscription.pattern} is too slow, messages for it are dropped",
                        subscription=subscription.id,
                    )
                continue
            subscription.backlog.append(message)
            subscription.backlog_bytes += size
            self._backlogs.book(size)
        self._slow[subscription] = None

    def _serve_slow(self) -> None:
        for subscription in list(self._slow):
            backlog = subscription.backlog
            while backlog and subscription.able:
                batch = [backlog.popleft() for _ in range(min(64, subscription.credit, len(backlog)))]
                taken = subscription.outlet.deliver(subscription, batch)
                backlog.extendleft(reversed(batch[taken:]))
                subscription.credit -= taken
                size = sum(len(message.body) + 256 for message in batch[:taken])
                subscription.backlog_bytes -= size
                self._backlogs.book(-size)
            if not backlog:
                del self._slow[subscription]

    # --- the turn -----------------------------------------------------------------------------------------------------

    def touch(self, queue: Queue | None) -> None:
        """A consumer of this queue may be able to take more."""
        if queue is not None:
            self._dirty[queue] = None

    def watch(self, lsn: int, outlet: Outlet) -> None:
        """Call `outlet.durable` once the journal is synced up to `lsn`."""
        self._watchers.append((lsn, outlet))

    def ask_mark(self, queue: Queue, seq: int) -> None:
        lsn = self.journal.append(RecordType.DELIVERED, delivered_payload(queue.key, seq))
        queue.mark_asked = seq
        queue.mark_segment = self.journal.segment.number
        self._marks.append((lsn, queue, seq))

    def turn(self) -> list[Job]:
        """Hand out what can be handed out, then say what is to be done outside."""
        if self._slow:
            self._serve_slow()
        while self._dirty and not self.draining:
            dirty, self._dirty = self._dirty, {}
            for queue in dirty:
                if queue.subscriptions and not queue.gone:
                    queue.dispatch(self)
        jobs: list[Job] = []
        if (batch := self.journal.take_batch()) is not None:
            self._last_write = self.clock.monotonic()
            jobs.append(Write(batch))
        self._journal_account.book(self.journal.queued - self._journal_account.used)
        due = self._next_sweep
        if self.journal.needs_witness:
            due = min(due, self._last_write + WITNESS_AFTER)
        if due != self._due:
            self._due = due
            jobs.append(Timer(due))
        return jobs

    def written(self, batch: Batch, error: OSError | None) -> None:
        """The writer has run this batch. After an error nothing is receipted any more: `journal.failed` says so."""
        journal = self.journal
        journal.done(batch, error)
        self._last_write = self.clock.monotonic()
        if journal.failed:
            return
        durable = journal.durable
        marks = self._marks
        while marks and marks[0][0] <= durable:
            _, queue, seq = marks.popleft()
            queue.mark = seq
            self._dirty[queue] = None
        waiting = self._waiting
        while waiting and waiting[0][0] <= durable:
            _, target, messages = waiting.popleft()
            if isinstance(target, str):
                self._waiting_topics[target] -= 1
                if not self._waiting_topics[target]:
                    del self._waiting_topics[target]
                self._broadcast(target, messages)
            else:
                target.pending -= len(messages)
                target.ready += messages
                self._dirty[target] = None
        watchers = self._watchers
        told: dict[Outlet, None] = {}
        while watchers and watchers[0][0] <= durable:
            told[watchers.popleft()[1]] = None
        for outlet in told:
            outlet.durable(durable)
        self._trim()

    def tick(self) -> None:
        """What `Timer` asked for."""
        now = self.clock.monotonic()
        self._due = 0.0
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_EVERY
            self._forget_queues(QUEUE_IDLE)
        if self.journal.needs_witness and now >= self._last_write + WITNESS_AFTER:
            self.journal.append_witness()

    def _trim(self) -> None:
        dead = self.journal.dead_segments()
        if not dead:
            return
        numbers = {segment.number for segment in dead}
        for queue in list(self.queues.values()):
            # What still holds must stand in a newer segment before its old one goes.
            if queue.mark_segment in numbers:
                if queue.in_use:
                    self.ask_mark(queue, queue.mark_asked)
                else:
                    # The journal will not know of it any more: the next delivery has to ask for a new one.
                    queue.mark = queue.mark_asked = queue.mark_segment = 0
        self.journal.trim(dead)

    @property
    def in_flight(self) -> int:
        """Messages that consumers have and have not settled."""
        return sum(queue.in_flight for queue in self.queues.values())

    def stop(self) -> None:
        """All sessions are closed: one last record, which says that every count before it is exact."""
        if not self.journal.failed:
            self.journal.append_witness(clean=True)


def _records(bodies: Sequence[bytes]) -> Iterable[tuple[int, int]]:
    """Cut a run of messages into records: (start, end) of each."""
    start = size = 0
    for at, body in enumerate(bodies):
        if at - start == RECORD_MESSAGES or (size + len(body) > RECORD_BYTES and at > start):
            yield start, at
            start, size = at, 0
        size += len(body)
    yield start, len(bodies)


def _counts(messages: Sequence[Message]) -> list[tuple[int, int, int, int]]:
    """(first seq, last seq, deliveries, failures) for messages that the journal knows; neighbours are joined."""
    entries: list[tuple[int, int, int, int]] = []
    for message in messages:
        if message.segment is None:
            continue
        seq = message.seq
        entry = (seq, seq, message.deliveries, message.failures)
        if entries and entries[-1][1] == seq - 1 and entries[-1][2:] == entry[2:]:
            entry = (entries.pop()[0], *entry[1:])
        entries.append(entry)
    return entries


def dead_envelope(old: Envelope, name: str, extra: Iterable[tuple[str, str]]) -> Envelope:
    """The envelope of a dead letter: its own destination, where it was sent first, and why it is here."""
    return Envelope(name, old.head, old.stamp, old.prefix, (("original-destination", old.destination), *extra))
