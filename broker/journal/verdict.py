"""What the end of a segment's readable records means: the table of cases (reliability.md 2.5).

Evidence is gathered where the next record should be and is none. docs/journal-format.md draws this table;
the tests try it on every combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Named(Enum):
    """What the header of the next segment says about the end of this one."""

    NOT = "there is no next segment"
    HERE = "the end is here"
    OTHER = "the end is here, but with another record"
    BEYOND = "the end is further on"


class Later(Enum):
    """Sound records further on in the file, with this record's LSN x or a higher one."""

    NONE = "none"
    UNPROVEN = "some; none was written after x was known to be synced"
    PROVEN = "one that was written after x was known to be synced"


class Rest(Enum):
    """The bytes from here to the end of the file."""

    ZEROS = "zeros"
    OTHER = "not only zeros"


class Length(Enum):
    """The file's size against what was allocated for it before it got its name."""

    WHOLE = "as allocated"
    SHORT = "shorter than allocated"


class Vouched(Enum):
    """What a sound checkpoint says: it is finished only when the log is synced up to an LSN that it names."""

    NO = "there is none, or the log reaches as far"
    BEYOND = "the log went on"


class Verdict(Enum):
    ENDED = "the segment ended here, and the log went on in the next one"
    CLEAN = "the log ends here, nothing was cut"
    TORN = "the log ends here; behind it lies what was never synced"
    DAMAGED = "synced records are damaged or missing: the start is refused"


@dataclass(frozen=True, slots=True)
class Evidence:
    named: Named
    later: Later
    rest: Rest
    length: Length
    vouched: Vouched = Vouched.NO


@dataclass(frozen=True, slots=True)
class Case:
    """A row: None matches anything. `why` goes into the text for people."""

    named: Named | None
    later: Later | None
    rest: Rest | None
    length: Length | None
    vouched: Vouched | None
    verdict: Verdict
    why: str

    def matches(self, evidence: Evidence) -> bool:
        return (
            self.named in (None, evidence.named)
            and self.later in (None, evidence.later)
            and self.rest in (None, evidence.rest)
            and self.length in (None, evidence.length)
            and self.vouched in (None, evidence.vouched)
        )


# The first row that matches counts. A next segment gets its name only after all before it was synced
# (Writer), and a start names the end that it found before it appends anything; so what a header names is
# proof, for and against.
CASES: Final = (
    Case(Named.HERE, None, None, None, None, Verdict.ENDED, "the next segment names this end"),
    Case(Named.OTHER, None, None, None, None, Verdict.DAMAGED, "the next segment names another last record"),
    Case(Named.BEYOND, None, None, None, None, Verdict.DAMAGED, "the next segment names a later end"),
    Case(Named.NOT, Later.PROVEN, None, None, None, Verdict.DAMAGED, "a later record proves that it was synced"),
    Case(Named.NOT, None, None, None, Vouched.BEYOND, Verdict.DAMAGED, "a checkpoint proves that more was synced"),
    Case(Named.NOT, None, None, Length.SHORT, None, Verdict.DAMAGED, "the file is shorter than it was made"),
    Case(Named.NOT, Later.UNPROVEN, None, None, None, Verdict.TORN, "a later part of an unsynced write landed"),
    Case(Named.NOT, Later.NONE, Rest.OTHER, None, None, Verdict.TORN, "an unsynced write was cut short"),
    Case(Named.NOT, Later.NONE, Rest.ZEROS, None, None, Verdict.CLEAN, "nothing was written here"),
)


def judge(evidence: Evidence) -> Case:
    """The row that decides."""
    for case in CASES:
        if case.matches(evidence):
            return case
    raise AssertionError(f"no case for {evidence}")  # a test tries all
