"""From messages to MESSAGE frames: what goes out to a subscription, in its connection's version."""

from __future__ import annotations

from typing import Final

from broker.core import AckMode, Broadcast, Envelope, Message, Subscription
from broker.stomp import Version, canonical_lines, lines_for

# Every frame of ours ends with an EOL behind its NUL, as those of RabbitMQ do: PHP's PECL stomp takes the next
# byte for one, and drops the frame if it is none.
FRAME_END: Final = b"\0\n"
NOT_KEPT: Final = Message(0, b"", b"", Envelope("", b"", 0, b""), 0, 0)  # stands for a topic's message in flight
_FRAME_OVERHEAD = 96  # bytes; what a MESSAGE has beside its body and its sender's headers, roughly


class Lead:
    """What stands in front of each MESSAGE of one subscription."""

    __slots__ = ("numbered", "start", "with_ack")

    def __init__(self, subscription_id: str | None, version: Version, *, with_ack: bool) -> None:
        lines = b""
        if subscription_id is not None:
            lines = lines_for(version, canonical_lines([("subscription", subscription_id)]))[0]
        self.start = b"MESSAGE\n" + lines + b"message-id:"
        self.with_ack = with_ack  # STOMP 1.2: an `ack` header where the subscription is not `auto`
        self.numbered = False  # the connection may get a topic's message twice: ack ids carry the subscription's number


def envelope_lines(envelope: Envelope, version: Version) -> bytes:
    """The lines that all messages of an envelope share, behind the LF of the line before; kept in the envelope."""
    first = canonical_lines([("destination", envelope.destination), *envelope.extra])
    lines = lines_for(version, first + envelope.head)[0]
    if envelope.stamp:
        lines += b"timestamp:%d\n" % envelope.stamp
    envelope.wire[version] = lines = b"\n" + lines
    return lines


def encode(
    out: list[bytes], subscription: Subscription, messages: list[Message], version: Version, room: int
) -> tuple[int, int]:
    """Append frames to `out` until `room` bytes are used up; returns how many messages, and how many bytes.

    This loop is one of the five that carry the speed: parts are only collected here, joined once per connection and
    turn. What was encoded is in the subscription's `in_flight`.
    """
    lead: Lead = subscription.wire
    start = lead.start
    with_ack = lead.with_ack
    in_flight = subscription.in_flight
    extend = out.extend
    count = size = shared = 0
    length = -1
    tail = lines = prefix = b""
    envelope: Envelope | None = None
    for message in messages:
        if message.envelope is not envelope:
            envelope = message.envelope
            lines = envelope.wire.get(version) or envelope_lines(envelope, version)
            prefix = envelope.prefix
            shared = len(start) + len(lines) + _FRAME_OVERHEAD
        body = message.body
        message_id = b"%b%d" % (prefix, message.seq)
        in_flight[message_id] = message
        if len(body) != length:
            length = len(body)
            tail = b"content-length:%d\n\n" % length
        own = message.own
        if own and version is not Version.V1_2:
            own = lines_for(version, own)[0]
        if message.deliveries > 0:
            times = message.deliveries + 1
            own += b"redelivered:true\ndelivery-count:%d\n" % times
            if with_ack:
                extend((start, message_id, b"\nack:%b-%d" % (message_id, times), lines, own, tail, body, FRAME_END))
            else:
                extend((start, message_id, lines, own, tail, body, FRAME_END))
        elif with_ack:
            if lead.numbered and subscription.queue is None:
                ack = b"\nack:%b-%d" % (message_id, subscription.number)
                extend((start, message_id, ack, lines, own, tail, body, FRAME_END))
            elif own:
                extend((start, message_id, b"\nack:", message_id, lines, own, tail, body, FRAME_END))
            else:
                extend((start, message_id, b"\nack:", message_id, lines, tail, body, FRAME_END))
        elif own:
            extend((start, message_id, lines, own, tail, body, FRAME_END))
        else:
            extend((start, message_id, lines, tail, body, FRAME_END))
        count += 1
        size += length + len(own) + shared
        if size >= room:
            break
    return count, size


def encode_broadcast(subscription: Subscription, broadcast: Broadcast, version: Version) -> bytes:
    """All of a broadcast for one `ack:auto` subscriber. What does not depend on the subscriber is encoded once."""
    rests = broadcast.wire.get(version)
    if rests is None:
        rests = [b""]
        for message in broadcast.messages:
            envelope = message.envelope
            lines = envelope.wire.get(version) or envelope_lines(envelope, version)
            own = message.own
            if own and version is not Version.V1_2:
                own = lines_for(version, own)[0]
            body = message.body
            rests.append(
                b"%b%d%b%bcontent-length:%d\n\n%b\0\n" % (envelope.prefix, message.seq, lines, own, len(body), body)
            )
        broadcast.wire[version] = rests
    lead: Lead = subscription.wire
    return lead.start.join(rests)


def needs_ack_header(ack: AckMode, version: Version) -> bool:
    return ack is not AckMode.AUTO and version is Version.V1_2
