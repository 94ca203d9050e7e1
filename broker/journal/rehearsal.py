"""What a start would say of a data folder, found out by the same code and without changing a byte."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from broker.errors import CheckpointDoubted, DataDamaged, FormatNotKnown, StompdError, StorageFailed
from broker.journal.audit import Hole
from broker.journal.batch import StorageSettings
from broker.journal.checkpoint import Part
from broker.journal.findings import Summary
from broker.journal.folder import survey
from broker.journal.recovery import Log
from broker.journal.segment import place_of
from broker.journal.view import ReadOnlyDisk
from broker.journal.waiting import Waiting
from broker.system import Clock, Disk, Handle, Rng


class Outcome(Enum):
    """How a start would go. The values are what `log verify --json` says."""

    FRESH = "fresh"  # no log yet: it would make one
    CLEAN = "clean"
    TORN = "torn"  # heals by itself: what is left out was never receipted
    REFUSED = "refused"
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """text: of the refusal, else "". doubts: what was wrong with checkpoints that a start would not use."""

    outcome: Outcome
    text: str
    summary: Summary
    doubts: list[str]


class Stranded(NamedTuple):
    """Messages of `queue` that wait, and whose records are damaged: all that wait there from seq `first` to `last`."""

    queue: bytes
    first: int
    last: int


def rehearse(disk: Disk, data_dir: str, settings: StorageSettings, clock: Clock, rng: Rng) -> Rehearsal:
    """Nobody may change the folder meanwhile: hold its lock. Raises nothing that a start would end with."""
    view = ReadOnlyDisk(disk)
    log: Log | None = None
    try:
        try:
            log = Log(view, data_dir, settings, clock, rng, Handle(-1), survey(view, data_dir))
            _replay(log, Waiting(1, 0))
        except OSError as error:
            raise StorageFailed(f"{data_dir}: {error}") from error
    except FormatNotKnown as error:
        return Rehearsal(Outcome.NEWER, str(error), Summary(), [])
    except (DataDamaged, StorageFailed) as error:
        return Rehearsal(Outcome.REFUSED, str(error), Summary(), log.doubts if log else [])
    outcome = Outcome.TORN if log.summary.torn_bytes else Outcome.CLEAN
    return Rehearsal(Outcome.FRESH if log.fresh else outcome, "", log.summary, log.doubts)


def _replay(log: Log, waiting: Waiting) -> Waiting:
    """waiting: a fresh one; what it looks at is kept."""
    while True:
        waiting = waiting.fresh()
        try:
            for item in log.replay(skim=True):
                if isinstance(item, Part):
                    waiting.take_part(item)
                else:
                    waiting.apply(item.value, item.place)
        except CheckpointDoubted:
            continue  # it takes another one, or none
        except (DataDamaged, FormatNotKnown, StorageFailed):
            raise
        except StompdError as error:  # nothing else should come; whatever it is, a start would end with it
            raise DataDamaged(str(error)) from error
        return waiting


def stranded(
    disk: Disk, data_dir: str, settings: StorageSettings, clock: Clock, rng: Rng, holes: Sequence[Hole]
) -> list[Stranded]:
    """Which messages would hold their queues up, where a start would go on in spite of `holes`."""
    view = ReadOnlyDisk(disk)
    waiting = _replay(Log(view, data_dir, settings, clock, rng, Handle(-1), survey(view, data_dir)), Waiting())
    bad = sorted(
        (place_of(hole.number, hole.offset), place_of(hole.number, hole.end))
        for hole in holes
        if hole.number and hole.loses_records
    )
    found: list[Stranded] = []
    for queue, line in sorted(waiting.lines.items()):
        first = last = 0
        for seq in sorted(line.places):
            if _within(bad, line.places[seq]):
                first, last = first or seq, seq
            elif first:
                found.append(Stranded(queue, first, last))
                first = 0
        if first:
            found.append(Stranded(queue, first, last))
    return found


def _within(ranges: list[tuple[int, int]], place: int) -> bool:
    """Whether `place` lies in one of these; sorted, ends excluded."""
    index = bisect_right(ranges, (place, 1 << 64)) - 1
    return index >= 0 and ranges[index][0] <= place < ranges[index][1]
