"""Data folders that earlier versions wrote are read to the last byte; those of a newer one are left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from broker.errors import FormatNotKnown
from broker.journal import RecordType
from tests.journal.folding import fold
from tests.journal.harness import DATA, Bench, patched, records_in, refused, resealed
from tests.journal.make_golden import FOLDERS, said, unpack
from tests.support.process import BrokerProcess
from tests.support.simdisk import SimDisk
from tests.support.wire import Wire

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name.removesuffix(".tar.gz") for path in GOLDEN.glob("*.tar.gz"))


def opened(name: str) -> Bench:
    """A copy on a disk of its own."""
    disk = SimDisk(Random(1))
    for folder in (DATA, f"{DATA}/log", f"{DATA}/ckpt"):
        disk.make_dir(folder)
    for path, data in unpack((GOLDEN / f"{name}.tar.gz").read_bytes()).items():
        disk.close(disk.create(f"{DATA}/{path}"))
        disk.put(f"{DATA}/{path}", data)
    for folder in ("", DATA, f"{DATA}/log", f"{DATA}/ckpt"):
        disk.sync_dir(folder)
    return Bench(disk=disk)


def wanted(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text())  # type: ignore[no-any-return]


def test_there_is_a_folder_of_each_kind() -> None:
    assert set(NAMES) >= set(FOLDERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_folder_says_what_it_said_when_it_was_made(name: str) -> None:
    assert json.loads(json.dumps(said(opened(name)))) == wanted(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_folder_goes_on_and_comes_to_the_same_with_its_checkpoint(name: str) -> None:
    bench, said = opened(name), wanted(name)
    log = bench.open()
    state = fold(log.replay(skim=True))
    assert [[key.decode(), seq, *known] for (key, seq), known in sorted(state.messages.items())] == said["messages"]
    assert {key.decode(): seq for key, seq in sorted(state.marks.items())} == said["marks"]
    assert log.doubts == [] and (log.checkpoint is not None) == (name == "full")
    journal, writer = log.start()
    run = bench.take(journal, writer, log)
    run.send(b"more")
    run.stop()
    bench.disk.kill()
    assert len(bench.replay()[0]) == len(said["records"]) + 1


def test_every_type_of_record_is_in_a_golden_folder() -> None:
    kinds = set()
    for name in NAMES:
        bench = opened(name)
        for path in bench.disk.files(f"{DATA}/log"):
            kinds |= {fields[3] for _, fields, _ in records_in(bench.disk.contents(path))}
    assert kinds == set(RecordType)


def test_what_a_newer_version_wrote_is_refused_and_left_alone_wherever_it_says_so() -> None:
    files = [path for path in opened("full").disk.files(f"{DATA}/log") if path.endswith(".seg")]
    newest = opened("full").disk.files(f"{DATA}/ckpt")[-1]
    for path, size in ((f"{DATA}/META", 64), *((path, 512) for path in files), (newest, 64)):
        bench = opened("full")
        bench.disk.put(path, resealed(patched(bench.disk.contents(path), 8, b"\2"), size))
        assert path in refused(bench, FormatNotKnown)


@pytest.mark.parametrize("name", NAMES)
def test_a_real_broker_gives_out_every_message_of_a_golden_folder_once(
    name: str, own_broker: Callable[..., BrokerProcess]
) -> None:
    broker, said = own_broker(), wanted(name)
    for path, data in unpack((GOLDEN / f"{name}.tar.gz").read_bytes()).items():
        file = broker.data_dir / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    broker.start()
    seqs: dict[str, list[int]] = {}
    for queue, seq, *_ in said["messages"]:
        seqs.setdefault(queue, []).append(seq)
    with Wire(broker.address) as wire:
        wire.connect()
        for queue, listed in seqs.items():
            wire.subscribe(queue, name=queue)
            got = [wire.expect("MESSAGE")["message-id"] for _ in listed]
            assert sorted(int(text.rpartition("-")[2]) for text in got) == listed, queue
            wire.call("UNSUBSCRIBE", {"id": queue})
        wire.call("DISCONNECT")
    broker.stop()
    assert "not used" not in broker.stderr() and " error " not in broker.stderr()
