"""Messages from the records of one log into a fresh one, with all that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from broker.journal.audit import Audit, Hole
from broker.journal.journal import Journal
from broker.journal.reader import Damage, Reader, Record
from broker.journal.records import (
    RUN_MAX,
    Carried,
    Messages,
    Moved,
    RecordType,
    carried_payload,
    messages_payload,
    returned_payload,
)
from broker.journal.waiting import Line, Waiting
from broker.journal.writer import Writer

_PLACES_MAX: Final = 32  # records read at a time
_QUEUED_MAX: Final = 4 * 1024 * 1024  # bytes
_NO_NOTE: Final = b"[]"


class Missing(NamedTuple):
    """A message that was known to wait, and cannot be read."""

    queue: bytes
    seq: int
    text: str


@dataclass(slots=True)
class Salvaged:
    """messages: copied, in `queues` queues. unsure: records are gone that may have been acknowledgements or deliveries;
    so what they acknowledged is back, and every message counts as delivered before.
    """

    messages: int = 0
    queues: int = 0
    records: int = 0
    unsure: bool = False
    holes: list[Hole] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.holes and not self.missing


class Transfer:
    """Copies every waiting message that can be read, and notes down the others in `done.missing`."""

    def __init__(
        self,
        audit: Audit,
        waiting: Waiting,
        journal: Journal,
        writer: Writer,
        done: Salvaged,
        told: Callable[[str, int, int], None],
    ) -> None:
        paths = {piece.number: piece.path for piece in audit.pieces if piece.path}
        self._reader = Reader(
            audit.disk,
            audit.log_dir,
            audit.log_id,
            lambda number: paths.get(number, f"{audit.log_dir}: segment {number}"),
        )
        self._lines = {name: line for name, line in waiting.lines.items() if line.places}
        self._shared = _shared(self._lines)
        self._names: set[bytes] = set()
        self._journal = journal
        self._writer = writer
        self._done = done
        self._told = told
        self._total = sum(len(line.places) for line in self._lines.values())

    def run(self) -> None:
        try:
            for queue in sorted(self._lines):
                self._copy_queue(queue, self._lines[queue])
            self._done.queues = len(self._names)
        finally:
            self._reader.close()

    def _copy_queue(self, queue: bytes, line: Line) -> None:
        seqs: list[int] = []
        places: set[int] = set()
        for seq in sorted(line.places):
            if self._sharers(queue, seq)[0] != queue:
                continue  # copied with the first of its queues
            seqs.append(seq)
            places.add(line.places[seq])
            if len(places) == _PLACES_MAX:
                self._copy_some(queue, line, seqs, places)
                seqs, places = [], set()
        self._copy_some(queue, line, seqs, places)

    def _sharers(self, queue: bytes, seq: int) -> list[bytes]:
        """All queues that refer to the same record of this message in the same way; mostly this one alone."""
        owners = self._shared.get(seq)
        if owners is None or seq in self._lines[queue].notes:
            return [queue]
        place, lines = self._lines[queue].places[seq], self._lines
        return [name for name in owners if lines[name].places[seq] == place and seq not in lines[name].notes]

    def _copy_some(self, queue: bytes, line: Line, seqs: list[int], places: set[int]) -> None:
        noted = {line.notes[seq] for seq in seqs if seq in line.notes}
        asked = sorted(places | noted)
        found = dict(zip(asked, self._reader.read(asked), strict=True))
        run: list[tuple[int, int]] = []  # (seq, index in the value)
        source: tuple[Messages | Carried, bytes, list[bytes]] | None = None
        for seq in seqs:
            hit = self._find(queue, line, seq, found)
            if hit is None:
                continue
            value, index, note = hit
            queues = self._sharers(queue, seq)
            here = (value, note, queues)
            same = source is not None and source[0] is value and source[1:] == here[1:] and len(run) < RUN_MAX
            if not same or (len(queues) > 1 and run[-1][0] != seq - 1):
                self._emit(queue, source, run)
                run, source = [], here
            run.append((seq, index))
        self._emit(queue, source, run)
        self._told("messages copied", self._done.messages, self._total)

    def _find(
        self, queue: bytes, line: Line, seq: int, found: dict[int, Record | Damage]
    ) -> tuple[Messages | Carried, int, bytes] | None:
        """The value that holds the body, the index in it, the note."""
        record = found[line.places[seq]]
        if isinstance(record, Damage):
            self._miss(queue, seq, record.text)
            return None
        note = b""
        if seq in line.notes:
            said = _note_of(found[line.notes[seq]], queue, seq)
            if said is None:
                self._done.missing.append(Missing(queue, seq, "only the reason why it became a dead letter"))
            note = _NO_NOTE if said is None else said
        for _, value in record.values:
            if isinstance(value, Messages) and 0 <= seq - value.first_seq < len(value.bodies):
                return value, seq - value.first_seq, note
            if isinstance(value, Carried):
                for index, entry in enumerate(value.entries):
                    if entry[0] == seq:
                        return value, index, note
        self._miss(queue, seq, f"the record at {record.place:#x} does not hold it")
        return None

    def _miss(self, queue: bytes, seq: int, text: str) -> None:
        self._done.missing += [Missing(name, seq, text) for name in self._sharers(queue, seq)]

    def _emit(
        self,
        queue: bytes,
        source: tuple[Messages | Carried, bytes, list[bytes]] | None,
        run: list[tuple[int, int]],
    ) -> None:
        if source is None or not run:
            return
        value, note, queues = source
        journal, counts = self._journal, self._lines[queue].counts
        owns = [value.owns[index] for _, index in run] if value.owns else None
        bodies = [value.bodies[index] for _, index in run]
        if len(queues) == 1:
            entries = [(seq, *counts.get(seq, (0, 0))) for seq, _ in run]
            journal.append(
                RecordType.CARRIED,
                carried_payload(queue, value.destination, value.head, value.stamp_ms, note, entries, owns, bodies),
            )
        else:
            journal.append(
                RecordType.MESSAGES,
                messages_payload(value.destination, queues, value.head, value.stamp_ms, run[0][0], owns, bodies),
            )
            for name in queues:
                known = self._lines[name].counts
                returned = [(seq, seq, *known[seq]) for seq, _ in run if seq in known]
                if returned:
                    journal.append(RecordType.RETURNED, returned_payload(name, returned))
        self._done.messages += len(run) * len(queues)
        self._names.update(queues)
        if journal.queued > _QUEUED_MAX:
            pump(journal, self._writer)


def pump(journal: Journal, writer: Writer) -> None:
    """Everything that is queued goes to the disk. Raises StorageFailed."""
    while (batch := journal.take_batch()) is not None:
        try:
            writer.run(batch)
        except OSError as error:
            journal.done(batch, error)
            if journal.failed is not None:
                raise journal.failed from error
            raise
        journal.done(batch, None)


def _shared(lines: Mapping[bytes, Line]) -> dict[int, list[bytes]]:
    """The seqs that wait in more than one queue, and in which."""
    seen: set[int] = set()
    owners: dict[int, list[bytes]] = {}
    for line in lines.values():
        for seq in line.places:
            if seq in seen:
                owners[seq] = []
        seen.update(line.places)
    for name in sorted(lines):
        for seq in lines[name].places:
            if seq in owners:
                owners[seq].append(name)
    return owners


def _note_of(record: Record | Damage, queue: bytes, seq: int) -> bytes | None:
    if isinstance(record, Record):
        for _, value in record.values:
            if isinstance(value, Moved) and value.target == queue:
                if any(first <= seq <= last for first, last, _, _ in value.entries):
                    return value.note
            elif isinstance(value, Carried) and any(entry[0] == seq for entry in value.entries):
                return value.note or None
    return None
