"""Reading records back from their places: what was written, or a named damage; never anything else."""

from __future__ import annotations

import errno
from random import Random

import pytest

from broker.journal.reader import Damage, Reader, Record
from broker.journal.records import (
    Carried,
    Messages,
    RecordType,
    carried_payload,
    messages_payload,
    moved_payload,
    transaction_payload,
)
from broker.journal.segment import SEGMENT_HEADER_BYTES, number_of, offset_of, place_of
from broker.system import Handle
from tests.journal.harness import (
    LOG,
    LOG_ID,
    ONE,
    Bench,
    Running,
    Settings,
    forged,
    patched,
    records_in,
    segment_path,
    three_messages,
)
from tests.support.simdisk import Fault, SimDisk

Written = dict[int, tuple[int, list[bytes]]]  # by place: (lsn, bodies)


def reader(disk: SimDisk) -> Reader:
    return Reader(disk, LOG, LOG_ID)


def put(run: Running, written: Written, bodies: list[bytes]) -> int:
    seq = run.journal.take_seqs(len(bodies))
    payload = messages_payload(b"/queue/a", (), b"h:1\n", 1, seq, None, bodies)
    lsn = run.journal.append(RecordType.MESSAGES, payload)
    run.pump()
    written[run.journal.place] = (lsn, bodies)
    return run.journal.place


def content(result: Record | Damage) -> tuple[int, list[bytes]]:
    assert isinstance(result, Record), result
    bodies: list[bytes] = []
    for kind, value in result.values:
        assert kind is RecordType.MESSAGES and isinstance(value, Messages)
        bodies += value.bodies
    return result.lsn, bodies


def places_of(disk: SimDisk, path: str = ONE, kind: int = RecordType.MESSAGES) -> list[int]:
    number = int(path.rpartition("/")[2][:20])
    return [place_of(number, at) for at, fields, _ in records_in(disk.contents(path)) if fields[3] == kind]


class Counting(SimDisk):
    """Remembers the size of each read."""

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        self.reads.append(size)
        return super().read(handle, size, offset)

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self.reads: list[int] = []


@pytest.mark.parametrize("seed", range(30))
def test_whatever_places_are_asked_in_whatever_order_what_was_written_comes_back(seed: int) -> None:
    rng = Random(seed)
    bench = Bench(settings=Settings(segment_size=rng.choice([4096, 64 * 1024, 4 * 1024 * 1024])))
    written: Written = {}
    with bench.running() as run:
        for _ in range(60):
            size = rng.choice([0, 1, 7, 200, 3000, 5000, 40_000])
            put(run, written, [rng.randbytes(rng.randint(0, size)) for _ in range(rng.choice([1, 1, 3, 64]))])
    reading = reader(bench.disk)
    for _ in range(10):
        asked = rng.choices(list(written), k=rng.randint(1, 40))
        if rng.random() < 0.7:
            asked.sort()
        results = reading.read(asked)
        assert [result.place for result in results] == asked
        assert [content(result) for result in results] == [written[place] for place in asked]


def test_a_record_larger_than_one_read_comes_back() -> None:
    bench = Bench(settings=Settings(segment_size=8 * 1024 * 1024))
    written: Written = {}
    with bench.running() as run:
        for size in (10, 3 * 1024 * 1024, 10, 1024 * 1024, 10):
            put(run, written, [Random(size).randbytes(size)])
    for order in (list(written), list(reversed(written))):
        assert [content(result) for result in reader(bench.disk).read(order)] == [written[p] for p in order]


def test_neighbours_come_in_one_read_and_far_ones_in_small_reads() -> None:
    bench = Bench(disk=Counting(Random(1)), settings=Settings(segment_size=4 * 1024 * 1024))
    written: Written = {}
    with bench.running() as run:
        for _ in range(40):
            put(run, written, [bytes(1000)] * 16)
    assert isinstance(bench.disk, Counting)
    reading, places = reader(bench.disk), list(written)
    reading.read(places[:1])  # opens the file, and shows how large records are here
    bench.disk.reads.clear()
    reading.read(places)
    assert len(bench.disk.reads) <= 2 and sum(bench.disk.reads) < 1_400_000, bench.disk.reads
    bench.disk.reads.clear()
    reading.read(places[::13])
    assert sum(bench.disk.reads) < 4 * (4096 + 17_000), bench.disk.reads


def test_each_kind_of_record_that_holds_messages_or_notes_can_be_read() -> None:
    bench = Bench()
    with bench.running() as run:
        kinds = [
            (RecordType.MESSAGES, messages_payload(b"/queue/a", (b"q",), b"", 1, 5, [b"x:1\n"], [b"one"])),
            (RecordType.MOVED, moved_payload(b"a", b"b", [(5, 5, 1, 1)], b"{}")),
            (RecordType.CARRIED, carried_payload(b"b", b"/queue/a", b"", 1, b"{}", [(5, 1, 1)], None, [b"one"])),
            (
                RecordType.TRANSACTION,
                transaction_payload([
                    (RecordType.MESSAGES, messages_payload(b"/queue/a", (), b"", 1, 6, None, [b"two"])),
                    (RecordType.CARRIED, carried_payload(b"b", b"d", b"", 1, b"", [(7, 0, 0)], None, [b"three"])),
                ]),
            ),
        ]  # fmt: skip
        places = []
        for kind, payload in kinds:
            run.journal.append(kind, payload)
            places.append(run.journal.place)
        run.pump()
    one, moved, carried, both = reader(bench.disk).read(places)
    assert isinstance(one, Record) and isinstance(moved, Record)
    assert isinstance(carried, Record) and isinstance(both, Record)
    assert [kind for kind, _ in one.values + moved.values + carried.values] == [
        RecordType.MESSAGES, RecordType.MOVED, RecordType.CARRIED,
    ]  # fmt: skip
    first, second = both.values
    assert isinstance(first[1], Messages) and first[1].bodies == [b"two"]
    assert isinstance(second[1], Carried) and second[1].bodies == [b"three"]


def test_any_flipped_bit_of_a_record_is_damage_and_its_neighbours_are_not() -> None:
    bench = three_messages()
    before, place, after = places_of(bench.disk)
    data = bench.disk.contents(ONE)
    for at in range(offset_of(place), offset_of(after)):
        bench.disk.put(ONE, patched(data, at, bytes([data[at] ^ (1 << at % 8)])))
        results = reader(bench.disk).read([before, place, after])
        assert [type(result) for result in results] == [Record, Damage, Record], at
        damage = results[1]
        assert isinstance(damage, Damage) and damage.place == place and not damage.passing
        assert damage.text.startswith(f"{ONE}: offset {offset_of(place)}: "), damage.text


def test_a_place_where_no_record_begins_is_damage() -> None:
    bench = three_messages()
    place = places_of(bench.disk)[0]
    size = len(bench.disk.contents(ONE))
    for wrong in (place + 8, place + 1, place_of(1, 0), place_of(1, size), place_of(1, size - 8), place_of(1, 2**31)):
        assert isinstance(reader(bench.disk).read([wrong])[0], Damage), wrong


def test_a_record_of_the_journals_own_is_damage_where_messages_are_asked_for() -> None:
    bench = three_messages()
    (place, *_) = places_of(bench.disk, kind=RecordType.EPOCH)
    (damage,) = reader(bench.disk).read([place])
    assert isinstance(damage, Damage) and "expected a record with messages" in damage.text


def test_a_sound_record_in_the_wrong_place_is_damage() -> None:
    bench = three_messages()
    place = places_of(bench.disk)[0]
    payload = b"".join(messages_payload(b"/queue/a", (), b"", 1, 5, None, [b"stale"]))
    data = bench.disk.contents(ONE)
    for lsn, expected in ((0, Damage), (1, Record), (3, Record), (500, Damage), (2**63, Damage)):
        record = forged(payload, 0, RecordType.MESSAGES, 0, lsn, 0)
        bench.disk.put(ONE, patched(data, offset_of(place), record))
        assert isinstance(reader(bench.disk).read([place])[0], expected), lsn


def test_flags_and_types_of_a_newer_version_are_damage_to_the_reader() -> None:
    bench = three_messages()
    place = places_of(bench.disk)[0]
    payload = b"".join(messages_payload(b"/queue/a", (), b"", 1, 5, None, [b"new"]))
    data = bench.disk.contents(ONE)
    for kind, flags in ((RecordType.MESSAGES, 1), (99, 0)):
        bench.disk.put(ONE, patched(data, offset_of(place), forged(payload, 0, kind, flags, 2, 0)))
        (damage,) = reader(bench.disk).read([place])
        assert isinstance(damage, Damage)
        assert "not known" in damage.text or "does not know" in damage.text


def test_a_missing_file_a_short_file_and_a_read_error_are_damage() -> None:
    bench = three_messages()
    place, _, last = places_of(bench.disk)
    (missing,) = reader(bench.disk).read([place_of(7, SEGMENT_HEADER_BYTES)])
    assert isinstance(missing, Damage) and segment_path(7) in missing.text and not missing.passing

    data = bench.disk.contents(ONE)
    for cut in range(offset_of(last), offset_of(last) + 100):
        bench.disk.put(ONE, data[:cut])
        first, short = reader(bench.disk).read([place, last])
        assert isinstance(first, Record) and isinstance(short, Damage), cut
        assert "ends before" in short.text
    bench.disk.put(ONE, data)

    for op in ("open", "read"):
        for code, passing in ((errno.EIO, False), (errno.EMFILE, True)):
            reading = reader(bench.disk)
            bench.disk.faults.append(Fault(1, code, op, sticky=True))
            results = reading.read([place, last])
            bench.disk.faults.clear()
            assert all(isinstance(result, Damage) and result.passing is passing for result in results), (op, code)
            assert all(isinstance(result, Record) for result in reading.read([place, last]))


def test_a_bad_sector_costs_only_the_records_on_it() -> None:
    class BadSector(SimDisk):
        bad = -1

        def read(self, handle: Handle, size: int, offset: int) -> bytes:
            if offset <= self.bad < offset + size:
                raise OSError(errno.EIO, "bad sector")
            return super().read(handle, size, offset)

    bench = Bench(disk=BadSector(Random(1)), settings=Settings(segment_size=1024 * 1024))
    written: Written = {}
    with bench.running() as run:
        for _ in range(20):
            put(run, written, [bytes(1000)] * 8)
    places = list(written)
    assert isinstance(bench.disk, BadSector)
    bench.disk.bad = offset_of(places[10]) + 3000
    results = reader(bench.disk).read(places)
    assert [index for index, result in enumerate(results) if isinstance(result, Damage)] == [10]


def test_the_file_of_another_segment_or_log_is_damage() -> None:
    bench = Bench()
    written: Written = {}
    with bench.running() as run:
        while run.journal.segment.number < 3:
            put(run, written, [bytes(1000)])
    one = [place for place in written if number_of(place) == 1]
    bench.disk.put(ONE, bench.disk.contents(segment_path(2)))
    assert all(isinstance(result, Damage) for result in reader(bench.disk).read(one))
    (other,) = Reader(bench.disk, LOG, bytes(16)).read([next(p for p in written if number_of(p) == 2)])
    assert isinstance(other, Damage) and "log" in other.text


def test_a_segment_whose_own_header_is_rotten_still_gives_its_sound_records() -> None:
    bench = three_messages()
    bench.disk.put(ONE, patched(bench.disk.contents(ONE), 40, b"\xff"))
    assert all(isinstance(result, Record) for result in reader(bench.disk).read(places_of(bench.disk)))


def test_files_stay_open_a_few_at_a_time_and_a_forgotten_one_is_closed() -> None:
    bench = Bench()
    written: Written = {}
    with bench.running() as run:
        while run.journal.segment.number < 20:
            put(run, written, [bytes(3000)])
    opened = set[str]()
    bench.disk.on_call = lambda op, path: (opened.add if op == "open" else opened.discard)(path) if op in (
        "open", "close") else None  # fmt: skip
    reading = reader(bench.disk)
    assert all(isinstance(result, Record) for result in reading.read(list(written)))
    assert 1 < len(opened) <= 8
    path = min(opened)
    reading.forget(int(path.rpartition("/")[2][:20]))
    reading.forget(12345)
    assert path not in opened
    reading.close()
    assert not opened
