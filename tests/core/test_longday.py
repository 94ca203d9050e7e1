"""An hour of the day in fast motion (tools/longday.py): the log stays small whatever stays in it."""

from __future__ import annotations

import pytest

from tools.longday import run


@pytest.mark.parametrize("case", ["plain", "sieve"])
def test_an_hour_of_traffic_leaves_the_log_small(case: str) -> None:
    day = run(case, 3600, 256 * 1024, seed=1)
    assert not day.over, day.over
    assert day.removed > 100
    assert day.carried >= day.removed // 2
    assert day.written < 4 * day.traffic


def test_a_backlog_that_nobody_takes_pins_no_more_than_itself() -> None:
    day = run("stuck", 600, 1 << 20, seed=1)
    assert not day.over, day.over
