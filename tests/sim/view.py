"""What one connection has subscribed to, holds unacknowledged and has open in transactions.

There are two views of every connection: the client's, as of what it has said and seen, and the broker's, as of what
has been read and written. The same frames change both in the same order, only at other times.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.exact import home


@dataclass(slots=True, eq=False)
class Delivery:
    """A MESSAGE that came: its name, the queue it came from, and what an ACK of it says."""

    message: str
    queue: str
    id: str  # the `ack` header, or in STOMP 1.0 and 1.1 the message-id


@dataclass(slots=True, eq=False)
class Sub:
    name: str
    queue: str
    mode: str
    unacked: dict[str, Delivery] = field(default_factory=dict)  # in the order of their delivery
    held: set[str] = field(default_factory=set)  # those of them that an open transaction acknowledges or rejects


@dataclass(slots=True, eq=False)
class Open:
    """A transaction: how many SENDs, and (subscription, message) of what it settles."""

    sends: int = 0
    settles: list[tuple[Sub, str]] = field(default_factory=list)


class View:
    def __init__(self) -> None:
        self.subs: dict[str, Sub] = {}
        self.open: dict[str, Open] = {}
        self.ended: dict[str, Sub] = {}
        self.late: dict[str, Delivery] = {}  # by message: their subscription has ended, an ACK may still name them

    def subscribe(self, name: str, queue: str, mode: str) -> None:
        self.subs[name] = Sub(name, queue, mode)
        # An ACK that comes late could now be about another delivery of the same message: nobody sends such a one.
        self.late = {m: d for m, d in self.late.items() if home(d.queue) != home(queue)}

    def unsubscribe(self, name: str) -> None:
        sub = self.ended[name] = self.subs.pop(name)
        if sub.mode != "auto" and not sub.queue.startswith("/topic/"):
            for message, delivery in sub.unacked.items():
                if message not in sub.held:
                    self._becomes_late(message, delivery)

    def _becomes_late(self, message: str, delivery: Delivery) -> None:
        if all(home(sub.queue) != home(delivery.queue) for sub in self.subs.values()):
            self.late[message] = delivery

    def delivered(self, sub: str, delivery: Delivery) -> bool:
        """Returns whether the subscription is still there."""
        found = self.subs.get(sub)
        if found is None:
            # It was on its way when the client ended the subscription.
            if self.ended[sub].mode != "auto" and not self.ended[sub].queue.startswith("/topic/"):
                self._becomes_late(delivery.message, delivery)
            return False
        if found.mode != "auto":
            found.unacked[delivery.message] = delivery
        return True

    def settle(self, sub: str, message: str, transaction: str) -> list[str]:
        """An ACK or NACK; the messages that it is about. None: it is about nothing that is here."""
        found = self.subs.get(sub)
        if found is None:
            if self.late.pop(message, None) is None:
                return []
            return [message]
        if message not in found.unacked or message in found.held:
            return []
        covered = [message]
        if found.mode == "client":
            covered = []
            for each in found.unacked:
                if each not in found.held:
                    covered.append(each)
                if each == message:
                    break
        if transaction:
            found.held.update(covered)
            self.open[transaction].settles += [(found, each) for each in covered]
        else:
            for each in covered:
                del found.unacked[each]
        return covered

    def begin(self, name: str) -> None:
        self.open[name] = Open()

    def commit(self, name: str) -> None:
        for sub, message in self.open.pop(name).settles:
            sub.unacked.pop(message, None)
            sub.held.discard(message)

    def abort(self, name: str) -> None:
        for sub, message in self.open.pop(name).settles:
            sub.held.discard(message)
            if self.subs.get(sub.name) is not sub and message in sub.unacked and sub.mode != "auto":
                self._becomes_late(message, sub.unacked[message])
