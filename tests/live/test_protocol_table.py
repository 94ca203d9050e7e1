"""What the three STOMP specifications say, case by case, to a running broker over a raw socket."""

from __future__ import annotations

import itertools

import pytest

from tests.live import table_connect, table_flow, table_frames, table_settle
from tests.live.musts import MUSTS
from tests.live.scene import Case
from tests.support.process import BrokerProcess

CASES: list[Case] = [*table_frames.CASES, *table_connect.CASES, *table_flow.CASES, *table_settle.CASES]
_words = itertools.count(1)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.clause} - {case.name}" for case in CASES])
def test_the_specification_holds(case: Case, broker: BrokerProcess) -> None:
    case.run(broker.address, f"table-{next(_words)}")
    assert broker.alive()


def test_the_table_has_at_least_120_cases_with_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 120
    assert sorted(names) == sorted(set(names))


def test_every_must_of_the_three_specifications_has_a_case() -> None:
    shown = {must for case in CASES for must in case.musts}
    assert sorted(set(MUSTS) - shown) == []


def test_no_case_claims_a_must_that_does_not_exist() -> None:
    shown = {must for case in CASES for must in case.musts}
    assert sorted(shown - set(MUSTS)) == []
