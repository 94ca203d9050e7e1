"""The log under a seed: random work on a simulated disk, crashes, faults, damage; checked against a list.

    python tools/logsim.py --seed 4711          one run, told step by step
    python tools/logsim.py --seeds 0:20000      many; the first failure names its seed

Promises that are checked after every restart:
1. no loss: every record that could be receipted is replayed, in order, byte for byte;
2. no ghost: nothing is replayed that was not appended;
3. prefix: of the records that could not be receipted, a prefix is there, or none;
4. no false alarm: a crash, a kill or a failing disk alone never makes a start be refused as damaged;
5. twice the same: a crash during the start does not change what the next start finds.
And on copies of the disk, with bytes changed that were synced before the last witness:
6. no silent damage: the start is refused, or nobody reads those bytes and the records are all there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.errors import DataDamaged, StorageFailed
from broker.journal.journal import Journal
from broker.journal.records import (
    RecordType,
    acked_payload,
    decode,
    delivered_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    transaction_payload,
)
from broker.journal.recovery import Log, Replayed, open_log
from broker.journal.segment import SEGMENT_HEADER_BYTES
from broker.journal.writer import Writer
from tests.support.simdisk import SECTOR, Fault, PowerLoss, SimDisk

DATA = "data"
LOG = "data/log"


@dataclass(frozen=True)
class Settings:
    fsync: str
    interval: float
    segment_size: int


class SimClock:
    """Moves on by itself, a little at each look."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now

    def wall_ms(self) -> int:
        return int(self.monotonic() * 1000)


class SimRng:
    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def token(self, size: int) -> bytes:
        return self._rng.randbytes(size)


class Broken(AssertionError):
    """A promise was broken; the text says which and where."""


@dataclass
class Counts:
    """What a run went through."""

    starts: int = 0
    crashes: int = 0
    faults: int = 0
    records: int = 0
    torn: int = 0
    damages: int = 0
    refused: int = 0
    unread: int = 0

    def add(self, other: Counts) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Model:
    """What the log must and may hold.

    history: (lsn, what a replay must give for it) of every record that can still be there. receipted: the LSN
    up to which nothing may be missing. firsts: the LSNs at which a replay may begin (before or after an
    unsynced TRIM).
    """

    history: list[tuple[int, list[tuple[int, Any]]]] = field(default_factory=list)
    receipted: int = 0
    firsts: set[int] = field(default_factory=lambda: {1})
    highest_seq: int = 0
    clean: bool = False  # the last run ended with a clean witness
    clean_lsn: int = 0
    trims: list[tuple[int, int]] = field(default_factory=list)  # (lsn of a TRIM, first lsn that is kept)


class World:
    """One disk, one log, one seed."""

    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.rng = rng = Random(seed)
        self.say = say or (lambda text: None)
        self.disk = SimDisk(rng, short_writes=rng.choice([0.0, 0.0, 0.2]))
        self.clock = SimClock()
        self.settings = Settings(
            fsync=rng.choices(["always", "interval", "never"], [8, 1, 1])[0],
            interval=0.2,
            segment_size=rng.choice([1024, 2048, 4096, 8192]),
        )
        self.model = Model()
        self.counts = Counts()
        self.journal: Journal
        self.writer: Writer
        self.log: Log | None = None
        self.live: dict[int, Any] = {}

    # ---------------------------------------------------------------------------------------------------
    # starting

    def open(self, disk: SimDisk) -> Log:
        return open_log(disk, DATA, self.settings, self.clock, SimRng(self.rng))

    def start(self) -> None:
        """Recovers, checks, and starts. May end in PowerLoss or StorageFailed where a fault was set."""
        self.counts.starts += 1
        log = self.open(self.disk)
        found = list(log.replay())
        self.check(found, log)
        self.counts.torn += log.summary.torn_bytes > 0
        self.segments_of(found)
        self.model.clean = False
        self.journal, self.writer = log.start()
        self.writer.small_batch = self.rng.choice([0, 300, 1 << 20])  # zeros ahead: never, at times, always
        self.log = log
        if self.journal.next_seq <= self.model.highest_seq:
            raise Broken(f"seq {self.journal.next_seq} comes again, {self.model.highest_seq} was given")

    def segments_of(self, found: list[Replayed]) -> None:
        """Every record counts as one live message, in the segment where it lies."""
        self.live = {}
        for item in found:
            if item.lsn not in self.live:
                self.live[item.lsn] = item.segment
                item.segment.live += 1

    def check(self, found: list[Replayed], log: Log) -> None:
        """Promises 1 to 3; afterwards the model holds what is there."""
        model = self.model
        got: list[tuple[int, list[tuple[int, Any]]]] = []
        for item in found:
            if not got or got[-1][0] != item.lsn:
                got.append((item.lsn, []))
            got[-1][1].append((int(item.type), item.value))
        first = log._segments[0].first_lsn if log._segments else 1
        if first not in model.firsts:
            raise Broken(f"replay began with lsn {first}, not with one of {sorted(model.firsts)}")
        durable_first = max((keep for lsn, keep in model.trims if lsn <= model.receipted), default=1)
        if first < durable_first:
            raise Broken(
                f"replay began with lsn {first}, but a synced TRIM keeps from {durable_first} on only"
            )
        wanted = [entry for entry in model.history if entry[0] >= first]
        must = sum(1 for entry in wanted if entry[0] <= model.receipted)
        if len(got) < must:
            raise Broken(
                f"lost: {must} receipted records, {len(got)} replayed, {wanted[len(got)][0]} is missing"
            )
        if got != wanted[: len(got)]:
            at = next(i for i, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1])
            raise Broken(
                f"wrong: record {at} is {got[at]}, appended was {wanted[at] if at < len(wanted) else None}"
            )
        end = log._end.lsn
        if model.clean and not log.summary.clean:
            raise Broken("a clean stop was not found to be one")
        if log.summary.clean and end != model.clean_lsn:
            raise Broken(
                f"the log ends with lsn {end} and is called clean, the clean stop was at {model.clean_lsn}"
            )
        model.history = got
        if end < model.receipted:
            raise Broken(f"the log ends with lsn {end}, {model.receipted} was synced")
        model.receipted = end  # what a start has found stays
        model.firsts = {first}
        model.trims = []

    # -------------------------------------------------------------------------------------------------------
    # work

    def work(self, steps: int) -> None:
        rng = self.rng
        for _ in range(steps):
            choice = rng.random()
            if choice < 0.55:
                for _ in range(rng.choice([1, 1, 1, 3, 12])):
                    self.append()
            elif choice < 0.8:
                self.pump()
            elif choice < 0.87:
                self.journal.append_witness()
            elif choice < 0.94:
                self.kill_messages()
            else:
                self.trim()

    def append(self) -> None:
        rng, journal = self.rng, self.journal
        kind, payload = self.payload()
        before = journal.lsn
        lsn = journal.append(kind, payload)
        if lsn <= before or lsn != journal.lsn:
            raise Broken(f"append gave lsn {lsn} after {before}")
        joined = b"".join(payload)
        values = [(int(part), value) for part, value in decode(kind, joined, 0, len(joined))]
        self.model.history.append((lsn, values))
        self.model.highest_seq = max(self.model.highest_seq, journal.next_seq - 1)
        self.live[lsn] = journal.segment
        journal.segment.live += 1
        self.counts.records += 1
        if rng.random() < 0.01:
            journal.take_seqs(rng.choice([1, 1 << 30]))
            self.model.highest_seq = journal.next_seq - 1

    def payload(self) -> tuple[RecordType, list[bytes]]:
        rng = self.rng
        choice = rng.random()
        name = rng.choice([b"/queue/a", b"/queue/b", b"x"])
        entries = [(rng.randrange(100), rng.randrange(100), 1, 2) for _ in range(rng.randrange(3))]
        if choice < 0.6:
            count = rng.choice([1, 1, 2, 5])
            size = rng.choice([0, 1, 7, 40, 200, 600, 5000 if rng.random() < 0.1 else 20])
            bodies = [rng.randbytes(rng.randrange(size + 1)) for _ in range(count)]
            owns = [b"k:%d\n" % i for i in range(count)] if rng.random() < 0.3 else None
            queues = [b"q1", b"q22"] if rng.random() < 0.2 else []
            seq = self.journal.take_seqs(count)
            return RecordType.MESSAGES, messages_payload(name, queues, b"h:v\n", 5, seq, owns, bodies)
        if choice < 0.75:
            start = rng.randrange(1000)
            seqs = (
                list(range(start, start + rng.randrange(1, 9)))
                if rng.random() < 0.5
                else [start, start + 5, 3]
            )
            return RecordType.ACKED, acked_payload(name, seqs)
        if choice < 0.8:
            return RecordType.RETURNED, returned_payload(name, entries)
        if choice < 0.85:
            return RecordType.DELIVERED, delivered_payload(name, rng.randrange(1 << 40))
        if choice < 0.9:
            return RecordType.MOVED, moved_payload(name, b"t", entries, rng.randbytes(rng.randrange(30)))
        seq = self.journal.take_seqs(1)
        parts = [
            (
                RecordType.MESSAGES,
                messages_payload(name, (), b"", 1, seq, None, [rng.randbytes(rng.randrange(90))]),
            ),
            (RecordType.ACKED, acked_payload(name, [1, 2, 9])),
        ]
        return RecordType.TRANSACTION, transaction_payload(parts[: rng.randrange(1, 3)])

    def pump(self, all_of_it: bool = False) -> None:
        """Lets the writer do one batch, or everything; an error of the disk ends this run of the broker."""
        while (batch := self.journal.take_batch()) is not None:
            try:
                self.writer.run(batch)
            except OSError as error:
                self.journal.done(batch, error)
                if self.journal.failed is None or self.journal.take_batch() is not None:
                    raise Broken("the journal goes on after an error of the disk") from error
                raise StorageFailed("the disk said no") from error
            self.journal.done(batch, None)
            self.note_receipts()
            if not all_of_it:
                return

    def note_receipts(self) -> None:
        journal = self.journal
        if self.settings.fsync == "always" and journal.durable != journal.synced:
            raise Broken(f"lsn {journal.durable} could be receipted, {journal.synced} is synced")
        self.model.receipted = max(self.model.receipted, journal.synced)

    def kill_messages(self) -> None:
        """The oldest messages go, so that segments die."""
        for lsn in sorted(self.live)[: self.rng.randrange(20)]:
            self.live.pop(lsn).live -= 1

    def trim(self) -> None:
        journal = self.journal
        dead = journal.dead_segments()
        if not dead:
            return
        wanted = {segment.number for segment in self.live.values()}
        if any(segment.number in wanted or segment.last_lsn > self.model.receipted for segment in dead):
            raise Broken(f"called dead: {dead}; live are {sorted(wanted)}")
        journal.trim(dead[: self.rng.randrange(len(dead)) + 1])
        first = journal.segments[0].first_lsn
        self.model.firsts.add(first)
        self.model.trims.append((journal.lsn, first))

    # -----------------------------------------------------------------------------------------------------
    # the runs

    def run(self) -> Counts:
        rng = self.rng
        for number in range(rng.randrange(1, 6)):
            self.set_trouble()
            ending = "power loss"
            try:
                self.start()
                self.work(rng.randrange(2, 30))
                ending = self.stop()
            except PowerLoss as loss:
                ending = f"power loss in {loss}"
            except StorageFailed as error:
                ending = f"storage failed: {error}"
                self.counts.faults += 1
            self.say(f"run {number}: {ending}; lsn to {self.model.receipted} synced")
            if rng.random() < (0.8 if "power" in ending else 0.5):
                self.disk.crash()
                self.counts.crashes += 1
            else:
                self.disk.kill()  # the process died at that call, the cache is still there
        self.start()
        self.trials()
        return self.counts

    def set_trouble(self) -> None:
        """Perhaps the power goes at one of the next calls, perhaps the disk fails at one."""
        rng, disk = self.rng, self.disk
        choice = rng.random()
        if choice < 0.35:
            disk.power_at = disk.calls + rng.choice([rng.randrange(1, 60), rng.randrange(20, 200)])
        elif choice < 0.55:
            at, code, revert = rng.randrange(1, 30), rng.choice([5, 28, 30]), rng.random() < 0.5
            op = rng.choice(
                [None, "write", "sync_data", "sync_all", "sync_dir", "rename", "allocate", "unlink"]
            )
            base = disk.counts.get(op, 0) if op else disk.calls
            disk.faults.append(Fault(base + at, code, op, sticky=rng.random() < 0.5, revert=revert))

    def stop(self) -> str:
        rng, journal = self.rng, self.journal
        choice = rng.random()
        if choice < 0.3:
            self.pump(all_of_it=True)
            self.model.clean_lsn = journal.append_witness(clean=True)
            self.pump(all_of_it=True)
            self.model.clean = True
            try:
                self.writer.close()
            except OSError as error:
                raise StorageFailed("the disk said no") from error
            return "clean stop"
        if choice < 0.9:
            # The power goes in the middle of a batch: at any of its calls.
            for _ in range(rng.randrange(12)):
                self.append()
            self.disk.power_at = self.disk.calls + rng.choice([2, rng.randrange(1, 12)])
            self.pump()
        return "kill" if rng.random() < 0.3 else "power loss"

    # --------------------------------------------------------------------------------------------------- the
    # damage

    def trials(self) -> None:
        """Damage to what was synced before the last witness, each time to a fresh copy."""
        self.disk.faults.clear()
        self.disk.power_at = None
        self.work(self.rng.randrange(3, 25))
        self.pump(all_of_it=True)
        if self.settings.fsync != "always":  # a first witness, to have everything synced before the last one
            self.journal.append_witness()
            self.pump(all_of_it=True)
        # What is vouched for ends where the witness begins; it fills up a sector before it takes one of its
        # own.
        segment, witness_at = self.journal.segment, self.journal._offset
        self.journal.append_witness()
        self.pump(all_of_it=True)
        last = self.journal.segment
        if last is not segment:
            witness_at = SEGMENT_HEADER_BYTES
        for _ in range(6):
            self.one_trial(last.path, witness_at)
        # The same without damage: no false alarm, and every record there.
        copy = self.disk.copy(self.rng)
        log = self.open(copy)
        self.check(list(log.replay()), log)

    def one_trial(self, last_path: str, witness_at: int) -> None:
        rng = self.rng
        copy = self.disk.copy(rng)
        path = rng.choice([path for path in copy.files(LOG) if path.endswith(".seg")] + [last_path])
        before = copy.contents(path)
        limit = witness_at if path == last_path else len(before)
        what, after = self.damage(before, limit)
        if after is None:
            copy.remove(path)
        elif after == before:
            return
        else:
            copy.put(path, after)
        self.counts.damages += 1
        try:
            log = self.open(copy)
            found = list(log.replay())
        except DataDamaged as error:
            self.counts.refused += 1
            self.say(f"damage: {what} of {path}: refused, {str(error)[:200]}")
            return
        model = self.model
        got = [(item.lsn, int(item.type), item.value) for item in found]
        first = log._segments[0].first_lsn
        wanted = [
            (lsn, kind, value) for lsn, values in model.history if lsn >= first for kind, value in values
        ]
        if got != wanted or first not in model.firsts or log._end.lsn < model.receipted:
            raise Broken(f"silent: {what} of {path}: {len(got)} records of {len(wanted)}, end {log._end}")
        if self.is_read(log, path, before, after):
            raise Broken(f"silent: {what} of {path} was not found, though these bytes are read")
        self.counts.unread += 1
        self.say(f"damage: {what} of {path}: in what nobody reads")

    def is_read(self, log: Log, path: str, before: bytes, after: bytes | None) -> bool:
        """Whether a changed byte belongs to the log."""
        segment = next((segment for segment in log._segments if segment.path == path), None)
        if segment is None:
            return False
        if after is None or len(after) < segment.end:
            return True
        return before[: segment.end] != after[: segment.end]

    def damage(self, data: bytes, limit: int) -> tuple[str, bytes | None]:
        """(what was done, the bytes afterwards), None where the file goes."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.45:
            at, bit = rng.randrange(limit), rng.randrange(8)
            return f"bit {bit} at {at}", data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
        sectors = (limit + SECTOR - 1) // SECTOR  # the last one may hold a part of the witness's filler, too
        sector = rng.randrange(sectors) * SECTOR
        size = min(SECTOR, len(data) - sector)
        if choice < 0.65:
            return f"zeros at {sector}", data[:sector] + bytes(size) + data[sector + size :]
        if choice < 0.75:
            return f"junk at {sector}", data[:sector] + rng.randbytes(size) + data[sector + size :]
        if choice < 0.85:
            other = rng.randrange(sectors) * SECTOR
            moved = data[other : other + size].ljust(size, b"\0")
            return f"sector {other} at {sector}", data[:sector] + moved + data[sector + size :]
        if choice < 0.95:
            at = rng.randrange(limit)
            return f"cut at {at}", data[:at]
        if limit == len(data) and len(data) > SEGMENT_HEADER_BYTES:
            return "removal", None
        return "nothing", data


def run_seed(seed: int, say: Callable[[str], None] | None = None) -> Counts:
    """Raises Broken with the seed in its text."""
    world = World(seed, say)
    try:
        return world.run()
    except DataDamaged as error:
        raise Broken(f"seed {seed}: false alarm: {error}") from error
    except Broken as error:
        raise Broken(f"seed {seed}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Simulates the log under seeds.")
    parser.add_argument("--seed", type=int, help="one seed, told step by step")
    parser.add_argument("--seeds", metavar="A:B", help="the seeds from A to B-1")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        print(run_seed(options.seed, print))
        return 0
    if options.seeds is None:
        parser.error("say --seed N or --seeds A:B")
    first, _, last = options.seeds.partition(":")
    total, began, failed = Counts(), time.monotonic(), 0
    for seed in range(int(first), int(last)):
        try:
            total.add(run_seed(seed))
        except Exception as error:
            failed += 1
            print(f"FAILED {error if isinstance(error, Broken) else f'seed {seed}: {error!r}'}", flush=True)
            if failed == 20:
                break
    took = time.monotonic() - began
    print(f"{int(last) - int(first)} seeds, {failed} failed, {took:.1f} s; {total}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
