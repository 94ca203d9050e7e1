"""Walking over damage: all that is sound is found, and what is not is named; and the scrub, which walks in steps."""

from __future__ import annotations

import errno
from random import Random
from zlib import crc32

import pytest

from broker.errors import FormatNotKnown
from broker.journal.reader import Damage
from broker.journal.records import RecordType
from broker.journal.scrub import Scrub, ScrubResult
from broker.journal.segment import SEGMENT_HEADER_BYTES, SegmentHeader, place_of
from broker.journal.view import ReadOnlyDisk, TolerantDisk
from broker.journal.walk import Gap, Sound, Walk
from broker.system import Handle
from tests.journal.harness import (
    LOG,
    LOG_ID,
    Bench,
    Settings,
    forged,
    patched,
    records_in,
    resealed,
    segment_path,
)
from tests.support.simdisk import Fault, SimDisk

Originals = dict[int, tuple[int, int, bytes]]  # by LSN: (offset, type, payload)
TWO = segment_path(2)


def two_segments(rng: Random, segment_size: int = 8192) -> Bench:
    """Segment 2 is sealed and full; segment 3 names its end."""
    bench = Bench(settings=Settings(segment_size=segment_size))
    with bench.running() as run:
        while run.journal.segment.number < 3:
            run.send(rng.randbytes(rng.choice([3, 40, 300])), rng.choice([1, 1, 4]))
            run.pump()
        run.pump()
    return bench


def originals(disk: SimDisk, path: str = TWO) -> Originals:
    return {fields[5]: (at, fields[3], payload) for at, fields, payload in records_in(disk.contents(path))}


def header(disk: SimDisk, number: int) -> SegmentHeader:
    return SegmentHeader.unpack(disk.contents(segment_path(number))[:SEGMENT_HEADER_BYTES], "")


def walked(disk: SimDisk, *, header_lost: bool = False, end_known: bool = True) -> list[Sound | Gap]:
    own, following = header(disk, 2), header(disk, 3)
    handle = disk.open(TWO)
    walk = Walk(
        disk, handle, TWO, crc32(LOG_ID),
        first_lsn=own.first_lsn,
        prev_crc=None if header_lost else own.prev_crc,
        stop=(following.prev_last_lsn, following.prev_crc) if end_known else None,
    )  # fmt: skip
    items = list(walk.items())
    disk.close(handle)
    return items


def check(items: list[Sound | Gap], written: Originals, first: int, last: int) -> set[int]:
    """Each record is there as it was written or its LSN is in a gap; the LSNs in gaps."""
    expected, lost = first, set[int]()
    for item in items:
        if isinstance(item, Gap):
            assert item.first_lsn is not None and item.last_lsn is not None and item.text
            if item.last_lsn >= expected:  # (a broken chain names the record before, too)
                lost.update(range(item.first_lsn, item.last_lsn + 1))
                expected = item.last_lsn + 1
            continue
        assert (item.offset, item.kind, item.data[item.start : item.end]) == written[item.lsn]
        assert item.lsn == expected
        expected += 1
    assert expected == last + 1
    return lost


@pytest.mark.parametrize("header_lost", [False, True])
@pytest.mark.parametrize("end_known", [False, True])
def test_a_sound_segment_is_walked_without_a_gap(header_lost: bool, end_known: bool) -> None:
    bench = two_segments(Random(1))
    written = originals(bench.disk)
    items = walked(bench.disk, header_lost=header_lost, end_known=end_known)
    assert not check(items, written, min(written), max(written))


@pytest.mark.parametrize("seed", range(60))
def test_what_is_sound_is_found_and_what_is_not_is_named(seed: int) -> None:
    rng = Random(seed)
    bench = two_segments(rng)
    written = originals(bench.disk)
    data = bytearray(bench.disk.contents(TWO))
    ends = {lsn: at + 32 + (len(payload) + 7 & -8) for lsn, (at, _, payload) in written.items()}
    spoilt = set[int]()
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(SEGMENT_HEADER_BYTES, max(ends.values()))
        size = rng.choice([1, 1, 8, 512, 1500])
        data[begin : begin + size] = rng.choice([bytes(size), rng.randbytes(size)])
        now = bytes(data)
        spoilt = {
            lsn
            for lsn, (at, _, _) in written.items()
            if now[at : ends[lsn]] != bench.disk.contents(TWO)[at : ends[lsn]]
        }
    del data[len(bench.disk.contents(TWO)) :]
    bench.disk.put(TWO, bytes(data))
    for header_lost in (False, True):
        assert check(walked(bench.disk, header_lost=header_lost), written, min(written), max(written)) == spoilt
    # Scrub, in steps of any size, sees the same.
    damages = scrubbed(bench.disk, written, rng.choice([1, 500, 4000, 10**6]))
    assert bool(damages) == bool(spoilt)


def test_every_flipped_byte_of_a_segment_is_named_and_costs_one_record() -> None:
    bench = two_segments(Random(3), 4096)
    written = originals(bench.disk)
    data = bench.disk.contents(TWO)
    ends = {lsn: at + 32 + (len(payload) + 7 & -8) for lsn, (at, _, payload) in written.items()}
    for at in range(SEGMENT_HEADER_BYTES, max(ends.values())):
        (hurt,) = [lsn for lsn, (begin, _, _) in written.items() if begin <= at < ends[lsn]]
        bench.disk.put(TWO, patched(data, at, bytes([data[at] ^ (1 << at % 8)])))
        assert check(walked(bench.disk), written, min(written), max(written)) == {hurt}, at


def test_a_damaged_record_names_its_queue_where_that_can_be_read() -> None:
    bench = two_segments(Random(3))
    written = originals(bench.disk)
    at, _, payload = next(item for item in written.values() if item[1] == RecordType.MESSAGES)
    bench.disk.put(TWO, patched(bench.disk.contents(TWO), at + 32 + len(payload) - 1, b"?"))
    (gap,) = [item for item in walked(bench.disk) if isinstance(item, Gap)]
    assert gap.queues == (b"/queue/a",) and gap.offset == at and gap.first_lsn == gap.last_lsn


def test_a_replaced_record_breaks_the_chain_and_both_sides_are_named() -> None:
    bench = two_segments(Random(3))
    written = originals(bench.disk)
    lsn = min(written) + 3
    at, kind, payload = written[lsn]
    before = records_in(bench.disk.contents(TWO))[2][1][1]
    stale = forged(bytes(len(payload)), before, kind, 0, lsn, lsn - 1)
    bench.disk.put(TWO, patched(bench.disk.contents(TWO), at, stale))
    (gap,) = [item for item in walked(bench.disk) if isinstance(item, Gap)]
    assert (gap.first_lsn, gap.last_lsn) == (lsn, lsn + 1) and gap.offset == gap.end
    assert len([item for item in walked(bench.disk) if isinstance(item, Sound)]) == len(written)


def test_a_last_record_that_is_not_the_named_one_is_a_gap() -> None:
    bench = two_segments(Random(3))
    following = header(bench.disk, 3)
    three = segment_path(3)
    data = bench.disk.contents(three)
    bench.disk.put(three, resealed(patched(data, 64, bytes(4)), SEGMENT_HEADER_BYTES))
    (gap,) = [item for item in walked(bench.disk) if isinstance(item, Gap)]
    assert gap.first_lsn == gap.last_lsn == following.prev_last_lsn


def test_a_seal_that_does_not_fit_is_a_gap() -> None:
    bench = two_segments(Random(3))
    data = bench.disk.contents(TWO)
    at, fields, payload = records_in(data)[-1]
    assert fields[3] == RecordType.SEAL
    wrong = forged(payload[:-1] + b"?", fields[2], RecordType.SEAL, 0, fields[5], fields[6])
    bench.disk.put(TWO, patched(data, at, wrong))
    (gap,) = [item for item in walked(bench.disk) if isinstance(item, Gap)]
    assert "SEAL" in gap.text and gap.first_lsn == fields[5]


def test_a_newer_versions_record_ends_the_walk_with_a_refusal() -> None:
    bench = two_segments(Random(3))
    data = bench.disk.contents(TWO)
    at, fields, payload = records_in(data)[2]
    bench.disk.put(TWO, patched(data, at, forged(payload, fields[2], fields[3], 1, fields[5], fields[6])))
    with pytest.raises(FormatNotKnown):
        walked(bench.disk)


# The scrub


def end_of(written: Originals) -> int:
    return max(at + 32 + (len(payload) + 7 & -8) for at, _, payload in written.values())


def scrubbed(disk: SimDisk, written: Originals, budget: int) -> list[Damage]:
    """All of segment 2, in steps."""
    damages: list[Damage] = []
    offset, scrub = 0, Scrub(disk, LOG, LOG_ID)
    for _ in range(1000):
        result = scrub.step(2, min(written), max(written), end_of(written), offset, budget)
        damages += result.damages
        if result.done:
            return damages
        assert result.offset > offset and result.offset in {at for at, _, _ in written.values()}
        offset = result.offset
    raise AssertionError("the scrub does not get on")


def test_a_scrub_reads_about_as_much_as_it_may_and_finds_nothing_in_a_sound_segment() -> None:
    bench = two_segments(Random(1), 256 * 1024)
    written = originals(bench.disk)
    result = Scrub(bench.disk, LOG, LOG_ID).step(2, min(written), max(written), end_of(written), 0, 10_000)
    assert not result.done and not result.damages and 10_000 <= result.size < 13_000
    for budget in (1, 5000, 10**9):
        assert scrubbed(bench.disk, written, budget) == []


def test_a_scrub_finds_each_flipped_byte_of_header_and_records_in_steps_of_any_size() -> None:
    bench = two_segments(Random(3), 4096)
    written = originals(bench.disk)
    data = bench.disk.contents(TWO)
    for at in range(0, end_of(written), 3):
        bench.disk.put(TWO, patched(data, at, bytes([data[at] ^ (1 << at % 8)])))
        for budget in (1, 700, 10**6):
            damages = scrubbed(bench.disk, written, budget)
            assert len(damages) == 1 and not damages[0].passing, (at, budget)
            begins = [begin for begin, _, _ in written.values() if begin <= at]
            assert damages[0].place == place_of(2, max(begins, default=0)) and TWO in damages[0].text


def test_a_scrub_finds_a_broken_chain_between_two_steps() -> None:
    bench = two_segments(Random(3))
    written = originals(bench.disk)
    for lsn in list(written)[1:-2]:
        copy = bench.disk.copy(Random(1))
        data = copy.contents(TWO)
        at, kind, payload = written[lsn]
        before = next(fields[1] for _, fields, _ in records_in(data) if fields[5] == lsn - 1)
        copy.put(TWO, patched(data, at, forged(bytes(len(payload)), before, kind, 0, lsn, lsn - 1)))
        assert [damage.place for damage in scrubbed(copy, written, 1)] == [place_of(2, written[lsn + 1][0])]


def test_a_scrub_drops_the_cache_so_that_rot_on_the_medium_is_seen() -> None:
    bench = two_segments(Random(3))
    written = originals(bench.disk)
    node = bench.disk._file(TWO)
    node.durable[written[min(written) + 2][0] + 40] ^= 1
    assert len(scrubbed(bench.disk, written, 10**6)) == 1


def test_a_missing_file_a_short_one_and_an_end_elsewhere_are_damage() -> None:
    bench = two_segments(Random(3))
    written = originals(bench.disk)
    last = max(written)
    scrub, end = Scrub(bench.disk, LOG, LOG_ID), end_of(written)
    (wrong_end,) = scrub.step(2, min(written), last, end + 8, 0, 10**6).damages
    assert "end" in wrong_end.text
    bench.disk.put(TWO, bench.disk.contents(TWO)[: written[last][0]])
    (short,) = scrubbed(bench.disk, written, 10**6)
    assert short.place == place_of(2, written[last][0]) and f"{last}" in short.text
    bench.disk.remove(TWO)
    result = scrub.step(2, min(written), last, end, 0, 10**6)
    assert result.done and len(result.damages) == 1 and not result.damages[0].passing


@pytest.mark.parametrize("op", ["open", "read", "size", "drop_cache", "close"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("sticky", [False, True])
def test_nothing_that_a_disk_does_is_raised_by_a_scrub(op: str, code: int, sticky: bool) -> None:
    bench = two_segments(Random(3))
    written = originals(bench.disk)
    for at in range(1, 6):
        bench.disk.counts.clear()
        bench.disk.faults.append(Fault(at, code, op, sticky=sticky))
        result = Scrub(bench.disk, LOG, LOG_ID).step(2, min(written), max(written), end_of(written), 0, 10**6)
        fault = bench.disk.faults.pop()
        assert isinstance(result, ScrubResult)
        if op == "open" and fault.hits:
            assert result.damages and result.damages[0].passing is (code == errno.EMFILE)
            assert result.done is (code != errno.EMFILE)
        if op == "read" and sticky and fault.hits:
            assert any("cannot be read" in damage.text for damage in result.damages)


def test_a_sector_that_cannot_be_read_is_named_and_the_rest_is_verified() -> None:
    class BadSector(SimDisk):
        bad = range(0)

        def read(self, handle: Handle, size: int, offset: int) -> bytes:
            if offset < self.bad.stop and self.bad.start < offset + size:
                raise OSError(errno.EIO, "bad sector")
            return super().read(handle, size, offset)

    bench = two_segments(Random(3), 64 * 1024)
    written = originals(bench.disk)
    disk = BadSector(Random(1))
    disk.root = bench.disk.root
    disk.bad = range(20_480, 20_992)
    damages = scrubbed(disk, written, 10**6)
    assert [damage for damage in damages if "cannot be read" in damage.text and damage.place == place_of(2, 20_480)]
    own, following = header(bench.disk, 2), header(bench.disk, 3)
    tolerant = TolerantDisk(disk)
    handle = tolerant.open(TWO)
    stop = (following.prev_last_lsn, following.prev_crc)
    walk = Walk(tolerant, handle, TWO, crc32(LOG_ID), first_lsn=own.first_lsn, prev_crc=own.prev_crc, stop=stop)
    lost = check(list(walk.items()), written, min(written), max(written))
    assert lost and all(written[lsn][0] < 24_576 and written[lsn][0] > 19_000 for lsn in lost)


def test_a_disk_that_is_only_looked_at_refuses_every_change() -> None:
    disk = SimDisk(Random(1))
    disk.make_dir("d")
    handle = disk.create("d/f")
    disk.write(handle, [b"kept"], 0)
    disk.trace = []
    view = ReadOnlyDisk(disk)
    for change in (
        lambda: view.make_dir("d/e"),
        lambda: view.create("d/g"),
        lambda: view.open("d/f", write=True),
        lambda: view.lock("d/LOCK"),
        lambda: view.allocate(handle, 10),
        lambda: view.write(handle, [b"x"], 0),
        lambda: view.truncate(handle, 0),
        lambda: view.rename("d/f", "d/g"),
        lambda: view.link("d/f", "d/g"),
        lambda: view.unlink("d/f"),
    ):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(FileNotFoundError):
        view.lock("d/LOCK", shared=True)
    view.sync_dir("d"), view.sync_all(handle), view.sync_data(handle)
    assert disk.contents("d/f") == b"kept" and disk.trace == [("lock", "d/LOCK")]
