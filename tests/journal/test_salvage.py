"""The tools for damaged folders, on the simulated disk: what can be verified is saved, and the rest is named."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import pytest

from broker.errors import DataDamaged, DataDirInUse, FormatNotKnown, UsageError
from broker.journal.audit import Audit, Hole
from broker.journal.checkpoint import Basis, CheckpointFile, Part, encode_part
from broker.journal.describe import describe
from broker.journal.forget import Forget
from broker.journal.records import (
    Acked,
    Carried,
    Lost,
    Messages,
    Moved,
    RecordType,
    Returned,
    Value,
    acked_payload,
    carried_payload,
    decode,
    delivered_payload,
    lost_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    transaction_payload,
)
from broker.journal.recovery import open_log
from broker.journal.rehearsal import Outcome, rehearse, stranded
from broker.journal.salvage import MISSING_NAME, Salvage
from broker.journal.segment import SEGMENT_HEADER_BYTES, number_of, segment_name
from broker.journal.transfer import Salvaged
from broker.journal.waiting import Waiting
from tests.journal.harness import (
    DATA,
    LOG,
    LOG_ID,
    META,
    Bench,
    FixedRng,
    ManualClock,
    Running,
    Settings,
    patched,
    resealed,
    segment_path,
)
from tests.support.simdisk import PowerLoss, SimDisk

OUT = "out"
QUEUES = [b"/queue/a", b"/queue/b", b"/queue/dead.a"]
Key = tuple[bytes, int]


class OtherRng:
    def token(self, size: int) -> bytes:
        return bytes(range(100, 100 + size))


class Kept(NamedTuple):
    """All that has to survive of a message."""

    destination: bytes
    head: bytes
    stamp: int
    own: bytes
    body: bytes
    deliveries: int = 0
    failures: int = 0
    note: bytes = b""


def apply(state: dict[Key, Kept], value: Value) -> None:
    """What a record means, as plainly as it can be said."""
    if isinstance(value, Messages):
        for at, body in enumerate(value.bodies):
            own = value.owns[at] if value.owns else b""
            for queue in value.queues or (value.destination,):
                state[queue, value.first_seq + at] = Kept(value.destination, value.head, value.stamp_ms, own, body)
    elif isinstance(value, Carried):
        for at, (seq, deliveries, failures) in enumerate(value.entries):
            own = value.owns[at] if value.owns else b""
            state[value.queue, seq] = Kept(
                value.destination, value.head, value.stamp_ms, own, value.bodies[at], deliveries, failures, value.note
            )
    elif isinstance(value, Acked | Lost):
        for first, last in value.seqs:
            for seq in range(first, last + 1):
                state.pop((value.queue, seq), None)
    elif isinstance(value, Returned):
        for first, last, deliveries, failures in value.entries:
            for seq in range(first, last + 1):
                if (value.queue, seq) in state:
                    kept = state[value.queue, seq]
                    state[value.queue, seq] = kept._replace(deliveries=deliveries, failures=failures)
    elif isinstance(value, Moved):
        for first, last, deliveries, failures in value.entries:
            for seq in range(first, last + 1):
                if (kept := state.pop((value.source, seq), None)) is not None:
                    kept = kept._replace(deliveries=deliveries, failures=failures, note=value.note)
                    state[value.target, seq] = kept


@dataclass
class Traffic:
    """Random records of every kind, and what they should come to."""

    run: Running
    rng: Random
    state: dict[Key, Kept] = field(default_factory=dict)
    parts: list[tuple[RecordType, list[bytes]]] | None = None
    written: dict[int, list[Value]] = field(default_factory=dict)  # by LSN
    places: dict[int, int] = field(default_factory=dict)

    def step(self) -> None:
        if self.rng.random() < 0.1:
            self.parts = []
            for _ in range(self.rng.randint(1, 4)):
                self._one()
            parts, self.parts = self.parts, None
            if parts:
                self._append(RecordType.TRANSACTION, transaction_payload(parts))
        else:
            self._one()
        if self.rng.random() < 0.7:
            self.run.pump()

    def _append(self, kind: RecordType, payload: list[bytes]) -> None:
        data = b"".join(payload)
        if self.parts is not None:
            self.parts.append((kind, payload))
            return
        lsn = self.run.journal.append(kind, payload)
        self.places[lsn] = self.run.journal.place
        self.written[lsn] = [value for _, value in decode(kind, data, 0, len(data))]

    def _one(self) -> None:
        rng, state = self.rng, self.state
        before = len(self.parts or ())
        queue = rng.choice(QUEUES)
        mine = [seq for name, seq in state if name == queue]
        seqs = sorted(rng.sample(mine, rng.randint(1, min(4, len(mine))))) if mine else []
        kind, payload = RecordType.MESSAGES, []
        dice = rng.random() if seqs else 0
        if dice < 0.45:
            count = rng.choice([1, 1, 3, 64])
            queues = rng.choice([(), (), (b"/queue/a", b"/queue/b"), (b"/queue/b",)])
            owns = [b"n:%d\n" % n for n in range(count)] if rng.random() < 0.5 else None
            bodies = [rng.randbytes(rng.choice([0, 5, 100])) for _ in range(count)]
            seq = self.run.journal.take_seqs(count)
            payload = messages_payload(b"/queue/a", queues, b"h:1\n", seq, seq, owns, bodies)
        elif dice < 0.7:
            kind, payload = RecordType.ACKED, acked_payload(queue, seqs)
        elif dice < 0.8:
            entries = [(seq, seq, rng.randint(1, 9), rng.randint(0, 3)) for seq in seqs]
            kind, payload = RecordType.RETURNED, returned_payload(queue, entries)
        elif dice < 0.9 and queue != b"/queue/dead.a":
            entries = [(seq, seq, rng.randint(1, 9), 0) for seq in seqs]
            note = json.dumps([["reason", str(rng.random())]]).encode()
            kind, payload = RecordType.MOVED, moved_payload(queue, b"/queue/dead.a", entries, note)
        elif dice < 0.93:
            kind, payload = RecordType.LOST, lost_payload(queue, seqs)
        else:
            kept = [state[queue, seq] for seq in seqs]
            same = [at for at, one in enumerate(kept) if one[:3] + one[7:] == kept[0][:3] + kept[0][7:]]
            one = kept[0]
            payload = carried_payload(
                queue, one.destination, one.head, one.stamp, one.note,
                [(seqs[at], kept[at].deliveries, kept[at].failures) for at in same],
                [kept[at].own for at in same] if any(kept[at].own for at in same) else None,
                [kept[at].body for at in same],
            )  # fmt: skip
            kind = RecordType.CARRIED
        data = b"".join(payload)
        self._append(kind, payload)
        if self.parts is None or len(self.parts) > before:
            for _, value in decode(kind, data, 0, len(data)):
                apply(state, value)


def traffic(seed: int, steps: int = 150, segment_size: int = 16 * 1024, clean: bool = True) -> tuple[Bench, Traffic]:
    bench = Bench(settings=Settings(segment_size=segment_size))
    with bench.running() as run:
        made = Traffic(run, Random(seed))
        for _ in range(steps):
            made.step()
        run.pump()
        if clean:
            run.stop()
        else:
            run.journal.append_witness()
            run.pump()
    return bench, made


def salvage(disk: SimDisk, target: str = OUT) -> Salvaged:
    return Salvage(disk, DATA, target, Settings(segment_size=16 * 1024), ManualClock(), OtherRng()).run()


def contents(disk: SimDisk, data_dir: str = OUT) -> dict[Key, Kept]:
    """What a start would find there."""
    log = open_log(disk, data_dir, Settings(), ManualClock(), FixedRng())
    state: dict[Key, Kept] = {}
    for item in log.replay():
        apply(state, item.value)
    log.close()
    return state


def files(disk: SimDisk) -> dict[str, bytes]:
    folders = (DATA, LOG, f"{DATA}/ckpt", f"{DATA}/quarantine")
    return {path: disk.contents(path) for folder in folders for path in disk.files(folder)}


def hurt(disk: SimDisk, place: int) -> None:
    """Flips a bit in the middle of the record's header, which no CRC forgives."""
    path = segment_path(number_of(place))
    data = disk.contents(path)
    at = (place & 0xFFFFFFFF) + 17
    disk.put(path, patched(data, at, bytes([data[at] ^ 0x10])))


def outcome(disk: SimDisk) -> Outcome:
    return rehearse(disk, DATA, Settings(), ManualClock(), FixedRng()).outcome


def missing_rows(disk: SimDisk) -> list[dict[str, Any]]:
    return [json.loads(line) for line in disk.contents(f"{OUT}/{MISSING_NAME}").split(b"\n") if line]


# Nothing is damaged


@pytest.mark.parametrize("seed", range(25))
def test_a_sound_folder_is_salvaged_exactly(seed: int) -> None:
    bench, made = traffic(seed)
    before = files(bench.disk)
    done = salvage(bench.disk)
    assert done.whole and not done.unsure and done.messages == len(made.state)
    assert files(bench.disk) == before
    assert contents(bench.disk) == made.state == contents(bench.disk, DATA)
    assert missing_rows(bench.disk) == []
    assert bench.disk.contents(f"{OUT}/META")[16:32] == OtherRng().token(16)


def test_new_messages_in_the_salvaged_folder_get_numbers_of_their_own() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"x", 5)
        run.journal.append(RecordType.ACKED, acked_payload(b"/queue/a", [5]))
        run.stop()
    salvage(bench.disk)
    log = open_log(bench.disk, OUT, Settings(), ManualClock(), FixedRng())
    assert list(log.replay()) and log.summary.clean
    journal, writer = log.start()
    assert journal.take_seqs(1) > 5
    writer.close()


def test_what_a_carried_record_says_replaces_what_was_known() -> None:
    bench = Bench()
    with bench.running() as run:
        seq = run.journal.take_seqs(1)
        for kind, payload in (
            (RecordType.MESSAGES, messages_payload(b"/queue/a", (), b"", 1, seq, None, [b"x"])),
            (RecordType.MOVED, moved_payload(b"/queue/a", b"/queue/b", [(seq, seq, 3, 2)], b'[["a", "b"]]')),
            (RecordType.CARRIED, carried_payload(b"/queue/b", b"/queue/b", b"", 1, b"", [(seq, 0, 0)], None, [b"x"])),
        ):
            run.journal.append(kind, payload)
        run.stop()
    assert salvage(bench.disk).whole
    assert contents(bench.disk) == contents(bench.disk, DATA)
    assert contents(bench.disk)[b"/queue/b", seq].deliveries == 0


def test_segments_that_were_removed_are_not_dug_out_again() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(bytes(1500))
        run.send(bytes(1500))
        run.journal.append(RecordType.ACKED, acked_payload(b"/queue/a", [1, 2]))
        run.pump()
        removed = bench.disk.contents(segment_path(1))
        for _ in range(3):
            run.send(bytes(1500))
        run.pump()
        for segment in run.journal.segments:
            segment.live = 0 if segment.number == 1 else 1
        run.journal.trim(run.journal.dead_segments())
        run.stop()
    assert segment_path(1) not in bench.disk.files(LOG)
    bench.disk.create(segment_path(1))
    bench.disk.put(segment_path(1), removed)  # an unlink that a crash undid
    assert outcome(bench.disk) is Outcome.CLEAN
    done = salvage(bench.disk)
    assert done.whole and contents(bench.disk) == contents(bench.disk, DATA)


def test_after_an_unclean_stop_all_up_to_the_mark_count_as_delivered() -> None:
    for clean in (True, False):
        bench = Bench()
        with bench.running() as run:
            for _ in range(4):
                run.send(b"x")
            run.journal.append(RecordType.DELIVERED, delivered_payload(b"/queue/a", 2))
            run.journal.append(RecordType.RETURNED, returned_payload(b"/queue/a", [(1, 1, 5, 2)]))
            run.pump()
            if clean:
                run.stop()
        assert salvage(bench.disk).whole
        found = [(seq, kept.deliveries) for (_, seq), kept in sorted(contents(bench.disk).items())]
        assert found == [(1, 5), (2, 0 if clean else 1), (3, 0), (4, 0)]


def test_a_body_that_several_queues_share_is_written_once() -> None:
    bench = Bench(settings=Settings(segment_size=1024 * 1024))
    queues = [b"/queue/%d" % n for n in range(50)]
    with bench.running() as run:
        seq = run.journal.take_seqs(3)
        payload = messages_payload(b"/topic/t", queues, b"", 1, seq, None, [bytes(1000)] * 3)
        run.journal.append(RecordType.MESSAGES, payload)
        run.journal.append(RecordType.RETURNED, returned_payload(queues[7], [(seq + 1, seq + 1, 3, 1)]))
        run.journal.append(RecordType.ACKED, acked_payload(queues[0], [seq]))
        run.stop()
    wanted = contents(bench.disk, DATA)
    done = salvage(bench.disk)
    assert (done.messages, done.queues) == (149, 50) and contents(bench.disk) == wanted
    written = sum(len(bench.disk.contents(path).rstrip(b"\0")) for path in bench.disk.files(f"{OUT}/log"))
    assert written < 12_000


# Damage


@pytest.mark.parametrize("seed", range(40))
def test_every_record_that_is_sound_counts_and_each_that_is_not_is_named(seed: int) -> None:
    bench, made = traffic(seed, clean=False)
    rng = Random(seed)
    lost = set(rng.sample(sorted(made.written), rng.choice([1, 1, 2, 5])))
    for lsn in lost:
        hurt(bench.disk, made.places[lsn])
    assert outcome(bench.disk) is Outcome.REFUSED
    before = files(bench.disk)
    done = salvage(bench.disk)
    assert files(bench.disk) == before and done.unsure and not done.whole
    state: dict[Key, Kept] = {}
    for lsn, values in made.written.items():
        if lsn not in lost:
            for value in values:
                apply(state, value)
    flagged = {key: kept._replace(deliveries=max(1, kept.deliveries)) for key, kept in state.items()}
    assert contents(bench.disk) == flagged and done.messages == len(flagged)
    rows = missing_rows(bench.disk)
    gaps = [range(row["first_lsn"], row["last_lsn"] + 1) for row in rows if row["type"] == "damage"]
    assert {lsn for gap in gaps for lsn in gap} == lost
    # Every waiting message is there, or is in a gap or among those named.
    named = {(row["queue"].encode(), row["seq"]) for row in rows if row["type"] == "message"}
    in_gaps = {
        (queue, value.first_seq + at)
        for lsn in lost
        for value in made.written[lsn]
        if isinstance(value, Messages)
        for queue in value.queues or (value.destination,)
        for at in range(len(value.bodies))
    }
    moved = {key for key in made.state if key not in flagged and key not in in_gaps}
    assert all(key in named or (b"/queue/a", key[1]) in in_gaps or (b"/queue/b", key[1]) in in_gaps for key in moved)


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_spoilt_anywhere_end_in_what_was_written_or_in_words(seed: int) -> None:
    bench, made = traffic(seed, 60, 4096, clean=False)
    rng = Random(seed)
    paths = bench.disk.files(LOG)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(paths)
        data = bench.disk.contents(path)
        kind = rng.random()
        if kind < 0.15:
            bench.disk.put(path, data[: rng.randrange(len(data))])
        elif kind < 0.3:
            if path in bench.disk.files(LOG) and len(bench.disk.files(LOG)) > 1:
                bench.disk.remove(path)
                paths.remove(path)
        else:
            at = rng.randrange(len(data))
            size = rng.choice([1, 100, 512, 3000])
            spoilt = rng.choice([bytes(size), rng.randbytes(size)])
            bench.disk.put(path, patched(data, at, spoilt)[: len(data)])
    verdict = outcome(bench.disk)
    ever: dict[Key, set[bytes]] = {}
    for values in made.written.values():
        state: dict[Key, Kept] = {}
        for value in values:
            apply(state, value)
            for (_, seq), kept in state.items():
                ever.setdefault((b"", seq), set()).add(kept.body)
    done = salvage(bench.disk)
    assert (verdict is Outcome.REFUSED) is not done.whole, verdict
    found = contents(bench.disk)
    for (_, seq), kept in found.items():
        assert kept.body in ever[b"", seq]
    if done.whole:
        assert {key: kept.body for key, kept in found.items()} == {
            key: kept.body for key, kept in made.state.items()
        }


def test_a_missing_segment_is_named_with_its_records() -> None:
    bench, made = traffic(3)
    bench.disk.remove(segment_path(2))
    first = Audit(bench.disk, DATA)
    holes = [item for item in first.items() if isinstance(item, Hole)]
    first.close()
    (hole,) = holes
    assert hole.number == 2 and hole.path == segment_path(2)
    assert hole.first_lsn is not None and hole.last_lsn is not None
    assert {lsn for lsn, place in made.places.items() if number_of(place) == 2} <= set(
        range(hole.first_lsn, hole.last_lsn + 1)
    )


def test_a_lost_meta_and_a_damaged_one_are_no_end_of_the_log() -> None:
    for spoil in (lambda disk: disk.remove(META), lambda disk: disk.put(META, bytes(64))):
        bench, made = traffic(4)
        spoil(bench.disk)
        done = salvage(bench.disk)
        assert contents(bench.disk) == made.state and not done.unsure
        assert [hole.path for hole in done.holes] == [META]


def test_a_damaged_header_costs_no_record() -> None:
    bench, made = traffic(4)
    for number in range(1, len(bench.disk.files(LOG)) + 1):
        disk = bench.disk.copy(Random(1))
        path = segment_path(number)
        disk.put(path, patched(disk.contents(path), 30, b"?"))
        done = salvage(disk)
        state = contents(disk)
        assert state == made.state and [hole.path for hole in done.holes] == [path], number


def test_files_under_each_others_names_are_read_as_what_they_are() -> None:
    bench, made = traffic(4)
    two, three = bench.disk.contents(segment_path(2)), bench.disk.contents(segment_path(3))
    bench.disk.put(segment_path(2), three)
    bench.disk.put(segment_path(3), two)
    assert outcome(bench.disk) is Outcome.REFUSED
    done = salvage(bench.disk)
    assert contents(bench.disk) == made.state and not done.unsure and len(done.holes) == 2


def test_a_header_that_names_another_end_of_the_segment_before_is_damage_on_both_sides() -> None:
    bench, made = traffic(4)
    path = segment_path(3)
    data = bench.disk.contents(path)
    bench.disk.put(path, resealed(patched(data, 64, bytes(4)), SEGMENT_HEADER_BYTES))
    assert outcome(bench.disk) is Outcome.REFUSED
    done = salvage(bench.disk)
    assert {hole.number for hole in done.holes} == {2, 3}
    assert contents(bench.disk).keys() == made.state.keys()


def test_a_newer_versions_folder_is_left_alone() -> None:
    bench, _ = traffic(4)
    data = bench.disk.contents(META)
    bench.disk.put(META, resealed(patched(data, 8, struct.pack("<I", 2)), 64))
    assert outcome(bench.disk) is Outcome.NEWER
    with pytest.raises(FormatNotKnown):
        salvage(bench.disk)


def test_where_nothing_says_which_log_it_is_nothing_is_guessed() -> None:
    bench, _ = traffic(4)
    bench.disk.remove(META)
    for path in bench.disk.files(LOG):
        bench.disk.put(path, bytes(SEGMENT_HEADER_BYTES) + bench.disk.contents(path)[SEGMENT_HEADER_BYTES:])
    with pytest.raises(DataDamaged, match="id"):
        salvage(bench.disk)


def test_a_target_that_is_not_empty_and_a_source_in_use_are_refused() -> None:
    bench, _ = traffic(4)
    with pytest.raises(UsageError, match="not empty"):
        salvage(bench.disk, LOG)
    lock = bench.disk.lock(f"{DATA}/LOCK")
    with pytest.raises(DataDirInUse):
        salvage(bench.disk)
    bench.disk.close(lock)
    with pytest.raises(UsageError, match="no data folder"):
        Audit(bench.disk, "nowhere")


def test_a_salvage_that_did_not_end_is_refused_by_a_start() -> None:
    bench, made = traffic(4)
    calls = bench.disk.copy(Random(1))
    salvage(calls)
    refusals = 0
    for at in range(3, calls.calls, 7):
        disk = bench.disk.copy(Random(at))
        disk.power_at = at
        with pytest.raises(PowerLoss):
            salvage(disk)
        disk.crash()
        if OUT not in disk.list_dir("") or not disk.files(f"{OUT}/log"):
            continue
        try:
            state = contents(disk)
        except DataDamaged:
            refusals += 1
            continue
        # Either the last rename was done, or nothing was copied yet and the folder is as a first start leaves it.
        assert state == made.state or (state == {} and f"{OUT}/{MISSING_NAME}" not in disk.files(OUT)), at
    assert refusals > 3


# With a checkpoint


def positions(waiting: Waiting) -> list[Part]:
    parts = []
    for name, line in waiting.lines.items():
        rows = b"".join(
            struct.pack(
                "<QQQQ", seq, place, line.notes.get(seq, 0),
                line.counts.get(seq, (0, 0))[0] | line.counts.get(seq, (0, 0))[1] << 16,
            )
            for seq, place in line.places.items()
        )  # fmt: skip
        parts.append(Part(name, line.mark, b"", rows))
    return parts


def with_checkpoint(seed: int) -> tuple[Bench, Traffic]:
    bench = Bench(settings=Settings(segment_size=16 * 1024))
    with bench.running() as run:
        made = Traffic(run, Random(seed))
        for _ in range(150):
            made.step()
        run.pump()
        waiting = Waiting()
        for lsn, values in made.written.items():
            for value in values:
                waiting.apply(value, made.places[lsn])
        journal = run.journal
        writing = CheckpointFile(bench.disk, DATA, LOG_ID)
        writing.begin()
        for part in positions(waiting):
            writing.add(encode_part(part))
        rows = [(s.number, s.first_lsn, s.last_lsn, s.end) for s in list(journal.segments)[:-1]]
        number = journal.segment.number
        writing.finish(
            Basis(journal.lsn, journal.lsn, number, rows[0][0], journal.next_seq, journal.boot, 0, rows)
        )
        for _ in range(50):
            made.step()
        run.stop()
    return bench, made


@pytest.mark.parametrize("seed", range(12))
def test_with_a_checkpoint_an_old_damage_costs_only_the_messages_in_it_and_each_is_named(seed: int) -> None:
    bench, made = with_checkpoint(seed)
    rng = Random(seed)
    old = [lsn for lsn, place in made.places.items() if number_of(place) <= 2]
    lost = set(rng.sample(old, 3))
    for lsn in lost:
        hurt(bench.disk, made.places[lsn])
    waiting = Waiting()
    for lsn, values in made.written.items():
        for value in values:
            waiting.apply(value, made.places[lsn])
    gone = {
        (name, seq)
        for name, line in waiting.lines.items()
        for seq, place in line.places.items()
        if place in {made.places[lsn] for lsn in lost}
    }
    noteless = {
        (name, seq)
        for name, line in waiting.lines.items()
        for seq, place in line.notes.items()
        if place in {made.places[lsn] for lsn in lost}
    }
    done = salvage(bench.disk)
    assert not done.unsure
    wanted = {
        key: kept._replace(note=b"[]") if key in noteless else kept
        for key, kept in made.state.items()
        if key not in gone
    }
    assert contents(bench.disk) == wanted
    assert {(row.queue, row.seq) for row in done.missing} == gone | noteless


def test_a_damaged_checkpoint_is_named_and_the_log_alone_is_enough() -> None:
    bench, made = with_checkpoint(5)
    (path,) = bench.disk.files(f"{DATA}/ckpt")
    bench.disk.put(path, patched(bench.disk.contents(path), 100, b"?"))
    done = salvage(bench.disk)
    assert contents(bench.disk) == made.state and [hole.path for hole in done.holes] == [path]
    assert not done.unsure


def test_a_checkpoint_of_another_history_of_the_log_is_not_used() -> None:
    (bench, made), (other, _) = with_checkpoint(5), with_checkpoint(6)
    (path,) = bench.disk.files(f"{DATA}/ckpt")
    (foreign,) = other.disk.files(f"{DATA}/ckpt")
    bench.disk.remove(path)
    bench.disk.create(foreign)
    bench.disk.put(foreign, other.disk.contents(foreign))
    done = salvage(bench.disk)
    assert contents(bench.disk) == made.state and not done.unsure


# forget


def forget(disk: SimDisk, queue: str, first: int, last: int) -> Forget:
    return Forget(disk, DATA, Settings(segment_size=16 * 1024), ManualClock(), FixedRng(), queue, (first, last))


@pytest.mark.parametrize("seed", range(10))
def test_a_forgotten_message_is_gone_and_all_others_are_there(seed: int) -> None:
    bench, made = traffic(seed)
    rng = Random(seed)
    queue, seq = rng.choice(sorted(made.state))
    giving_up = forget(bench.disk, queue.decode(), seq, seq)
    (doomed,) = giving_up.find()
    assert doomed.readable and doomed.size == len(made.state[queue, seq].body) and "h:1" in doomed.text
    giving_up.commit()
    giving_up.close()
    wanted = {key: kept for key, kept in made.state.items() if key != (queue, seq)}
    assert contents(bench.disk, DATA) == wanted
    assert outcome(bench.disk) is Outcome.CLEAN
    with pytest.raises(UsageError, match=f"{seq}"):
        forget(bench.disk, queue.decode(), seq, seq)


def test_a_range_of_messages_is_forgotten_and_the_queue_may_be_called_by_its_short_name() -> None:
    bench, made = traffic(2)
    seqs = sorted(seq for queue, seq in made.state if queue == b"/queue/a")
    giving_up = forget(bench.disk, "a", seqs[1], seqs[-2])
    assert giving_up.seqs == seqs[1:-1] == [doomed.seq for doomed in giving_up.find()]
    giving_up.commit()
    giving_up.close()
    left = sorted(seq for queue, seq in contents(bench.disk, DATA) if queue == b"/queue/a")
    assert left == [seqs[0], seqs[-1]]


def test_a_message_whose_record_is_rotten_can_be_forgotten_where_a_start_does_not_read_it() -> None:
    bench, made = with_checkpoint(5)
    waiting = Waiting()
    for lsn, values in made.written.items():
        for value in values:
            waiting.apply(value, made.places[lsn])
    queue, seq, place = next(
        (name, seq, place)
        for name, line in waiting.lines.items()
        for seq, place in line.places.items()
        if number_of(place) == 1
    )
    hurt(bench.disk, place)
    audit = Audit(bench.disk, DATA)
    holes = [item for item in audit.items() if isinstance(item, Hole)]
    audit.close()
    held = stranded(bench.disk, DATA, Settings(), ManualClock(), FixedRng(), holes)
    assert {(name, seq) for name, first, last in held for seq in waiting.lines[name].within(first, last)} == {
        (name, seq) for name, line in waiting.lines.items() for seq, where in line.places.items() if where == place
    }
    giving_up = forget(bench.disk, queue.decode(), seq, seq)
    (doomed,) = giving_up.find()
    assert not doomed.readable and segment_name(1) in doomed.text
    giving_up.commit()
    giving_up.close()
    assert outcome(bench.disk) is Outcome.CLEAN
    with pytest.raises(UsageError):
        forget(bench.disk, queue.decode(), seq, seq)


def test_where_a_start_is_refused_nothing_is_forgotten_and_salvage_is_named() -> None:
    bench, made = traffic(2, clean=False)
    hurt(bench.disk, made.places[min(made.places)])
    before = files(bench.disk)
    with pytest.raises(DataDamaged, match="salvage"):
        forget(bench.disk, "a", 1, 1)
    assert files(bench.disk) == before


def test_what_does_not_wait_is_not_forgotten() -> None:
    bench, made = traffic(2)
    seq = next(seq for queue, seq in sorted(made.state) if (b"/queue/b", seq) not in made.state)
    before = files(bench.disk)
    with pytest.raises(UsageError, match=f"no message {seq} waits in /queue/b; in .* there is"):
        forget(bench.disk, "/queue/b", seq, seq)
    with pytest.raises(UsageError, match="nor in any other"):
        forget(bench.disk, "/queue/b", 10**9, 10**9)
    with pytest.raises(UsageError, match="no data"):
        Forget(bench.disk, "nowhere", Settings(), ManualClock(), FixedRng(), "a", (1, 1))
    with pytest.raises(UsageError, match="at most"):
        forget(bench.disk, "/queue/b", 1, 10**9)
    assert files(bench.disk) == before


def test_an_end_that_was_not_clean_stays_so_when_something_was_forgotten() -> None:
    bench, made = traffic(2, clean=False)
    queue, seq = min(made.state)
    giving_up = forget(bench.disk, queue.decode(), seq, seq)
    giving_up.commit()
    giving_up.close()
    log = open_log(bench.disk, DATA, Settings(), ManualClock(), FixedRng())
    assert list(log.replay()) and not log.summary.clean


# dump


def test_every_record_of_a_log_can_be_described_as_json() -> None:
    bench, made = traffic(6, 300)
    audit = Audit(bench.disk, DATA)
    kinds = set()
    for item in audit.items():
        assert not isinstance(item, Hole)
        for bodies in (False, True):
            row = describe(item[1], bodies=bodies)
            assert row is not None and json.loads(json.dumps(row)) is not None
        kinds.add(row["type"])
        lsn = item[1].lsn
        about_b = describe(item[1], bodies=False, queue=b"/queue/b")
        touched = any(_names(value, b"/queue/b") for value in made.written.get(lsn, []))
        assert (about_b is not None) is touched
    audit.close()
    assert kinds == {kind.name for kind in RecordType} - {"TRIM", "DELIVERED"}


def _names(value: Value, queue: bytes) -> bool:
    if isinstance(value, Messages):
        return queue in (value.queues or (value.destination,))
    if isinstance(value, Moved):
        return queue in (value.source, value.target)
    return getattr(value, "queue", None) == queue
