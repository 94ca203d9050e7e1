"""A log on the simulated disk, with a clock and an id that are always the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from zlib import crc32

import pytest

from broker.errors import DataDamaged
from broker.journal.journal import Journal
from broker.journal.records import HEADER, HEADER_BYTES, RecordType, messages_payload
from broker.journal.recovery import Log, Replayed, open_log
from broker.journal.segment import SEGMENT_HEADER_BYTES, segment_name
from broker.journal.writer import Writer
from tests.support.simdisk import SimDisk

DATA = "data"
LOG_ID = bytes(range(16))
META = f"{DATA}/META"
LOG = f"{DATA}/log"
SENT = [b"one" * 50, b"two" * 50, b"three" * 50]


def segment_path(number: int) -> str:
    return f"{DATA}/log/{segment_name(number)}"


ONE = segment_path(1)


@dataclass(frozen=True)
class Settings:
    fsync: str = "always"
    interval: float = 0.1
    segment_size: int = 4096


@dataclass
class ManualClock:
    now: float = 0.0
    wall: int = 1_700_000_000_000

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return self.wall


class FixedRng:
    def token(self, size: int) -> bytes:
        return LOG_ID[:size]


@dataclass
class Bench:
    """A disk and the broker's journal on it, started as often as a test likes."""

    disk: SimDisk = field(default_factory=lambda: SimDisk(Random(1)))
    settings: Settings = field(default_factory=Settings)
    clock: ManualClock = field(default_factory=ManualClock)

    def open(self, disk: SimDisk | None = None) -> Log:
        return open_log(disk or self.disk, DATA, self.settings, self.clock, FixedRng())

    def replay(self, disk: SimDisk | None = None) -> tuple[list[Replayed], Log]:
        log = self.open(disk)
        return list(log.replay()), log

    def take(self, journal: Journal, writer: Writer, log: Log) -> Running:
        """For tests that start by themselves."""
        return Running(journal, writer, [], log)

    @contextmanager
    def running(self) -> Iterator[Running]:
        """A started broker; at the end its process is killed (nothing is synced, nothing is lost)."""
        found, log = self.replay()
        journal, writer = log.start()
        try:
            yield Running(journal, writer, found, log)
        finally:
            self.disk.kill()


@dataclass
class Running:
    journal: Journal
    writer: Writer
    found: list[Replayed]
    log: Log

    def send(self, body: bytes, count: int = 1, destination: bytes = b"/queue/a") -> int:
        """Appends a run of `count` equal messages; its LSN."""
        seq = self.journal.take_seqs(count)
        payload = messages_payload(destination, (), b"h:1\n", 1, seq, None, [body] * count)
        self.journal.segment.live += count
        return self.journal.append(RecordType.MESSAGES, payload)

    def pump(self) -> None:
        """Everything that is queued goes to the disk."""
        while (batch := self.journal.take_batch()) is not None:
            self.writer.run(batch)
            self.journal.done(batch, None)

    def stop(self) -> None:
        """In good order."""
        self.pump()
        self.journal.append_witness(clean=True)
        self.pump()
        self.writer.close()
        self.log.close()


def bodies(found: list[Replayed]) -> list[bytes]:
    return [body for item in found for body in getattr(item.value, "bodies", [])]


def records_in(data: bytes) -> list[tuple[int, tuple[int, ...], bytes]]:
    """(offset, header fields, payload) of a segment's records, read by lengths alone."""
    at, found = SEGMENT_HEADER_BYTES, []
    while at + HEADER_BYTES <= len(data):
        fields = HEADER.unpack_from(data, at)
        if fields[3] == 0:
            break
        start = at + HEADER_BYTES
        found.append((at, fields, data[start : start + fields[0]]))
        at = start + (fields[0] + 7) // 8 * 8
    return found


def forged(
    payload: bytes, before: int, kind: int, flags: int, lsn: int, synced: int, log_id: bytes = LOG_ID
) -> bytes:
    """A record with a right crc, whatever else it says."""
    padded = payload + bytes(-len(payload) % 8)
    head = struct.pack("<IIIHHQQ", len(payload), 0, before, kind, flags, lsn, synced)
    crc = crc32(head + padded, crc32(log_id))
    return struct.pack("<IIIHHQQ", len(payload), crc, before, kind, flags, lsn, synced) + padded


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def three_messages(witness: bool = True) -> Bench:
    """EPOCH, three MESSAGES each in a batch of its own, perhaps a witness; killed."""
    bench = Bench()
    with bench.running() as run:
        for body in SENT:
            run.send(body)
            run.pump()
        if witness:
            run.journal.append_witness()
            run.pump()
    return bench


def refused(bench: Bench, kind: type[Exception] = DataDamaged) -> str:
    """The text of the refusal; twice the same, and nothing on the disk was changed."""
    before = {path: bench.disk.contents(path) for path in bench.disk.files(LOG) + bench.disk.files(DATA)}
    texts = []
    for _ in range(2):
        with pytest.raises(kind) as caught:
            bench.replay()
        texts.append(str(caught.value))
        bench.disk.kill()
    assert texts[0] == texts[1]
    assert before == {
        path: bench.disk.contents(path) for path in bench.disk.files(LOG) + bench.disk.files(DATA)
    }
    return texts[0]


def end_of(data: bytes) -> tuple[int, tuple[int, ...]]:
    """Where the records end, and the header of the last."""
    at, fields, payload = records_in(data)[-1]
    return at + HEADER.size + (len(payload) + 7) // 8 * 8, fields


def heals(bench: Bench, wanted: list[bytes], torn: bool) -> None:
    found, log = bench.replay()
    bench.disk.kill()
    assert bodies(found) == wanted
    assert (log.summary.torn_bytes > 0) is torn
    with bench.running() as run:  # and the log goes on from there
        run.send(b"more")
        run.pump()
    assert bodies(bench.replay()[0]) == [*wanted, b"more"]


def resealed(data: bytes, size: int) -> bytes:
    """With a right crc in the last four bytes of a META or a segment header."""
    return data[: size - 4] + struct.pack("<I", crc32(data[: size - 4])) + data[size:]
