"""What the journal promises to the core: LSNs, batches, receipts, segments."""

from __future__ import annotations

import errno

import pytest

from broker.errors import StorageFailed
from broker.journal.batch import Append
from broker.journal.journal import BATCH_BYTES_MAX, BATCH_RECORDS_MAX, SEQ_JUMP
from broker.journal.records import RecordType, acked_payload
from broker.journal.state import decode_seal
from tests.journal.harness import Bench, Running, Settings, bodies, records_in, segment_path
from tests.support.simdisk import Fault

MIB = 1024 * 1024


def test_lsns_count_records_and_durable_follows_the_sync() -> None:
    with Bench().running() as run:
        journal = run.journal
        assert (journal.lsn, journal.durable) == (1, 1)  # EPOCH
        assert [run.send(b"a"), run.send(b"b", count=5)] == [2, 3]
        assert (journal.lsn, journal.durable) == (3, 1)
        batch = journal.take_batch()
        assert batch is not None
        run.writer.run(batch)
        assert journal.durable == 1
        journal.done(batch, None)
        assert journal.durable == journal.synced == 3


def test_one_batch_at_a_time_and_what_piles_up_goes_with_the_next() -> None:
    with Bench().running() as run:
        journal = run.journal
        assert journal.take_batch() is None
        run.send(b"a")
        first = journal.take_batch()
        assert first is not None and (first.first_lsn, first.last_lsn) == (2, 2)
        run.send(b"b")
        run.send(b"c")
        assert journal.take_batch() is None
        run.writer.run(first)
        journal.done(first, None)
        second = journal.take_batch()
        assert second is not None and (second.first_lsn, second.last_lsn) == (3, 4)
        with pytest.raises(RuntimeError):
            journal.done(first, None)


def test_queued_is_what_is_not_done_yet() -> None:
    with Bench().running() as run:
        journal = run.journal
        run.send(b"x" * 100)
        one = journal.queued
        assert one > 100
        batch = journal.take_batch()
        assert batch is not None
        run.send(b"x" * 100)
        assert journal.queued == 2 * one
        run.writer.run(batch)
        journal.done(batch, None)
        assert journal.queued == one
        run.pump()
        assert journal.queued == 0


def test_queued_comes_back_to_nothing_across_segments() -> None:
    with Bench().running() as run:
        for _ in range(200):
            run.send(b"x" * 100)
        run.journal.append_witness()
        assert run.journal.queued > 200 * 100
        run.pump()
        assert run.journal.queued == 0
        assert len(run.journal.segments) > 3


def test_a_batch_has_at_most_its_number_of_records_and_bytes() -> None:
    bench = Bench(settings=Settings(segment_size=64 * MIB))
    with bench.running() as run:
        sizes = []
        for size, count in ((1, 3 * BATCH_RECORDS_MAX), (100_000, 100)):
            for _ in range(count):
                run.send(b"x" * size)
            while (batch := run.journal.take_batch()) is not None:
                assert 1 <= batch.last_lsn - batch.first_lsn + 1 <= BATCH_RECORDS_MAX
                assert batch.size <= BATCH_BYTES_MAX
                assert batch.size == sum(step.size for step in batch.steps if isinstance(step, Append))
                sizes.append(batch.size)
                run.writer.run(batch)
                run.journal.done(batch, None)
        assert len(sizes) == 3 + 3


def test_a_record_larger_than_a_batch_goes_alone() -> None:
    bench = Bench(settings=Settings(segment_size=64 * MIB))
    with bench.running() as run:
        run.send(b"before")
        large = run.send(b"x" * (BATCH_BYTES_MAX + 1))
        run.send(b"behind")
        spans = []
        while (batch := run.journal.take_batch()) is not None:
            spans.append((batch.first_lsn, batch.last_lsn))
            run.writer.run(batch)
            run.journal.done(batch, None)
        assert spans == [(large - 1, large - 1), (large, large), (large + 1, large + 1)]


def test_a_record_larger_than_a_segment_gets_one_of_its_own_size() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"small")
        run.send(b"y" * 20_000)
        assert run.journal.segment.number == 2
        assert run.journal.segment.size > 20_000
        run.send(b"after")
        assert run.journal.segment.number == 3
        assert run.journal.segment.size == 4096
        run.pump()
    assert bodies(bench.replay()[0]) == [b"small", b"y" * 20_000, b"after"]


def test_segment_tells_where_the_last_record_lies() -> None:
    bench = Bench()
    with bench.running() as run:
        places = {}
        for number in range(60):
            lsn = run.send(b"%d" % number * 20)
            places[lsn] = run.journal.segment.number
        run.pump()
        assert len(set(places.values())) > 1
    found, _ = bench.replay()
    assert {item.lsn: item.segment.number for item in found} == places


def test_a_full_segment_ends_with_a_seal_and_the_next_names_it() -> None:
    bench = Bench()
    with bench.running() as run:
        while run.journal.segment.number == 1:
            run.send(b"z" * 50)
        run.pump()
    records = records_in(bench.disk.contents(segment_path(1)))
    _, seal, payload = records[-1]
    assert seal[3] == RecordType.SEAL
    said = decode_seal(payload, 0, len(payload))
    assert (said.count, said.last_lsn, said.last_crc) == (len(records) - 1, seal[5] - 1, records[-2][1][1])
    following = records_in(bench.disk.contents(segment_path(2)))[0][1]
    assert following[5] == seal[5] + 1 and following[2] == seal[1]


def test_each_record_says_what_was_synced_when_it_was_written() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"a")
        run.send(b"b")
        run.pump()
        run.send(b"c")
        run.pump()
    synced = [fields[6] for _, fields, _ in records_in(bench.disk.contents(segment_path(1)))]
    assert synced == [0, 1, 1, 3]


def test_an_error_fails_the_journal_for_ever() -> None:
    bench = Bench()
    with bench.running() as run:
        journal = run.journal
        run.send(b"a")
        bench.disk.faults.append(Fault(bench.disk.counts["sync_data"] + 1, errno.EIO, "sync_data"))
        batch = journal.take_batch()
        assert batch is not None
        with pytest.raises(OSError) as caught:
            run.writer.run(batch)
        run.journal.append(RecordType.ACKED, acked_payload(b"q", [1]))
        journal.done(batch, caught.value)
        assert isinstance(journal.failed, StorageFailed)
        assert journal.durable == 1
        for _ in range(2):
            with pytest.raises(StorageFailed):
                run.send(b"b")
            assert journal.take_batch() is None
            assert not journal.needs_witness


def test_seqs_are_given_once() -> None:
    with Bench().running() as run:
        first = run.journal.take_seqs(3)
        assert run.journal.take_seqs(1) == first + 3
        assert run.journal.take_seqs(5) == first + 4
        assert run.journal.next_seq == first + 9


def test_many_seqs_without_a_record_are_written_down_before_a_start_could_give_them_again() -> None:
    bench = Bench()
    with bench.running() as run:
        for _ in range(40):
            run.journal.take_seqs(SEQ_JUMP // 8)
            run.pump()
        given = run.journal.next_seq
    found, log = bench.replay()
    assert found == []
    assert log.start()[0].next_seq >= given


def test_a_witness_is_wanted_once_after_the_last_record_and_begins_a_sector() -> None:
    bench = Bench()
    with bench.running() as run:
        journal = run.journal
        run.send(b"a")
        assert not journal.needs_witness  # not durable yet
        run.pump()
        assert journal.needs_witness
        journal.append_witness()
        assert not journal.needs_witness  # it is on its way
        run.pump()
        assert not journal.needs_witness
        run.send(b"b")
        run.pump()
        assert journal.needs_witness
    offset, fields, _ = records_in(bench.disk.contents(segment_path(1)))[-2]
    assert (offset % 512, fields[3], fields[6]) == (0, RecordType.WITNESS, 2)


def test_a_witness_written_before_the_sync_is_no_witness() -> None:
    with Bench().running() as run:
        run.send(b"a")
        run.journal.append_witness()
        run.pump()
        assert run.journal.needs_witness


def test_interval_syncs_when_it_is_time_and_receipts_do_not_wait() -> None:
    bench = Bench(settings=Settings(fsync="interval", interval=1.0))
    with bench.running() as run:
        journal = run.journal
        run.send(b"a")
        run.pump()
        assert (journal.durable, journal.synced) == (2, 1)
        bench.clock.now += 1.0
        run.send(b"b")
        run.pump()
        assert journal.synced == 3
        run.send(b"c")
        run.pump()
        assert journal.synced == 3
        assert journal.needs_witness
        journal.append_witness()
        run.pump()
        assert journal.synced == journal.lsn
        assert journal.needs_witness  # that one was written before its batch was synced
        journal.append_witness()
        run.pump()
        assert not journal.needs_witness


def test_never_syncs_at_a_new_segment_and_at_a_clean_stop_only() -> None:
    bench = Bench(settings=Settings(fsync="never"))
    with bench.running() as run:
        journal = run.journal
        run.send(b"a")
        run.pump()
        assert (journal.durable, journal.synced) == (2, 1)
        assert not journal.needs_witness
        while journal.segment.number == 1:
            run.send(b"b" * 100)
        run.pump()
        assert journal.synced == journal.segments[0].last_lsn
        run.stop()
        assert journal.synced == journal.lsn


def fill(run: Running, segments: int) -> None:
    while len(run.journal.segments) < segments:
        run.send(b"m" * 100)
    run.pump()


def test_dead_segments_are_the_oldest_without_live_messages() -> None:
    with Bench().running() as run:
        fill(run, 5)
        segments = list(run.journal.segments)
        assert run.journal.dead_segments() == []
        segments[1].live = segments[2].live = 0
        assert run.journal.dead_segments() == []  # the first one lives
        segments[0].live = 0
        assert run.journal.dead_segments() == segments[:3]
        segments[3].live = segments[4].live = 0
        assert run.journal.dead_segments() == segments[:4]  # never the current one


def test_a_segment_that_is_not_synced_is_not_dead() -> None:
    with Bench().running() as run:
        while len(run.journal.segments) < 3:
            run.send(b"m" * 100)
        for segment in run.journal.segments:
            segment.live = 0
        assert run.journal.dead_segments() == []
        run.pump()
        assert len(run.journal.dead_segments()) == 2


def test_only_dead_segments_at_the_old_end_can_be_trimmed() -> None:
    with Bench().running() as run:
        fill(run, 4)
        first, second, *_ = run.journal.segments
        first.live = 0
        for wrong in ([second], [first, second], [run.journal.segment]):
            with pytest.raises(ValueError, match="dead"):
                run.journal.trim(wrong)
        run.journal.trim([])
        run.journal.trim([first])
        assert run.journal.segments[0] is second


def test_trimmed_segments_go_when_the_trim_is_synced_and_stay_gone() -> None:
    bench = Bench()
    with bench.running() as run:
        fill(run, 4)
        kept = run.send(b"kept")
        for segment in list(run.journal.segments)[:3]:
            segment.live = 0
        run.journal.trim(run.journal.dead_segments())
        assert segment_path(1) in bench.disk.files("data/log")
        run.pump()
        assert not {segment_path(1), segment_path(2), segment_path(3)} & set(bench.disk.files("data/log"))
    found, log = bench.replay()
    assert found[-1].lsn == kept and {item.segment.number for item in found} == {4}
    assert log.summary.segments == 1
