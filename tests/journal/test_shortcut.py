"""A start from a checkpoint comes to what the whole log says, or does without the checkpoint."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest

from broker.errors import CheckpointDoubted, DataDamaged, FormatNotKnown, StorageFailed
from broker.journal import Part, RecordType, Replayed, acked_payload, number_of
from broker.journal.checkpoint import CHECKPOINT_VERSION, CheckpointFile, checkpoint_name
from broker.journal.recovery import Log
from broker.journal.segment import SEGMENT_HEADER_BYTES
from broker.journal.shortcut import QUARANTINE_MAX
from broker.journal.state import SEAL_BYTES
from tests.journal import harness
from tests.journal.folding import Folded, Traffic, checkpoint, fold
from tests.journal.harness import DATA, LOG, LOG_ID, META, Bench, patched, records_in, resealed, segment_path
from tests.support.simdisk import Fault, PowerLoss, SimDisk

CKPT = f"{DATA}/ckpt"
QUARANTINE = f"{DATA}/quarantine"


def replay(bench: Bench, use: bool = True) -> tuple[Folded, Log, list[Replayed | Part]]:
    """As the core does it: once more where a checkpoint turns out to be none."""
    log = bench.open()
    while True:
        with suppress(CheckpointDoubted):
            items = list(log.replay(use, skim=True))
            return fold(items), log, items


def refused(bench: Bench, kind: type[Exception] = DataDamaged) -> str:
    """The text of the refusal, the same with a checkpoint and without one; nothing on the disk was changed."""
    text = harness.refused(bench, kind)
    folders = (LOG, DATA, CKPT)
    before = {path: bench.disk.contents(path) for folder in folders for path in bench.disk.files(folder)}
    with pytest.raises(kind) as caught:
        replay(bench)
    bench.disk.kill()
    assert str(caught.value) == text
    assert before == {path: bench.disk.contents(path) for folder in folders for path in bench.disk.files(folder)}
    return text


def segments(bench: Bench) -> list[str]:
    return [path for path in bench.disk.files(LOG) if path.endswith(".seg")]


def filled(checkpoints: int = 1, seed: int = 1, boots: int = 0) -> tuple[Bench, Folded]:
    """Six or more segments, checkpoints in different ones, a few records behind the last; killed."""
    bench, state = Bench(disk=SimDisk(Random(seed))), Folded()
    for _ in range(boots):
        with bench.running():
            pass
    with bench.running() as run:
        traffic = Traffic(run, state, Random(seed), bench.disk)
        for _ in range(checkpoints):
            before = len(run.journal.segments)
            while len(run.journal.segments) < before + 5:
                traffic.send()
                traffic.settle()
                traffic.give_back()
                traffic.move()
            checkpoint(run, state, bench.disk)
            traffic.settle()
            traffic.send()
            run.pump()
        assert run.journal.segments[0].number == 1
    return bench, state


def test_a_start_from_a_checkpoint_reads_only_what_is_newer() -> None:
    bench, state = filled()
    whole, log, all_items = replay(bench, use=False)
    assert whole == state and log.checkpoint is None and log.doubts == []
    bench.disk.kill()
    found, log, items = replay(bench)
    assert found == state
    assert log.checkpoint is not None and log.doubts == []
    places = [number_of(item.place) for item in items if isinstance(item, Replayed)]
    assert min(places) == log.checkpoint.segment > 4
    parts = [at for at, item in enumerate(items) if isinstance(item, Part)]
    assert parts == list(range(len(parts))) and parts
    assert len(items) < len(all_items) / 3
    assert log.summary.segments == log.checkpoint.segment and log.summary.records < 40


def test_the_journal_goes_on_after_it_as_after_the_whole_log() -> None:
    journals = []
    for use in (True, False):
        bench, _ = filled(boots=3)  # after each of them the seqs jump
        _, log, _ = replay(bench, use)
        journal, _ = log.start()
        rows = [(s.number, s.first_lsn, s.last_lsn, s.end, s.size, s.path) for s in list(journal.segments)[:-1]]
        journals.append((journal.lsn, journal.next_seq, journal.boot, rows, log.summary.boot, log.numbers))
    assert journals[0] == journals[1]


def test_a_clean_stop_is_known_behind_a_checkpoint_and_no_seq_comes_back() -> None:
    bench = Bench()
    with bench.running() as run:
        while len(run.journal.segments) < 3:
            run.send(b"x" * 99)
        run.journal.take_seqs(5000)  # of messages that leave no trace
        checkpoint(run, Folded(), bench.disk)
        given = run.journal.next_seq
        run.stop()
    _, log, _ = replay(bench)
    assert log.checkpoint is not None and log.summary.clean and log.summary.boot == 2
    assert log.start()[0].next_seq >= given


def test_seqs_go_on_behind_a_checkpoint_even_if_no_record_that_is_read_names_one() -> None:
    bench = Bench()
    for _ in range(3):  # after each the seqs jump
        with bench.running() as run:
            pass
    with bench.running() as run:
        while len(run.journal.segments) < 7:
            run.send(b"x" * 99)
        given = run.journal.next_seq
        while len(run.journal.segments) < 9:
            run.journal.append(RecordType.ACKED, acked_payload(b"/queue/a", [1]))
        checkpoint(run, Folded(), bench.disk)
    _, log, _ = replay(bench)
    assert log.checkpoint is not None and log.start()[0].next_seq >= given


@pytest.mark.parametrize("seed", range(60))
def test_random_traffic_comes_to_the_same_with_and_without_a_checkpoint(seed: int) -> None:
    """Dumps go on for several steps of the traffic, segments are copied forward and removed meanwhile."""
    rng = Random(seed)
    bench, used = Bench(disk=SimDisk(Random(seed))), 0
    state: Folded | None = Folded()
    for _ in range(5):
        log = bench.open()
        whole = fold(log.replay(checkpoint=False, skim=True))
        found = fold(log.replay(skim=True))
        used += log.checkpoint is not None
        assert found == whole and log.doubts == []
        assert state is None or state == found
        journal, writer = log.start()
        run = bench.take(journal, writer, log)
        state = found
        traffic = Traffic(run, state, rng, bench.disk)
        for _ in range(rng.randrange(20, 250)):
            traffic.step()
        if rng.random() < 0.5:
            run.pump()
            bench.disk.kill()
        else:
            bench.disk.crash()
            state = None
    assert used or seed


def test_a_checkpoint_that_begins_where_the_log_does_is_not_needed() -> None:
    bench = Bench()
    with bench.running() as run:
        state = Folded()
        Traffic(run, state, Random(1), bench.disk).send()
        checkpoint(run, state, bench.disk)
    found, log, items = replay(bench)
    assert found == state
    assert log.checkpoint is None and log.doubts == [] and not any(isinstance(i, Part) for i in items)


def test_the_older_checkpoint_does_where_the_newer_is_doubtful_and_the_whole_log_where_both_are() -> None:
    bench, state = filled(checkpoints=2)
    older, newer = bench.disk.files(CKPT)
    bench.disk.put(newer, patched(bench.disk.contents(newer), 100, b"\xee\xee"))
    found, log, _ = replay(bench)
    assert found == state and log.checkpoint is not None
    assert older.endswith(checkpoint_name(log.checkpoint.lsn))
    assert len(log.doubts) == 1 and newer in log.doubts[0] and "offset" in log.doubts[0]
    assert bench.disk.files(CKPT) == [older, newer]  # a replay changes nothing
    bench.disk.kill()
    bench.disk.put(older, b"")
    found, log, _ = replay(bench)
    assert found == state and log.checkpoint is None and len(log.doubts) == 2
    log.start()
    assert bench.disk.files(CKPT) == []
    assert [path.rpartition("/")[2] for path in bench.disk.files(QUARANTINE)] == [
        older.rpartition("/")[2],
        newer.rpartition("/")[2],
    ]


def test_only_so_many_doubtful_files_are_kept_and_the_oldest_go() -> None:
    bench, _ = filled()
    bench.disk.make_dir(QUARANTINE)
    for lsn in range(20):
        bench.disk.close(bench.disk.create(f"{QUARANTINE}/{checkpoint_name(lsn)}"))
    (path,) = bench.disk.files(CKPT)
    bench.disk.put(path, b"x")
    replay(bench)[1].start()
    left = bench.disk.files(QUARANTINE)
    assert len(left) == QUARANTINE_MAX and left[-1].endswith(path.rpartition("/")[2])


@pytest.mark.parametrize("op", ["make_dir", "rename", "unlink", "list_dir"])
def test_a_quarantine_that_cannot_be_filled_does_not_stop_a_start(op: str) -> None:
    bench, state = filled()
    (path,) = bench.disk.files(CKPT)
    bench.disk.put(path, b"x")
    _, log, _ = replay(bench)
    on_call = bench.disk.on_call

    def fail(called: str, path: str) -> None:
        if called == op and "quarantine" in path:
            raise OSError(errno.EROFS, "read-only", path)

    bench.disk.on_call = fail
    log.start()
    bench.disk.on_call = on_call
    bench.disk.kill()
    assert replay(bench)[0] == state


def test_a_checkpoint_of_another_past_is_not_used() -> None:
    """Its own digest is right, but the segments are not those that it was made with."""
    bench, _ = filled()
    other, _ = filled(seed=2)
    with bench.running() as run:
        for _ in range(30):
            run.send(b"more")
        run.pump()
    state = replay(bench, use=False)[0]
    bench.disk.kill()
    bench.disk.remove(bench.disk.files(CKPT)[0])
    (path,) = other.disk.files(CKPT)
    bench.disk.close(bench.disk.create(path))
    bench.disk.put(path, other.disk.contents(path))
    found, log, _ = replay(bench)
    assert found == state and log.checkpoint is None and "another segment" in log.doubts[0]


def test_a_table_that_does_not_fit_the_log_is_not_believed() -> None:
    wrong = {
        "it says": lambda b: replace(b, segments=[(1, 1, b.segments[0][2] + 1, b.segments[0][3]), *b.segments[1:]]),
        "no SEAL": lambda b: replace(b, segments=[(*b.segments[0][:3], b.segments[0][3] - 8), *b.segments[1:]]),
        "tells nothing": lambda b: replace(b, segments=b.segments[1:]),
        "it said": lambda b: replace(b, low=2),
        "ends before": lambda b: replace(b, segments=[*b.segments[:-1], (*b.segments[-1][:3], 1 << 20)]),
        "another segment": lambda b: replace(b, segment=b.segment - 1, segments=b.segments[:-1], anchor=1),
    }
    for text, change in wrong.items():
        bench, state = filled()
        basis = replay(bench)[1].checkpoint
        assert basis is not None
        bench.disk.kill()
        file = CheckpointFile(bench.disk, DATA, LOG_ID)
        basis = change(basis)
        file._anchor = lambda _, anchor=basis.anchor: anchor  # type: ignore[method-assign, misc]
        file.begin()
        file.finish(basis)
        found, log, _ = replay(bench)
        assert found == state and log.checkpoint is None
        assert len(log.doubts) == 1 and text in log.doubts[0], log.doubts


def test_a_damaged_header_or_seal_in_front_of_a_checkpoint_is_found_at_the_start() -> None:
    bench, _ = filled()
    for number in (2, 3):
        path = segment_path(number)
        data = bench.disk.contents(path)
        end = len(data.rstrip(b"\0"))
        end += -end % 8
        for at in (*range(0, 96, 7), SEGMENT_HEADER_BYTES - 1, *range(end - SEAL_BYTES, end, 5)):
            bench.disk.put(path, patched(data, at, bytes([data[at] ^ 4])))
            assert path in refused(bench), at
        bench.disk.put(path, data[: end - 8])
        assert path in refused(bench)
        other = bench.disk.contents(segment_path(number + 1)).rstrip(b"\0")
        other += bytes(-len(other) % 8)
        bench.disk.put(path, patched(data, end - SEAL_BYTES, other[-SEAL_BYTES:]))  # sound, but of another place
        assert path in refused(bench)
        bench.disk.put(path, data)
    replay(bench)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_checkpoint_does_not_hide_that_a_segment_is_missing(number: int) -> None:
    bench, _ = filled()
    bench.disk.remove(segment_path(number))
    text = refused(bench)
    assert f"segment {number} missing" in text


def test_a_start_from_a_checkpoint_finds_damage_in_what_it_reads() -> None:
    bench, _ = filled()
    path = segments(bench)[-1]
    data = bench.disk.contents(path)
    (at, _, _), *_ = records_in(data)
    bench.disk.put(path, patched(data, at + 40, b"\xee\xee"))
    assert path in refused(bench)


def test_the_newest_segments_cannot_vanish_unnoticed_behind_a_checkpoint() -> None:
    """Without it, the loss of the newest file as a whole looks like a crash behind a SEAL."""
    bench, _ = filled()
    *_, last = segments(bench)
    bench.disk.remove(last)
    for path in reversed(segments(bench)[-2:]):
        text = refused(bench)
        assert "a checkpoint proves" in text and path in text
        with pytest.raises(DataDamaged, match="a checkpoint proves"):
            replay(bench, use=False)
        bench.disk.kill()
        bench.disk.remove(path)
    (path,) = bench.disk.files(CKPT)
    bench.disk.put(path, b"")  # a doubtful one proves nothing
    found, log, _ = replay(bench)
    assert found.messages and log.checkpoint is None


def test_records_that_a_checkpoint_vouches_for_are_not_taken_for_a_torn_tail() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"one")
        run.send(b"two")
        checkpoint(run, Folded(), bench.disk)
        end = run.journal.lsn
    path = segment_path(1)
    data = bench.disk.contents(path)
    at = data.rindex(b"two")
    bench.disk.put(path, patched(data, at, b"twx"))
    text = refused(bench)
    assert f"At risk: lsn {end}" in text and "a checkpoint proves" in text


def test_checkpoints_alone_are_the_rest_of_a_lost_log() -> None:
    bench, _ = filled()
    for path in bench.disk.files(LOG):
        bench.disk.remove(path)
    assert "no segment" in refused(bench)
    bench.disk.remove(META)
    assert "checkpoints" in refused(bench)


def test_a_newer_versions_checkpoint_ends_the_start_and_nothing_is_touched() -> None:
    bench, _ = filled(checkpoints=2)
    path = bench.disk.files(CKPT)[-1]
    version = CHECKPOINT_VERSION + 1
    bench.disk.put(path, resealed(patched(bench.disk.contents(path), 8, bytes([version])), 64))
    assert f"format {version}" in refused(bench, FormatNotKnown)


def test_a_file_that_changes_while_it_is_read_is_doubted_and_the_next_try_does_without_it() -> None:
    bench, state = filled(checkpoints=2)
    path = bench.disk.files(CKPT)[-1]
    log, opened = bench.open(), 0

    def change(op: str, of: str) -> None:
        nonlocal opened
        if op == "open" and of == path and (opened := opened + 1) == 2:
            bench.disk.put(path, bench.disk.contents(path)[:300])

    bench.disk.on_call = change
    with pytest.raises(CheckpointDoubted, match=path):
        list(log.replay(skim=True))
    with pytest.raises(RuntimeError, match="replay"):
        log.start()
    assert fold(log.replay(skim=True)) == state
    assert log.checkpoint is not None and not path.endswith(checkpoint_name(log.checkpoint.lsn))
    log.start()
    assert [name.rpartition("/")[2] for name in bench.disk.files(QUARANTINE)] == [path.rpartition("/")[2]]


def test_what_the_core_doubts_is_not_used_again() -> None:
    bench, state = filled(checkpoints=2)
    log = bench.open()
    used = []
    for count in range(3):
        items = log.replay(skim=True)
        next(items)
        used.append(log.checkpoint)
        items.close()
        assert len(log.doubts) == count
        log.doubt("a message lies in segment 77")
    assert used[0] is not None and used[1] is not None and used[2] is None
    assert used[0].lsn > used[1].lsn
    assert all("segment 77" in text for text in log.doubts)
    assert fold(log.replay(skim=True)) == state


@pytest.mark.parametrize("op", ["open", "read", "drop_cache", "size"])
def test_a_checkpoint_that_cannot_be_read_is_done_without_and_stays(op: str) -> None:
    bench, state = filled()
    (path,) = bench.disk.files(CKPT)

    def fail(called: str, of: str) -> None:
        if called == op and of == path:
            raise OSError(errno.EIO, "input/output error", path)

    bench.disk.on_call = fail
    found, log, _ = replay(bench)
    assert found == state and log.checkpoint is None and path in log.doubts[0]
    log.start()
    assert bench.disk.files(CKPT) == [path]


def test_an_error_or_power_loss_at_any_call_of_a_start_from_a_checkpoint_changes_nothing() -> None:
    """With a newer one that is doubtful, so that there is most to do."""
    bench, state = filled(checkpoints=2)
    newer = bench.disk.files(CKPT)[-1]
    bench.disk.put(newer, bench.disk.contents(newer)[:-1])
    calls = 0
    for call in range(1, 400):
        for code in (None, errno.EIO):
            disk = bench.disk.copy(Random(call))
            attempt = Bench(disk=disk)
            fault = Fault(call, errno.EIO)
            if code is None:
                disk.power_at = call
            else:
                disk.faults.append(fault)
            try:
                found, log, _ = replay(attempt)
                assert found == state
                log.start()
                calls = disk.calls
            except PowerLoss:
                disk.crash()
            except StorageFailed:
                disk.kill()
            disk.power_at = None
            disk.faults.clear()
            disk.kill()
            assert replay(attempt)[0] == state
        if calls and call > calls:
            return
    raise AssertionError("a start has more than 400 calls")


def test_a_part_at_a_time_is_held() -> None:
    bench = Bench()
    rng = Random(5)
    with bench.running() as run:
        while len(run.journal.segments) < 4:
            run.send(b"x" * 99)
        run.journal.append(RecordType.ACKED, acked_payload(b"/queue/a", [1]))
        state = Folded()
        state.messages = {(b"q%d" % rng.randrange(9), seq): (1 << 32 | 512, 0, 0, 0) for seq in range(100_000)}
        checkpoint(run, state, bench.disk)
    read, largest = bench.disk.read, 0

    def watched(handle: object, size: int, offset: int) -> bytes:
        nonlocal largest
        data = read(handle, size, offset)  # type: ignore[arg-type]
        largest = max(largest, len(data))
        return data

    bench.disk.read = watched  # type: ignore[method-assign]
    log = bench.open()
    parts = sum(isinstance(item, Part) for item in log.replay(skim=True))
    assert parts == 9 and largest <= 1024 * 1024
