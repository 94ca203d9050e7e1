"""What a start would say of a data folder, found out by the same code and without changing a byte."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from broker.errors import CheckpointDoubted, DataDamaged, FormatNotKnown, StompdError, StorageFailed
from broker.journal.batch import StorageSettings
from broker.journal.findings import Summary
from broker.journal.folder import survey
from broker.journal.recovery import Log
from broker.journal.view import ReadOnlyDisk
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


def rehearse(disk: Disk, data_dir: str, settings: StorageSettings, clock: Clock, rng: Rng) -> Rehearsal:
    """Nobody may change the folder meanwhile: hold its lock. Raises nothing that a start would end with."""
    view = ReadOnlyDisk(disk)
    log: Log | None = None
    try:
        try:
            log = Log(view, data_dir, settings, clock, rng, Handle(-1), survey(view, data_dir))
            _replay(log)
        except OSError as error:
            raise StorageFailed(f"{data_dir}: {error}") from error
    except FormatNotKnown as error:
        return Rehearsal(Outcome.NEWER, str(error), Summary(), [])
    except (DataDamaged, StorageFailed) as error:
        return Rehearsal(Outcome.REFUSED, str(error), Summary(), log.doubts if log else [])
    outcome = Outcome.TORN if log.summary.torn_bytes else Outcome.CLEAN
    return Rehearsal(Outcome.FRESH if log.fresh else outcome, "", log.summary, log.doubts)


def _replay(log: Log) -> None:
    while True:
        try:
            for _ in log.replay(skim=True):
                pass
        except CheckpointDoubted:
            continue  # it takes another one, or none
        except (DataDamaged, FormatNotKnown, StorageFailed):
            raise
        except StompdError as error:  # nothing else should come; whatever it is, a start would end with it
            raise DataDamaged(str(error)) from error
        return
