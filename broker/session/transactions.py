"""Open transactions of one connection: what they hold until COMMIT or ABORT."""

from __future__ import annotations

from broker.budget import Account
from broker.config import Limits
from broker.core import Message, Queue, Sends, Subscription
from broker.errors import LimitReached, UnknownName, shown

_ACTION_BYTES = 256  # what an action costs beside the bodies, roughly


class Held:
    """A delivery that a transaction holds: acknowledged, or rejected, at COMMIT."""

    __slots__ = ("message", "message_id", "queue", "subscription")

    def __init__(self, subscription: Subscription, message_id: bytes, message: Message) -> None:
        self.subscription = subscription
        self.queue: Queue | None = subscription.queue
        self.message_id = message_id
        self.message = message


class Transaction:
    __slots__ = ("acks", "actions", "bytes", "late", "rejects", "sends")

    def __init__(self) -> None:
        self.sends: Sends = []
        self.acks: list[Held] = []
        self.late: list[tuple[bytes, Queue, Message]] = []  # ACKs of deliveries whose subscription has ended
        self.rejects: list[tuple[list[Held], bool, str]] = []  # deliveries, requeue, failure-reason
        self.actions = 0
        self.bytes = 0

    @property
    def held(self) -> list[Held]:
        """All deliveries that it acknowledges or rejects."""
        return [*self.acks, *(one for batch, _, _ in self.rejects for one in batch)]


class Transactions:
    """Owns the open transactions by name and books their bytes."""

    def __init__(self, limits: Limits, account: Account) -> None:
        self._limits = limits
        self._account = account
        self._open: dict[str, Transaction] = {}
        self._bytes = 0

    def begin(self, name: str) -> None:
        """Raises UnknownName where the name is taken, LimitReached where there are too many."""
        if name in self._open:
            raise UnknownName(f"transaction {shown(name)} has begun already")
        if len(self._open) >= self._limits.transactions:
            raise LimitReached(f"{len(self._open)} transactions are open, limits.transactions allows no more")
        self._open[name] = Transaction()

    def get(self, name: str) -> Transaction:
        """Raises UnknownName."""
        transaction = self._open.get(name)
        if transaction is None:
            raise UnknownName(f"no transaction {shown(name)} has begun on this connection")
        return transaction

    def sends(self, name: str) -> bool:
        """Whether there is a transaction of this name that would add messages."""
        transaction = self._open.get(name)
        return transaction is not None and bool(transaction.sends)

    def count(self, transaction: Transaction, actions: int, size: int) -> None:
        """Book what a frame adds. Raises LimitReached before it is taken in."""
        size += actions * _ACTION_BYTES
        if transaction.actions + actions > self._limits.transaction_actions:
            raise LimitReached(f"a transaction has {self._limits.transaction_actions} actions at most")
        if self._bytes + size > self._limits.transaction_bytes:
            raise LimitReached(f"the transactions of a connection hold {self._limits.transaction_bytes} bytes at most")
        transaction.actions += actions
        transaction.bytes += size
        self._bytes += size
        self._account.book(size)

    def end(self, name: str) -> Transaction:
        """COMMIT or ABORT: the transaction is no longer open. Raises UnknownName."""
        transaction = self.get(name)
        del self._open[name]
        self._bytes -= transaction.bytes
        self._account.book(-transaction.bytes)
        return transaction

    def end_all(self) -> list[Transaction]:
        return [self.end(name) for name in list(self._open)]


def by_queue(batch: list[Held]) -> dict[Queue, list[Message]]:
    found: dict[Queue, list[Message]] = {}
    for held in batch:
        if held.queue is not None:
            found.setdefault(held.queue, []).append(held.message)
    return found
