"""What the values of a log come to: a small model of the core's state, and checkpoints made from it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from random import Random

from broker.journal import (
    Acked,
    Basis,
    CarriedRun,
    CheckpointFile,
    Delivered,
    Lost,
    Moved,
    Part,
    RecordType,
    Replayed,
    Returned,
    Run,
    Value,
    acked_payload,
    carried_payload,
    delivered_payload,
    encode_part,
    lost_payload,
    messages_payload,
    moved_payload,
    number_of,
    returned_payload,
    skim,
)
from tests.journal.harness import DATA, LOG_ID, Running
from tests.support.simdisk import SimDisk

QUEUES = (b"/queue/a", b"/queue/b", b"/queue/dead")
ENTRY = struct.Struct("<QQQQ")
Known = tuple[int, int, int, int]  # place, note, deliveries, failures


class Folded:
    """Which messages wait, where their records are, and the marks of the queues."""

    def __init__(self) -> None:
        self.messages: dict[tuple[bytes, int], Known] = {}
        self.marks: dict[bytes, int] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folded) and (self.messages, self.marks) == (other.messages, other.marks)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.messages} {self.marks}"

    def apply(self, value: Value | Part, place: int) -> None:
        messages = self.messages
        if isinstance(value, Part):
            self._part(value)
        elif isinstance(value, Run):
            for name in value.queues or (value.destination,):
                for seq in range(value.first_seq, value.first_seq + len(value.sizes)):
                    messages[name, seq] = (place, 0, 0, 0)
        elif isinstance(value, CarriedRun):
            for seq, deliveries, failures in value.entries:
                messages[value.queue, seq] = (place, place if value.note else 0, deliveries, failures)
        elif isinstance(value, Acked | Lost):
            for first, last in value.seqs:
                for seq in range(first, last + 1):
                    messages.pop((value.queue, seq), None)
        elif isinstance(value, Returned):
            for first, last, deliveries, failures in value.entries:
                for seq in range(first, last + 1):
                    if (known := messages.get((value.queue, seq))) is not None:
                        messages[value.queue, seq] = (*known[:2], deliveries, failures)
        elif isinstance(value, Moved):
            for first, last, deliveries, failures in value.entries:
                for seq in range(first, last + 1):
                    if (known := messages.pop((value.source, seq), None)) is not None:
                        messages[value.target, seq] = (known[0], place, deliveries, failures)
        elif isinstance(value, Delivered):
            self.marks[value.queue] = value.seq
        else:
            raise TypeError(value)

    def _part(self, part: Part) -> None:
        if part.mark:
            self.marks[part.queue] = part.mark
        for seq, place, mask, _ in ENTRY.iter_unpack(part.fresh):
            for bit in range(64):
                if mask >> bit & 1:
                    self.messages[part.queue, seq + bit] = (place, 0, 0, 0)
        for seq, place, note, counts in ENTRY.iter_unpack(part.counted):
            self.messages[part.queue, seq] = (place, note, counts & 0xFFFF, counts >> 16 & 0xFF)


def fold(items: Iterable[Replayed | Part]) -> Folded:
    folded = Folded()
    for item in items:
        if isinstance(item, Part):
            folded.apply(item, 0)
        else:
            folded.apply(item.value, item.place)
    return folded


def part_of(queue: bytes, mark: int, messages: dict[int, Known]) -> Part:
    fresh = counted = b""
    for seq, (place, note, deliveries, failures) in sorted(messages.items()):
        if deliveries or failures or note:
            counted += ENTRY.pack(seq, place, note, deliveries | failures << 16)
        else:
            fresh += ENTRY.pack(seq, place, 1, 0)
    return Part(queue, mark, fresh, counted)


class Traffic:
    """Random records on a running log; what they come to is in `state`."""

    def __init__(self, run: Running, state: Folded, rng: Random, disk: SimDisk) -> None:
        self.run, self.state, self.rng = run, state, rng
        self.file = CheckpointFile(disk, DATA, LOG_ID)
        self.dump: Iterator[None] | None = None
        self.moved: list[Part] | None = None

    def append(self, kind: RecordType, payload: list[bytes]) -> None:
        journal = self.run.journal
        journal.append(kind, payload)
        joined = b"".join(payload)
        for _, value in skim(kind, joined, 0, len(joined)):
            self.state.apply(value, journal.place)

    def step(self) -> None:
        rng = self.rng
        steps = [self.send] * 6 + [self.settle] * 5 + [self.give_back, self.move, self.mark, self.pump, self.pump]
        rng.choice([*steps, self.compact, self.checkpoint, self.checkpoint])()

    def some(self) -> tuple[bytes, list[int]]:
        queue = self.rng.choice(QUEUES)
        seqs = [seq for name, seq in self.state.messages if name == queue]
        return queue, sorted(self.rng.sample(seqs, min(len(seqs), self.rng.randrange(1, 9))))

    def send(self) -> None:
        rng, count = self.rng, self.rng.randrange(1, 9)
        queues = rng.choice([(), QUEUES[:2]])
        seq = self.run.journal.take_seqs(count)
        bodies = [rng.randbytes(rng.randrange(120)) for _ in range(count)]
        payload = messages_payload(rng.choice(QUEUES[:2]), queues, b"h:1\n", 1, seq, None, bodies)
        self.append(RecordType.MESSAGES, payload)

    def settle(self) -> None:
        queue, seqs = self.some()
        if seqs and self.rng.random() < 0.1:
            self.append(RecordType.LOST, lost_payload(queue, seqs))
        elif seqs:
            self.append(RecordType.ACKED, acked_payload(queue, seqs))

    def give_back(self) -> None:
        queue, seqs = self.some()
        entries = [(seq, seq, self.rng.randrange(9), self.rng.randrange(9)) for seq in seqs]
        if entries:
            self.append(RecordType.RETURNED, returned_payload(queue, entries))

    def move(self) -> None:
        queue, seqs = self.some()
        if not seqs or queue == QUEUES[2]:
            return
        if self.moved is not None:  # the record that moves them has to find them where they were
            known = {seq: self.state.messages[queue, seq] for seq in seqs}
            self.moved.append(part_of(queue, self.state.marks.get(queue, 0), known))
        entries = [(seq, seq, self.rng.randrange(1, 9), 1) for seq in seqs]
        self.append(RecordType.MOVED, moved_payload(queue, QUEUES[2], entries, b"[]"))

    def mark(self) -> None:
        payload = delivered_payload(self.rng.choice(QUEUES), self.run.journal.next_seq)
        self.append(RecordType.DELIVERED, payload)

    def pump(self) -> None:
        self.run.pump()

    def compact(self) -> None:
        """Copies what is wanted out of the oldest segment, or removes those that are dead."""
        journal = self.run.journal
        self.run.pump()
        if len(journal.segments) < 4:
            return
        oldest = journal.segments[0].number
        for (queue, seq), known in list(self.state.messages.items()):
            if number_of(known[0]) == oldest:
                note = b"[]" if known[1] else b""
                payload = carried_payload(
                    queue, b"/queue/a", b"h:1\n", 1, note, [(seq, *known[2:])], None, [b"x" * 40]
                )
                self.append(RecordType.CARRIED, payload)
        for queue, seq in self.state.marks.items():
            journal.append(RecordType.DELIVERED, delivered_payload(queue, seq))
        self.run.pump()
        for segment in journal.segments:
            segment.live = sum(number_of(known[0]) == segment.number for known in self.state.messages.values())
        journal.trim(journal.dead_segments())
        self.run.pump()

    def checkpoint(self) -> None:
        """The next step of a checkpoint."""
        if self.dump is None:
            self.dump = self._checkpoint()
        if next(self.dump, self) is self:
            self.dump = None

    def _checkpoint(self) -> Iterator[None]:
        basis = basis_of(self.run)
        self.moved = []
        self.file.begin()
        for queue in QUEUES:
            messages = {seq: known for (name, seq), known in self.state.messages.items() if name == queue}
            self.file.add(encode_part(part_of(queue, self.state.marks.get(queue, 0), messages)))
            yield
        for part in self.moved:
            self.file.add(encode_part(part))
        self.moved = None
        end_lsn = self.run.journal.lsn
        self.run.pump()
        yield
        self.file.finish(basis_of(self.run, basis, end_lsn))


def basis_of(run: Running, begun: Basis | None = None, end_lsn: int | None = None) -> Basis:
    """Of a checkpoint that begins here; begun: of one that ends here."""
    if begun is not None and end_lsn is not None:
        return Basis(
            begun.lsn, end_lsn, begun.segment, begun.low, begun.next_seq, begun.boot, 0, begun.segments
        )
    journal = run.journal
    rows = [(s.number, s.first_lsn, s.last_lsn, s.end) for s in list(journal.segments)[:-1]]
    low = journal.segments[0].number
    return Basis(journal.lsn, journal.lsn, journal.segment.number, low, journal.next_seq, journal.boot, 0, rows)


def checkpoint(run: Running, state: Folded, disk: SimDisk) -> Basis:
    """One at rest; everything that was appended is synced first."""
    run.pump()
    file = CheckpointFile(disk, DATA, LOG_ID)
    file.begin()
    for queue in sorted({name for name, _ in state.messages} | set(state.marks)):
        messages = {seq: known for (name, seq), known in state.messages.items() if name == queue}
        file.add(encode_part(part_of(queue, state.marks.get(queue, 0), messages)))
    return file.finish(basis_of(run))
