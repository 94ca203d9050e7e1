"""From the header block of a SEND to its Route: what the headers say, worked out once per block."""

from __future__ import annotations

from typing import Final

from broker.config import Limits
from broker.core import Kind, Route
from broker.core.destination import check_queue_name, check_topic_name, parse, temporary_name
from broker.errors import BadHeader, shown
from broker.stomp import Block, canonical_lines, parse_number

# Names that only the broker may say: taken out of a SEND, never refused (features.md, "SEND").
BROKERS_OWN: Final = frozenset(
    {
        "message-id", "subscription", "ack", "redelivered", "delivery-count", "dead-letter-reason",
        "dead-letter-queue", "dead-letter-time", "browser", "login", "passcode", "user-name", "JMSXDeliveryCount",
        "JMSRedelivered", "JMSXUserID", "receipt-id",
    }
)  # fmt: skip
# Not carried into MESSAGE, or carried as its own.
_NOT_CARRIED: Final = BROKERS_OWN | {"destination", "receipt", "content-length", "transaction"}
# Numbers in milliseconds or counts; a value that is none is refused, whether it has an effect in this version or not.
_NUMBERS: Final = {
    "priority": (0, 9),
    "ttl": (0, 10**15),
    "expires": (0, 10**15),
    "delay": (-(10**15), 10**15),
    "deliver-at": (0, 10**15),
}
# A job that runs before its time does harm, so these are refused rather than ignored; 0 asks for nothing.
_NOT_SERVED: Final = (
    "delay", "deliver-at", "cron", "x-delay", "AMQ_SCHEDULED_DELAY", "AMQ_SCHEDULED_TIME", "AMQ_SCHEDULED_CRON",
    "AMQ_SCHEDULED_PERIOD", "AMQ_SCHEDULED_REPEAT", "_AMQ_SCHED_DELIVERY",
)  # fmt: skip


class _Steering(frozenset[str]):
    """Also every name that begins with `dead-letter-`: it has to be in the block, where it is taken out."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.startswith("dead-letter-"))


STEERING: Final = _Steering(BROKERS_OWN | frozenset(_NUMBERS) | {
    "destination", "transaction", "persistent", "JMSDeliveryMode", "destination-type", "reply-to", "timestamp",
    *_NOT_SERVED,
})  # fmt: skip
"""Headers that the session looks at; they are the same for all messages of a run (see `stomp.Parser`)."""

_DELIVERY_MODES: Final = {"PERSISTENT": True, "2": True, "NON_PERSISTENT": False, "1": False}


class Address:
    """What the session remembers for a header block: the route, and what the SEND asks of the session itself."""

    __slots__ = ("reply_to", "route", "transaction")

    def __init__(self, route: Route, transaction: str | None, reply_to: str | None) -> None:
        self.route = route
        self.transaction = transaction
        self.reply_to = reply_to  # the local name of a temporary queue that replies are to go to


def address(block: Block, token: str, limits: Limits) -> Address:
    """Work out a SEND's header block. `token` names this connection's temporary queues.

    Raises BadHeader, DestinationRefused.
    """
    headers = block.headers
    text = headers.get("destination")
    if text is None:
        raise BadHeader("SEND needs a destination header, there is none")
    for name, (low, high) in _NUMBERS.items():
        parse_number(headers, name, low, high)
    for name in _NOT_SERVED:
        if headers.get(name, "0") != "0":
            raise BadHeader(f"{name} is not served by this version, and the message would be delivered at once")
    multicast = headers.get("destination-type", "").upper() == "MULTICAST"
    destination = parse(text, multicast=multicast, longest=limits.destination_name)
    if destination.kind is Kind.TOPIC:
        check_topic_name(destination.name)
    elif destination.kind is Kind.QUEUE:
        check_queue_name(destination.name)
    elif destination.kind is Kind.TEMP_QUEUE:
        destination = type(destination)(Kind.TEMP_QUEUE, temporary_name(token, destination.name))
    reply_to = headers.get("reply-to", "")
    if not reply_to.startswith(Kind.TEMP_QUEUE.value):
        reply_to = ""
    lines = []
    for name, value in block.lines:
        if name == "reply-to" and reply_to:
            value = temporary_name(token, value)
        if name not in _NOT_CARRIED and not name.startswith("dead-letter-"):
            lines.append((name, value))
    route = Route(
        text,
        destination,
        canonical_lines(lines),
        persistent=_persistent(headers),
        stamped="timestamp" in headers,
    )
    return Address(route, headers.get("transaction"), reply_to or None)


def _persistent(headers: dict[str, str]) -> bool:
    value = headers.get("persistent")
    if value is not None:
        if value.lower() not in ("true", "false"):
            raise BadHeader(f"persistent is true or false, got {shown(value)}")
        return value.lower() == "true"
    mode = headers.get("JMSDeliveryMode")
    if mode is not None:
        if mode.upper() not in _DELIVERY_MODES:
            raise BadHeader(f"JMSDeliveryMode is one of {', '.join(_DELIVERY_MODES)}, got {shown(mode)}")
        return _DELIVERY_MODES[mode.upper()]
    return True
