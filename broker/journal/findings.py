"""What a start finds in the log: the values it gives to the core, the numbers it tells people, the journal's
own state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from broker.journal.records import RecordType, Value
from broker.journal.scan import Beyond, Scan, queues_at
from broker.journal.segment import SEGMENT_HEADER_BYTES, Segment
from broker.journal.state import State
from broker.journal.verdict import Case, Verdict
from broker.system import Disk

WAY_OUT: Final = (
    "Nothing was changed and nothing is skipped. Keep a copy of the folder; restore it from a backup, "
    'or read docs/operations.md, "Damaged data"'
)


class Replayed(NamedTuple):  # one for each record: a frozen dataclass takes twice as long to make
    """One value of the log, in the order of the LSNs; a TRANSACTION gives one for each of its parts, all
    with its place.
    """

    lsn: int
    type: RecordType
    value: Value
    segment: Segment
    place: int


@dataclass(slots=True)
class Summary:
    """What was found. Complete once `replay` has ended.

    records, messages, bytes: what was read; what a checkpoint stood for is not counted. segments: all of the
    log. clean: the log ended as a broker that stopped in good order leaves it. torn_bytes: what lies behind the
    end and was never known to be synced. boot: how many starts there were, this one included.
    """

    records: int = 0
    messages: int = 0
    bytes: int = 0
    segments: int = 0
    torn_bytes: int = 0
    clean: bool = False
    boot: int = 1


@dataclass(slots=True)
class End:
    """Where the log ends: segment, its last LSN, that record's crc, the offset behind it."""

    number: int = 0
    lsn: int = 0
    crc: int = 0
    offset: int = SEGMENT_HEADER_BYTES
    verdict: Verdict = Verdict.CLEAN


@dataclass(slots=True)
class Seen:
    """The journal's own state as the log tells it."""

    low: int = 0
    next_seq: int = 1
    boot: int = 0
    clean: bool = False  # the last record is a WITNESS of a clean stop
    stale: list[int] = field(default_factory=list)  # segments below `low` that a crash left undeleted

    def take(self, state: State, clean: bool) -> None:
        """clean: whether the record was a WITNESS of a clean stop."""
        self.low = max(self.low, state.low)
        self.next_seq = max(self.next_seq, state.next_seq)
        self.boot = max(self.boot, state.boot)
        self.clean = clean


def damage_text(disk: Disk, scan: Scan, case: Case, beyond: Beyond, last_lsn: int) -> str:
    """Where the records of a segment end and should not. last_lsn: of the last one at risk; 0: not known."""
    first = scan.lsn + 1
    if beyond.first_lsn is not None and beyond.first_lsn > first:
        last_lsn = beyond.first_lsn - 1
    at_risk = f"lsn {first}" + (f" to {last_lsn}" if last_lsn > first else " and what follows")
    handle = disk.open(scan.path)
    try:
        queues = queues_at(disk, handle, scan.offset)
    finally:
        disk.close(handle)
    queues += [name for name in beyond.queues if name not in queues]
    named = ", ".join(name.decode("utf-8", "backslashreplace") for name in queues) or "not known"
    return (
        f"{scan.path}: offset {scan.offset}: damaged or missing records: {case.why}. At risk: {at_risk}; "
        f"queues named there: {named}. {WAY_OUT}"
    )
