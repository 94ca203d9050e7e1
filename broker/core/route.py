"""Where messages of one header block go: worked out once per block, used for every message of it."""

from __future__ import annotations

from broker.budget import Account
from broker.core.destination import Destination, Kind
from broker.core.message import Envelope
from broker.core.queue import Queue


class Route:
    """What a SEND's common headers say.

    text: the destination as sent. head: the headers that are carried, as lines in STOMP 1.2's escaping. stamped: the
    sender gave a `timestamp` of its own.
    """

    __slots__ = ("_envelope", "destination", "head", "key", "persistent", "queue", "queues", "stamped", "text")

    def __init__(self, text: str, destination: Destination, head: bytes, *, persistent: bool, stamped: bool) -> None:
        self.text = text
        self.destination = destination
        self.head = head
        self.persistent = persistent and destination.kind is Kind.QUEUE
        self.stamped = stamped
        self.key = text.encode()
        # The journal names the queue only where it is not the destination as sent.
        self.queues: tuple[bytes, ...] = () if text == destination.name else (destination.name.encode(),)
        self.queue: Queue | None = None  # looked up by the broker; it may go and come again
        self._envelope: Envelope | None = None

    def envelope(self, now_ms: int, prefix: bytes, account: Account) -> Envelope:
        """The envelope for messages that arrive in this millisecond; account: for large headers."""
        stamp = 0 if self.stamped else now_ms
        envelope = self._envelope
        if envelope is None or envelope.stamp != stamp:
            envelope = self._envelope = Envelope(self.text, self.head, stamp, prefix, account=account)
        return envelope
