"""A backup of a running log is a state that this log once had, no older than the command, and it starts."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from random import Random
from struct import iter_unpack, pack

import pytest

from broker.errors import DataDamaged, FormatNotKnown, StompdError, UsageError
from broker.journal.backup import LOOKS_MAX, Backup, Copied
from broker.journal.checkpoint import Basis, CheckpointFile, Part, encode_part
from broker.journal.folder import UNFINISHED
from broker.journal.records import (
    Acked,
    CarriedRun,
    RecordType,
    Run,
    acked_payload,
    carried_payload,
)
from broker.journal.recovery import open_log
from broker.journal.segment import SEGMENT_HEADER_BYTES, segment_name
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
    end_of,
    patched,
    resealed,
    segment_path,
)
from tests.support.simdisk import Fault, PowerLoss, SimDisk

TARGET = "backup"
QUEUE = b"/queue/a"
USED: list[bool] = []  # for each start whether it stood on a checkpoint


class Writing:
    """A broker at work: sends, acknowledges, copies forward, removes old segments, stops and starts again.

    history: (LSN, what the record did) of everything that was ever appended.
    """

    def __init__(self, seed: int, links: bool = True) -> None:
        self.rng = Random(seed)
        self.bench = Bench(disk=SimDisk(Random(seed)))
        self.disk = self.bench.disk
        self.disk.links = links
        self.history: list[tuple[int, Callable[[set[int]], object]]] = []
        self.alive: dict[int, int] = {}  # seq -> number of the segment with its record
        self.busy = False
        self.rate = 0.0
        self.steps = 200  # at most, while somebody else is at work: or a copy would never catch up
        self.run: Running | None = None
        self.start()

    def start(self) -> None:
        found, log = self.bench.replay()
        journal, writer = log.start()
        for segment in journal.segments:
            segment.live = sum(1 for number in self.alive.values() if number == segment.number)
        self.run = Running(journal, writer, found, log)

    def on_call(self, op: str, path: str) -> None:
        """Between any two calls of somebody else: a step, now and then a good many."""
        if not self.busy and self.rng.random() < self.rate:
            for _ in range(min(self.steps, self.rng.choice([1, 1, 1, 30]))):
                self.steps -= 1
                self.step()

    def step(self) -> None:
        self.busy = True
        try:
            self.rng.choices(
                [self.send, self.ack, self.carry, self.trim, self.checkpoint, self.restart], [10, 6, 3, 5, 1, 0.3]
            )[0]()
        finally:
            self.busy = False

    def now(self) -> Running:
        if self.run is None:
            raise AssertionError("it does not run")
        return self.run

    def send(self) -> None:
        run, count = self.now(), self.rng.randrange(1, 9)
        lsn = run.send(b"x" * self.rng.randrange(300), count)
        seqs = range(run.journal.next_seq - count, run.journal.next_seq)
        self.alive.update(dict.fromkeys(seqs, run.journal.segment.number))
        self.history.append((lsn, lambda state: state.update(seqs)))
        self.pump()

    def ack(self) -> None:
        seqs = self.rng.sample(sorted(self.alive), min(len(self.alive), 10))
        if not seqs:
            return
        journal = self.now().journal
        for seq in seqs:
            journal.by_number[self.alive.pop(seq)].live -= 1
        lsn = journal.append(RecordType.ACKED, acked_payload(QUEUE, sorted(seqs)))
        self.history.append((lsn, lambda state: state.difference_update(seqs)))
        self.pump()

    def carry(self) -> None:
        """The oldest segment's messages are copied forward, so that it can go."""
        journal = self.now().journal
        oldest = journal.segments[0]
        seqs = sorted(seq for seq, number in self.alive.items() if number == oldest.number)
        if not seqs or oldest is journal.segment:
            return
        for at in range(0, len(seqs), 64):
            part = seqs[at : at + 64]
            entries = [(seq, 0, 0) for seq in part]
            payload = carried_payload(QUEUE, QUEUE, b"h:1\n", 1, b"", entries, None, [b"x"] * len(part))
            journal.append(RecordType.CARRIED, payload)
            oldest.live -= len(part)
            journal.segment.live += len(part)
            self.alive.update(dict.fromkeys(part, journal.segment.number))
        self.pump()

    def trim(self) -> None:
        journal = self.now().journal
        journal.trim(journal.dead_segments())
        self.pump()

    def checkpoint(self) -> None:
        journal = self.now().journal
        rows = [(part.number, part.first_lsn, part.last_lsn, part.end) for part in list(journal.segments)[:-1]]
        low = journal.segments[0].number
        lsn, number = journal.lsn, journal.segment.number
        basis = Basis(lsn, lsn, number, low, journal.next_seq, journal.boot, 1, rows)
        fresh = b"".join(pack("<QQQQ", seq, 1, 1, 1) for seq in sorted(self.alive))
        file = CheckpointFile(self.disk, DATA, LOG_ID)
        file.begin()
        file.add(encode_part(Part(QUEUE, 0, fresh, b"")))
        file.finish(basis)

    def restart(self) -> None:
        run = self.now()
        if self.rng.random() < 0.5:
            run.stop()
        else:
            run.writer.close()
            run.log.close()
        self.start()

    def pump(self) -> None:
        self.now().pump()

    def state_at(self, lsn: int) -> set[int]:
        state: set[int] = set()
        for at, change in self.history:
            if at <= lsn:
                change(state)
        return state


def state_of(disk: SimDisk, data_dir: str) -> set[int]:
    """The seqs that a start finds waiting; it starts, too."""
    log = open_log(disk, data_dir, Settings(), ManualClock(), FixedRng())
    state: set[int] = set()
    for item in log.replay(skim=True):
        if isinstance(item, Part):
            state.update(entry[0] for entry in iter_unpack("<QQQQ", item.fresh))
        elif isinstance(item.value, Run):
            state.update(range(item.value.first_seq, item.value.first_seq + len(item.value.sizes)))
        elif isinstance(item.value, CarriedRun):
            state.update(entry[0] for entry in item.value.entries)
        elif isinstance(item.value, Acked):
            for first, last in item.value.seqs:
                state.difference_update(range(first, last + 1))
    assert log.summary.torn_bytes == 0 and not log.doubts
    USED.append(log.checkpoint is not None)
    _, writer = log.start()
    writer.close()
    log.close()
    return state


def backed_up(writing: Writing, rate: float, links: bool = True) -> Copied:
    writing.rate = rate
    writing.disk.on_call = writing.on_call
    try:
        return Backup(writing.disk, DATA, TARGET, links=links).run()
    finally:
        writing.disk.on_call = None


@pytest.mark.parametrize("block", range(10))
def test_a_backup_of_a_log_that_is_written_is_a_state_that_it_had_no_older_than_the_command(block: int) -> None:
    """Whatever the writer does between any two calls: rolls, copies forward, removes, restarts."""
    looks = 0
    USED.clear()
    for seed in range(20 * block, 20 * (block + 1)):
        writing = Writing(seed, links=seed % 3 != 0)
        for _ in range(writing.rng.randrange(60)):
            writing.step()
        before = writing.now().journal.durable
        done = backed_up(writing, writing.rng.choice([0.1, 0.5, 1.0]))
        looks += done.looks - 1
        assert done.last_lsn >= before, seed
        for _ in range(10):  # whatever becomes of the original leaves the copy alone
            writing.step()
        writing.disk.crash()
        assert state_of(writing.disk, TARGET) == writing.state_at(done.last_lsn), seed
        assert state_of(writing.disk, DATA) == writing.state_at(1 << 62), seed
    assert looks > 0  # else nothing was ever removed under its hands
    assert any(USED) and not all(USED)


def test_a_backup_is_complete_or_refused_wherever_the_power_goes() -> None:
    def ready() -> Writing:
        writing = Writing(5)
        for _ in range(40):
            writing.step()
        return writing

    writing = ready()
    calls = writing.disk.calls
    Backup(writing.disk, DATA, TARGET).run()
    calls = writing.disk.calls - calls
    writing.disk.crash()
    assert state_of(writing.disk, TARGET) == writing.state_at(1 << 62)
    states = set()
    for at in range(1, calls + 1):
        writing = ready()
        writing.disk.power_at = writing.disk.calls + at
        with pytest.raises(PowerLoss):
            Backup(writing.disk, DATA, TARGET).run()
        writing.disk.crash()
        assert state_of(writing.disk, DATA) == writing.state_at(1 << 62)
        if TARGET not in writing.disk.list_dir("."):
            states.add("none")
        elif not {"META", "log"} & set(writing.disk.list_dir(TARGET)):
            states.add("empty")
        else:
            try:
                assert state_of(writing.disk, TARGET) == writing.state_at(1 << 62)
                states.add("complete")
            except DataDamaged:
                states.add("refused")
    assert states >= {"none", "empty", "refused"}


def test_any_failing_call_ends_the_backup_and_the_original_is_as_it_was() -> None:
    for op in ("open", "read", "link", "list_dir", "make_dir", "create", "write", "truncate", "sync_all", "rename"):
        writing = Writing(7)
        for _ in range(40):
            writing.step()
        writing.disk.faults.append(Fault(writing.disk.counts.get(op, 0) + 1, errno.EIO, op))
        with pytest.raises(OSError, match="Input/output"):
            Backup(writing.disk, DATA, TARGET).run()
        writing.disk.kill()
        assert state_of(writing.disk, DATA) == writing.state_at(1 << 62)


def test_nothing_of_the_source_is_written_and_no_lock_is_taken() -> None:
    writing = Writing(1)
    for _ in range(40):
        writing.step()
    files = {path: writing.disk.contents(path) for path in writing.disk.files(DATA) + writing.disk.files(LOG)}
    writing.disk.trace = trace = deque[tuple[str, str]]()  # type: ignore[assignment]
    Backup(writing.disk, DATA, TARGET).run()  # the broker holds the lock
    assert files == {path: writing.disk.contents(path) for path in writing.disk.files(DATA) + writing.disk.files(LOG)}
    assert all(path.rpartition(" -> ")[2].startswith((TARGET, ".")) for _, path in trace)


def test_every_file_and_folder_of_a_backup_is_synced_before_its_meta_gets_its_name() -> None:
    writing = Writing(1, links=False)
    for _ in range(40):
        writing.step()
    writing.disk.trace = []
    Backup(writing.disk, DATA, TARGET).run()
    trace = writing.disk.trace
    end = trace.index(("rename", f"{TARGET}/META.tmp -> {TARGET}/META"), 8)
    written = {path for op, path in trace if op in ("write", "truncate")}
    for path in written:
        last = max(at for at, call in enumerate(trace) if call[1] == path and call[0] in ("write", "truncate"))
        assert ("sync_all", path) in trace[last:end], path
    assert ("sync_dir", f"{TARGET}/log") == [call for call in trace[:end] if call[0] == "sync_dir"][-1]
    assert trace[end + 1 :] == [("sync_dir", TARGET)]


def test_the_broker_cuts_the_room_behind_its_last_run_and_the_link_to_it_still_serves() -> None:
    """A start gives back what was allocated behind the end of the run before: in the backup's file as well."""
    bench = Bench()
    with bench.running() as run:
        run.send(b"a", 3)
        run.stop()
    log = bench.open()
    list(log.replay())
    seen = []

    def on_call(op: str, path: str) -> None:
        if op == "truncate" and path == segment_path(1) and not seen:  # the new segment has its name already
            seen.append(op)
            Backup(bench.disk, DATA, TARGET).run()

    bench.disk.on_call = on_call
    log.start()
    bench.disk.on_call = None
    linked, original = f"{TARGET}/log/{segment_name(1)}", segment_path(1)
    assert seen and len(bench.disk.contents(original)) < Settings().segment_size
    assert bench.disk.contents(linked) == bench.disk.contents(original)
    assert state_of(bench.disk, TARGET) == {1, 2, 3}


@pytest.mark.parametrize("links", [True, False])
def test_a_stopped_broker_is_backed_up_too(links: bool) -> None:
    bench = Bench()
    with bench.running() as run:
        for _ in range(40):
            run.send(b"x" * 200, 2)
        run.stop()
    done = Backup(bench.disk, DATA, TARGET, links=links).run()
    assert state_of(bench.disk, TARGET) == set(range(1, 81))
    assert (done.linked > 0) is links
    assert done.linked + done.copied == len(bench.disk.files(LOG))


def test_a_backup_of_a_backup_is_one() -> None:
    writing = Writing(3)
    for _ in range(30):
        writing.step()
    Backup(writing.disk, DATA, TARGET).run()
    state = state_of(writing.disk, TARGET)
    Backup(writing.disk, TARGET, "again").run()
    assert state_of(writing.disk, "again") == state


def test_files_that_change_no_more_are_linked_and_only_the_newest_is_written() -> None:
    writing = Writing(2)
    for _ in range(40):
        writing.send()
    done = Backup(writing.disk, DATA, TARGET).run()
    assert done.linked == len(writing.now().journal.segments) - 1 and done.copied == 1
    assert done.bytes < Settings().segment_size


def test_the_copy_of_the_newest_segment_is_as_long_as_its_header_says() -> None:
    """Or a start would take it for a file that has lost its end."""
    bench = Bench()
    with bench.running() as run:
        run.send(b"a")
        run.pump()
        bench.disk.put(segment_path(1), bench.disk.contents(segment_path(1)))
        Backup(bench.disk, DATA, TARGET).run()
    assert len(bench.disk.contents(f"{TARGET}/log/{segment_name(1)}")) == Settings().segment_size


def test_a_torn_end_stays_behind() -> None:
    bench = Bench()
    with bench.running() as run:
        run.send(b"a")
        run.pump()
    path = segment_path(1)
    data = bench.disk.contents(path)
    end, _ = end_of(data)
    bench.disk.put(path, patched(data, end, b"half a record"))
    Backup(bench.disk, DATA, TARGET).run()
    assert state_of(bench.disk, TARGET) == {1}  # which also looks at `torn_bytes`


# -------------------------------------------------------------------------------------------------- refusals


def test_a_folder_that_is_not_empty_is_refused_and_left_alone() -> None:
    bench = Bench()
    with bench.running():
        pass
    bench.disk.make_dir(TARGET)
    bench.disk.create(f"{TARGET}/letter")
    with pytest.raises(UsageError, match="not empty"):
        Backup(bench.disk, DATA, TARGET).run()
    assert bench.disk.list_dir(TARGET) == ["letter"]
    with pytest.raises(UsageError, match="not empty"):
        Backup(bench.disk, DATA, DATA).run()
    with pytest.raises(UsageError, match="not empty"):
        Backup(bench.disk, DATA, LOG).run()


def test_a_folder_without_data_is_refused_before_anything_is_made() -> None:
    disk = SimDisk(Random(1))
    disk.make_dir("empty")
    for folder in ("empty", "missing"):
        with pytest.raises(UsageError, match="no data of stompd"):
            Backup(disk, folder, TARGET).run()
    with pytest.raises(UsageError, match="parent"):
        with_data = Bench()
        with with_data.running():
            pass
        Backup(with_data.disk, DATA, "no/such/folder").run()
    assert disk.list_dir(".") == ["empty"]


def damaged(change: Callable[[SimDisk], None], witness: bool = True) -> SimDisk:
    bench = Bench()
    with bench.running() as run:
        for _ in range(40):
            run.send(b"x" * 200)
            run.pump()
        run.journal.append_witness()
        run.pump()
    change(bench.disk)
    return bench.disk


def test_receipted_data_that_is_damaged_makes_no_backup() -> None:
    """The newest segment is read; where a later record proves the loss, a shorter copy would be a silent one."""

    def flip(path: str, at: int) -> Callable[[SimDisk], None]:
        def change(disk: SimDisk) -> None:
            data = disk.contents(path)
            disk.put(path, patched(data, at, bytes([data[at] ^ 1])))

        return change

    disk = damaged(lambda disk: None)
    newest = [path for path in disk.files(LOG) if path.endswith(".seg")][-1]
    for at in (SEGMENT_HEADER_BYTES + 40, 20):
        disk = damaged(flip(newest, at))
        with pytest.raises(DataDamaged):
            Backup(disk, DATA, TARGET).run()
        with pytest.raises(DataDamaged):  # and what there is of it does not start
            open_log(disk, TARGET, Settings(), ManualClock(), FixedRng())


def test_a_missing_segment_makes_no_backup() -> None:
    disk = damaged(lambda disk: disk.remove(segment_path(2)))
    with pytest.raises(DataDamaged, match="segment 2 is missing"):
        Backup(disk, DATA, TARGET).run()


def remove_all(disk: SimDisk, paths: list[str]) -> None:
    for path in paths:
        disk.remove(path)


def test_a_log_without_segments_makes_no_backup() -> None:
    disk = damaged(lambda disk: remove_all(disk, disk.files(LOG)))
    with pytest.raises(DataDamaged, match="no segment"):
        Backup(disk, DATA, TARGET).run()


def test_a_newer_format_is_refused() -> None:
    disk = damaged(lambda disk: None)
    disk.put(META, resealed(patched(disk.contents(META), 8, b"\x09"), 64))
    with pytest.raises(FormatNotKnown):
        Backup(disk, DATA, TARGET).run()


def test_an_unfinished_backup_says_so_to_who_looks_and_to_a_start() -> None:
    writing = Writing(1)
    writing.disk.faults.append(Fault(1, errno.EIO, "truncate"))
    with pytest.raises(OSError):
        Backup(writing.disk, DATA, TARGET).run()
    assert writing.disk.contents(f"{TARGET}/META") == UNFINISHED
    with pytest.raises(DataDamaged, match="did not come to its end"):
        open_log(writing.disk, TARGET, Settings(), ManualClock(), FixedRng())


def test_it_gives_up_where_it_can_never_catch_up() -> None:
    writing = Writing(1)
    names = writing.disk.list_dir
    seen = iter(range(1, 10 * LOOKS_MAX))

    def fleeting(path: str) -> list[str]:
        return [segment_name(next(seen))] if path == LOG else names(path)

    writing.disk.list_dir = fleeting  # type: ignore[method-assign]
    writing.disk.remove(segment_path(1))
    with pytest.raises(StompdError, match="try again"):
        Backup(writing.disk, DATA, TARGET).run()
