"""The list of mutants fits the code, and the tool that tries them tells a survivor from one that was killed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant
from tools.mutants import ROOT, Stale, mutated, staleness, table, try_all

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_each_mutant_fits_the_code_and_names_a_test(mutant: Mutant) -> None:
    assert staleness(mutant) == ""


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    assert len(MUTANTS) >= 25
    assert len(BY_NAME) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.old != mutant.new and mutant.breaks for mutant in MUTANTS)


def test_a_list_that_does_not_fit_the_code_is_refused() -> None:
    mutant = BY_NAME["no chain check"]
    assert "stale" in staleness(replace(mutant, old="this is not there"))
    assert "stale" in staleness(replace(mutant, old="\n"))
    assert "not even be Python" in staleness(replace(mutant, new="            if (:\n"))
    assert "stale" in staleness(replace(mutant, test="tests/journal/test_forgery.py::test_that_is_not_there"))
    with pytest.raises(Stale):
        mutated(replace(mutant, old="this is not there"), ROOT)


def test_a_mutant_is_killed_by_its_test_and_a_harmless_change_survives() -> None:
    bad = BY_NAME["seq jump dropped"]
    harmless = replace(bad, name="harmless", new=bad.old + "            # nothing was changed\n")
    wrong_test = replace(bad, name="wrong test", test=bad.test + "_that_is_not_there")
    killed, survived, not_run = try_all([bad, harmless, wrong_test], jobs=2)
    assert killed.killed and not survived.killed and not not_run.killed
    assert "SURVIVED" in survived.text
    assert "ended with" in not_run.text
    assert "**nothing**" in table([killed, survived])
