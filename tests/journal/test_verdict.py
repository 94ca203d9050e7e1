"""The table of cases, on every combination of evidence."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from broker.journal.verdict import CASES, Evidence, Later, Length, Named, Rest, Verdict, Vouched, judge

ALL = [Evidence(*parts) for parts in product(Named, Later, Rest, Length, Vouched)]
PAGE = Path(__file__).parents[2] / "docs" / "journal-format.md"


def wanted(evidence: Evidence) -> Verdict:
    """The rule of reliability.md 2.5 in other words."""
    if evidence.named is not Named.NOT:
        return Verdict.ENDED if evidence.named is Named.HERE else Verdict.DAMAGED
    if evidence.later is Later.PROVEN or evidence.length is Length.SHORT or evidence.vouched is Vouched.BEYOND:
        return Verdict.DAMAGED
    return Verdict.CLEAN if evidence.later is Later.NONE and evidence.rest is Rest.ZEROS else Verdict.TORN


@pytest.mark.parametrize("evidence", ALL, ids=str)
def test_every_combination_of_evidence_has_the_right_verdict(evidence: Evidence) -> None:
    assert judge(evidence).verdict is wanted(evidence)


def test_every_row_decides_something() -> None:
    assert {id(judge(evidence)) for evidence in ALL} == {id(case) for case in CASES}


def test_the_page_draws_the_table_as_it_is() -> None:
    drawn = PAGE.read_text().split("<!-- cases: begin -->")[1].split("<!-- cases: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in drawn.strip().splitlines()[2:]]
    parts = [(case.named, case.later, case.rest, case.length, case.vouched) for case in CASES]
    assert rows == [
        [*("any" if part is None else part.name for part in five), case.verdict.name, case.why]
        for five, case in zip(parts, CASES, strict=True)
    ]
