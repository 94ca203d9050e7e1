"""From the records of the journal back to queues: what a start does before the first client may come in."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from broker.core.broker import Broker
from broker.core.message import Envelope, Message
from broker.core.queue import Queue
from broker.core.settling import dead_envelope
from broker.errors import DataDamaged
from broker.journal import (
    Acked,
    Delivered,
    Messages,
    Moved,
    RecordType,
    Replayed,
    Returned,
    delivered_payload,
    returned_payload,
)


class _Restored:
    """A queue while it is being replayed: its live messages by seq."""

    __slots__ = ("mark", "messages")

    def __init__(self) -> None:
        self.messages: dict[int, Message] = {}
        self.mark = 0


class Replay:
    """Feed it every record in order, then `finish`."""

    def __init__(self, log_id: bytes) -> None:
        self._prefix = log_id.hex()[:12].encode() + b"-"
        self._queues: dict[bytes, _Restored] = {}
        self._envelope: Envelope | None = None

    @property
    def message_count(self) -> int:
        return sum(len(queue.messages) for queue in self._queues.values())

    def apply(self, record: Replayed) -> None:
        """Raises DataDamaged for a record that no writer of this version makes."""
        value = record.value
        if isinstance(value, Messages):
            self._messages(value, record.segment)
        elif isinstance(value, Acked):
            messages = self._queue(value.queue).messages
            for first, last in value.seqs:
                for seq in range(first, last + 1):
                    if (message := messages.pop(seq, None)) is not None and message.segment is not None:
                        message.segment.live -= 1
        elif isinstance(value, Returned):
            messages = self._queue(value.queue).messages
            for first, last, deliveries, failures in value.entries:
                for message in _within(messages, first, last):
                    message.deliveries = deliveries
                    message.failures = failures
        elif isinstance(value, Delivered):
            self._queue(value.queue).mark = value.seq
        elif isinstance(value, Moved):
            self._moved(value)
        else:
            raise DataDamaged(f"record {record.lsn} is of a kind that the broker does not know: {record.type!r}")

    def _queue(self, name: bytes) -> _Restored:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Restored()
        return queue

    def _messages(self, value: Messages, segment: Any) -> None:
        destination = value.destination.decode()
        envelope = self._envelope
        if (
            envelope is None
            or envelope.destination != destination
            or envelope.head != value.head
            or envelope.stamp != value.stamp_ms
        ):
            envelope = self._envelope = Envelope(destination, value.head, value.stamp_ms, self._prefix)
        owns = value.owns
        for name in value.queues or (value.destination,):
            messages = self._queue(name).messages
            for at, body in enumerate(value.bodies):
                seq = value.first_seq + at
                messages[seq] = Message(seq, body, owns[at] if owns else b"", envelope, segment)
            segment.live += len(value.bodies)

    def _moved(self, value: Moved) -> None:
        source, target = self._queue(value.source), self._queue(value.target)
        extra = [(name, text) for name, text in json.loads(value.note)]
        for first, last, deliveries, failures in value.entries:
            for message in _within(source.messages, first, last):
                del source.messages[message.seq]
                message.envelope = dead_envelope(message.envelope, value.target.decode(), extra)
                message.deliveries = deliveries
                message.failures = failures
                target.messages[message.seq] = message

    def finish(self, broker: Broker, *, clean: bool) -> None:
        """Give the queues to the broker.

        After a stop that was not clean, whatever stands below a delivered mark may have been with a client, so it is
        flagged (reliability.md 2.7), and that is journaled: the flag has to survive the next clean stop.
        """
        journal = broker.journal
        for key, restored in self._queues.items():
            if not restored.messages:
                continue
            queue = Queue(key.decode())
            queue.idle_since = broker.clock.monotonic()
            broker.queues[queue.name] = queue
            ordered = [restored.messages[seq] for seq in sorted(restored.messages)]
            flagged: list[Message] = []
            if not clean:
                flagged = [m for m in ordered if m.seq <= restored.mark and not m.deliveries]
                for message in flagged:
                    message.deliveries = 1
            queue.returned = [(m.seq, m) for m in ordered if m.deliveries]  # sorted, so it is a heap
            queue.ready = deque(m for m in ordered if not m.deliveries)
            if flagged:
                # One entry for each stretch of the queue without another count in between.
                entries: list[tuple[int, int, int, int]] = []
                marked = {m.seq for m in flagged}
                previous = False
                for message in ordered:
                    if message.seq in marked:
                        first = entries.pop()[0] if previous else message.seq
                        entries.append((first, message.seq, 1, 0))
                    previous = message.seq in marked
                journal.append(RecordType.RETURNED, returned_payload(queue.key, entries))
            if restored.mark >= ordered[0].seq:
                # What the old mark said is said by the counts now; a new one comes with the next delivery.
                journal.append(RecordType.DELIVERED, delivered_payload(queue.key, 0))


def _within(messages: dict[int, Message], first: int, last: int) -> list[Message]:
    if first == last:
        return [messages[first]] if first in messages else []
    if last - first < 2 * len(messages):
        return [messages[seq] for seq in range(first, last + 1) if seq in messages]
    return [message for seq, message in messages.items() if first <= seq <= last]
