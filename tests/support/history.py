"""What clients saw of a broker that crashes, and whether a durable broker may behave like that.

Each client appends what it does before it does it, and what it sees after it saw it, to one list: the
history. `check` holds it against the rules and returns what breaks them. A connection that the process lost
is CLOSED before the broker is started again, so the order of the list is an order in time that all agree on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum


class What(Enum):
    SEND = "send"
    DELIVERED = "delivered"
    ACK = "ack"
    NACK = "nack"
    COMMIT = "commit"
    ABORT = "abort"
    RECEIPT = "receipt"
    ERROR = "error"
    CLOSED = "closed"
    # What only the simulation sees, which stands where the broker reads and writes (tests/support/exact.py).
    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"
    OTHER = "other"  # a frame that moves no message: BEGIN, DISCONNECT
    DOUBT = "doubt"  # the last frames of this connection were perhaps not looked at
    STOP = "stop"  # the broker stopped in good order
    CRASH = "crash"  # the broker died


class Rule(Enum):
    """The rules of a durable broker, by what breaks them."""

    LOSS = "a receipted message was lost"
    GHOST = "a delivery is not what was sent"
    RETURN = "a message came back after the receipt of its ACK"
    FIFO = "order was not kept"
    FLAG = "redelivered says false, but a client got it before"
    OWNER = "a message was with two live consumers"
    ATOMIC = "a transaction happened in part, or though it was aborted"
    RECEIPT = "a receipt came twice, unasked or after an ERROR"
    LIVENESS = "the queues were not empty at the end"
    CREDIT = "a consumer got more than it asked for"
    DEAD = "a message became a dead letter without a reason"


@dataclass(frozen=True, slots=True)
class Event:
    """connection: unique over restarts. message: the name that its sender gave it. ident: its message-id.

    receipt: the receipt that was asked for; for RECEIPT, the one that came.
    intact: body and headers of a delivery are those of the SEND of that name. subscription: the one that a delivery
    came to, or whose delivery is settled; "" where that has ended (a late ACK).
    """

    what: What
    connection: str
    message: str = ""
    queue: str = ""
    transaction: str = ""
    receipt: str = ""
    ident: str = ""
    redelivered: bool = False
    intact: bool = True
    # From here on for the exact checker only.
    subscription: str = ""
    prefetch: int = 0  # of a SUBSCRIBE; 0: as many as there are
    persistent: bool = True
    requeue: bool = True


@dataclass(frozen=True, slots=True)
class Violation:
    rule: Rule
    text: str

    def __str__(self) -> str:
        return f"{self.rule.name}: {self.rule.value}: {self.text}"


@dataclass
class Transaction:
    sends: list[str] = field(default_factory=list)
    acks: list[str] = field(default_factory=list)
    nacks: list[str] = field(default_factory=list)
    committed: int = -1  # where in the history, -1 = never
    durable: bool = False  # the COMMIT has its receipt


class Checker:
    """Reads a history once from front to back, then judges what must hold at the end."""

    def __init__(self, events: Sequence[Event], solo: Iterable[str] = (), *, drained: bool = True) -> None:
        """`solo`: queues with one consumer at a time and no NACK, where all deliveries keep the order."""
        self.events = events
        self.solo = frozenset(solo)
        self.drained = drained
        self.found: list[Violation] = []
        self.sent: dict[str, Event] = {}
        self.place: dict[str, tuple[int, int]] = {}  # (where it took effect, where it was said)
        self.durable: set[str] = set()  # messages that may not be lost
        self.settled: dict[str, int] = {}  # messages whose ACK has its receipt, and since when
        self.acked: set[str] = set()
        self.seen: defaultdict[str, list[int]] = defaultdict(list)
        self.idents: dict[str, str] = {}
        self.owner: dict[str, str] = {}
        self.closed: dict[str, int] = {}
        self.transactions: dict[tuple[str, str], Transaction] = {}
        self.aborted: set[tuple[str, str]] = set()
        self.asked: defaultdict[str, list[Event]] = defaultdict(list)  # not yet receipted, by connection
        self.frames: defaultdict[str, list[Event]] = defaultdict(list)  # not yet covered by a receipt
        self.failed: set[str] = set()
        self.last: dict[tuple[str, str, str, bool], tuple[int, int]] = {}

    def run(self) -> list[Violation]:
        for at, event in enumerate(self.events):
            getattr(self, f"_{event.what.value}")(at, event)
        self._check_transactions()
        self._check_loss()
        if not self.drained:
            self._report(Rule.LIVENESS, "the last consumer did not see all end marks in time")
        return self.found

    def _report(self, rule: Rule, text: str) -> None:
        self.found.append(Violation(rule, text))

    def _said(self, event: Event) -> None:
        self.frames[event.connection].append(event)
        if event.receipt:
            self.asked[event.connection].append(event)

    def _send(self, at: int, event: Event) -> None:
        self._said(event)
        self.sent[event.message] = event
        self.place[event.message] = (at, at)
        if event.transaction:
            self._transaction(event).sends.append(event.message)

    def _transaction(self, event: Event) -> Transaction:
        return self.transactions.setdefault((event.connection, event.transaction), Transaction())

    def _ack(self, at: int, event: Event) -> None:
        self._said(event)
        if event.transaction:
            self._transaction(event).acks.append(event.message)
            return
        self.acked.add(event.message)
        self.owner.pop(event.message, None)

    def _nack(self, at: int, event: Event) -> None:
        self._said(event)
        if event.transaction:
            self._transaction(event).nacks.append(event.message)
            return
        self.owner.pop(event.message, None)

    def _commit(self, at: int, event: Event) -> None:
        self._said(event)
        transaction = self._transaction(event)
        transaction.committed = at
        for message in transaction.sends:
            self.place[message] = (at, self.place[message][1])
        for message in (*transaction.acks, *transaction.nacks):
            self.owner.pop(message, None)

    def _abort(self, at: int, event: Event) -> None:
        self._said(event)
        self.aborted.add((event.connection, event.transaction))

    def _receipt(self, at: int, event: Event) -> None:
        if event.connection in self.failed:
            self._report(Rule.RECEIPT, f"{event.receipt} on {event.connection} after an ERROR")
        waiting = self.asked[event.connection]
        asked = next((each for each in waiting if each.receipt == event.receipt), None)
        if asked is None:
            self._report(Rule.RECEIPT, f"{event.receipt} on {event.connection} was not waited for")
            return
        if waiting[0] is not asked:
            self._report(Rule.RECEIPT, f"{event.receipt} on {event.connection} before {waiting[0].receipt}")
        waiting.remove(asked)
        # A receipt covers every frame of the connection up to its own.
        frames = self.frames[event.connection]
        upto = next(index for index, each in enumerate(frames) if each is asked)
        for covered in frames[: upto + 1]:
            self._cover(at, covered)
        del frames[: upto + 1]

    def _cover(self, at: int, event: Event) -> None:
        if event.what is What.COMMIT:
            transaction = self._transaction(event)
            transaction.durable = True
            self.durable.update(transaction.sends)
            for message in transaction.acks:
                self.settled.setdefault(message, at)
        elif event.transaction:
            return  # inside a transaction a receipt says only that the frame was taken in
        elif event.what is What.SEND:
            self.durable.add(event.message)
        elif event.what is What.ACK:
            self.settled.setdefault(event.message, at)

    def _error(self, at: int, event: Event) -> None:
        self.failed.add(event.connection)

    def _closed(self, at: int, event: Event) -> None:
        self.closed.setdefault(event.connection, at)

    def _delivered(self, at: int, event: Event) -> None:
        message = event.message
        sent = self.sent.get(message)
        if sent is None or not event.intact or not self._belongs(sent, event):
            why = (
                "was never sent" if sent is None else f"was sent to {sent.queue} and came from {event.queue}"
            )
            self._report(Rule.GHOST, f"{message!r} {why if event.intact else 'is not intact'}")
            return
        if event.ident and self.idents.setdefault(message, event.ident) != event.ident:
            self._report(Rule.GHOST, f"{message} is there twice: {self.idents[message]} and {event.ident}")
        if message in self.settled:
            self._report(Rule.RETURN, f"{message} came to {event.connection}")
        if not event.redelivered and self.seen[message]:
            before = self.events[self.seen[message][-1]].connection
            self._report(Rule.FLAG, f"{message} came to {event.connection}, before that to {before}")
        holder = self.owner.get(message)
        if holder is not None and holder not in self.closed:
            self._report(Rule.OWNER, f"{message} came to {event.connection} while {holder} has it")
        self.owner[message] = event.connection
        self.seen[message].append(at)
        self._check_order(event, sent)

    def _belongs(self, sent: Event, event: Event) -> bool:
        """Whether a message that was sent there may come from here."""
        return sent.queue == event.queue

    def _check_order(self, event: Event, sent: Event) -> None:
        """Per producer, queue and consumer; what comes again is exempt where consumers share the queue."""
        solo = event.queue in self.solo
        if event.redelivered and not solo:
            return
        key = (sent.connection, event.queue, event.connection, solo)
        place = self.place[event.message]
        if place <= self.last.get(key, (-1, -1)):
            self._report(Rule.FIFO, f"{event.message} came to {event.connection} behind a later one")
        self.last[key] = max(place, self.last.get(key, (-1, -1)))

    def _tells(self, message: str) -> bool:
        """Whether the presence of a message says something about the COMMIT that sent or acknowledged it."""
        return True

    def _happened(self, connection: str, transaction: Transaction) -> bool:
        """Whether it is known that its COMMIT took effect, whatever was seen of it."""
        return transaction.durable

    def _check_transactions(self) -> None:
        for (connection, name), transaction in self.transactions.items():
            sends = [message for message in transaction.sends if self._tells(message)]
            seen = [message for message in sends if self.seen[message]]
            label = f"{name} of {connection}"
            if transaction.committed < 0:
                for message in (each for each in transaction.sends if self.seen[each]):
                    how = "aborted" if (connection, name) in self.aborted else "never committed"
                    self._report(Rule.ATOMIC, f"{label} was {how}, but {message} was delivered")
                continue
            happened = bool(seen) or self._happened(connection, transaction)
            if happened:
                self.acked.update(transaction.acks)
            if seen and len(seen) < len(sends):
                missing = sorted(set(sends) - set(seen))
                self._report(Rule.ATOMIC, f"{label}: {seen[0]} was delivered, {missing[0]} was not")
            self._check_acks(connection, label, transaction, happened=happened)

    def _check_acks(self, connection: str, label: str, transaction: Transaction, *, happened: bool) -> None:
        ended = self.closed.get(connection, len(self.events))
        for message in transaction.acks:
            again = any(at > ended for at in self.seen[message])
            if happened and again and message not in self.settled:
                self._report(Rule.ATOMIC, f"{label} happened, but {message} that it acknowledged came again")
            sends = any(self._tells(each) for each in transaction.sends)
            lost = sends and not again and message not in self.acked
            if not happened and lost and self._tells(message):
                self._report(
                    Rule.ATOMIC, f"{label} did not happen, but {message} that it acknowledged is gone"
                )
            if not happened and not sends:
                self.acked.add(message)  # nothing tells whether such a COMMIT happened; both are right

    def _check_loss(self) -> None:
        for message in sorted(self.durable):
            if not self.seen[message]:
                self._report(Rule.LOSS, f"{message} was receipted and never delivered")
            elif message not in self.acked:
                self._report(Rule.LOSS, f"{message} was delivered, not acknowledged, and never came again")


def check(events: Sequence[Event], solo: Iterable[str] = (), *, drained: bool = True) -> list[Violation]:
    """Everything in this history that a durable broker must not do. Empty: all is well."""
    return Checker(events, solo, drained=drained).run()
