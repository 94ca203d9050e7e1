"""A subscription: its credit and what it has in flight."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol

from broker.core.message import Message

if TYPE_CHECKING:
    from broker.core.queue import Queue

UNLIMITED: Final = 1 << 40  # the credit of `ack:auto`: what bounds it is the room of the connection's output


class AckMode(Enum):
    AUTO = "auto"
    CLIENT = "client"
    INDIVIDUAL = "client-individual"


class Broadcast:
    """Messages of one topic on their way to all receivers; `wire` is for the outlets, which encode them once."""

    __slots__ = ("messages", "size", "wire")

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.size = sum(len(message.body) for message in messages)
        self.wire: dict[int, Any] = {}


class Outlet(Protocol):
    """Where deliveries go: one connection's session. Core calls it, never the other way round."""

    room: int  # bytes that it takes now; nothing is handed to it while this is <= 0

    def deliver(self, subscription: Subscription, messages: list[Message]) -> int:
        """Take messages in order until the room is used up; returns how many were taken (one at least).

        What was taken is in `subscription.in_flight` afterwards, under its message-id.
        """

    def broadcast(self, subscription: Subscription, broadcast: Broadcast) -> None:
        """Take all of it: the receiver has `ack:auto` and room."""

    def durable(self, lsn: int) -> None:
        """The journal is synced up to `lsn`: receipts that waited for it may go out."""

    def refuse(self, text: str) -> None:
        """The queue of one of its subscriptions cannot be served any more; `text` says why."""


class Subscription:
    """Owns its credit and the map from message-id to message, which is the only in-flight record.

    A delivery is the entry in `in_flight`: this subscription, its queue and the message. The entry is made by the
    outlet at the delivery, in the order of delivery, and taken out when the message is settled or goes back.
    """

    __slots__ = (
        "ack", "backlog", "backlog_bytes", "credit", "dropped", "held", "id", "in_flight", "number", "outlet",
        "pattern", "prefetch", "queue", "wire",
    )  # fmt: skip

    def __init__(self, id: str, number: int, outlet: Outlet, ack: AckMode, prefetch: int) -> None:
        self.id = id
        self.number = number  # counts this connection's subscriptions
        self.outlet = outlet
        self.ack = ack
        self.prefetch = prefetch if ack is not AckMode.AUTO else UNLIMITED
        self.credit = self.prefetch
        self.in_flight: dict[bytes, Message] = {}
        # Those of them that an open transaction has acknowledged: they keep their place, and no ACK can name them.
        self.held: set[bytes] = set()
        self.queue: Queue | None = None  # None: a topic subscription, then `pattern` is set
        self.pattern = ""
        # A topic subscriber that is slow for a moment: what waits for it, bounded by the broker.
        self.backlog: deque[Message] = deque()
        self.backlog_bytes = 0
        self.dropped = 0
        self.wire: Any = None  # for the outlet

    @property
    def able(self) -> bool:
        """Whether it can take a message now."""
        return self.credit > 0 and self.outlet.room > 0
