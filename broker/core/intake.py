"""Messages in: from a header block and bodies to records in the journal and messages on their way to a queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import add
from typing import Final

from broker.budget import Account
from broker.core.catalogue import Catalogue
from broker.core.counters import Counters
from broker.core.destination import Kind
from broker.core.ledger import Ledger, Target
from broker.core.message import MESSAGE_COST, Envelope, Message
from broker.core.queue import Queue
from broker.core.route import Route
from broker.journal import RecordType, messages_payload
from broker.system import Clock

RECORD_MESSAGES: Final = 64  # what one flipped bit can cost
RECORD_BYTES: Final = 1 << 20  # a record of several messages ends at this size
DROPPED: Final = -1  # instead of an LSN: the destination is gone, and the message with it


class Intake:
    """Gives messages their seq and their record."""

    def __init__(
        self, ledger: Ledger, catalogue: Catalogue, clock: Clock, counters: Counters, headers: Account
    ) -> None:
        self._ledger = ledger
        self._headers = headers
        self._journal = journal = ledger.journal
        self._catalogue = catalogue
        self._clock = clock
        self._counters = counters
        log = journal.log_id.hex()[:12].encode()  # all of it is nobody's business: it seeds the checksums
        self.prefix = log + b"-"
        # Messages that are in memory only take their seq from the same counter, but a restart may give it again: the
        # number of this start keeps their ids apart.
        self._volatile_prefix = b"%bv%d-" % (log, journal.boot)

    def publish(self, route: Route, owns: list[bytes] | None, bodies: list[bytes]) -> int:
        """Take in messages of one header block. Returns the LSN that their receipts wait for (0: none), or DROPPED.

        One of the five loops that carry the speed. Raises LimitReached where the queue would be one too many,
        StorageFailed where nothing can be kept any more.
        """
        count = len(bodies)
        self._counters.received += count
        queue = route.queue
        if queue is None or queue.gone:
            if route.destination.kind is not Kind.QUEUE:
                return self._publish_volatile(route, owns, bodies)
            queue = route.queue = self._catalogue.queue(route.destination.name)
        if not route.persistent:
            return self._publish_volatile(route, owns, bodies)
        journal, ledger = self._journal, self._ledger
        seq = journal.take_seqs(count)
        envelope = route.envelope(self._clock.wall_ms(), self.prefix, self._headers)
        if ledger.gathering:
            self._ask_mark(queue, seq + count - 1)
            ledger.arrive_here(queue, self._gather(route, seq, owns, bodies))
            return 0
        if queue.spilled:
            return self._publish_stored(queue, route, seq, owns, bodies)
        if queue.subscriptions:
            self._ask_mark(queue, seq + count - 1)
        if count == 1:
            body = bodies[0]
            own = owns[0] if owns else b""
            total = len(body) + len(own)
            lsn = journal.append(
                RecordType.MESSAGES,
                messages_payload(route.key, route.queues, route.head, envelope.stamp, seq, owns, bodies),
            )
            segment = journal.segment
            segment.live += 1
            segment.live_bytes += total
            messages = [Message(seq, body, own, envelope, journal.place, total)]
        else:
            messages = []
            total = 0
            for start, end in cut(bodies):
                some = bodies if end - start == count else bodies[start:end]
                mine = owns[start:end] if owns else None
                lsn = journal.append(
                    RecordType.MESSAGES,
                    messages_payload(route.key, route.queues, route.head, envelope.stamp, seq, mine, some),
                )
                place, segment = journal.place, journal.segment
                seqs = range(seq, seq + end - start)
                if mine is None:
                    sizes = list(map(len, some))
                    messages += [
                        Message(n, body, b"", envelope, place, size)
                        for n, body, size in zip(seqs, some, sizes, strict=True)
                    ]
                else:
                    sizes = list(map(add, map(len, some), map(len, mine)))
                    messages += [
                        Message(n, body, own, envelope, place, size)
                        for n, body, own, size in zip(seqs, some, mine, sizes, strict=True)
                    ]
                held = sum(sizes)
                segment.live += end - start
                segment.live_bytes += held
                total += held
                seq += end - start
        ledger.memory.book(total + MESSAGE_COST * count)
        queue.pending += count
        ledger.waiting.append((lsn, queue, messages))
        return lsn

    def _ask_mark(self, queue: Queue, last: int) -> None:
        """In the batch of the messages themselves, so that a quiet queue needs no second sync."""
        if queue.subscriptions and last + (queue.step >> 1) > queue.mark_asked:
            self._ledger.ask_mark(queue, last + queue.step)

    def _publish_stored(
        self, queue: Queue, route: Route, seq: int, owns: list[bytes] | None, bodies: list[bytes]
    ) -> int:
        """To a queue of which so much waits on disk already that these need not be kept in memory."""
        journal, ledger = self._journal, self._ledger
        stamp = route.envelope(self._clock.wall_ms(), self.prefix, self._headers).stamp
        lsn = 0
        for start, end in cut(bodies):
            some = bodies[start:end]
            mine = owns[start:end] if owns else None
            payload = messages_payload(route.key, route.queues, route.head, stamp, seq + start, mine, some)
            lsn = journal.append(RecordType.MESSAGES, payload)
            place = journal.place
            size = sum(map(len, some)) + (sum(map(len, mine)) if mine else 0)
            ledger.hold(place, end - start, size)
            ledger.waiting.append((lsn, queue, (seq + start, place, (1 << (end - start)) - 1, size)))
        queue.pending += len(bodies)
        return lsn

    def _gather(self, route: Route, seq: int, owns: list[bytes] | None, bodies: list[bytes]) -> list[Message]:
        """The same as part of a transaction; where its record lies, the ledger says at the end."""
        envelope = route.envelope(self._clock.wall_ms(), self.prefix, self._headers)
        for start, end in cut(bodies):
            mine = owns[start:end] if owns else None
            payload = messages_payload(
                route.key, route.queues, route.head, envelope.stamp, seq + start, mine, bodies[start:end]
            )
            self._ledger.append(RecordType.MESSAGES, payload)
        return self._make(seq, owns, bodies, envelope)

    def _make(self, seq: int, owns: list[bytes] | None, bodies: list[bytes], envelope: Envelope) -> list[Message]:
        """Messages that have no record yet, or never will; booked as held in memory."""
        both = zip(bodies, owns or [b""] * len(bodies), strict=True)
        messages = [
            Message(n, body, own, envelope, 0, len(body) + len(own)) for n, (body, own) in enumerate(both, seq)
        ]
        self._ledger.memory.book(sum(message.size + MESSAGE_COST for message in messages))
        return messages

    def _publish_volatile(self, route: Route, owns: list[bytes] | None, bodies: list[bytes]) -> int:
        target: Target | None = route.queue
        if route.destination.kind is Kind.TOPIC:
            target = route.destination.name.removeprefix(Kind.TOPIC.value)
        elif route.destination.kind is Kind.TEMP_QUEUE:
            target = self._catalogue.by_name.get(route.destination.name)
        if target is None:
            self._counters.dropped_replies += len(bodies)
            return DROPPED
        seq = self._journal.take_seqs(len(bodies))
        envelope = route.envelope(self._clock.wall_ms(), self._volatile_prefix, self._headers)
        if isinstance(target, str):
            both = zip(bodies, owns or [b""] * len(bodies), strict=True)
            messages = [Message(n, body, own, envelope, 0, 0) for n, (body, own) in enumerate(both, seq)]
        else:
            messages = self._make(seq, owns, bodies, envelope)
        self._ledger.arrive(0, target, messages)
        return 0


def cut(bodies: Sequence[bytes]) -> Iterable[tuple[int, int]]:
    """Cut a run of messages into records: (start, end) of each."""
    count = len(bodies)
    if count * max(map(len, bodies)) <= RECORD_BYTES:
        # The usual case, without a look at each.
        return [(start, min(start + RECORD_MESSAGES, count)) for start in range(0, count, RECORD_MESSAGES)]
    pieces = []
    start = size = 0
    for at, body in enumerate(bodies):
        if at - start == RECORD_MESSAGES or (size + len(body) > RECORD_BYTES and at > start):
            pieces.append((start, at))
            start, size = at, 0
        size += len(body)
    pieces.append((start, count))
    return pieces
