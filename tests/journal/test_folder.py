"""The data folder: lock, META, the first start, formats of newer versions, stray files."""

from __future__ import annotations

from random import Random

import pytest

from broker.errors import DataDamaged, DataDirInUse, FormatNotKnown
from broker.journal.segment import SEGMENT_HEADER_BYTES
from tests.journal.harness import (
    DATA,
    LOG,
    META,
    ONE,
    Bench,
    bodies,
    end_of,
    forged,
    patched,
    refused,
    resealed,
    segment_path,
    three_messages,
)
from tests.support.simdisk import PowerLoss, SimDisk


def test_a_second_broker_on_the_same_folder_is_told_which_one_is_taken() -> None:
    bench = Bench()
    with bench.running() as run:
        with pytest.raises(DataDirInUse, match=DATA):
            bench.open()
        run.log.close()
        bench.open()


def test_the_lock_is_given_back_when_the_start_is_refused() -> None:
    bench = three_messages()
    bench.disk.put(META, b"")
    for _ in range(2):
        with pytest.raises(DataDamaged):
            bench.open()


def test_a_first_start_that_was_cut_short_anywhere_is_finished_by_the_next() -> None:
    for call in range(1, 60):
        bench = Bench(disk=SimDisk(Random(call)))
        bench.disk.power_at = call
        try:
            with bench.running():
                reached = bench.disk.calls < call
        except PowerLoss:
            reached = False
        bench.disk.crash()
        with bench.running() as run:
            assert run.found == []
            run.send(b"first")
            run.pump()
        assert bodies(bench.replay()[0]) == [b"first"]
        if reached:
            return
    raise AssertionError("the first start has more than 60 calls")


def test_records_without_meta_are_damage() -> None:
    bench = three_messages()
    bench.disk.remove(META)
    assert "META" in refused(bench)


def test_two_segments_without_meta_are_damage() -> None:
    bench = Bench()
    for _ in range(2):
        with bench.running() as run:
            run.stop()
    bench.disk.remove(META)
    assert "META" in refused(bench)


def test_meta_without_segments_is_damage() -> None:
    bench = three_messages()
    bench.disk.remove(ONE)
    assert "no segment" in refused(bench)


def test_a_flipped_bit_in_meta_is_damage_wherever_it_is() -> None:
    bench = three_messages()
    data = bench.disk.contents(META)
    for at in range(len(data)):
        bench.disk.put(META, patched(data, at, bytes([data[at] ^ 1])))
        assert META in refused(bench)
    for wrong in (data[:-1], data + b"x", b""):
        bench.disk.put(META, wrong)
        assert "64" in refused(bench)


def test_a_newer_format_is_refused_as_such_and_not_called_damage() -> None:
    bench = three_messages()
    meta, one = bench.disk.contents(META), bench.disk.contents(ONE)
    bench.disk.put(META, resealed(patched(meta, 8, b"\2"), 64))
    assert "format 2" in refused(bench, FormatNotKnown)
    bench.disk.put(META, meta)
    bench.disk.put(ONE, resealed(patched(one, 8, b"\2"), SEGMENT_HEADER_BYTES))
    assert "format 2" in refused(bench, FormatNotKnown)
    bench.disk.put(ONE, resealed(patched(one, 0, b"SOMETHIN"), SEGMENT_HEADER_BYTES))
    assert "not the segment header" in refused(bench)


@pytest.mark.parametrize(("kind", "flags"), [(13, 0), (1, 1)])
def test_a_record_of_a_newer_version_is_refused_as_such(kind: int, flags: int) -> None:
    bench = three_messages(witness=False)
    data = bench.disk.contents(ONE)
    end, last = end_of(data)
    bench.disk.put(ONE, patched(data, end, forged(b"new", last[1], kind, flags, last[5] + 1, last[5])))
    assert ONE in refused(bench, FormatNotKnown)


def test_half_made_files_are_removed_and_strange_ones_are_left_alone() -> None:
    bench = three_messages()
    for name in (
        segment_path(2) + ".tmp",
        META + ".tmp",
        f"{LOG}/notes.txt",
        f"{LOG}/1.seg",
        f"{DATA}/README",
    ):
        bench.disk.create(name)
    bench.disk.kill()
    with bench.running():
        pass
    left = bench.disk.files(LOG) + bench.disk.files(DATA)
    assert not [path for path in left if path.endswith(".tmp")]
    assert {f"{LOG}/notes.txt", f"{LOG}/1.seg", f"{DATA}/README"} <= set(left)
