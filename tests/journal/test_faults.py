"""Any call on the disk may fail, at any time: nothing receipted is lost, nothing acknowledged comes back.

`python tools/faults.py` runs all cases, `--case` one of them.
"""

from __future__ import annotations

import pytest

from tools.faults import Case, run_case, some_cases, survey

CASES = 250


def test_without_a_fault_the_script_runs_through_and_every_promise_is_kept() -> None:
    counts, _, problems = survey()
    assert problems == []
    # What a case can hit is what the script does.
    for op in ("create", "allocate", "write", "sync_data", "sync_all", "sync_dir", "rename", "read", "truncate"):
        assert counts[op] > 0, op


def test_an_error_at_any_call_of_the_disk_loses_nothing_and_lets_nothing_else_escape() -> None:
    counts, _, _ = survey()
    wrong = {str(case): problems for case in some_cases(counts, CASES) if (problems := run_case(case).problems)}
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    [
        "unlink:1:EIO:once",  # a prepared segment could not be removed at the end of a clean stop
        "close:47:EIO:once",  # nor the lock be closed
    ],
)
def test_what_failed_once_holds_now(text: str) -> None:
    assert run_case(Case.parse(text)).problems == []
