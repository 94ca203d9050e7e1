"""Torn tails heal; damage to what was synced is refused, with a text that says where and what."""

from __future__ import annotations

from random import Random

import pytest

from broker.errors import DataDamaged
from broker.journal.records import (
    RecordType,
)
from broker.journal.segment import SEGMENT_HEADER_BYTES, SegmentHeader
from tests.journal.harness import (
    ONE,
    SENT,
    Bench,
    bodies,
    end_of,
    heals,
    patched,
    records_in,
    refused,
    resealed,
    segment_path,
    three_messages,
)
from tools.damage import base, judge, some_cases

CASES = 500


def test_a_tail_that_was_cut_anywhere_in_the_last_record_heals() -> None:
    whole = three_messages(witness=False)
    data = whole.disk.contents(ONE)
    end, _ = end_of(data)
    start = records_in(data)[-1][0]
    for cut in range(start, end - 8, 5):  # behind that is padding
        for rest in (bytes(len(data) - cut), Random(cut).randbytes(len(data) - cut)):
            bench = three_messages(witness=False)
            bench.disk.put(ONE, data[:cut] + rest)
            heals(bench, SENT[:2], torn=bool(data[start:cut].strip(b"\0")) or bool(rest.strip(b"\0")))


def test_junk_behind_the_last_record_heals() -> None:
    bench = three_messages(witness=False)
    data = bench.disk.contents(ONE)
    end, _ = end_of(data)
    for size in (1, 31, 32, 1000):
        bench.disk.put(ONE, patched(data, end, Random(size).randbytes(size)))
        copy = Bench(disk=bench.disk.copy(Random(1)))
        heals(copy, SENT, torn=True)


def test_a_later_part_of_an_unsynced_write_does_not_make_damage() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(SENT[0])
        run.pump()
        for body in SENT[1:]:
            run.send(body)
        run.pump()
    data = bench.disk.contents(ONE)
    second = records_in(data)[2][0]
    bench.disk.put(ONE, patched(data, second, bytes(100)))
    heals(bench, SENT[:1], torn=True)


def test_a_torn_tail_is_kept_as_evidence_and_never_read_again() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(SENT[0])
        run.pump()
        for body in SENT[1:]:
            run.send(body)
        run.pump()
    data = patched(bench.disk.contents(ONE), records_in(bench.disk.contents(ONE))[2][0], bytes(64))
    bench.disk.put(ONE, data)
    for _ in range(3):
        with bench.running() as run:
            assert bodies(run.found)[:1] == SENT[:1] and SENT[2] not in bodies(run.found)
            run.send(b"again")
            run.pump()
    assert bench.disk.contents(ONE) == data
    assert bodies(bench.replay()[0]) == [SENT[0], b"again", b"again", b"again"]


def test_every_single_bit_that_a_later_record_vouches_for_is_found() -> None:
    bench = three_messages()
    data = bench.disk.contents(ONE)
    witness = next(at for at, fields, _ in records_in(data) if fields[3] == RecordType.WITNESS)
    for at in range(witness):
        bit = 1 << (at % 8)
        bench.disk.put(ONE, patched(data, at, bytes([data[at] ^ bit])))
        with pytest.raises(DataDamaged):
            bench.replay()
        bench.disk.kill()


def test_every_sector_that_a_later_record_vouches_for_is_missed() -> None:
    bench = three_messages()
    data = bench.disk.contents(ONE)
    last = records_in(data)[-1][0]
    assert last % 512 == 0
    for sector in range(0, last, 512):
        for new in (bytes(512), Random(sector).randbytes(512), data[512:1024]):
            if data[sector : sector + 512] != new:
                bench.disk.put(ONE, patched(data, sector, new))
                with pytest.raises(DataDamaged):
                    bench.replay()
                bench.disk.kill()


def test_the_text_about_damage_says_where_what_and_what_to_do() -> None:
    bench = three_messages()
    data = bench.disk.contents(ONE)
    at = records_in(data)[2][0]
    bench.disk.put(ONE, patched(data, at + 150, b"?"))
    text = refused(bench)
    for part in (ONE, f"offset {at}:", "lsn 3", "/queue/a", "docs/operations.md"):
        assert part in text


def test_damage_in_an_older_segment_is_found_and_says_how_far_it_may_reach() -> None:
    bench = Bench()
    with bench.running() as run:
        while len(run.journal.segments) < 3:
            run.send(b"x" * 300)
        run.pump()
        last = run.journal.segments[0].last_lsn
    data = bench.disk.contents(ONE)
    at, fields, _ = records_in(data)[-2]  # the one before the SEAL
    bench.disk.put(ONE, patched(data, at, bytes(len(data) - at)))
    text = refused(bench)
    assert f"lsn {fields[5]} to {last}" in text and "names a later end" in text


def test_a_file_that_became_shorter_is_damage() -> None:
    for size in (0, 100, 511, 512, 600, 1000, 4095):
        bench = three_messages()
        bench.disk.put(ONE, bench.disk.contents(ONE)[:size])
        refused(bench)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_segment_is_damage_and_named(number: int) -> None:
    bench = Bench()
    with bench.running() as run:
        while len(run.journal.segments) < 4:
            run.send(b"x" * 300)
        run.pump()
    bench.disk.remove(segment_path(number))
    text = refused(bench)
    assert f"segment {number} missing" in text and "lsn" in text


def test_segments_that_changed_places_or_came_from_elsewhere_are_damage() -> None:
    bench = Bench()
    with bench.running() as run:
        while len(run.journal.segments) < 4:
            run.send(b"x" * 300)
        run.pump()
    second, third = bench.disk.contents(segment_path(2)), bench.disk.contents(segment_path(3))
    bench.disk.put(segment_path(2), third)
    assert "segment 2" in refused(bench)
    other = (
        SegmentHeader.unpack(second[:SEGMENT_HEADER_BYTES], "")
        .pack()
        .replace(bytes(range(16)), b"another log id!!")
    )
    bench.disk.put(segment_path(2), resealed(other, SEGMENT_HEADER_BYTES) + second[SEGMENT_HEADER_BYTES:])
    assert b"another log id!!".hex() in refused(bench)


def test_an_old_copy_of_a_segment_is_damage() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(SENT[0])
        run.pump()
        old = bench.disk.contents(ONE)
        while len(run.journal.segments) < 2:
            run.send(b"x" * 300)
        run.pump()
    bench.disk.put(ONE, old)
    assert "names a later end" in refused(bench)


def test_any_small_damage_to_a_whole_folder_is_named_or_harmless() -> None:
    """A spread over what `python tools/damage.py` runs in full; `--case` runs one of them."""
    cases = some_cases(base(), CASES, seed=1)
    verdicts = {case: judge(case) for case in cases}
    assert {str(case): verdict.problems for case, verdict in verdicts.items() if verdict.problems} == {}
    ways = {verdict.way for verdict in verdicts.values()}
    assert {"exact", "refused with 65"} <= ways
    assert sum(verdict.way == "blind" for verdict in verdicts.values()) <= 1
