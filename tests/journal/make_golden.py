"""Makes the golden data folders: what this version of stompd writes, for all later ones to read.

    python -m tests.journal.make_golden DIR

Run it once for each version of the format and keep what it made; never run it over what is there. Each folder is
NAME.tar.gz with a NAME.json beside it that says what a start must find.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import sys
import tarfile
from pathlib import Path
from random import Random
from typing import Any

from broker.journal import (
    Part,
    RecordType,
    Replayed,
    acked_payload,
    delivered_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    transaction_payload,
)
from tests.journal.folding import QUEUES, Folded, Traffic, checkpoint, fold
from tests.journal.harness import DATA, LOG, Bench, Running, patched, records_in
from tests.support.simdisk import SimDisk

HEAD = b"content-type:text/plain\n"


def some_of_all(run: Running, state: Folded) -> None:
    """A record of each type that the core writes, in all their forms."""
    traffic = Traffic(run, state, Random(1), SimDisk(Random(1)))
    journal = run.journal

    def messages(queues: tuple[bytes, ...], owns: list[bytes] | None, bodies: list[bytes]) -> list[bytes]:
        seq = journal.take_seqs(len(bodies))
        return messages_payload(QUEUES[0], queues, HEAD, journal.boot, seq, owns, bodies)

    first = journal.next_seq
    traffic.append(RecordType.MESSAGES, messages((), None, [b"alone"]))
    traffic.append(RecordType.MESSAGES, messages((), None, [b"a run of", b"three", b""]))
    own = [b"correlation-id:1\n", b""]
    traffic.append(RecordType.MESSAGES, messages(QUEUES[:2], own, [b"with lines of its own", b"\0\1\2"]))
    traffic.append(RecordType.ACKED, acked_payload(QUEUES[0], [first]))
    traffic.append(RecordType.DELIVERED, delivered_payload(QUEUES[0], first + 1000))
    traffic.append(RecordType.RETURNED, returned_payload(QUEUES[0], [(first + 1, first + 2, 3, 2)]))
    note = json.dumps([["dead-letter-reason", "rejected"]]).encode()
    entries = [(first + 2, first + 2, 4, 3)]
    traffic.append(RecordType.MOVED, moved_payload(QUEUES[0], QUEUES[2], entries, note))
    parts = [
        (RecordType.MESSAGES, messages((), None, [b"in a transaction", b"x" * 5000])),
        (RecordType.ACKED, acked_payload(QUEUES[1], [first + 4])),
    ]
    traffic.append(RecordType.TRANSACTION, transaction_payload(parts))
    run.pump()


def clean() -> Bench:
    """Two runs, each with a stop in good order."""
    bench, state = Bench(), Folded()
    for _ in range(2):
        with bench.running() as run:
            some_of_all(run, state)
            run.stop()
    return bench


def torn() -> Bench:
    """kill -9, and of the last write only the first half reached the disk."""
    bench, state = Bench(), Folded()
    with bench.running() as run:
        some_of_all(run, state)
        run.journal.append_witness()
        run.pump()
        run.send(b"torn off" * 50)
        run.pump()
        path = run.journal.segment.path
    data = bench.disk.contents(path)
    bench.disk.put(path, patched(data, records_in(data)[-1][0] + 200, bytes(300)))
    return bench


def full() -> Bench:
    """Every type of record, segments copied forward and removed, two checkpoints and records behind them."""
    bench, state, rng = Bench(), Folded(), Random(20)
    with bench.running() as run:
        some_of_all(run, state)
        run.journal.append_witness()
        traffic = Traffic(run, state, rng, bench.disk)
        for _ in range(2):
            for _ in range(60):
                rng.choice([traffic.send, traffic.settle, traffic.give_back, traffic.move, traffic.mark])()
            traffic.compact()
            checkpoint(run, state, bench.disk)
        for _ in range(20):
            rng.choice([traffic.send, traffic.settle, traffic.give_back, traffic.move])()
        run.journal.append_witness()
        run.pump()
    return bench


FOLDERS = {"clean": clean, "torn": torn, "full": full}


def said(bench: Bench) -> dict[str, Any]:
    """What a start finds, as JSON: with the bodies and without a checkpoint, and what it comes to."""
    log = bench.open()
    whole: list[Replayed] = list(log.replay())
    summary = dataclasses.asdict(log.summary)
    bench.disk.kill()
    state = fold(bench.open().replay(checkpoint=False, skim=True))
    bench.disk.kill()
    log = bench.open()
    parts = sum(isinstance(item, Part) for item in log.replay(skim=True))
    bench.disk.kill()
    return {
        "summary": summary,
        "parts": parts,
        "checkpoint": log.checkpoint.lsn if log.checkpoint else None,
        "records": [
            {"lsn": item.lsn, "type": item.type.name, "place": item.place, **fields(item.value)} for item in whole
        ],
        "messages": [[name.decode(), seq, *known] for (name, seq), known in sorted(state.messages.items())],
        "marks": {name.decode(): seq for name, seq in sorted(state.marks.items())},
    }


def fields(value: Any) -> dict[str, Any]:
    found = value._asdict() if isinstance(value, tuple) else dataclasses.asdict(value)
    return {name: plain(field) for name, field in found.items()}


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def pack(disk: SimDisk) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for folder in (DATA, LOG, f"{DATA}/ckpt"):
            for path in disk.files(folder):
                data = disk.contents(path)
                info = tarfile.TarInfo(path.removeprefix(DATA + "/"))
                info.size, info.mode = len(data), 0o600
                tar.addfile(info, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), 9, mtime=0)


def unpack(data: bytes) -> dict[str, bytes]:
    """Path inside the data folder -> bytes."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}  # type: ignore[union-attr]


def main(target: Path) -> None:
    for name, make in FOLDERS.items():
        bench = make()
        packed = pack(bench.disk)
        (target / f"{name}.tar.gz").write_bytes(packed)
        (target / f"{name}.json").write_text(json.dumps(said(bench)) + "\n")
        print(f"{name}: {len(packed)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
