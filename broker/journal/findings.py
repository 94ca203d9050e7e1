"""What a start finds in the log: the values it gives to the core, the numbers it tells people, the journal's
own state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from broker.journal.records import RecordType, Value
from broker.journal.segment import SEGMENT_HEADER_BYTES, Segment
from broker.journal.state import State
from broker.journal.verdict import Verdict


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
