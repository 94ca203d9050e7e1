"""The whole broker under seeds: 200 here, more with tools/sim.py.

A seed is told step by step by `python tools/sim.py --seed N --trace`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.core.settling import Settling
from broker.journal import Journal, Writer
from broker.session import Session
from tests.sim.coverage import FLOOR, missing
from tests.sim.run import run_seed
from tests.sim.shell import Broken
from tests.support.simdisk import SimDisk

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("block", range(20))
def test_no_seed_breaks_a_promise(block: int) -> None:
    for seed in range(10 * block, 10 * (block + 1)):
        run_seed(seed)


def test_the_same_seed_is_the_same_run_byte_for_byte_in_another_process_and_with_other_hashes() -> None:
    here = [run_seed(seed)[1] for seed in range(4)]
    assert here == [run_seed(seed)[1] for seed in range(4)]
    code = "from tests.sim.run import run_seed; print(*(run_seed(seed)[1] for seed in range(4)))"
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(ROOT)}
        there = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout.split() == here


def test_another_seed_is_another_run() -> None:
    assert len({run_seed(seed)[1] for seed in range(5)}) == 5


def test_what_is_not_reached_is_told() -> None:
    assert missing(Counter(), 100) == []  # too few to say
    assert len(missing(Counter(), 1000)) == len(FLOOR)
    assert missing(Counter(FLOOR), 1000) == []
    assert missing(Counter({**FLOOR, "stops": 0}), 1000) == [f"stops: 0, expected {FLOOR['stops']} at least"]


# --- canaries: a simulation that does not see these proves nothing ----------------------------------------------------


def broken_by(seeds: int) -> str:
    for seed in range(seeds):
        try:
            run_seed(seed)
        except Broken as error:
            return str(error)
    raise AssertionError(f"{seeds} seeds did not see it")


def test_a_receipt_before_the_sync_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Journal.take_batch

    def hasty(self: Journal) -> Any:
        batch = take(self)
        if batch is not None:
            self.durable = self.synced = batch.last_lsn
        return batch

    monkeypatch.setattr(Journal, "take_batch", hasty)
    broken_by(60)


def test_a_sync_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimDisk, "sync_data", lambda self, handle: None)
    broken_by(60)


def test_a_folder_that_is_not_synced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimDisk, "sync_dir", lambda self, path: None)
    broken_by(60)


def test_a_failed_sync_that_is_tried_again_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Writer.run

    def stubborn(self: Writer, batch: Any) -> None:
        try:
            run(self, batch)
        except OSError:
            run(self, batch)

    monkeypatch.setattr(Writer, "run", stubborn)
    broken_by(600)


def test_an_ack_that_is_not_written_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    settle: Callable[..., int] = Settling.settle

    def forgetful(self: Any, queue: Any, messages: Any) -> int:
        append, self._ledger.append = self._ledger.append, lambda kind, payload: self._journal.lsn
        try:
            return settle(self, queue, messages)
        finally:
            self._ledger.append = append

    monkeypatch.setattr(Settling, "settle", forgetful)
    broken_by(60)


def test_a_message_too_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = Session.deliver

    def generous(self: Session, subscription: Any, messages: Any) -> int:
        count = deliver(self, subscription, messages)
        subscription.credit += 1
        return count

    monkeypatch.setattr(Session, "deliver", generous)
    assert "CREDIT" in broken_by(60)
