"""Messages out of flight: done with, back to their places, or to the dead-letter queue."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from broker.core.catalogue import Catalogue
from broker.core.counters import Counters, Events
from broker.core.destination import DEAD_LETTER_PREFIX, Kind
from broker.core.ledger import Ledger
from broker.core.message import MESSAGE_COST, SETTLED, Envelope, Message
from broker.core.queue import Queue
from broker.core.restoring import dead_envelope
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
        self._moving: Callable[[Queue, list[Message]], None] = lambda queue, messages: None

    def on_move(self, call: Callable[[Queue, list[Message]], None]) -> None:
        """`call` hears of messages before they leave a queue for another: a checkpoint in the making has to know."""
        self._moving = call

    # --- done with ----------------------------------------------------------------------------------------------------

    def settle(self, queue: Queue, messages: list[Message]) -> int:
        """Messages in flight are done with, for ever. Raises StorageFailed."""
        if not messages:
            return 0
        self._counters.acknowledged += len(messages)
        queue.in_flight -= len(messages)
        self._catalogue.dirty[queue] = None
        if queue.marked:
            alive = self._drop_settled(queue, messages)
            if not alive:
                return self._settled_before(messages)
            messages = alive
        seqs = self._ledger.let_go_all(queue, messages)
        if not seqs:
            return 0
        return self._ledger.append(RecordType.ACKED, acked_payload(queue.key, seqs))

    def _drop_settled(self, queue: Queue, messages: list[Message]) -> list[Message]:
        """Those that no late ACK has settled; the others have their end here."""
        alive = [message for message in messages if message.deliveries != SETTLED]
        ended = len(messages) - len(alive)
        queue.marked -= ended
        self._ledger.memory.book(-MESSAGE_COST * ended)
        return alive

    def settle_late(self, queue: Queue, message: Message) -> int:
        """An ACK after the subscription's end: the message is done with, wherever it is. Raises StorageFailed."""
        dead = self._catalogue.by_name.get(_dead_name(queue))
        for where in (queue, dead):
            if where is None or where.gone:
                continue
            found = where.withdraw(message.seq)
            if isinstance(found, Message):
                self._counters.acknowledged += 1
                seqs = self._ledger.let_go_all(where, [found])
                if found.place:
                    self._ledger.memory.book(-found.size)  # it was read back
                return self._ledger.append(RecordType.ACKED, acked_payload(where.key, seqs)) if seqs else 0
            if found is not None:
                self._counters.acknowledged += 1
                if self._ledger.let_go_removed(found):
                    return self._ledger.append(RecordType.ACKED, acked_payload(where.key, [message.seq]))
                self._ledger.memory.book(-MESSAGE_COST - message.size)
                return 0
            flying = where.flying(message.id) or self._ledger.find_pending(where, message.seq)
            if flying is not None and flying.deliveries != SETTLED:
                return self._settle_flying(where, flying)
        return self._settled_before([message])

    def _settle_flying(self, queue: Queue, message: Message) -> int:
        """It is with another consumer, or on its way to the dead letters: whoever has it finds it settled."""
        self._counters.acknowledged += 1
        seqs = self._ledger.let_go_all(queue, [message])
        self._ledger.memory.book(MESSAGE_COST)  # until its holder lets go of it
        message.deliveries = SETTLED
        queue.marked += 1
        return self._ledger.append(RecordType.ACKED, acked_payload(queue.key, seqs)) if seqs else 0

    def _settled_before(self, messages: Sequence[Message]) -> int:
        """For an ACK that writes nothing: somebody else's record of it may not be synced yet."""
        return self._journal.lsn if any(message.place for message in messages) else 0

    # --- back, or dead ------------------------------------------------------------------------------------------------

    def give_back(self, queue: Queue, messages: list[Message], *, failures: int, reason: str = "") -> int:
        """Messages that were in flight return to their places; the first `failures` of them count as failed.

        One that failed too often becomes a dead letter; `reason` is what the consumer said. Raises StorageFailed.
        """
        if not messages:
            return 0
        if queue.gone:
            self._ledger.let_go_all(queue, messages)
            return 0
        self._counters.returned += len(messages)
        queue.in_flight -= len(messages)
        lsn = 0
        stays: list[Message] = []
        dead: list[Message] = []
        for message in messages:
            if message.deliveries == SETTLED:
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
        self._drop_settled(queue, messages)
        self._release(stays)
        if dead:
            lsn = self._bury(queue, dead, "max-deliveries", reason)
        entries = counts(stays)
        if entries and not self._journal.failed:
            lsn = self._ledger.append(RecordType.RETURNED, returned_payload(queue.key, entries))
        self._catalogue.dirty[queue] = None
        return lsn

    def _release(self, messages: list[Message]) -> None:
        """They wait on disk again."""
        self._ledger.memory.book(-MESSAGE_COST * sum(1 for message in messages if message.place))

    def reject(self, queue: Queue, messages: list[Message], *, requeue: bool, reason: str) -> int:
        """A NACK: back to their places, or dead letters after the last try or at once where `requeue` is false."""
        if requeue or not _has_dead_letters(queue):
            return self.give_back(queue, messages, failures=len(messages), reason=reason)
        queue.in_flight -= len(messages)
        dead = self._drop_settled(queue, messages)
        for message in dead:
            message.deliveries += 1
        self._catalogue.dirty[queue] = None
        return self._bury(queue, dead, "rejected", reason) if dead else 0

    def _bury(self, queue: Queue, messages: list[Message], why: str, reason: str) -> int:
        """To the dead-letter queue. They are seen there when the record is synced: no crash can take them back from a
        reader. One record and one note for all of them, so that a long reason is not written once for each.
        """
        name = _dead_name(queue)
        self._moving(queue, messages)
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
            if lsn:
                self._ledger.noted(messages, self._journal.place)
        self._ledger.arrive(lsn, target, messages)
        return lsn


def _has_dead_letters(queue: Queue) -> bool:
    # Dead letters never loop: in a dead-letter queue a NACK only returns. Temporary queues end with their owner.
    return not queue.name.startswith(DEAD_LETTER_PREFIX) and not queue.owner


def _dead_name(queue: Queue) -> str:
    return DEAD_LETTER_PREFIX + queue.name.removeprefix(Kind.QUEUE.value)


def counts(messages: Sequence[Message]) -> list[tuple[int, int, int, int]]:
    """(first seq, last seq, deliveries, failures) for messages that the journal knows; neighbours are joined."""
    entries: list[tuple[int, int, int, int]] = []
    for message in messages:
        if not message.place:
            continue
        seq = message.seq
        entry = (seq, seq, message.deliveries, message.failures)
        if entries and entries[-1][1] == seq - 1 and entries[-1][2:] == entry[2:]:
            entry = (entries.pop()[0], *entry[1:])
        entries.append(entry)
    return entries
