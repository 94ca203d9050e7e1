"""The log under random work, crashes, faults and damage: 300 seeds here, more with tools/logsim.py."""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from broker.journal.journal import Journal
from broker.journal.writer import Writer
from tests.support.simdisk import SECTOR, Fault, PowerLoss, SimDisk
from tools.logsim import Broken, run_seed


@pytest.mark.parametrize("block", range(12))
def test_no_seed_breaks_a_promise(block: int) -> None:
    for seed in range(25 * block, 25 * (block + 1)):
        run_seed(seed)


def broken_by(seeds: int) -> str:
    for seed in range(seeds):
        try:
            run_seed(seed)
        except Broken as error:
            return str(error)
    raise AssertionError(f"{seeds} seeds did not see it")


def test_the_simulation_sees_a_receipt_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: if this does not fail inside, the simulation proves nothing."""
    take = Journal.take_batch

    def hasty(self: Journal) -> object:
        batch = take(self)
        if batch is not None:
            self.synced = self.durable = batch.last_lsn
        return batch

    monkeypatch.setattr(Journal, "take_batch", hasty)
    assert broken_by(300)


@pytest.mark.parametrize("call", ["sync_data", "sync_all", "sync_dir"])
def test_the_simulation_sees_a_missing_sync(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files, and of names: what `kill -9` can not show."""
    run: Callable[..., None] = Writer.run

    class Lazy:
        """A disk where this one call says yes and does nothing."""

        def __init__(self, disk: object) -> None:
            self._disk = disk

        def __getattr__(self, name: str) -> Any:
            if name == call:
                return lambda _: None
            return getattr(self._disk, name)

    def lazily(self: Writer, batch: object) -> None:
        if not isinstance(self._disk, Lazy):
            self._disk = Lazy(self._disk)
        run(self, batch)

    monkeypatch.setattr(Writer, "run", lazily)
    assert broken_by(300)


# ----------------------------------------------------------------------------------------- the disk itself


def test_what_was_synced_survives_every_crash() -> None:
    for seed in range(50):
        disk = SimDisk(Random(seed))
        disk.make_dir("d")
        handle = disk.create("d/f")
        disk.write(handle, [b"a" * 700], 0)
        disk.sync_data(handle)
        disk.sync_dir("d")
        disk.sync_dir(".")
        disk.write(handle, [b"b" * 700], 700)
        disk.crash()
        assert disk.contents("d/f")[:700] == b"a" * 700


def test_what_was_not_synced_is_old_new_junk_or_zeros_by_sector() -> None:
    kinds = set()
    for seed in range(200):
        disk = SimDisk(Random(seed))
        handle = disk.create("f")
        disk.write(handle, [b"a" * 4 * SECTOR], 0)
        disk.sync_all(handle)
        disk.sync_dir(".")
        disk.write(handle, [b"b" * 4 * SECTOR], 0)
        disk.crash()
        data = disk.contents("f")
        looks = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
        named = {b"a" * SECTOR: "old", b"b" * SECTOR: "new", bytes(SECTOR): "zeros"}
        kinds.add(tuple(named.get(look, "junk") for look in looks))
    assert {"old", "new", "zeros", "junk"} <= {kind for look in kinds for kind in look}
    assert len(kinds) > 50


def test_names_that_were_not_synced_may_be_there_or_not() -> None:
    seen = set()
    for seed in range(50):
        disk = SimDisk(Random(seed))
        for name in ("a", "b"):
            disk.create(name)
        disk.crash()
        seen.add(tuple(disk.list_dir(".")))
    assert seen == {(), ("a",), ("b",), ("a", "b")}


def test_a_rename_is_atomic() -> None:
    seen = set()
    for seed in range(50):
        disk = SimDisk(Random(seed))
        disk.create("a")
        disk.sync_dir(".")
        disk.rename("a", "b")
        disk.crash()
        seen.add(tuple(disk.list_dir(".")))
    assert seen == {("a",), ("b",)}


@pytest.mark.parametrize("revert", [False, True])
def test_after_a_failed_sync_a_second_one_succeeds_and_the_data_is_gone(revert: bool) -> None:
    lost = 0
    for seed in range(40):
        disk = SimDisk(Random(seed))
        handle = disk.create("f")
        disk.sync_dir(".")
        disk.write(handle, [b"x" * SECTOR], 0)
        disk.faults.append(Fault(1, errno.EIO, "sync_data", revert=revert))
        with pytest.raises(OSError):
            disk.sync_data(handle)
        disk.sync_data(handle)
        if not revert:
            assert disk.read(handle, SECTOR, 0) == b"x" * SECTOR
        disk.drop_cache(handle)
        lost += disk.read(handle, SECTOR, 0) != b"x" * SECTOR
    assert 5 < lost < 35


def test_a_kill_keeps_the_cache_and_a_crash_can_follow_it() -> None:
    disk = SimDisk(Random(1))
    handle = disk.create("f")
    disk.write(handle, [b"data"], 0)
    disk.kill()
    assert disk.contents("f") == b"data"
    with pytest.raises(OSError):
        disk.read(handle, 4, 0)


def test_the_power_goes_at_the_call_that_was_said() -> None:
    disk = SimDisk(Random(1))
    disk.power_at = 2
    disk.create("a")
    with pytest.raises(PowerLoss):
        disk.create("b")
    disk.crash()
    assert set(disk.list_dir(".")) <= {"a"}
