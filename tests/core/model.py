"""What a broker may do with messages, as a simple model: it knows what was asked, sees what comes, and complains.

It shares no code with the broker and does not predict who gets a message; it knows only what must never happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.wire import Got


class Broken(AssertionError):
    """The broker did what it must not do."""


@dataclass(eq=False)
class Message:
    body: str
    queue: str
    persistent: bool
    order: int = 0  # place among all that was accepted; 0 while its transaction is open
    kept: bool = False  # receipted: it must not get lost
    exists: bool = False  # accepted, in this run of the broker or surely on disk
    seen: list[int] = field(default_factory=list)  # steps at which a client got it
    acked: int = 0  # the step at which it was acknowledged, 0 for not
    ack_kept: bool = False  # that is receipted
    ack_unsure: bool = False  # the broker died since, so the ACK may be forgotten
    flag_unsure: bool = False  # the broker died since it was accepted, so it may be flagged without need
    owner: Sub | None = None


@dataclass(eq=False)
class Sub:
    queue: str
    mode: str
    prefetch: int
    unacked: dict[str, tuple[Message, str]] = field(default_factory=dict)  # body -> message, ack id; in order
    held: set[str] = field(default_factory=set)
    ended: bool = False
    highest: dict[str, int] = field(default_factory=dict)  # sender -> order of the last new message


@dataclass(eq=False)
class Tx:
    sends: list[Message] = field(default_factory=list)
    acks: list[tuple[Sub, Message]] = field(default_factory=list)
    nacks: list[tuple[Sub, Message]] = field(default_factory=list)
    step: int = 0  # of its COMMIT
    kept: bool = False
    unsure: bool = False  # the broker died before the receipt


class Peer:
    """One connection as the model sees it."""

    def __init__(self, model: Model, number: int) -> None:
        self.model = model
        self.number = number
        self.subs: dict[str, Sub] = {}
        self.open: dict[str, Tx] = {}
        self.late: list[tuple[Message, str]] = []
        self.receipts: deque[tuple[str, Callable[[], None]]] = deque()

    def got(self, frame: Got) -> None:
        if frame.command == "RECEIPT":
            if not self.receipts or self.receipts[0][0] != frame["receipt-id"]:
                raise Broken(f"receipt {frame['receipt-id']}, expected {list(self.receipts)[:1]}")
            self.receipts.popleft()[1]()
        elif frame.command == "MESSAGE":
            self.model.delivered(self.subs[frame["subscription"]], frame)
        else:
            raise Broken(f"{frame}")

    # --- what it asks

    def ack(self, sub: Sub, message: Message, command: str, tx: Tx | None) -> list[Message]:
        """ACK or NACK; what it covers. Without a transaction, these messages leave the subscription."""
        covered = [message]
        if sub.mode == "client":
            bodies = list(sub.unacked)
            covered = [sub.unacked[b][0] for b in bodies[: bodies.index(message.body) + 1] if b not in sub.held]
        if tx is not None:
            sub.held.update(m.body for m in covered)
            (tx.acks if command == "ACK" else tx.nacks).extend((sub, m) for m in covered)
            return []
        for each in covered:
            del sub.unacked[each.body]
            each.owner = None
            if command == "ACK":
                self.model.acknowledge(each)
        return covered if command == "ACK" else []

    def commit(self, tx: Tx) -> Callable[[], None]:
        model = self.model
        tx.step = model.step
        for message in tx.sends:
            model.accept(message)
        for sub, message in tx.acks + tx.nacks:
            sub.unacked.pop(message.body, None)
            sub.held.discard(message.body)
            message.owner = None
        for _, message in tx.acks:
            model.acknowledge(message)
        model.commits.append(tx)

        def kept() -> None:
            tx.kept = True
            for message in tx.sends:
                message.kept = True
            for _, message in tx.acks:
                message.ack_kept = True

        return kept

    def abort(self, tx: Tx) -> None:
        for sub, message in tx.acks + tx.nacks:
            sub.held.discard(message.body)
            if sub.ended:
                message.owner = None

    def unsubscribe(self, id: str) -> None:
        sub = self.subs[id]
        self.late += [pair for body, pair in sub.unacked.items() if sub.mode != "auto" and body not in sub.held]
        self.forget(sub)
        del self.subs[id]

    def forget(self, sub: Sub) -> None:
        sub.ended = True
        for message, _ in sub.unacked.values():
            if message.body not in sub.held:
                message.owner = None

    def end(self) -> None:
        for tx in self.open.values():
            self.abort(tx)
        for sub in self.subs.values():
            sub.held.clear()
            self.forget(sub)


class Model:
    def __init__(self) -> None:
        self.step = 1
        self.accepted = 0
        self.messages: dict[str, Message] = {}
        self.commits: list[Tx] = []
        self.peers: list[Peer] = []

    def accept(self, message: Message) -> None:
        self.accepted += 1
        message.order = self.accepted
        message.exists = True

    def acknowledge(self, message: Message) -> None:
        if not message.acked or message.ack_unsure:
            message.acked, message.ack_unsure = self.step, False

    def delivered(self, sub: Sub, frame: Got) -> None:
        message = self.messages.get(frame.body.decode())
        if message is None or not message.order or sub.queue.removeprefix("DLQ.") != message.queue:
            raise Broken(f"a ghost: {frame}")
        if message.acked and (message.ack_kept or not message.ack_unsure):
            raise Broken(f"{message} came back after its ACK of step {message.acked}")
        flag = frame.get("redelivered") == "true"
        if message.seen and not flag:
            raise Broken(f"{message} was delivered before, but is not flagged")
        if flag and not message.seen and not message.flag_unsure:
            raise Broken(f"{message} is flagged, but nobody ever got it")
        if message.owner is not None:
            raise Broken(f"{message} is with another consumer already")
        if sub.mode != "auto" and len(sub.unacked) - len(sub.held) >= sub.prefetch:
            raise Broken(f"{message} is one more than prefetch {sub.prefetch}")
        sender = message.body.partition(".")[0]
        if not flag:
            if message.order <= sub.highest.get(sender, 0):
                raise Broken(f"{message} came behind a later one")
            sub.highest[sender] = message.order
        message.seen.append(self.step)
        message.acked, message.ack_unsure = 0, False
        if sub.mode == "auto":
            self.acknowledge(message)
        else:
            message.owner = sub
            sub.unacked[message.body] = (message, frame["ack"])

    def stopped(self, *, clean: bool) -> None:
        """The broker has stopped; every connection is gone."""
        for peer in self.peers:
            peer.end()
        self.peers.clear()
        for message in self.messages.values():
            message.owner = None
            if not message.persistent:
                message.exists = False
            if not clean and message.order:
                message.flag_unsure = True
                message.ack_unsure = bool(message.acked) and not message.ack_kept
                message.exists = message.kept and message.persistent
        for tx in self.commits:
            if not clean and not tx.kept:
                tx.unsure = True

    def finish(self, drained: dict[str, list[Got]]) -> None:
        """All that was left was taken out; nobody else holds anything."""
        left: dict[str, Message] = {}
        for queue, frames in drained.items():
            orders = []
            for frame in frames:
                message = self.messages[frame.body.decode()]
                if message.body in left:
                    raise Broken(f"{message} is there twice")
                left[message.body] = message
                orders.append(message.order)
            if not queue.startswith("/queue/DLQ.") and orders != sorted(orders):
                raise Broken(f"{queue} lost its order: {orders}")
        for message in self.messages.values():
            if message.exists and not message.acked and message.body not in left:
                raise Broken(f"{message} is lost")
        for tx in self.commits:
            self._check_atomic(tx)

    def _check_atomic(self, tx: Tx) -> None:
        sends = [message for message in tx.sends if message.persistent]
        there = {bool(message.seen) for message in sends}
        if len(there) == 2:
            raise Broken(f"half of a transaction: {sends}")
        if tx.unsure and there:
            for _, message in tx.acks:
                again = any(step > tx.step for step in message.seen)
                if again and True in there and message.persistent:
                    raise Broken(f"{message} came again, but the transaction that acknowledged it happened")
                if not again and True not in there and message.kept and not message.acked:
                    raise Broken(f"{message} is gone, but the transaction that acknowledged it did not happen")
