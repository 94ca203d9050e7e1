"""When a checkpoint is written, and what it says: every queue's messages, dumped in slices while traffic goes on.

A checkpoint need not show one moment. It begins behind an LSN, and every record after that is replayed over it: each
record sets or removes what is known of some messages, and later wins (docs/journal-format.md). So a message that is
settled while the dump goes on may be in it or not. What must be in it is every message that was there before it began
and is not named by a later record with all of its state: that is why a queue's messages are looked at together, and why
one that leaves a queue for another meanwhile is noted with the queue that it left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Protocol

from broker.core.catalogue import Catalogue
from broker.core.counters import Counters, Events
from broker.core.entries import ENTRY_BYTES, Entry, entries_of, pack_counts, packed
from broker.core.jobs import Keep
from broker.core.ledger import Ledger
from broker.core.message import SETTLED, Message
from broker.core.queue import Queue
from broker.errors import no_room, passing
from broker.journal import Basis, CheckpointFile, Part, encode_part
from broker.system import Clock

EVERY: Final = 30.0  # s
SLICE_MESSAGES: Final = 2000  # messages in memory that are looked at in one turn
SLICE_QUEUES: Final = 200
SLICE_BYTES: Final = 256 * 1024
PART_BYTES: Final = ENTRY_BYTES << 15


class Settings(Protocol):
    @property
    def checkpoint(self) -> int:
        """Bytes of log between two checkpoints."""
_seq = attrgetter("seq")


@dataclass(frozen=True, slots=True, eq=False)
class Begin:
    file: CheckpointFile

    def run(self) -> None:
        self.file.begin()


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    file: CheckpointFile
    data: bytes

    def run(self) -> None:
        self.file.add(self.data)


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    file: CheckpointFile
    basis: Basis

    def run(self) -> None:
        self.file.finish(self.basis)


@dataclass(frozen=True, slots=True, eq=False)
class Abandon:
    file: CheckpointFile

    def run(self) -> None:
        self.file.abandon()


class Checkpoints:
    """Owns the checkpoint in the making; at most one task of it is at the keeper."""

    def __init__(
        self,
        ledger: Ledger,
        catalogue: Catalogue,
        clock: Clock,
        counters: Counters,
        events: Events,
        settings: Settings,
        file: CheckpointFile,
    ) -> None:
        self._ledger = ledger
        self._journal = ledger.journal
        self._catalogue = catalogue
        self._clock = clock
        self._counters = counters
        self._events = events
        self._bytes = settings.checkpoint
        self._file = file
        self._time = clock.monotonic()  # of the last one
        self._written = 0  # bytes of log when it began
        self._size = 0
        self._dump: Iterator[bytes] | None = None
        self._moved: list[Part] = []
        self._basis = (0, 0, 0, 0, 0, 0)
        self._rows: list[tuple[int, int, int, int]] = []
        self._end_lsn = 0
        self._out = False  # a task is at the keeper
        self._failed = False  # what was begun is to be cleared away

    @property
    def due(self) -> float:
        """When `jobs` is to be called next even if nothing happens; 0 for never."""
        idle = self._dump is None and not self._end_lsn and not self._out
        return self._time + EVERY if idle and self._worthwhile else 0.0

    @property
    def _worthwhile(self) -> bool:
        """Whether to read the log again would cost more than to read a checkpoint of it."""
        return self._journal.written - self._written >= max(self._bytes >> 6, self._size >> 2)

    @property
    def _is_due(self) -> bool:
        grown = self._journal.written - self._written
        # What messages in memory cost to dump is worth it only for more log than they are themselves.
        if grown >= max(self._bytes, 2 * self._size, min(self._ledger.memory.used, 2 * self._bytes)):
            return True
        return self._worthwhile and self._clock.monotonic() >= self._time + EVERY

    def jobs(self) -> list[Keep]:
        """The next step of the checkpoint in the making, or the first one of a new one. Raises StorageFailed."""
        if self._out:
            return []
        if self._dump is not None:
            data = next(self._dump, None)
            if data is not None:
                return self._task(Add(self._file, data))
            self._dump = None
            self._end_lsn = self._journal.lsn
            if self._journal.synced < self._end_lsn and not self._journal.syncs:
                self._journal.append_witness()
        if self._failed:
            self._failed = False
            return self._task(Abandon(self._file))
        if self._end_lsn:
            if self._journal.synced < self._end_lsn:
                return []
            lsn, segment, low, next_seq, boot, wall = self._basis
            basis = Basis(lsn, self._end_lsn, segment, low, next_seq, boot, wall, self._rows)
            self._end_lsn = 0
            return self._task(Finish(self._file, basis))
        if not self._is_due:
            return []
        self._begin()
        return self._task(Begin(self._file))

    def _task(self, task: Begin | Add | Finish | Abandon) -> list[Keep]:
        self._out = True
        return [Keep(task)]

    def _begin(self) -> None:
        journal = self._journal
        self._time = self._clock.monotonic()
        self._written = journal.written
        self._size = 0
        lsn = journal.durable
        segment = next((s for s in journal.segments if s.last_lsn > lsn), journal.segment)
        self._basis = (
            lsn, segment.number, journal.segments[0].number, journal.next_seq, journal.boot, self._clock.wall_ms()
        )  # fmt: skip
        # Now, not at the end: a crash may bring back what is trimmed meanwhile, and then it is needed.
        self._rows = [
            (s.number, s.first_lsn, s.last_lsn, s.end) for s in journal.segments if s.number < segment.number
        ]
        self._moved = []
        # Dead letters on their way: the record that moves them is replayed, so it has to find them where they were.
        for _, target, arrival in self._ledger.waiting:
            if isinstance(arrival, list) and isinstance(target, Queue) and arrival[0].deliveries:
                for message in arrival:
                    self._note(dict(message.envelope.extra)["dead-letter-queue"].encode(), 0, [message])
        self._dump = self._slices(list(self._catalogue.by_name.values()))

    def moving(self, queue: Queue, messages: list[Message]) -> None:
        """These leave `queue` for another one."""
        if self._dump is not None:
            self._note(queue.key, queue.mark_asked, messages)

    def _note(self, key: bytes, mark: int, messages: Iterable[Message]) -> None:
        if entries := _counted(messages):
            self._moved.append(Part(key, mark, b"", packed(entries)))

    def kept(self, task: object, error: OSError | None) -> bool:
        """A task is done; returns whether it was one of these. An error of the medium ends the journal."""
        if not isinstance(task, Begin | Add | Finish | Abandon):
            return False
        self._out = False
        if error is not None:
            self._dump = None
            self._end_lsn = 0
            self._failed = True
            if not (no_room(error) or passing(error)):
                self._journal.fail(error)
                return True
            text = f"no checkpoint was written, the next start takes longer: {error}"
            self._events.event("warning", "checkpoint", text)
        elif isinstance(task, Add):
            self._size += len(task.data)
        elif isinstance(task, Finish):
            self._counters.checkpoints += 1
        return True

    # --- the dump -----------------------------------------------------------------------------------------------------

    def _slices(self, queues: list[Queue]) -> Iterator[bytes]:
        """Encoded parts, a turn's worth at a time."""
        data: list[bytes] = []
        size = looked = 0
        for queue in queues:
            if queue.gone:
                continue
            looked += 1
            for part, messages in self._parts(queue):
                data.append(encode_part(part))
                size += len(data[-1])
                looked += messages * SLICE_QUEUES // SLICE_MESSAGES
                if size >= SLICE_BYTES or looked >= SLICE_QUEUES:
                    yield b"".join(data)
                    data.clear()
                    size = looked = 0
        data += [encode_part(part) for part in self._moved]
        self._moved = []
        if data:
            yield b"".join(data)

    def _parts(self, queue: Queue) -> Iterator[tuple[Part, int]]:
        """A queue's parts, and how many messages in memory were looked at for each."""
        # All at once, for messages go from one place to another; what happens to them later is in later records.
        loose = [m for m in queue.loose() if m.place]
        ready, tail = list(queue.ready), list(queue.tail)
        part = bool(queue.kept)  # some of them are in memory only
        fresh, counted = list(queue.stored.dump(placed=part)), list(queue.counted.dump(placed=part))
        if (loading := queue.loading) is not None:
            entries = [e for e in loading.entries if e[1] and e[0] not in loading.gone]
            (fresh if loading.fresh else counted).insert(0, packed(entries))
        key, mark = queue.key, queue.mark_asked
        if mark:  # of an empty queue as well: what comes next may be delivered below it, and no record says so again
            yield Part(key, mark, b"", b""), 0
        # Nearly in order of seq, which is quickest to load.
        yield from self._loose(key, mark, loose)
        yield from self._fresh(key, mark, ready)
        for piece in _pieces(fresh):
            yield Part(key, mark, piece, b""), 0
        for piece in _pieces(counted):
            yield Part(key, mark, b"", piece), 0
        yield from self._fresh(key, mark, tail)

    def _fresh(self, key: bytes, mark: int, messages: list[Message]) -> Iterator[tuple[Part, int]]:
        """Messages that were never delivered when they were looked at, in order."""
        for start in range(0, len(messages), SLICE_MESSAGES):
            some = messages[start : start + SLICE_MESSAGES]
            yield Part(key, mark, packed([entry for entry in entries_of(some) if entry[1]]), b""), len(some)

    def _loose(self, key: bytes, mark: int, messages: list[Message]) -> Iterator[tuple[Part, int]]:
        for start in range(0, len(messages), SLICE_MESSAGES):
            some = [m for m in messages[start : start + SLICE_MESSAGES] if m.deliveries != SETTLED]
            new = sorted([m for m in some if not m.deliveries], key=_seq)
            yield Part(key, mark, packed(entries_of(new)), packed(_counted(m for m in some if m.deliveries))), len(some)


def _counted(messages: Iterable[Message]) -> list[Entry]:
    return sorted(
        (m.seq, m.place, m.envelope.note, pack_counts(max(m.deliveries, 0), m.failures, m.size))
        for m in messages
        if m.place and m.deliveries != SETTLED
    )


def _pieces(blocks: list[bytes]) -> Iterator[bytes]:
    """Entries in pieces of PART_BYTES at most. `blocks` are used up on the way: together they may be many MiB."""
    blocks.reverse()
    data: list[bytes] = []
    size = 0
    while blocks:
        block = blocks.pop()
        if size and size + len(block) > PART_BYTES:
            yield b"".join(data)
            data, size = [], 0
        for start in range(0, len(block) - PART_BYTES, PART_BYTES):
            yield block[start : start + PART_BYTES]
        rest = block[max(len(block) - 1, 0) // PART_BYTES * PART_BYTES :]
        data.append(rest)
        size += len(rest)
    if size:
        yield b"".join(data)
