"""`stompd log` on folders that a real broker wrote."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from tests.journal.harness import records_in
from tests.support.process import BrokerProcess, run_command
from tests.support.wire import Wire

Done = subprocess.CompletedProcess[bytes]
BODIES = [f"message {number}" for number in range(40)]


def log(*words: str, folder: Path, data: str = "data", stdin: bytes = b"") -> Done:
    return run_command("log", *words, "--data-dir", data, cwd=folder, stdin=stdin)


def rows(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.decode().split("\n") if line]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drained(broker: BrokerProcess, queue: str, count: int) -> list[str]:
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe(queue)
        return wire.bodies(count)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    process = BrokerProcess(tmp_path)
    yield process
    process.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder that a broker left: 40 messages in /queue/a, each in a record of its own, the first 10 of them
    acknowledged, and one in /queue/b.
    """
    process = BrokerProcess(tmp_path_factory.mktemp("written"))
    try:
        process.start()
        with Wire(process.address) as wire:
            wire.connect()
            wire.publish("/queue/a", *BODIES)
            wire.publish("/queue/b", b"\xff other", key="value")
            wire.subscribe("/queue/a", "client-individual")
            for one in wire.messages(10):
                wire.ack(one)
            wire.call("DISCONNECT")
        process.stop()
    finally:
        process.close()
    return process.data_dir


@pytest.fixture
def stopped(broker: BrokerProcess, written: Path) -> BrokerProcess:
    shutil.copytree(written, broker.data_dir)
    return broker


def segments(broker: BrokerProcess) -> list[Path]:
    return sorted((broker.data_dir / "log").glob("*.seg"))


def damage(broker: BrokerProcess, body: str) -> int:
    """Rot in the record of the message with this body; its LSN."""
    for path in segments(broker):
        data = bytearray(path.read_bytes())
        for at, fields, payload in records_in(bytes(data)):
            if fields[3] == 1 and payload.endswith(body.encode()):
                data[at + 40] ^= 1
                path.write_bytes(data)
                lsn: int = fields[5]
                return lsn
    raise AssertionError(f"no record with {body}")


# verify


def test_a_sound_folder_is_verified_and_not_changed_also_where_nothing_can_be_written(stopped: BrokerProcess) -> None:
    before = snapshot(stopped.data_dir)
    done = log("verify", folder=stopped.folder)
    assert done.returncode == 0 and b"0 damages" in done.stdout and b"would go on" in done.stdout
    copy = stopped.folder / "copy"
    shutil.copytree(stopped.data_dir, copy)
    (copy / "LOCK").unlink()
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    done = log("verify", "--json", folder=stopped.folder, data="copy")
    (report,) = rows(done)
    assert done.returncode == 0 and report["start"] == "clean" and report["damages"] == []
    assert report["records"] > len(BODIES) and not (copy / "LOCK").exists()
    assert snapshot(stopped.data_dir) == before
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o700)


def test_damage_is_listed_with_file_offset_lsn_and_queue(stopped: BrokerProcess) -> None:
    lsn = damage(stopped, "message 20")
    before = snapshot(stopped.data_dir)
    done = log("verify", folder=stopped.folder)
    text = done.stdout.decode()
    assert done.returncode == 65 and "1 damages" in text and "would be refused" in text
    assert f"lsn {lsn}" in text and "/queue/a" in text and ".seg: offset " in text
    (report,) = rows(log("verify", "--json", folder=stopped.folder))
    (found,) = report["damages"]
    assert report["start"] == "refused" and found["first_lsn"] == found["last_lsn"] == lsn
    assert found["queues"] == ["/queue/a"] and os.path.exists(stopped.folder / found["file"])
    assert snapshot(stopped.data_dir) == before
    with pytest.raises(Exception, match="exit code 65"):
        stopped.start()


def test_a_folder_in_use_is_left_alone_and_two_may_look_at_once(broker: BrokerProcess) -> None:
    broker.start()
    for words in (["verify"], ["dump"], ["salvage", "--out", "out"], ["forget", "a", "1", "--yes"]):
        done = log(*words, folder=broker.folder)
        assert done.returncode == 75 and b"in use" in done.stderr, words
    broker.kill()
    assert log("verify", folder=broker.folder).returncode == 0


def test_a_torn_tail_is_no_damage_and_a_newer_version_is_78(stopped: BrokerProcess) -> None:
    last = segments(stopped)[-1]
    last.write_bytes(last.read_bytes() + b"\1" * 100)
    (report,) = rows(log("verify", "--json", folder=stopped.folder))
    assert report["start"] == "torn" and report["torn_bytes"] > 0
    meta = stopped.data_dir / "META"
    data = bytearray(meta.read_bytes())
    data[8] = 99
    data[60:] = struct.pack("<I", crc32(data[:60]))
    meta.write_bytes(data)
    done = log("verify", folder=stopped.folder)
    assert done.returncode == 78 and b"99" in done.stderr


def test_where_there_is_no_folder_that_is_said(tmp_path: Path) -> None:
    done = log("verify", folder=tmp_path)
    assert done.returncode == 64 and b"no data folder" in done.stderr
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    done = log("verify", folder=tmp_path)
    assert done.returncode == 0 and b"there is none" in done.stdout and not list((tmp_path / "data").iterdir())


# dump


def test_dump_prints_each_record_and_goes_on_behind_damage(stopped: BrokerProcess) -> None:
    done = log("dump", "--bodies", folder=stopped.folder)
    assert done.returncode == 0
    found = [
        message.get("text") for row in rows(done) if row["type"] == "MESSAGES" for message in row["messages"]
    ]
    assert found[:-1] == BODIES
    (other,) = rows(log("dump", "--queue", "/queue/b", "--bodies", folder=stopped.folder))
    assert other["messages"][0]["base64"] == "/yBvdGhlcg==" and "key:value" in other["headers"]
    (plain,) = rows(log("dump", "--queue", "/queue/b", folder=stopped.folder))
    assert "headers" not in plain and plain["messages"][0] == {"seq": 41, "size": 7}
    lsn = damage(stopped, "message 20")
    done = log("dump", "--bodies", "--from", str(lsn - 1), folder=stopped.folder)
    before, bad, after = rows(done)[:3]
    assert done.returncode == 65 and bad["type"] == "damage" and bad["first_lsn"] == lsn
    assert (before["lsn"], after["lsn"]) == (lsn - 1, lsn + 1) and after["messages"][0]["text"] == "message 21"


# salvage


def test_a_salvaged_folder_is_served_by_a_broker_in_order(stopped: BrokerProcess) -> None:
    lsn = damage(stopped, "message 20")
    before = snapshot(stopped.data_dir)
    done = log("salvage", "--out", "saved", folder=stopped.folder)
    assert done.returncode == 65 and b"30 messages in 2 queues" in done.stdout, done
    assert snapshot(stopped.data_dir) == before
    (row,) = [json.loads(line) for line in (stopped.folder / "saved/missing.jsonl").read_text().split("\n") if line]
    assert row["first_lsn"] == row["last_lsn"] == lsn and row["queues"] == ["/queue/a"]
    assert log("salvage", "--out", "saved", folder=stopped.folder).returncode == 64
    stopped.data_dir = stopped.folder / "saved"
    stopped.configure({})
    stopped.start()
    with Wire(stopped.address) as wire:
        wire.connect()
        wire.subscribe("/queue/a")
        got = wire.messages(29)
        assert [one.body.decode() for one in got] == [body for body in BODIES[10:] if body != "message 20"]
        assert {one["redelivered"] for one in got} == {"true"}
        wire.subscribe("/queue/b", name="t")
        (other,) = wire.messages(1)
        assert other.body == b"\xff other" and other["key"] == "value"
    stopped.stop()


def test_a_sound_folder_is_salvaged_with_exit_code_0(stopped: BrokerProcess) -> None:
    done = log("salvage", "--out", "saved", "--json", folder=stopped.folder)
    (report,) = rows(done)
    assert done.returncode == 0 and report["messages"] == 31 and not report["unsure"] and not report["missing"]
    assert log("verify", folder=stopped.folder, data="saved").returncode == 0
    done = log("salvage", "--out", "data/inside", folder=stopped.folder)
    assert done.returncode == 64 and b"in the data folder itself" in done.stderr


# forget


def test_a_forgotten_message_is_never_delivered_and_the_others_are(stopped: BrokerProcess) -> None:
    seqs = {
        message["text"]: message["seq"]
        for row in rows(log("dump", "--bodies", "--queue", "/queue/a", folder=stopped.folder))
        if row["type"] == "MESSAGES"
        for message in row["messages"]
    }
    before = snapshot(stopped.data_dir)
    gone = str(seqs["message 3"])
    done = log("forget", "/queue/a", gone, "--yes", folder=stopped.folder)
    assert done.returncode == 64 and b"no message" in done.stderr
    wanted = str(seqs["message 20"])
    done = log("forget", "/queue/a", wanted, folder=stopped.folder)
    assert done.returncode == 64 and b"--yes" in done.stderr and b"destination:/queue/a" in done.stdout
    assert snapshot(stopped.data_dir).keys() == before.keys()
    done = log("forget", "a", f"{wanted}-{seqs['message 22']}", "--yes", folder=stopped.folder)
    assert done.returncode == 0 and b"3 messages of /queue/a given up" in done.stdout
    assert log("verify", folder=stopped.folder).returncode == 0
    stopped.start()
    left = [body for body in BODIES[10:] if body not in ("message 20", "message 21", "message 22")]
    assert drained(stopped, "/queue/a", len(left)) == left
    stopped.stop()


def test_where_the_start_is_refused_forget_names_salvage(stopped: BrokerProcess) -> None:
    damage(stopped, "message 20")
    done = log("forget", "/queue/a", "21", "--yes", folder=stopped.folder)
    assert done.returncode == 65 and b"stompd log salvage" in done.stderr


# the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "action"),
        (["repair"], "invalid choice"),
        (["verify", "--yes"], "--yes does not go with"),
        (["dump", "--json"], "--json does not go with"),
        (["verify", "x"], "takes no 'x'"),
        (["salvage"], "needs --out"),
        (["forget", "a"], "expected the queue and a number"),
        (["forget", "a", "b"], "FIRST-LAST"),
        (["forget", "a", "7-3"], "FIRST-LAST"),
        (["forget", "a", "0"], "FIRST-LAST"),
        (["dump", "--from", "x"], "number of a record"),
    ],
)
def test_a_wrong_command_line_says_what_was_expected(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = log(*words, folder=tmp_path)
    assert done.returncode == 64 and said in done.stderr.decode(), done.stderr


def test_a_dump_into_a_closed_pipe_is_no_error(stopped: BrokerProcess) -> None:
    done = subprocess.run(
        f"{sys.executable} -m broker log dump --data-dir data | head -n 1",
        shell=True, cwd=stopped.folder, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, timeout=30,
    )  # fmt: skip
    assert done.stderr == b"" and done.stdout.count(b"\n") == 1
