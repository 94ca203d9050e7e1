"""A full disk: what is in reserve, what the writer does without room, and when producers are held back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest

from broker.errors import NoRoom, StorageFailed
from broker.journal.batch import Batch
from broker.journal.recovery import open_log
from broker.journal.space import (
    ACK_BYTES,
    BALLAST_MAX,
    DEFAULT_MIN,
    MIB,
    RESERVE_NAME,
    Ballast,
    Room,
    SpaceWatch,
    ballast_size,
)
from tests.journal.harness import (
    DATA,
    LOG,
    Bench,
    FixedRng,
    ManualClock,
    Running,
    Settings,
    bodies,
    segment_path,
)
from tests.support.simdisk import Fault, PowerLoss, SimDisk

RESERVE = f"{DATA}/{RESERVE_NAME}"
FULL = (errno.ENOSPC, errno.EDQUOT)
SYNCS = ("sync_data", "sync_all", "sync_dir")


def fill(disk: SimDisk, free: int = 0) -> None:
    """Somebody else takes the rest of the disk but for so many bytes."""
    disk.capacity = used(disk) + free


def used(disk: SimDisk) -> int:
    capacity, disk.capacity = disk.capacity, 1 << 60
    free, total = disk.free(".")
    disk.capacity = capacity
    return total - free


def ballast(run: Running) -> Ballast:
    return run.log.ballast


# ------------------------------------------------------------------------------------------------ the ballast


@pytest.mark.parametrize(
    ("segment", "wanted"),
    [(4096, 16384), (MIB, 4 * MIB), (4 * MIB, 8 * MIB), (16 * MIB, 32 * MIB), (64 * MIB, BALLAST_MAX)],
)
def test_the_ballast_has_two_segments_from_4_to_32_mib(segment: int, wanted: int) -> None:
    assert ballast_size(segment) == wanted


def test_the_ballast_is_made_where_there_is_room_and_its_room_comes_back() -> None:
    disk = SimDisk(Random(1), capacity=100_000)
    disk.make_dir(DATA)
    kept = Ballast(disk, DATA, 30_000)
    assert kept.look() == Room(70_000, 100_000, held=True)
    assert kept.look() == Room(70_000, 100_000, held=True)
    assert kept.release() and not kept.release()
    assert disk.free(DATA) == (100_000, 100_000)
    disk.capacity = 20_000
    assert kept.look() == Room(20_000, 20_000, held=False)
    assert disk.files(DATA) == []  # nothing half made is left
    disk.capacity = 40_000
    assert kept.look().held


def test_a_ballast_that_a_copy_left_without_room_is_filled_again() -> None:
    """`cp` and `rsync` write holes where nothing was written."""
    disk = SimDisk(Random(1), capacity=100_000)
    disk.make_dir(DATA)
    disk.create(RESERVE)
    assert Ballast(disk, DATA, 30_000).look().held
    assert len(disk.contents(RESERVE)) == 30_000
    disk.put(RESERVE, b"")
    disk.capacity = 10_000
    assert not Ballast(disk, DATA, 30_000).look().held


def test_a_probe_tries_for_room_and_leaves_nothing() -> None:
    disk = SimDisk(Random(1), capacity=100_000)
    disk.make_dir(DATA)
    kept = Ballast(disk, DATA, 30_000)
    assert kept.look(70_000).probed == 70_000 and kept.look(70_001).probed == 0
    assert disk.files(DATA) == [RESERVE]


def test_wherever_the_power_goes_the_ballast_is_whole_or_made_again() -> None:
    for at in range(1, 12):
        disk = SimDisk(Random(at), capacity=100_000)
        disk.make_dir(DATA)
        disk.sync_dir(".")
        disk.power_at = disk.calls + at
        with suppress(PowerLoss):
            Ballast(disk, DATA, 30_000).look()
        disk.crash()
        assert Ballast(disk, DATA, 30_000).look().held
        assert len(disk.contents(RESERVE)) == 30_000 and disk.files(DATA) == [RESERVE]


def test_an_error_that_is_not_want_of_room_is_never_hidden() -> None:
    for op in ("create", "allocate", "sync_all", "rename", "sync_dir", "free"):
        for code in (errno.EIO, errno.EROFS, *(FULL if op in SYNCS else ())):
            disk = SimDisk(Random(1))
            disk.make_dir(DATA)
            disk.faults.append(Fault(1, code, op))
            if op == "sync_all" and code in FULL:
                continue  # the ballast promises nothing to anybody: it is not there, then
            with pytest.raises(OSError):
                Ballast(disk, DATA, 30_000).look()


# ------------------------------------------------------------------------------------------------- the watch


def test_the_default_mark_is_five_percent_or_a_gib_but_a_quarter_at_most() -> None:
    watch = SpaceWatch(0, 64 * MIB)
    assert watch.low(1000 << 30) == 50 << 30
    assert watch.low(10 << 30) == DEFAULT_MIN
    assert watch.low(2 << 30) == 512 * MIB
    assert watch.low(128 * MIB) == 128 * MIB  # two segments at least
    assert SpaceWatch(300 * MIB, 64 * MIB).low(1000 << 30) == 300 * MIB  # used as it is where set
    assert SpaceWatch(MIB, 64 * MIB).low(1000 << 30) == 128 * MIB


def test_the_alarm_begins_below_the_mark_and_ends_at_half_as_much_again() -> None:
    watch, low = SpaceWatch(100, 10), 100

    def at(free: int, waiting: int = 0, held: bool = True) -> bool:
        watch.looked(Room(free, 10_000, held), waiting)
        return bool(watch.alarm)

    assert not at(low)
    assert at(low - 1)
    assert at(low) and at(low * 3 // 2 - 1)
    assert not at(low * 3 // 2)
    assert at(low * 9, held=False)  # without the ballast it is not over
    assert not at(low * 9)
    assert at(low + 10 * ACK_BYTES - 1, waiting=10)  # each message has room for its ACK reserved


def test_an_allocation_that_was_refused_is_an_alarm_whatever_the_numbers_say() -> None:
    """A quota shows in no number."""
    watch = SpaceWatch(100, 10)
    assert watch.probe == 0
    watch.refused()
    assert watch.alarm and watch.probe == 0
    watch.looked(Room(120, 10_000, held=True), 0)
    assert watch.alarm and watch.probe == 0  # not worth a try
    watch.looked(Room(10_000, 10_000, held=True), 0)
    assert watch.alarm and watch.probe == 10
    watch.looked(Room(10_000, 10_000, held=True, probed=0), 0)
    assert watch.alarm and watch.probe == 10
    watch.looked(Room(10_000, 10_000, held=True, probed=10), 0)
    assert not watch.alarm and watch.probe == 0


# ------------------------------------------------------------------------------------------------- the writer


def pump(run: Running) -> bool:
    """Everything that is queued goes to the disk; False where there is no room. The batch stays at the writer."""
    batch = run.journal._at_writer or run.journal.take_batch()
    while batch is not None:
        try:
            run.writer.run(batch)
        except NoRoom:
            return False
        run.journal.done(batch, None)
        batch = run.journal.take_batch()
    return True


def sent_until_full(run: Running, disk: SimDisk) -> list[bytes]:
    sent: list[bytes] = []
    while True:
        sent.append(b"%d " % len(sent) * 40)
        run.send(sent[-1])
        if not pump(run):
            return sent


def test_a_full_disk_takes_the_ballast_then_stops_and_goes_on_when_there_is_room() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"first")
        run.pump()
        assert ballast(run).look().held
        fill(bench.disk)
        sent = sent_until_full(run, bench.disk)
        assert RESERVE not in bench.disk.files(DATA)
        assert sum(map(len, sent)) > 10_000  # the ballast of 16 KiB was used
        durable = run.journal.durable
        assert not pump(run) and run.journal.durable == durable and run.journal.failed is None
        bench.disk.capacity = 1 << 40
        assert pump(run) and run.journal.durable == run.journal.lsn
    assert bodies(bench.replay()[0]) == [b"first", *sent]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_segment_takes_what_room_there_is_and_the_journal_keeps_to_it(ahead: bool) -> None:
    """ahead: more records are on their way to the segment before it is known that it has become smaller."""
    bench = Bench(settings=Settings(segment_size=1 << 20))
    sent = []
    with bench.running() as run:
        fill(bench.disk, 100_000)
        while run.journal.segment.number == 1:
            sent.append(b"%d " % len(sent) * 2000)
            run.send(sent[-1])
        batch = run.journal.take_batch()
        while batch is not None and batch.need(run.journal.segment) == 0:
            run.writer.run(batch)
            run.journal.done(batch, None)
            batch = run.journal.take_batch()
        assert batch is not None
        if ahead:
            for _ in range(40):
                sent.append(b"%d " % len(sent) * 2000)
                run.send(sent[-1])
        run.writer.run(batch)
        assert batch.no_room and batch.shrunk
        run.journal.done(batch, None)
        assert run.journal.by_number[2].size < 100_000
        found = bodies(bench.replay(bench.disk.copy(Random(1)))[0])  # the header tells of no more than there is
        assert found == sent[: len(found)]
        bench.disk.capacity = 1 << 40
        for _ in range(40):
            sent.append(b"%d " % len(sent) * 2000)
            run.send(sent[-1])
        assert pump(run)
        assert run.journal.segment.number >= 3
        run.stop()
    found, log = bench.replay()
    assert bodies(found) == sent and log.summary.clean


def test_preparing_a_segment_ahead_fails_nothing_and_leaves_nothing() -> None:
    bench = Bench()
    sent = []
    with bench.running() as run:
        fill(bench.disk)
        told = []
        while run.journal.segment.number == 1 and len(sent) < 8:
            sent.append(b"%d" % len(sent) * 300)
            run.send(sent[-1])
            batch = run.journal.take_batch()
            assert batch is not None
            run.writer.run(batch)
            run.journal.done(batch, None)
            told.append(batch.no_room)
        assert any(told) and bench.disk.files(LOG) == [segment_path(1)]
        bench.disk.capacity = 1 << 40
        while run.journal.segment.number == 1:
            sent.append(b"more" * 100)
            run.send(sent[-1])
        assert pump(run)
    assert bodies(bench.replay()[0]) == sent


def test_a_segment_that_was_prepared_larger_than_it_is_to_be_gives_the_rest_back() -> None:
    bench = Bench(settings=Settings(segment_size=4 << 20))
    with bench.running() as run:
        run.writer.small_batch = 0
        while segment_path(2) + ".tmp" not in bench.disk.files(LOG):
            run.send(b"x" * 300_000)
            run.pump()
        run.journal.small_segments = True
        while run.journal.segment.number == 1:
            run.send(b"x" * 300_000)
            run.pump()
        assert len(bench.disk.contents(segment_path(2))) == run.journal.segment.size == 1 << 20
        run.stop()
    assert bench.replay()[1].summary.clean


# Of all that a writer does, in every call: want of room holds it up, and nothing else.


def scripted(run: Running, done: Callable[[Batch], None]) -> list[bytes]:
    """Rolls, removals, a segment made ahead, small batches and large ones."""
    sent = []
    for number in range(30):
        sent.append(b"%d " % number * 60)
        run.send(sent[-1])
        if number == 20:
            for segment in run.journal.segments:
                segment.live = 0
            run.journal.trim(run.journal.dead_segments())
        batch = run.journal._at_writer or run.journal.take_batch()
        while batch is not None:
            done(batch)
            batch = run.journal.take_batch()
    return sent


def plain(run: Running) -> Callable[[Batch], None]:
    def done(batch: Batch) -> None:
        run.writer.run(batch)
        run.journal.done(batch, None)

    return done


def calls_of_a_script() -> list[str]:
    bench = Bench()
    with bench.running() as run:
        bench.disk.trace = trace = []
        scripted(run, plain(run))
        return [op for op, _ in trace]


CALLS = calls_of_a_script()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("sticky", [False, True])
def test_want_of_room_at_any_call_is_waited_for_and_at_a_sync_it_is_a_failure(sticky: bool, crash: bool) -> None:
    """sticky: it stays so for five tries; then there is room. crash: the power goes while it waits."""
    assert {"create", "allocate", "write", "rename", "unlink", *SYNCS} <= set(CALLS)
    for at, op in enumerate(CALLS):
        bench = Bench(disk=SimDisk(Random(at)))
        durable = 0
        with bench.running() as run:
            number = bench.disk.counts.get(op, 0) + CALLS[: at + 1].count(op)
            bench.disk.faults.append(Fault(number, FULL[at % 2], op, sticky=sticky))
            tries = 0

            def done(batch: Batch, run: Running = run, bench: Bench = bench) -> None:
                nonlocal tries
                while True:
                    try:
                        run.writer.run(batch)
                    except NoRoom:
                        tries += 1
                        if crash:
                            raise PowerLoss from None
                        if tries > 5:
                            bench.disk.faults.clear()
                        continue
                    run.journal.done(batch, None)
                    return

            try:
                sent = scripted(run, done)
                failed = False
            except OSError as error:
                failed = True
                assert error.errno in FULL and op in SYNCS, (at, op)
            except PowerLoss:
                failed = True
            durable = run.journal.durable
            low = run.journal.segments[0].first_lsn
            assert failed or op not in SYNCS, (at, op)
        bench.disk.crash()
        found, log = bench.replay()
        reached = max((item.lsn for item in found), default=0)
        assert reached >= durable - 1 or durable <= low + 1, (at, op)
        if not failed:
            assert bodies(found) == sent[len(sent) - len(bodies(found)) :], (at, op)
            assert log.summary.torn_bytes == 0


def test_a_start_on_a_disk_with_no_free_byte_works_from_the_ballast() -> None:
    bench = Bench()
    with bench.running() as run:
        sent = [b"%d" % number * 100 for number in range(50)]
        for body in sent:
            run.send(body)
        assert ballast(run).look().held
        run.stop()
    fill(bench.disk)
    with bench.running() as run:
        assert bodies(run.found) == sent
        run.send(b"and an ACK, say")
        assert pump(run)
        assert not ballast(run).look().held
    bench.disk.kill()
    fill(bench.disk)
    with pytest.raises(StorageFailed, match="reserve"):  # once; then there is nothing to live on
        log = open_log(bench.disk, DATA, Settings(), ManualClock(), FixedRng())
        list(log.replay())
        log.start()
    bench.disk.kill()
    bench.disk.capacity = 1 << 40
    assert bodies(bench.replay()[0]) == [*sent, b"and an ACK, say"]
