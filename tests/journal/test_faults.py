"""Any call on the disk may fail, at any time: nothing receipted is lost, nothing acknowledged comes back.

`python tools/faults.py` runs all cases, `--case` one of them.
"""

from __future__ import annotations

import errno

import pytest

from tests.core.world import World, drain, texts
from tests.support.simdisk import Fault
from tools.faults import Case, run_case, some_cases, survey

CASES = 250
SEED = 1


def test_without_a_fault_the_script_runs_through_and_every_promise_is_kept() -> None:
    counts, steps, problems = survey()
    assert problems == []
    # What a case can hit is what the script does.
    for op in ("create", "allocate", "write", "sync_data", "sync_all", "sync_dir", "rename", "read", "unlink"):
        assert counts[op] > 1, op
    assert {"backlog", "read_back", "churn", "restart_power", "restart_clean"} <= {name for name, _ in steps}


def test_an_error_at_any_call_of_the_disk_loses_nothing_and_lets_nothing_else_escape() -> None:
    counts, _, _ = survey()
    wrong = {str(case): problems for case in some_cases(counts, CASES, SEED) if (problems := run_case(case).problems)}
    assert wrong == {}


@pytest.mark.parametrize("op", ["close", "unlink"])
def test_an_error_behind_the_last_sync_of_a_clean_stop_is_nobodys(op: str) -> None:
    world = World(storage={"segment_size": 8192})
    peer = world.connect()
    while world.journal.lsn < 12:  # past half of a segment, so that the next one is prepared
        peer.publish("/queue/a", b"x" * 400, receipt="r")
    sent = len(peer.receipts())
    world.disk.faults.append(Fault(world.disk.counts.get(op, 0) + 1, errno.EIO, op, sticky=True))
    world.stop()
    world.disk.kill()
    world.start()
    assert world.log.summary.clean
    assert len(texts(drain(world, "/queue/a"))) == sent


def test_a_disk_that_stays_full_from_any_new_segment_on_does_not_drive_the_broker_in_circles() -> None:
    """A consumer waits for a mark that cannot be written: what was read ahead for it must not go to and fro."""
    counts, _, _ = survey()
    cases = [Case("rename", at, "ENOSPC", True) for at in range(1, counts["rename"] + 1)]
    assert {str(case): problems for case in cases if (problems := run_case(case).problems)} == {}
