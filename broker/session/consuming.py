"""The consuming half of a conversation: subscriptions, acknowledgements in each version's form, and their undoing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.config import Limits
from broker.core import AckMode, Broker, Kind, Message, Outlet, Queue, Subscription
from broker.core.destination import check_pattern, check_queue_name, parse, temporary_name
from broker.core.message import SETTLED
from broker.errors import BadHeader, DestinationRefused, LimitReached, UnknownName, shown
from broker.session.delivering import Lead, needs_ack_header
from broker.session.transactions import Held, Transaction
from broker.stomp import Frame, Version, parse_number

_LATE_MAX: Final = 10_000  # deliveries of ended subscriptions that a late ACK may still name
_NUMBERED: Final = re.compile(rb"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Settlement:
    """What an ACK or NACK asks for. `requeue` and `failure` are a NACK's."""

    id: bytes
    subscription: str | None
    transaction: str | None
    requeue: bool
    failure: str


def settlement(frame: Frame) -> Settlement:
    """Found by `id`, else `ack`, else `message-id`: clients differ here. STOMP 1.2, "ACK". Raises BadHeader."""
    headers = frame.headers
    id = headers.get("id") or headers.get("ack") or headers.get("message-id")
    if id is None:
        raise BadHeader(f"{frame.command} needs an id header (STOMP 1.0 and 1.1: message-id), there is none")
    requeue = headers.get("requeue", "true").lower() if frame.command == "NACK" else "true"
    if requeue not in ("true", "false"):
        raise BadHeader(f"requeue is true or false, got {shown(headers['requeue'])}")
    return Settlement(
        id.encode(),
        headers.get("subscription"),
        headers.get("transaction"),
        requeue == "true",
        headers.get("failure-reason", ""),
    )


class Consumer:
    """Owns a connection's subscriptions and what a late ACK of an ended one may settle."""

    def __init__(self, broker: Broker, outlet: Outlet, token: str, limits: Limits) -> None:
        self._broker = broker
        self._outlet = outlet
        self._token = token
        self._limits = limits
        self.version = Version.V1_0
        self.subscriptions: dict[str, Subscription] = {}
        self._number = 0
        self._last: Subscription | None = None  # where the last ACK hit
        self._late: dict[bytes, tuple[Queue, Message]] = {}
        self._temporaries = 0  # temporary queues of this connection; they stay until its end
        self._automatic = False  # there is or was a subscription with ack:auto

    @property
    def busy(self) -> bool:
        """Whether acknowledgements may come from this connection: it must never be paused then."""
        return bool(self.subscriptions or self._late)

    @property
    def has_topics(self) -> bool:
        return any(subscription.queue is None for subscription in self.subscriptions.values())

    def touch(self) -> None:
        """The connection has room again: its queues may hand out more."""
        for subscription in self.subscriptions.values():
            self._broker.touch(subscription.queue)

    # --- SUBSCRIBE, UNSUBSCRIBE ---------------------------------------------------------------------------------------

    def subscribe(self, headers: dict[str, str]) -> None:
        """Raises BadHeader, DestinationRefused, LimitReached, UnknownName (the id is taken)."""
        text = headers.get("destination")
        if text is None:
            raise BadHeader("SUBSCRIBE needs a destination header, there is none")
        id = headers.get("id")
        if id is None and self.version is not Version.V1_0:
            raise BadHeader(f"SUBSCRIBE needs an id header in STOMP {self.version}, there is none")
        _refuse_what_is_not_served(headers, _NOT_SERVED)
        multicast = headers.get("subscription-type", "").upper() == "MULTICAST"
        destination = parse(text, multicast=multicast, longest=self._limits.destination_name)
        mode = headers.get("ack", "auto")
        try:
            ack = AckMode(mode)
        except ValueError:
            raise BadHeader(f"ack is auto, client or client-individual, got {shown(mode)}") from None
        prefetch = _prefetch(headers, self._limits)
        # Without an id a 1.0 subscription is known by its destination. No client can write this key as an id.
        key = id if id is not None else f"\0{text}"
        if key in self.subscriptions:
            raise UnknownName(f"subscription {shown(id if id is not None else text)} is there already")
        if len(self.subscriptions) >= self._limits.subscriptions:
            raise LimitReached(f"{len(self.subscriptions)} subscriptions, limits.subscriptions allows no more")
        self._number += 1
        subscription = Subscription(key, self._number, self._outlet, ack, prefetch)
        subscription.wire = Lead(id, self.version, with_ack=needs_ack_header(ack, self.version))
        if destination.kind is Kind.TOPIC:
            check_pattern(destination.name)
            _refuse_what_is_not_served(headers, _DURABLE)
            self._broker.subscribe_topic(subscription, destination.name.removeprefix(Kind.TOPIC.value))
        elif destination.kind is Kind.TEMP_QUEUE:
            self._broker.subscribe_queue(subscription, self.temporary_queue(destination.name))
        else:
            check_queue_name(destination.name)
            self._broker.subscribe_queue(subscription, self._broker.queue(destination.name))
        self.subscriptions[key] = subscription
        self._automatic = self._automatic or ack is AckMode.AUTO
        topics = [s for s in self.subscriptions.values() if s.queue is None]
        for each in topics:
            each.wire.numbered = len(topics) > 1

    def temporary_queue(self, text: str) -> Queue:
        """This connection's own queue of that name. Raises DestinationRefused for another connection's."""
        name = temporary_name(self._token, text)
        if not self._owns(name):
            raise DestinationRefused(f"{shown(text)} belongs to another connection, only that one may consume from it")
        if name not in self._broker.queues and self._temporaries >= self._limits.subscriptions:
            raise LimitReached(f"{self._temporaries} temporary queues, limits.subscriptions allows no more of them")
        self._temporaries += name not in self._broker.queues
        return self._broker.queue(name, owner=self._token)

    def _owns(self, name: str) -> bool:
        return name.startswith(f"{Kind.TEMP_QUEUE.value}{self._token}.")

    def expect_replies(self, reply_to: str) -> None:
        """A SEND with this reply-to: where nobody here listens to it, subscribe as RabbitMQ does, under that id."""
        if not self._owns(temporary_name(self._token, reply_to)):
            return  # handed on from another connection, which listens itself
        queue = self.temporary_queue(reply_to)
        if not any(s.queue is queue for s in self.subscriptions.values()):
            self.subscribe({"destination": reply_to, "id": reply_to, "ack": "auto"})

    def unsubscribe(self, headers: dict[str, str]) -> int:
        """Returns the LSN of what was written about it, 0 for none. Raises BadHeader, UnknownName."""
        id = headers.get("id")
        if id is None and self.version is not Version.V1_0:
            raise BadHeader("UNSUBSCRIBE needs an id header, there is none")
        key = id if id is not None else "\0" + headers.get("destination", "")
        subscription = self.subscriptions.pop(key, None)
        if subscription is None:
            raise UnknownName(f"no subscription {shown(id or headers.get('destination', ''))} on this connection")
        if (queue := subscription.queue) is not None and subscription.ack is not AckMode.AUTO:
            held = subscription.held
            self._late.update(
                (id, (queue, message.shadow())) for id, message in subscription.in_flight.items() if id not in held
            )
            while len(self._late) > _LATE_MAX:
                del self._late[next(iter(self._late))]
        if self._last is subscription:
            self._last = None
        return self._broker.end_subscription(subscription, lost=False)

    def end_all(self, *, lost: bool) -> None:
        """The connection is gone; what it had in flight returns."""
        for subscription in self.subscriptions.values():
            self._broker.end_subscription(subscription, lost=lost)
        self.subscriptions.clear()
        self._late.clear()
        if self._temporaries:
            self._broker.drop_temporary(self._token)
        # The ways back to the session: without them it goes at once, with all that it has read and not handed on. As a
        # circle it would wait for the collector, and a stranger can open and close faster than that comes by.
        self._last = None
        del self._outlet

    # --- ACK, NACK ----------------------------------------------------------------------------------------------------

    def ack_run(self, ids: list[bytes], subscription_id: str | None) -> int:
        """ACKs outside of a transaction. Returns the LSN of the last one's record, 0 for none. Raises UnknownName."""
        subscription = self._last
        if subscription_id is not None:
            subscription = self.subscriptions.get(subscription_id)
        elif subscription is None and self.subscriptions:
            subscription = next(iter(self.subscriptions.values()))
        if (
            subscription is not None
            and subscription.ack is AckMode.INDIVIDUAL
            and not subscription.held
            and (queue := subscription.queue) is not None
        ):
            pop = subscription.in_flight.pop
            taken = [pop(id, None) for id in ids]
            if None not in taken:
                messages: list[Message] = taken  # type: ignore[assignment]
                subscription.credit += len(messages)
                self._last = subscription
                return self._broker.settle(queue, messages)
            # One of them is another's, late, numbered or unknown: undo, and look at each by itself.
            back = {id: message for id, message in zip(ids, taken, strict=True) if message is not None}
            if back:  # else nothing was taken out: numbered ids come one at a time, and must not cost a copy each
                subscription.in_flight = {**back, **subscription.in_flight}
        lsn = 0
        for id in ids:
            lsn = self.ack(id, subscription_id) or lsn
        return lsn

    def ack(self, id: bytes, subscription_id: str | None) -> int:
        """One ACK. Returns the LSN of its record, 0 for none. Raises UnknownName."""
        found = self._find(id, subscription_id)
        if found is None:
            return self._ack_late(id)
        subscription, message_id = found
        messages = self._take(subscription, message_id)
        if subscription.queue is None:
            return 0
        return self._broker.settle(subscription.queue, messages)

    def nack(self, id: bytes, subscription_id: str | None, *, requeue: bool, failure: str) -> int:
        """One NACK. Returns the LSN of its record, 0 for none. Raises UnknownName."""
        found = self._find(id, subscription_id)
        if found is None:
            return 0  # late: ignored
        subscription, message_id = found
        messages = self._take(subscription, message_id)
        if subscription.queue is None:
            return 0
        return self._broker.reject(subscription.queue, messages, requeue=requeue, reason=failure)

    def hold(self, id: bytes, subscription_id: str | None) -> list[Held]:
        """An ACK or NACK inside a transaction: the deliveries keep their places, but their slots are free at once."""
        found = self._find(id, subscription_id)
        if found is None:
            return []
        subscription, message_id = found
        ids = _covered(subscription, message_id)
        subscription.held.update(ids)
        subscription.credit += len(ids)
        self._broker.touch(subscription.queue)
        return [Held(subscription, each, subscription.in_flight[each]) for each in ids]

    def hold_late(self, id: bytes) -> list[tuple[bytes, Queue, Message]]:
        """An ACK inside a transaction that comes after the end of its subscription."""
        late = self._late_id(id)
        return [] if late is None else [(late, *self._late.pop(late))]

    def committed(self, transaction: Transaction) -> None:
        """COMMIT has settled or returned its deliveries."""
        for one in transaction.held:
            one.subscription.in_flight.pop(one.message_id, None)
            one.subscription.held.discard(one.message_id)

    def undo(self, transaction: Transaction) -> None:
        """ABORT: its deliveries are in flight here again, each in its place."""
        for one in transaction.held:
            subscription = one.subscription
            if self.subscriptions.get(subscription.id) is subscription:
                subscription.held.discard(one.message_id)
                subscription.credit -= 1
            elif one.queue is not None:
                subscription.in_flight.pop(one.message_id, None)
                self._broker.give_back(one.queue, [one.message], failures=0)
                self._late[one.message_id] = (one.queue, one.message.shadow())
        for id, queue, message in transaction.late:
            self._late[id] = (queue, message)

    def _take(self, subscription: Subscription, message_id: bytes) -> list[Message]:
        """Take out the deliveries that an ACK or NACK of `message_id` is about; their slots are free."""
        in_flight = subscription.in_flight
        if subscription.ack is AckMode.CLIENT:
            messages = [in_flight.pop(each) for each in _covered(subscription, message_id)]
        else:
            messages = [in_flight.pop(message_id)]
        subscription.credit += len(messages)
        return messages

    def _find(self, id: bytes, subscription_id: str | None) -> tuple[Subscription, bytes] | None:
        """The delivery here that an ACK or NACK names; None where it is to be ignored. Raises UnknownName."""
        if subscription_id is not None:
            named = self.subscriptions.get(subscription_id)
            candidates = [named] if named is not None else []
            if named is not None and named.ack is AckMode.AUTO:
                return None
        else:
            candidates = list(self.subscriptions.values())
        message_id, _, number = id.rpartition(b"-")
        for subscription in candidates:
            in_flight, held = subscription.in_flight, subscription.held
            if id in in_flight and id not in held:
                return self._hit(subscription, id)
            message = in_flight.get(message_id)
            if message is not None and message_id not in held and _NUMBERED.fullmatch(number):
                times = message.deliveries + 1 if subscription.queue is not None else subscription.number
                # One that a late ACK has settled meanwhile has lost its count; to settle it again changes nothing.
                if int(number) == times or message.deliveries == SETTLED:
                    return self._hit(subscription, message_id)
        if self._late_id(id) is not None:
            return None
        # What went to an `ack:auto` subscription cannot be told from what was never delivered: it is not kept.
        acknowledging = subscription_id is not None and bool(candidates)
        if self._automatic and not acknowledging and id.startswith(self._broker.prefix[:-1]):
            return None
        raise UnknownName(
            f"no delivery with the id {shown(id)} is waiting for an acknowledgement here"
        )

    def _hit(self, subscription: Subscription, message_id: bytes) -> tuple[Subscription, bytes] | None:
        if subscription.ack is AckMode.AUTO:
            return None  # handed out and not yet settled by us: an ACK for it changes nothing
        self._last = subscription
        return subscription, message_id

    def _late_id(self, id: bytes) -> bytes | None:
        if id in self._late:
            return id
        message_id = id.rpartition(b"-")[0]
        return message_id if message_id in self._late else None

    def _ack_late(self, id: bytes) -> int:
        late = self._late_id(id)
        if late is None:
            return 0
        queue, message = self._late.pop(late)
        return self._broker.settle_late(queue, message)


def _covered(subscription: Subscription, message_id: bytes) -> list[bytes]:
    """The deliveries that an ACK of `message_id` is about: all up to it where the mode is `client`.

    It passes over what an open transaction holds.
    """
    if subscription.ack is not AckMode.CLIENT:
        return [message_id]
    held = subscription.held
    ids = []
    for id in subscription.in_flight:
        if id not in held:
            ids.append(id)
        if id == message_id:
            break
    return ids


# Headers that change what a subscription gets, and the value with which they do not. Ignoring one would hand a client
# what it did not ask for, or consume what it only wanted to look at.
_NOT_SERVED: Final = {
    "selector": "",
    "browser": "false",
    "exclusive": "false",
    "activemq.exclusive": "false",
    "no-local": "false",
    "activemq.noLocal": "false",
}
_DURABLE: Final = {"durable": "false", "persistent": "false", "activemq.subscriptionName": ""}  # on topics


def _refuse_what_is_not_served(headers: dict[str, str], harmless_values: dict[str, str]) -> None:
    for name, harmless in harmless_values.items():
        if headers.get(name, harmless).lower() != harmless:
            raise BadHeader(f"{name} is not served by this version, and to ignore it would change what you get")


def _prefetch(headers: dict[str, str], limits: Limits) -> int:
    """How many unacknowledged messages at once, by whichever name. features.md, "SUBSCRIBE"."""
    most = limits.prefetch
    value = parse_number(headers, "prefetch", 1, 10**9)
    if value is None:
        value = parse_number(headers, "prefetch-count", 0, 10**9)
        value = most if value == 0 else value
    if value is None:
        value = parse_number(headers, "activemq.prefetchSize", 1, 10**9)
    if value is None and (window := parse_number(headers, "consumer-window-size", -1, 10**12)) is not None:
        # Bytes in Artemis; a kibibyte a message is our guess at what its user wanted to bound.
        value = {0: 1, -1: most}.get(window, max(1, window >> 10))
    return min(value or limits.default_prefetch, most)
