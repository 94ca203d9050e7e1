"""The order in which things reach the disk, and what the writer does when the disk takes less or nothing."""

from __future__ import annotations

import errno
from random import Random

import pytest

from broker.errors import NoRoom
from broker.journal.writer import IOV_MAX, SMALL_BATCH, write_all
from tests.journal.harness import DATA, META, Bench, Settings, bodies, segment_path
from tests.support.simdisk import Fault, SimDisk

LOG = f"{DATA}/log"


def traced(bench: Bench) -> list[tuple[str, str]]:
    bench.disk.trace = []
    return bench.disk.trace


def test_the_first_start_makes_everything_in_the_one_safe_order() -> None:
    bench = Bench()
    trace = traced(bench)
    with bench.running():
        pass
    one, tmp = segment_path(1), segment_path(1) + ".tmp"
    assert trace == [
        ("make_dir", DATA),
        ("sync_dir", DATA),
        ("sync_dir", "."),
        ("lock", f"{DATA}/LOCK"),
        ("sync_dir", DATA),
        ("make_dir", LOG),
        ("sync_dir", LOG),
        ("sync_dir", DATA),
        ("sync_dir", LOG),
        ("create", tmp),
        ("allocate", tmp),
        ("sync_all", tmp),
        ("write", tmp),  # the header
        ("sync_all", tmp),
        ("rename", f"{tmp} -> {one}"),
        ("sync_dir", LOG),
        ("create", META + ".tmp"),
        ("write", META + ".tmp"),
        ("sync_all", META + ".tmp"),
        ("rename", f"{META}.tmp -> {META}"),
        ("sync_dir", DATA),
        ("write", tmp),  # EPOCH; the handle keeps the name under which it was opened
        ("write", tmp),  # zeros ahead
        ("sync_data", tmp),
    ]


def test_a_later_start_names_the_end_before_it_clears_away() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"a")
        run.stop()
    trace = traced(bench)
    with bench.running():
        pass
    tmp, two = segment_path(2) + ".tmp", segment_path(2)
    assert trace == [
        ("make_dir", DATA),  # it is there
        ("sync_dir", DATA),
        ("sync_dir", "."),
        ("lock", f"{DATA}/LOCK"),
        ("sync_dir", DATA),
        ("sync_dir", LOG),
        ("sync_data", segment_path(1)),
        ("create", tmp),
        ("allocate", tmp),
        ("sync_all", tmp),
        ("write", tmp),
        ("sync_all", tmp),
        ("rename", f"{tmp} -> {two}"),
        ("sync_dir", LOG),
        ("write", tmp),
        ("write", tmp),
        ("sync_data", tmp),
        ("truncate", segment_path(1)),
    ]


def test_a_roll_syncs_the_old_file_before_the_new_one_gets_its_name() -> None:
    bench = Bench()
    with bench.running() as run:
        run.writer.small_batch = 0
        while run.journal.segment.number == 1:
            run.send(b"x" * 300)
        trace = traced(bench)
        run.pump()
    old, tmp, new = segment_path(1) + ".tmp", segment_path(2) + ".tmp", segment_path(2)
    assert trace == [
        ("write", old),
        ("sync_data", old),
        ("create", tmp),
        ("allocate", tmp),
        ("sync_all", tmp),
        ("write", tmp),
        ("sync_all", tmp),
        ("rename", f"{tmp} -> {new}"),
        ("sync_dir", LOG),
        ("write", tmp),
        ("sync_data", tmp),
    ]


def test_the_next_segment_is_ready_before_it_is_needed() -> None:
    bench = Bench()
    with bench.running() as run:
        run.writer.small_batch = 0
        while segment_path(2) + ".tmp" not in bench.disk.files(LOG):
            run.send(b"x" * 300)
            run.pump()
        assert run.journal.segment.number == 1
        trace = traced(bench)
        while run.journal.segment.number == 1:
            run.send(b"x" * 300)
            run.pump()
        assert ("create", segment_path(2) + ".tmp") not in trace
        ops = [op for op, _ in trace[-8:]]
        assert ops == ["write", "sync_data", "write", "sync_all", "rename", "sync_dir", "write", "sync_data"]


def test_a_removal_follows_the_sync_of_its_trim_oldest_first() -> None:
    bench = Bench()
    with bench.running() as run:
        run.writer.small_batch = 0
        while len(run.journal.segments) < 4:
            run.send(b"x" * 300)
        run.pump()
        for segment in run.journal.segments:
            segment.live = 0
        trace = traced(bench)
        run.journal.trim(run.journal.dead_segments())
        run.pump()
    tmp = segment_path(4) + ".tmp"
    assert trace[:2] == [("write", tmp), ("sync_data", tmp)]
    assert trace[2:] == [
        ("unlink", segment_path(1)),
        ("unlink", segment_path(2)),
        ("unlink", segment_path(3)),
        ("sync_dir", LOG),
    ]


def test_zeros_are_written_ahead_of_small_batches_only_and_never_over_records() -> None:
    bench = Bench(settings=Settings(segment_size=1024 * 1024))
    sent = []
    with bench.running() as run:
        for number in range(120):
            body = b"%d" % number * (1 if number % 7 else SMALL_BATCH)
            sent.append(body)
            run.send(body)
            run.pump()
    assert bodies(bench.replay()[0]) == sent


def test_short_writes_lose_nothing() -> None:
    bench = Bench(disk=SimDisk(Random(3), short_writes=0.7))
    sent = [b"%d" % number * (number % 50) for number in range(300)]
    with bench.running() as run:
        for body in sent:
            run.send(body)
        run.pump()
    assert bodies(bench.replay()[0]) == sent


def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop() -> None:
    class Stuck(SimDisk):
        def write(self, handle: object, buffers: object, offset: int) -> int:
            return 0

    disk = Stuck(Random(1))
    with pytest.raises(OSError, match="took 0 bytes"):
        write_all(disk, disk.create("f"), [b"data"], 0)


def test_a_short_write_before_a_full_disk_is_that_error() -> None:
    disk = SimDisk(Random(1), capacity=100)
    with pytest.raises(OSError) as caught:
        write_all(disk, disk.create("f"), [b"x" * 60, b"y" * 60], 0)
    assert caught.value.errno == errno.ENOSPC


def test_one_gathered_write_has_at_most_iov_max_buffers() -> None:
    bench = Bench(settings=Settings(segment_size=1024 * 1024))
    with bench.running() as run:  # the simulated disk refuses more than IOV_MAX buffers
        for _ in range(2 * IOV_MAX):
            run.send(b"")
        run.pump()
    assert len(bodies(bench.replay()[0])) == 2 * IOV_MAX


@pytest.mark.parametrize(
    "op", ["write", "sync_data", "create", "allocate", "sync_all", "rename", "sync_dir", "unlink"]
)
def test_any_failing_call_fails_the_batch_and_a_restart_has_what_was_synced(op: str) -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"synced" * 10)
        run.pump()
        while len(run.journal.segments) < 3:
            run.send(b"x" * 300)
        run.pump()
        durable = run.journal.durable
        for segment in run.journal.segments:
            segment.live = 0
        bench.disk.faults.append(Fault(bench.disk.counts.get(op, 0) + 1, errno.EIO, op))
        number = run.journal.segment.number
        while run.journal.segment.number == number:
            run.send(b"x" * 300)
        run.journal.trim(run.journal.dead_segments())
        failed = None
        while failed is None and (batch := run.journal.take_batch()) is not None:
            try:
                run.writer.run(batch)
                run.journal.done(batch, None)
            except OSError as error:
                failed = error
                run.journal.done(batch, error)
        assert failed is not None and failed.errno == errno.EIO
        assert run.journal.failed is not None and run.journal.take_batch() is None
    found, log = bench.replay()
    assert log.start()[0].lsn > durable
    assert all(item.lsn <= durable or item.value for item in found)


def test_close_leaves_no_half_made_segment() -> None:
    bench = Bench()
    with bench.running() as run:
        while segment_path(2) + ".tmp" not in bench.disk.files(LOG):
            run.send(b"x" * 300)
            run.pump()
        run.stop()
    assert bench.disk.files(LOG) == [segment_path(1)]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EINTR])
def test_a_failed_sync_is_a_failure_at_once_and_is_not_tried_again(code: int) -> None:
    """After it the pages count as clean: a second sync would succeed, with the data gone."""
    bench = Bench()
    with bench.running() as run:
        run.send(b"synced")
        run.pump()
        durable = run.journal.durable
        run.send(b"lost")
        batch = run.journal.take_batch()
        assert batch is not None
        before = bench.disk.counts["sync_data"]
        bench.disk.faults.append(Fault(before + 1, code, "sync_data"))
        with pytest.raises(OSError) as caught:
            run.writer.run(batch)
        assert caught.value.errno == code and not isinstance(caught.value, NoRoom)
        assert bench.disk.counts["sync_data"] == before + 1
        run.journal.done(batch, caught.value)
        assert run.journal.failed is not None and run.journal.durable == durable
