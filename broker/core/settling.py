"""Messages out of flight: done with, back to their places, or to the dead-letter queue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

from broker.core.catalogue import Catalogue
from broker.core.counters import Counters, Events
from broker.core.destination import DEAD_LETTER_PREFIX, Kind
from broker.core.ledger import Ledger
from broker.core.message import SETTLED, Envelope, Message
from broker.core.queue import Queue
from broker.journal import RecordType, acked_payload, moved_payload, returned_payload
from broker.system import Clock

MAX_DELIVERIES: Final = 10  # failed ones, then a message is a dead letter


class Settling:
    """Every way in which a delivery ends. Each returns the LSN that a receipt of it waits for, 0 for none."""

    def __init__(
        self, ledger: Ledger, catalogue: Catalogue, clock: Clock, counters: Counters, events: Events
    ) -> None:
        self._ledger = ledger
        self._journal = ledger.journal
        self._catalogue = catalogue
        self._clock = clock
        self._counters = counters
        self._events = events

    # --- done with ----------------------------------------------------------------------------------------------------

    def settle(self, queue: Queue, messages: list[Message]) -> int:
        """Messages in flight are done with, for ever. Raises StorageFailed."""
        self._counters.acknowledged += len(messages)
        queue.in_flight -= len(messages)
        self._catalogue.dirty[queue] = None
        alive = messages
        if queue.late:
            alive = [message for message in messages if message.deliveries != SETTLED]
            queue.late -= len(messages) - len(alive)
        seqs = []
        for message in alive:
            if message.deliveries:
                # A late ACK of an earlier delivery may still name it, and holds on to it until then.
                message.deliveries = SETTLED
                message.body = b""
            if (segment := message.segment) is not None:
                segment.live -= 1
                seqs.append(message.seq)
        if not seqs:
            return self._settled_before(messages)
        return self._ledger.append(RecordType.ACKED, acked_payload(queue.key, seqs))

    def settle_late(self, queue: Queue, message: Message) -> int:
        """An ACK after the subscription's end: the message is done with, wherever it is. Raises StorageFailed."""
        if message.envelope.extra:  # it has become a dead letter meanwhile, under that name
            queue = self._catalogue.by_name.get(message.envelope.destination, queue)
        if message.deliveries == SETTLED or queue.gone:
            return self._settled_before([message])
        message.deliveries = SETTLED
        message.body = b""
        queue.late += 1
        self._counters.acknowledged += 1
        if message.segment is None:
            return 0
        message.segment.live -= 1
        return self._ledger.append(RecordType.ACKED, acked_payload(queue.key, [message.seq]))

    def _settled_before(self, messages: Sequence[Message]) -> int:
        """For an ACK that writes nothing: somebody else's record of it may not be synced yet."""
        return self._journal.lsn if any(message.segment is not None for message in messages) else 0

    # --- back, or dead ------------------------------------------------------------------------------------------------

    def give_back(self, queue: Queue, messages: list[Message], *, failures: int, reason: str = "") -> int:
        """Messages that were in flight return to their places; the first `failures` of them count as failed.

        One that failed too often becomes a dead letter; `reason` is what the consumer said. Raises StorageFailed.
        """
        if queue.gone or not messages:
            return 0
        self._counters.returned += len(messages)
        queue.in_flight -= len(messages)
        lsn = 0
        stays: list[Message] = []
        dead: list[Message] = []
        for message in messages:
            if message.deliveries == SETTLED:
                queue.put_back(message)
                continue
            message.deliveries += 1
            if failures > 0:
                failures -= 1
                message.failures += 1
                if message.failures >= MAX_DELIVERIES and _has_dead_letters(queue):
                    dead.append(message)
                    continue
            stays.append(message)
            queue.put_back(message)
        if dead:
            lsn = self._bury(queue, dead, "max-deliveries", reason)
        entries = counts(stays)
        if entries and not self._journal.failed:
            lsn = self._ledger.append(RecordType.RETURNED, returned_payload(queue.key, entries))
        self._catalogue.dirty[queue] = None
        return lsn

    def reject(self, queue: Queue, messages: list[Message], *, requeue: bool, reason: str) -> int:
        """A NACK: back to their places, or dead letters after the last try or at once where `requeue` is false."""
        if requeue or not _has_dead_letters(queue):
            return self.give_back(queue, messages, failures=len(messages), reason=reason)
        queue.in_flight -= len(messages)
        dead: list[Message] = []
        for message in messages:
            if message.deliveries == SETTLED:
                queue.put_back(message)
                continue
            message.deliveries += 1
            dead.append(message)
        self._catalogue.dirty[queue] = None
        return self._bury(queue, dead, "rejected", reason) if dead else 0

    def _bury(self, queue: Queue, messages: list[Message], why: str, reason: str) -> int:
        """To the dead-letter queue. They are seen there when the record is synced: no crash can take them back from a
        reader. One record and one note for all of them, so that a long reason is not written once for each.
        """
        name = DEAD_LETTER_PREFIX + queue.name.removeprefix(Kind.QUEUE.value)
        target = self._catalogue.by_name.get(name) or self._catalogue.add(name)
        extra = [
            ("dead-letter-reason", why),
            ("dead-letter-queue", queue.name),
            ("dead-letter-time", str(self._clock.wall_ms())),
        ]
        if reason:
            extra.append(("failure-reason", reason))
        envelopes: dict[Envelope, Envelope] = {}
        for message in messages:
            old = message.envelope
            message.envelope = envelopes.get(old) or envelopes.setdefault(old, dead_envelope(old, name, extra))
            message.failures = 0
            self._events.event(
                "warning", "dead-letter", f"a message of {queue.name} went to {name}: {why}", queue=queue.name
            )
        self._counters.dead_lettered += len(messages)
        lsn = 0
        entries = counts(messages)
        if entries and not self._journal.failed:
            payload = moved_payload(queue.key, target.key, entries, json.dumps(extra).encode())
            lsn = self._ledger.append(RecordType.MOVED, payload)
        self._ledger.arrive(lsn, target, messages)
        return lsn


def _has_dead_letters(queue: Queue) -> bool:
    # Dead letters never loop: in a dead-letter queue a NACK only returns. Temporary queues end with their owner.
    return not queue.name.startswith(DEAD_LETTER_PREFIX) and not queue.owner


def counts(messages: Sequence[Message]) -> list[tuple[int, int, int, int]]:
    """(first seq, last seq, deliveries, failures) for messages that the journal knows; neighbours are joined."""
    entries: list[tuple[int, int, int, int]] = []
    for message in messages:
        if message.segment is None:
            continue
        seq = message.seq
        entry = (seq, seq, message.deliveries, message.failures)
        if entries and entries[-1][1] == seq - 1 and entries[-1][2:] == entry[2:]:
            entry = (entries.pop()[0], *entry[1:])
        entries.append(entry)
    return entries


def dead_envelope(old: Envelope, name: str, extra: Iterable[tuple[str, str]]) -> Envelope:
    """The envelope of a dead letter: its own destination, where it was sent first, and why it is here."""
    return Envelope(name, old.head, old.stamp, old.prefix, (("original-destination", old.destination), *extra))
