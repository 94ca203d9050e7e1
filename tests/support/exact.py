"""The history checker for a history that was taken where the broker reads and writes.

There every frame of a client is in the history when the broker has read it, every delivery when the broker wrote it,
and the end of each run is: in good order (STOP) or not (CRASH). So more can be asked than of what clients saw:

- what was read and not lost in a crash has taken effect, receipt or not;
- `redelivered:true` is said only of what was delivered before, or was there at a crash;
- nobody has more unacknowledged messages than the prefetch allows;
- a dead letter was rejected, or has failed often enough;
- messages of all senders keep the order of their arrival, and what is left at the end is in order whatever it
  went through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.support.history import Checker, Event, Rule, Transaction, Violation, What

VOLATILE = ("/topic/", "/temp-queue/")  # what goes there ends with its receivers
DEAD = "/queue/DLQ."


def home(queue: str) -> str:
    """The queue that a dead letter comes from; any other is its own."""
    return "/queue/" + queue.removeprefix(DEAD) if queue.startswith(DEAD) else queue


class ExactChecker(Checker):
    """`drains`: connections that take what is left at the end. `failures`: how many make a dead letter."""

    def __init__(
        self, events: Sequence[Event], drains: Iterable[str] = (), *, failures: int = 10, drained: bool = True
    ) -> None:
        super().__init__(events, drained=drained)
        self.drains = frozenset(drains)
        self.failures = failures
        self.doubted: set[str] = set()
        self.ends: list[tuple[int, What]] = []  # STOPs and CRASHes
        self.crashed = -1  # where the last CRASH is
        self.now_acked: dict[str, str] = {}  # acknowledged in this run of the broker: by which connection
        self.where: dict[str, str] = {}  # the subscription of the owner
        self.limits: dict[tuple[str, str], int] = {}  # by live subscription
        self.flight: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.held: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)  # by transaction
        self.chances: defaultdict[str, int] = defaultdict(int)  # how often a message may have failed
        self.let_go: defaultdict[str, set[str]] = defaultdict(set)  # what a connection has settled, perhaps
        self.rejected: set[str] = set()
        self.copies: set[tuple[str, str, str]] = set()  # topic messages, by subscription
        self.last_topic: dict[tuple[str, str, str, str], int] = {}

    # --- ends of a run ------------------------------------------------------------------------------------------------

    def _stop(self, at: int, event: Event) -> None:
        self.ends.append((at, What.STOP))

    def _crash(self, at: int, event: Event) -> None:
        self.ends.append((at, What.CRASH))
        self.crashed = at
        self.now_acked.clear()

    def _doubt(self, at: int, event: Event) -> None:
        self.doubted.add(event.connection)
        self.now_acked = {message: by for message, by in self.now_acked.items() if by != event.connection}

    def _stays(self, at: int, connection: str) -> bool:
        """Whether a frame has taken effect for good: no crash can have taken it back."""
        if connection in self.doubted:
            return False
        return next((what for end, what in self.ends if end > at), What.STOP) is What.STOP

    def _tells(self, message: str) -> bool:
        sent = self.sent.get(message)
        return sent is not None and sent.persistent and not sent.queue.startswith(VOLATILE)

    def _happened(self, connection: str, transaction: Transaction) -> bool:
        return transaction.durable or self._stays(transaction.committed, connection)

    # --- subscriptions ------------------------------------------------------------------------------------------------

    def _other(self, at: int, event: Event) -> None:
        self._said(event)

    def _subscribe(self, at: int, event: Event) -> None:
        self._said(event)
        self.limits[event.connection, event.subscription] = event.prefetch

    def _unsubscribe(self, at: int, event: Event) -> None:
        self._said(event)
        key = (event.connection, event.subscription)
        automatic = not self.limits.pop(key, 0)  # these are done with when they are written out, whatever comes first
        for message in self.flight.pop(key, ()):
            if not automatic and self.owner.get(message) == event.connection:
                del self.owner[message]

    def _free(self, event: Event) -> None:
        """A slot of the subscription is free: a transaction frees it at once, and an ABORT takes it back."""
        self.let_go[event.connection].add(event.message)
        if event.subscription:
            self.flight[event.connection, event.subscription].discard(event.message)
            if event.transaction:
                self.held[event.connection, event.transaction].append((event.subscription, event.message))

    # --- settling -----------------------------------------------------------------------------------------------------

    def _ack(self, at: int, event: Event) -> None:
        self._free(event)
        if event.subscription or event.transaction:
            super()._ack(at, event)
        else:  # late: whoever has it now keeps it
            self._said(event)
            self.acked.add(event.message)
        if not event.transaction:
            self._acked_now(event.message, event.connection)

    def _acked_now(self, message: str, connection: str) -> None:
        if connection not in self.doubted:
            self.now_acked[message] = connection

    def _nack(self, at: int, event: Event) -> None:
        super()._nack(at, event)
        self._free(event)
        self.chances[event.message] += 1  # in a transaction that comes to nothing: one too many does no harm
        if not event.requeue:
            self.rejected.add(event.message)

    def _commit(self, at: int, event: Event) -> None:
        super()._commit(at, event)
        self.held.pop((event.connection, event.transaction), None)
        for message in self._transaction(event).acks:
            self._acked_now(message, event.connection)

    def _abort(self, at: int, event: Event) -> None:
        super()._abort(at, event)
        for subscription, message in self.held.pop((event.connection, event.transaction), ()):
            if (event.connection, subscription) in self.limits:
                self.flight[event.connection, subscription].add(message)
            elif self.owner.get(message) == event.connection:
                del self.owner[message]

    def _closed(self, at: int, event: Event) -> None:
        super()._closed(at, event)
        had = {message for message, by in self.owner.items() if by == event.connection}
        if event.connection in self.doubted:
            had |= self.let_go[event.connection]
        for message in had:
            self.chances[message] += 1

    # --- deliveries ---------------------------------------------------------------------------------------------------

    def _belongs(self, sent: Event, event: Event) -> bool:
        return sent.queue == home(event.queue)

    def _delivered(self, at: int, event: Event) -> None:
        message, key = event.message, (event.connection, event.subscription)
        limit = self.limits.get(key)
        if limit is None:
            self._report(Rule.GHOST, f"{message} came to subscription {key}, which is not there")
        elif limit and len(self.flight[key]) >= limit:
            self._report(Rule.CREDIT, f"{message} came to {key} on top of {limit} unacknowledged")
        self.flight[key].add(message)
        if event.queue.startswith("/topic/"):
            self._copy(at, event)
            return
        by = self.now_acked.get(message)
        if by is not None:
            self._report(Rule.RETURN, f"{message} came to {event.connection}, but {by} had acknowledged it")
        sent = self.sent.get(message)
        dead = event.queue.startswith(DEAD)
        never = sent is not None and not self.seen[message] and self.crashed < self.place[message][1]
        if event.redelivered and never and not dead:
            self._report(Rule.FLAG, f"{message} is flagged for {event.connection}, but nobody ever got it")
        if dead and message not in self.rejected and self.chances[message] < self.failures:
            self._report(Rule.DEAD, f"{message} has failed {self.chances[message]} times at most")
        super()._delivered(at, event)
        if sent is not None and not sent.persistent and any(end > self.place[message][1] for end, _ in self.ends):
            self._report(Rule.GHOST, f"{message} is not persistent and came after a restart")

    def _copy(self, at: int, event: Event) -> None:
        sent = self.sent.get(event.message)
        if sent is None or not event.intact or sent.queue != event.queue or event.redelivered:
            self._report(Rule.GHOST, f"{event.message!r} of a topic is not what was sent")
            return
        self.seen[event.message].append(at)
        key = (event.connection, event.subscription, event.message)
        if key in self.copies:
            self._report(Rule.GHOST, f"{event.message} of a topic came twice to {event.subscription}")
        self.copies.add(key)
        order = (event.connection, event.subscription, event.queue, sent.connection)
        if self.place[event.message][0] < self.last_topic.get(order, -1):
            self._report(Rule.FIFO, f"{event.message} of a topic came behind a later one")
        self.last_topic[order] = self.place[event.message][0]

    def _check_order(self, event: Event, sent: Event) -> None:
        if event.queue.startswith(DEAD):
            return
        drain = event.connection in self.drains
        if event.redelivered and not drain:
            return
        super()._check_order(event, sent)
        if sent.connection in self.doubted:
            return  # what was held back arrived later than it was read
        key = ("", event.queue, event.connection, drain)
        place = self.place[event.message]
        if place <= self.last.get(key, (-1, -1)):
            self._report(Rule.FIFO, f"{event.message} came to {event.connection} behind what arrived later")
        self.last[key] = max(place, self.last.get(key, (-1, -1)))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _check_loss(self) -> None:
        for message, sent in self.sent.items():
            at = self.place[message][0]
            if sent.transaction:
                at = self._transaction(sent).committed
            if at < 0 or sent.queue.startswith(VOLATILE):
                self.durable.discard(message)
            elif not sent.persistent:
                # It lives as long as the broker runs.
                self.durable.discard(message)
                if sent.connection not in self.doubted and not any(end > at for end, _ in self.ends):
                    self.durable.add(message)
            elif self._stays(at, sent.connection) or self.seen[message]:
                self.durable.add(message)  # what was delivered was synced before
        super()._check_loss()


def check_exactly(
    events: Sequence[Event], drains: Iterable[str] = (), *, failures: int = 10, drained: bool = True
) -> list[Violation]:
    """Everything in this history that a durable broker must not do. Empty: all is well."""
    return ExactChecker(events, drains, failures=failures, drained=drained).run()
