"""The message, and the envelope that messages of one sender and header block share."""

from __future__ import annotations

from typing import Any, Final

from broker.budget import Account

MESSAGE_COST: Final = 176  # bytes that a message in memory costs beside its body and own lines, roughly
SMALL_HEAD: Final = 256  # bytes of shared headers; what takes more is booked by itself
SETTLED: Final = -1  # as `deliveries`: acknowledged late, still listed where it is in flight


class Envelope:
    """What messages share: where they were sent and their common headers.

    destination: as the sender wrote it. head: header lines as they go out, in the sender's order, in STOMP 1.2's
    escaping. stamp: arrival in Unix ms, 0 where the sender gave a `timestamp` of its own. prefix: what stands before
    `seq` in a message-id. extra: headers that the broker adds, e.g. those of a dead letter. note: the place of the
    record that holds a dead letter's `extra`, 0 for others. wire: kept for the session, which writes the lines once
    per protocol version.

    Where its headers are large it holds their bytes on `account` for as long as it lives: messages come and go one by
    one, and which of them is the last that needs it nobody else knows. weight: those bytes, 0 for small ones.
    """

    __slots__ = ("_light", "account", "destination", "extra", "head", "note", "prefix", "stamp", "weight", "wire")

    def __init__(
        self,
        destination: str,
        head: bytes,
        stamp: int,
        prefix: bytes,
        extra: tuple[tuple[str, str], ...] = (),
        account: Account | None = None,
    ) -> None:
        self.account = account
        size = len(head)
        for name, text in extra:
            size += len(name) + len(text)
        self.weight = 2 * size if size > SMALL_HEAD else 0  # as they are, and as they go out
        if account is not None and self.weight:
            account.book(self.weight)
        self._light: Envelope | None = None
        self.destination = destination
        self.head = head
        self.stamp = stamp
        self.prefix = prefix
        self.extra = extra
        self.note = 0
        self.wire: dict[int, Any] = {}

    def __del__(self) -> None:
        if self.account is not None and self.weight:
            self.account.book(-self.weight)

    @property
    def light(self) -> Envelope:
        """The same without the headers, for messages in flight: if they go out again, they are read back before."""
        if self._light is None:
            self._light = Envelope(self.destination, b"", self.stamp, self.prefix)
            self._light.note = self.note
        return self._light


class Message:
    """One message in memory. A plain slotted class: there may be many of them.

    seq:        given at acceptance, kept wherever the message moves; gives its place in a queue.
    body:       b"" from its delivery on, where it is on disk: a message in flight holds no body.
    own:        header lines of this message alone, or b""; in flight as the body.
    place:      where its record lies in the log; 0 where it is in memory only (`persistent:false`, topics).
    size:       bytes of its body and own lines.
    deliveries: how often a client may have got it before, not counting the delivery under way; or SETTLED.
    failures:   how many of those count towards the dead-letter queue.
    """

    __slots__ = ("body", "deliveries", "envelope", "failures", "own", "place", "seq", "size")

    def __init__(self, seq: int, body: bytes, own: bytes, envelope: Envelope, place: int, size: int) -> None:
        self.seq = seq
        self.body = body
        self.own = own
        self.envelope = envelope
        self.place = place
        self.size = size
        self.deliveries = 0
        self.failures = 0

    def shadow(self) -> Message:
        """What is enough to find it again: it must not keep the memory of what another consumer has got by now."""
        envelope = self.envelope.light if self.envelope.weight else self.envelope
        return Message(self.seq, b"", b"", envelope, self.place, self.size)

    @property
    def id(self) -> bytes:
        """The message-id: unique for ever, made of [0-9a-z-] only."""
        return b"%b%d" % (self.envelope.prefix, self.seq)
