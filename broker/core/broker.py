"""The broker: takes messages in, has them journaled, hands them out, settles them.

Nothing here waits or does I/O. What has to happen outside is a job that `turn()` returns; the shell runs it and
comes back with `written()` or `tick()`. In a simulation the seed decides when that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from broker.budget import Account, Budget
from broker.config import Settings
from broker.core.backlog import SPILL_END, Backlog
from broker.core.catalogue import Catalogue
from broker.core.checkpoints import Checkpoints
from broker.core.compaction import Compaction
from broker.core.counters import Counters, Events
from broker.core.destination import Kind
from broker.core.diskwatch import DiskWatch
from broker.core.intake import Intake
from broker.core.jobs import Job, Keep, Read, Timer, Write
from broker.core.ledger import Ledger
from broker.core.message import Message
from broker.core.positions import Runs, Singles
from broker.core.queue import Queue
from broker.core.restoring import Restorer
from broker.core.route import Route
from broker.core.scrubbing import Scrubbing
from broker.core.settling import Settling
from broker.core.subscription import AckMode, Subscription
from broker.core.topics import Topics
from broker.errors import QueueDamaged
from broker.journal import Ballast, Batch, CheckpointFile, Damage, Journal, Record, Scrub
from broker.system import Clock

WITNESS_AFTER: Final = 0.25  # s without a write; then the last batch gets its witness (reliability.md 2.3)
RETRY_AFTER: Final = 0.5  # s; then what could not be read for want of a file descriptor is tried again
SWEEP_EVERY: Final = 60.0  # s; how often unused queues are looked for

Sends = list[tuple[Route, list[bytes] | None, list[bytes]]]
Settled = list[tuple[Queue, list[Message]]]
Rejects = list[tuple[Queue, list[Message], bool, str]]  # queue, messages, whether they return, failure-reason


class Broker:
    """Puts the parts together, and owns the turn. Sessions call it; it calls them back as `Outlet`s only."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        journal: Journal,
        budget: Budget,
        events: Events,
        checkpoints: CheckpointFile,
        scrub: Scrub,
        ballast: Ballast,
    ) -> None:
        self.clock = clock
        self.journal = journal
        self.budget = budget
        self.counters = Counters()
        self._stopped = False  # the last record is written
        self.draining = False  # the broker is about to stop: nothing more is handed out
        self._catalogue = Catalogue(settings.limits.queues, clock, budget.account("positions on disk"))
        self.queues = self._catalogue.by_name
        self.topics = Topics(budget, self.counters, events)
        self._ledger = Ledger(journal, self._catalogue, self.topics, budget.account("messages"))
        self._intake = Intake(
            self._ledger, self._catalogue, clock, self.counters, budget.account("headers")
        )
        self.backlog = Backlog(self._ledger, self._catalogue, budget, self.counters, events, self._intake.prefix)
        self._settling = Settling(self._ledger, self._catalogue, clock, self.counters, events)
        storage = settings.storage
        self._checkpoints = Checkpoints(
            self._ledger, self._catalogue, clock, self.counters, events, storage, checkpoints
        )
        self._settling.on_move(self._checkpoints.moving)
        self._compaction = Compaction(
            self._ledger, self._catalogue, clock, self.counters,
            Restorer(self._intake.prefix, budget.account("headers")),
            storage.compaction_rate, storage.segment_size,
        )  # fmt: skip
        self._scrubbing = Scrubbing(journal, clock, self.counters, events, scrub, storage.scrub_rate)
        self._disk = DiskWatch(
            journal, clock, budget, self.counters, events, self._compaction, storage, ballast
        )
        self.out_of_room = self._disk.refused  # the writer is stuck: there is no room at all
        self._account: Account = budget.account("journal")
        self._last_write = clock.monotonic()
        self._next_sweep = self._last_write + SWEEP_EVERY
        self._due = 0.0
        self._retry_at = 0.0
        self.prefix = self._intake.prefix  # of every message-id that this log gives
        # What a session asks of the parts, without a call in between.
        self.queue = self._catalogue.queue
        self.drop_temporary = self._catalogue.drop_temporary
        self.publish = self._intake.publish
        self.settle = self._settling.settle
        self.settle_late = self._settling.settle_late
        self.give_back = self._settling.give_back
        self.reject = self._settling.reject
        self.watch = self._ledger.watch

    def commit(self, sends: Sends, acks: Settled, late: Sequence[tuple[Queue, Message]], rejects: Rejects) -> int:
        """A transaction: all of it in one record. Returns the LSN that its receipt waits for, 0 for none.

        Raises LimitReached before anything has changed, StorageFailed.
        """
        # In the order of the frames, so that the same frames do the same.
        names = dict.fromkeys(route.destination.name for route, _, _ in sends if route.destination.kind is Kind.QUEUE)
        self._catalogue.make_room(set(names))
        for name in names:  # all of them before the first is in use, so that none is forgotten for another
            self._catalogue.queue(name)
        before = 0
        self._ledger.begin()
        try:
            for route, owns, bodies in sends:
                self.publish(route, owns, bodies)
            for queue, messages in acks:
                before = max(before, self.settle(queue, messages))
            for queue, message in late:
                before = max(before, self.settle_late(queue, message))
            for queue, messages, requeue, reason in rejects:
                self.reject(queue, messages, requeue=requeue, reason=reason)
        except BaseException:
            self._ledger.cancel()
            raise
        return self._ledger.end() or before

    def restore(self, name: str, fresh: Runs, counted: Singles) -> None:
        """A queue as a start found it, all of it on disk."""
        queue = self._catalogue.add(name)
        queue.stored, queue.counted = fresh, counted
        queue.spilled = fresh.count > SPILL_END

    def hold(self, held: Mapping[int, Sequence[int]]) -> None:
        """What the queues that a start found want of each segment, by its number: messages and bytes."""
        for number, (count, size) in held.items():
            self._ledger.hold(number << 32, count, size)

    # --- subscriptions ------------------------------------------------------------------------------------------------

    def subscribe_queue(self, subscription: Subscription, queue: Queue) -> None:
        """Raises QueueDamaged."""
        if queue.damage:
            raise QueueDamaged(f"{queue.name}: {queue.damage}")
        queue.attach(subscription)
        self._catalogue.dirty[queue] = None

    def subscribe_topic(self, subscription: Subscription, pattern: str) -> None:
        subscription.pattern = pattern
        self.topics.add(subscription)

    def end_subscription(self, subscription: Subscription, *, lost: bool) -> int:
        """Its deliveries go back to their places. `lost`: the connection broke, so the oldest one may have done it.

        Returns the LSN of what was written about it, 0 for none. Raises StorageFailed.
        """
        queue = subscription.queue
        in_flight, held = subscription.in_flight, subscription.held
        if queue is None:
            in_flight.clear()
            held.clear()
            self.topics.remove(subscription)
            return 0
        queue.detach(subscription)
        queue.idle_since = self.clock.monotonic()
        queue.leaving = [each for each in queue.leaving if each.in_flight]
        # What a transaction holds goes with it, and what went to `ack:auto` is settled when the kernel has it.
        stays = in_flight if subscription.ack is AckMode.AUTO else {id: in_flight[id] for id in held}
        messages = [message for id, message in in_flight.items() if id not in stays]
        subscription.in_flight = stays
        held.clear()
        if stays:
            queue.leaving.append(subscription)
        return self.give_back(queue, messages, failures=1 if lost else 0)

    def touch(self, queue: Queue | None) -> None:
        """A consumer of this queue may be able to take more."""
        if queue is not None:
            self._catalogue.dirty[queue] = None

    @property
    def in_flight(self) -> int:
        """Messages that consumers have and have not settled."""
        return sum(queue.in_flight for queue in self.queues.values())

    # --- the turn -----------------------------------------------------------------------------------------------------

    def turn(self) -> list[Job]:
        """Hand out what can be handed out, then say what is to be done outside. Raises StorageFailed."""
        self.topics.serve_slow()
        backlog = self.backlog
        backlog.turn += 1
        jobs: list[Job] = []
        dirty = self._catalogue.dirty
        while dirty and not self.draining:
            queues = list(dirty)
            dirty.clear()
            for queue in queues:
                if queue.subscriptions and not queue.gone:
                    if queue.damage:
                        self._turn_away(queue)
                    else:
                        queue.dispatch(backlog)
            if not dirty:
                backlog.relieve()
                jobs += backlog.jobs()  # may find all that it wants in memory, and the queue dirty again
        if not self.draining:
            jobs += self._checkpoints.jobs()
            jobs += self._compaction.jobs()
            jobs += self._scrubbing.jobs()
        jobs += self._disk.jobs()
        if (batch := self.journal.take_batch()) is not None:
            self._last_write = self.clock.monotonic()
            jobs.append(Write(batch))
        self._account.book(self.journal.queued - self._account.used)
        due = self._next_sweep
        if self.journal.needs_witness:
            due = min(due, self._last_write + WITNESS_AFTER)
        for part in (self._checkpoints, self._compaction, self._scrubbing, self._disk):
            due = min(due, part.due or due)
        if not backlog.must_retry:
            self._retry_at = 0.0
        else:
            self._retry_at = self._retry_at or self.clock.monotonic() + RETRY_AFTER
            due = min(due, self._retry_at)
        if due != self._due:
            self._due = due
            jobs.append(Timer(due))
        return jobs

    def _turn_away(self, queue: Queue) -> None:
        """Its consumers hear why they get nothing more."""
        for subscription in list(queue.subscriptions):
            subscription.outlet.refuse(f"{queue.name}: {queue.damage}")

    def read(self, job: Read, results: Sequence[Record | Damage]) -> None:
        """The reader is through with this job. Raises StorageFailed."""
        if not job.copying:
            self.backlog.read(job, results)
        elif not self.draining and (damage := self._compaction.read(job, results)) is not None:
            self.backlog.close(*damage)
        self._trim()

    def kept(self, job: Keep, result: object, error: OSError | None) -> None:
        """The keeper is through with this job: what it returned, or why it could not. Raises StorageFailed."""
        if not (
            self._checkpoints.kept(job.task, error)
            or self._scrubbing.kept(job.task, result)
            or self._disk.kept(job.task, result, error)
        ):
            raise RuntimeError(f"nobody asked for {job.task}")
        self._trim()

    def written(self, batch: Batch, error: OSError | None) -> None:
        """The writer has run this batch. After an error nothing is receipted any more: `journal.failed` says so."""
        journal = self.journal
        journal.done(batch, error)
        self._disk.written(batch)
        self._last_write = self.clock.monotonic()
        if journal.failed:
            return
        self._ledger.reached(journal.durable)
        self.backlog.written()
        self._trim()

    def _trim(self) -> None:
        """Segments at the old end that nobody needs go."""
        journal = self.journal
        if journal.failed is None and not self._stopped and (dead := journal.dead_segments()):
            self._ledger.carry_marks({segment.number for segment in dead})
            journal.trim(dead)

    def tick(self) -> None:
        """What `Timer` asked for. Raises StorageFailed."""
        now = self.clock.monotonic()
        self._due = 0.0
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_EVERY
            self._catalogue.forget_idle()
        if self._retry_at and now >= self._retry_at:
            self.backlog.retry()
        if self.journal.needs_witness and now >= self._last_write + WITNESS_AFTER:
            self.journal.append_witness()

    def stop(self) -> None:
        """All sessions are closed: one last record, which says that every count before it is exact."""
        self._stopped = True
        if not self.journal.failed:
            self.journal.append_witness(clean=True)
