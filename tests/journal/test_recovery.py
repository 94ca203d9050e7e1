"""What a start makes of sound logs, of removals, and of crashes and errors while it is at it."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from broker.errors import DataDirInUse, StorageFailed
from broker.journal.records import (
    RecordType,
    acked_payload,
    messages_payload,
    transaction_payload,
)
from broker.journal.recovery import Log, Replayed, open_log
from broker.system import SystemClock, SystemDisk, SystemRng
from tests.journal.harness import (
    LOG,
    ONE,
    SENT,
    Bench,
    Settings,
    bodies,
    patched,
    records_in,
    segment_path,
    three_messages,
)
from tests.support.simdisk import Fault, PowerLoss, SimDisk


def test_what_was_appended_is_replayed_in_order_with_its_segment() -> None:
    bench = Bench()
    sent = [b"%d" % number * 30 for number in range(150)]
    with bench.running() as run:
        for body in sent:
            run.send(body)
        run.pump()
    found, log = bench.replay()
    assert bodies(found) == sent
    assert [item.lsn for item in found] == sorted(item.lsn for item in found)
    assert all(item.segment.first_lsn <= item.lsn <= item.segment.last_lsn for item in found)
    assert log.summary.messages == 150
    assert log.summary.segments == len({item.segment.number for item in found}) > 2
    assert log.summary.records > 150 and log.summary.bytes > 150 * 30


def test_a_transaction_is_replayed_part_by_part_under_one_lsn() -> None:
    bench = Bench()
    with bench.running() as run:
        parts = [
            (RecordType.MESSAGES, messages_payload(b"q", (), b"", 1, 1, None, [b"body"])),
            (RecordType.ACKED, acked_payload(b"q", [7])),
        ]
        run.journal.append(RecordType.TRANSACTION, transaction_payload(parts))
        run.pump()
    found, log = bench.replay()
    assert [(item.lsn, item.type) for item in found] == [(2, RecordType.MESSAGES), (2, RecordType.ACKED)]
    assert log.summary.messages == 1


def test_starts_are_counted_and_a_clean_stop_is_known() -> None:
    bench = Bench()
    summaries = []
    for clean in (True, True, False, True):
        with bench.running() as run:
            summaries.append(run.log.summary)
            assert run.journal.boot == run.log.summary.boot
            run.send(b"a")
            run.pump()
            if clean:
                run.stop()
    summaries.append(bench.replay()[1].summary)
    assert [summary.boot for summary in summaries] == [1, 2, 3, 4, 5]
    assert [summary.clean for summary in summaries] == [True, True, True, False, True]


def test_a_clean_stop_is_not_clean_any_more_when_something_follows() -> None:
    bench = Bench()
    with bench.running() as run:
        run.journal.append_witness(clean=True)
        run.send(b"late")
        run.pump()
    assert not bench.replay()[1].summary.clean


def test_seqs_go_on_after_a_clean_stop_and_jump_after_any_other() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"a", count=5)
        run.journal.take_seqs(10)  # of messages that are not persistent
        run.stop()
        following = run.journal.next_seq
    with bench.running() as run:
        assert run.journal.next_seq == following
        run.journal.take_seqs(1000)
    with bench.running() as run:
        assert run.journal.next_seq >= following + 1000


def test_old_segments_count_on_for_trimming_after_a_start() -> None:
    bench = Bench()
    with bench.running() as run:
        for _ in range(100):
            run.send(b"x" * 100)
        run.pump()
    with bench.running() as run:
        for item in run.found:
            item.segment.live += 1
        old = list(run.journal.segments)[:-1]
        assert len(old) > 2
        assert run.journal.dead_segments() == []
        for segment in old:
            segment.live = 0
        assert run.journal.dead_segments() == old
        run.journal.trim(old)
        run.pump()
        assert bench.disk.files(LOG) == [run.journal.segment.path]
    assert bench.replay()[0] == []


def test_the_room_behind_a_clean_end_is_given_back() -> None:
    bench = three_messages()
    end = len(bench.disk.contents(ONE).rstrip(b"\0"))
    with bench.running():
        pass
    assert end <= len(bench.disk.contents(ONE)) < 4096
    assert len(bodies(bench.replay()[0])) == 3


def test_a_log_on_a_real_file_system_comes_back(tmp_path: Path) -> None:
    def run(messages: int) -> list[Replayed]:
        settings = Settings(segment_size=64 * 1024)
        log = open_real(str(tmp_path) + "/a/b", settings)
        found = list(log.replay())
        journal, writer = log.start()
        with pytest.raises(DataDirInUse, match="a/b"):
            open_real(str(tmp_path) + "/a/b", settings)
        for number in range(messages):
            payload = messages_payload(
                b"q", (), b"", 1, journal.take_seqs(2), None, [b"%d" % number * 99, b""]
            )
            journal.append(RecordType.MESSAGES, payload)
        while (batch := journal.take_batch()) is not None:
            writer.run(batch)
            journal.done(batch, None)
        writer.close()
        log.close()
        return found

    assert run(2000) == []
    assert bodies(run(1)) == [body for number in range(2000) for body in (b"%d" % number * 99, b"")]


def open_real(path: str, settings: Settings) -> Log:
    return open_log(SystemDisk(), path, settings, SystemClock(), SystemRng())


def test_leftovers_of_a_removal_are_not_missed_and_go_at_the_next_start() -> None:
    """After TRIM is synced the power may go with any of the files still there."""
    for kept in range(8):
        bench = Bench()
        with bench.running() as run:
            while len(run.journal.segments) < 4:
                run.send(b"x" * 300)
            run.pump()
            last = run.send(b"kept")
            copies = {number: bench.disk.contents(segment_path(number)) for number in (1, 2, 3)}
            for segment in list(run.journal.segments)[:3]:
                segment.live = 0
            run.journal.trim(run.journal.dead_segments())
            run.pump()
        for number, data in copies.items():
            if kept & (1 << (number - 1)):
                bench.disk.create(segment_path(number))
                bench.disk.put(segment_path(number), data)
        bench.disk.sync_dir(LOG)
        bench.disk.kill()
        with bench.running() as run:
            assert run.found[-1].lsn == last
            assert {item.segment.number for item in run.found} == {4}
        assert bench.disk.files(LOG) == [segment_path(4), segment_path(5)]


def test_a_trim_behind_the_end_of_the_log_removes_nothing() -> None:
    """A TRIM that was torn off does not count: the segments that it names are still needed."""
    bench = Bench()
    with bench.running() as run:
        while len(run.journal.segments) < 3:
            run.send(b"x" * 300)
        run.pump()
        files = {path: bench.disk.contents(path) for path in bench.disk.files(LOG)}
        for segment in list(run.journal.segments)[:2]:
            segment.live = 0
        run.send(b"lost")
        run.journal.trim(run.journal.dead_segments())
        run.pump()
        last = run.journal.segment.path
    after = bench.disk.contents(last)
    for path, data in files.items():
        if path not in bench.disk.files(LOG):
            bench.disk.create(path)
        bench.disk.put(path, data)
    lost = next(at for at, _, payload in records_in(after) if b"lost" in payload)
    bench.disk.put(last, patched(after, lost, bytes(40)))
    bench.disk.sync_dir(LOG)
    bench.disk.kill()
    found, log = bench.replay()
    assert log.summary.segments == 3 and found[0].lsn == 2


def test_a_crash_at_any_call_of_a_start_changes_nothing_for_the_next() -> None:
    """After a tail that was torn, which is where a start has most to decide."""
    for call in range(1, 200):
        bench = Bench(disk=SimDisk(Random(call)))
        with bench.running() as run:
            for body in SENT:
                run.send(body)
                run.pump()
            run.send(b"torn" * 100)
            run.pump()
        data = bench.disk.contents(ONE)
        bench.disk.put(ONE, patched(data, records_in(data)[-1][0] + 100, bytes(200)))
        bench.disk.power_at = bench.disk.calls + call
        reached = False
        try:
            with bench.running() as run:
                reached = True
        except PowerLoss:
            bench.disk.crash()
        with bench.running() as run:
            assert bodies(run.found) == SENT
            assert run.journal.lsn in ((6,) if reached else (5, 6))  # EPOCH, three, EPOCH or not, EPOCH
        if reached:
            return
    raise AssertionError("a start has more than 200 calls")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_an_error_at_any_call_of_a_start_ends_it_and_the_next_one_has_everything(code: int) -> None:
    for call in range(1, 200):
        bench = three_messages()
        fault = Fault(bench.disk.calls + call, code)
        bench.disk.faults.append(fault)
        try:
            with bench.running():
                pass
        except StorageFailed:
            bench.disk.kill()
        if not fault.hits:
            return
        bench.disk.faults.clear()
        with bench.running() as run:
            assert bodies(run.found) == SENT
    raise AssertionError("a start has more than 200 calls")


def test_start_before_the_replay_is_over_is_a_bug_and_said_so() -> None:
    bench = three_messages()
    log = bench.open()
    with pytest.raises(RuntimeError, match="replay"):
        log.start()
    next(iter(log.replay()))
    with pytest.raises(RuntimeError, match="replay"):
        log.start()


def test_replay_reads_in_chunks_and_records_larger_than_one_as_a_whole() -> None:
    bench = Bench(settings=Settings(segment_size=8 * 1024 * 1024))
    sent = [
        bytes([65 + number]) * size for number, size in enumerate((10, 3_000_000, 70_000, 1_048_576 - 150, 9))
    ]
    with bench.running() as run:
        for body in sent:
            run.send(body)
        run.pump()
    sizes: list[int] = []
    read = bench.disk.read

    def watched(handle: object, size: int, offset: int) -> bytes:
        sizes.append(size)
        return read(handle, size, offset)  # type: ignore[arg-type]

    bench.disk.read = watched  # type: ignore[method-assign]
    assert bodies(bench.replay()[0]) == sent
    assert max(sizes) < 3_000_200
