"""What a running broker does when the kernel says no: system calls are made to fail by strace, with real clients.

Each case names the call, the error, and what has to come of it. Whatever it is: what was receipted is there after the
next start, in order, and nobody gets a receipt after an ERROR.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.process import BrokerProcess
from tests.support.wire import Wire, WireClosed, close_all

Make = Callable[..., BrokerProcess]
Join = Callable[..., "Sender"]
BODY = b"x" * 120_000  # the log rolls after eight of them
LOG_FILES = 12  # segments that a case may touch
ENDS_WITHIN = 10.0  # s from the ERROR to the exit; promised are 5 on a machine that does nothing else


def can_attach() -> bool:
    """Whether strace may attach to our processes and make their calls fail."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    command = [strace, "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "true"]
    if subprocess.run(command, capture_output=True).returncode:
        return False
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        tracer = subprocess.Popen([strace, "-p", str(sleeper.pid)], stderr=subprocess.PIPE, text=True)
        try:
            return "attached" in first_line(tracer)
        finally:
            tracer.kill()
            tracer.communicate()
    finally:
        sleeper.kill()
        sleeper.wait()


def first_line(tracer: subprocess.Popen[str]) -> str:
    return tracer.stderr.readline() if tracer.stderr else ""


pytestmark = pytest.mark.skipif(
    not can_attach(), reason="strace is missing, or may not trace here (apt-get install strace)"
)


def paths(data: Path, what: str) -> list[str]:
    """The files that a fault is limited to; "" for any."""
    log = data / "log"
    names = [f"{number:020d}.seg" for number in range(1, LOG_FILES)]
    return {
        "": [],
        "folder": [str(log)],
        "segments": [str(log / name) for name in names],
        "new": [str(log / f"{name}.tmp") for name in names],
        "lock": [str(data / "LOCK")],
        "meta": [str(data / "META")],
        "checkpoint": [str(data / "ckpt" / "next.ck.tmp")],
    }[what]


def strace(data: Path, inject: str, where: str) -> list[str]:
    call = inject.partition(":")[0]
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={inject}"]
    for path in paths(data, where):
        command += ["-P", path]
    return command


@contextlib.contextmanager
def injected(broker: BrokerProcess, inject: str, where: str = "") -> Iterator[None]:
    """From here on that system call of the running broker fails as `inject` says."""
    tracer = subprocess.Popen(
        [*strace(broker.data_dir, inject, where), "-p", str(broker.pid)], stderr=subprocess.PIPE, text=True
    )
    try:
        # One line, when all threads are attached.
        assert "attached" in first_line(tracer)
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


# --- clients --------------------------------------------------------------------------------------------------------


class Sender:
    """A client that sends numbered messages with receipts and keeps account of what it was told."""

    def __init__(self, broker: BrokerProcess, name: str) -> None:
        self.name = name
        self.wire = Wire(broker.address)
        self.wire.connect()
        self.sent: list[str] = []
        self.receipted: list[str] = []
        self.error = ""

    def send(self, body: bytes = b"") -> None:
        label = f"{self.name}.{len(self.sent)}"
        self.sent.append(label)
        fields = {"destination": f"/queue/{self.name}", "receipt": label, "label": label}
        with contextlib.suppress(OSError):
            self.wire.tell("SEND", fields, body)

    def hear(self, *, named: bool = True) -> bool:
        """Wait for the next answer. False: it was an ERROR, and nothing came behind it. named: for this very SEND."""
        got = self.wire.frame()
        waiting = self.sent[len(self.receipted)]
        if got.command == "ERROR":
            assert got.get("receipt-id") == waiting or not named
            self.error = got["message"]
            self.wire.expect_closed()
            return False
        assert (got.command, got["receipt-id"]) == ("RECEIPT", waiting)
        self.receipted.append(waiting)
        return True

    def send_until_it_ends(self, most: int = 40, *, named: bool = True) -> bool:
        """One by one. False where an ERROR came; see `hear`."""
        for _ in range(most):
            self.send(BODY)
            if not self.hear(named=named):
                return False
        return True


@pytest.fixture
def join() -> Iterator[Callable[..., Sender]]:
    """Makes Senders that are closed at the end of the test."""
    made: list[Sender] = []

    def make(broker: BrokerProcess, name: str) -> Sender:
        made.append(Sender(broker, name))
        return made[-1]

    yield make
    close_all(each.wire for each in made)


def found(broker: BrokerProcess, queue: str) -> list[str]:
    """The labels of all messages that wait in a queue; they are acknowledged. A mark behind them shows the end."""
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish(f"/queue/{queue}", "mark", label="mark")
        wire.subscribe(f"/queue/{queue}", ack="client-individual")
        labels: list[str] = []
        while (got := wire.expect("MESSAGE"))["label"] != "mark":
            labels.append(got["label"])
            wire.tell("ACK", {"id": got["ack"]})
        wire.ack(got)
        return labels


def is_told(broker: BrokerProcess, *senders: Sender) -> None:
    """After the next start everything receipted is there, in order; what was not may be there, behind it, once."""
    assert "Traceback" not in broker.stderr(), broker.stderr()[-3000:]
    broker.prefix = []
    broker.start()
    for sender in senders:
        there = found(broker, sender.name)
        assert there[: len(sender.receipted)] == sender.receipted
        assert there == sender.sent[: len(there)]


# --- while it runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """inject: as strace takes it. where: see `paths`. prepare: the broker has done this before."""

    name: str
    inject: str
    where: str = ""


ENDS = [
    Case("sync-eio", "fdatasync:error=EIO"),
    Case("a-later-sync-eio-once", "fdatasync:error=EIO:when=9"),
    Case("sync-enospc-once", "fdatasync:error=ENOSPC:when=3"),
    Case("write-eio", "pwritev2:error=EIO"),
    Case("a-later-write-eio-once", "pwritev2:error=EIO:when=7"),
    Case("write-erofs", "pwritev2:error=EROFS:when=4+"),
    Case("new-file-sync-eio", "fsync:error=EIO", "new"),
    Case("new-file-sync-enospc-once", "fsync:error=ENOSPC:when=1", "new"),
    Case("folder-sync-eio", "fsync:error=EIO", "folder"),
    Case("folder-sync-enoent-once", "fsync:error=ENOENT:when=1", "folder"),
    Case("rename-eio", "rename:error=EIO:when=1", "new"),
    Case("allocate-eio-once", "fallocate:error=EIO:when=1", "new"),
    Case("create-erofs", "openat:error=EROFS", "new"),
]  # fmt: skip


@pytest.mark.parametrize("case", ENDS, ids=lambda case: case.name)
def test_an_error_of_the_disk_ends_receipts_at_once_and_the_broker_with_74(
    own_broker: Make, join: Join, case: Case
) -> None:
    broker = own_broker().start()
    busy, crowd = join(broker, "busy"), [join(broker, f"crowd{number}") for number in range(3)]
    for sender in crowd:
        assert sender.send_until_it_ends(1)
    with injected(broker, case.inject, case.where):
        assert not busy.send_until_it_ends()
        assert busy.error == "storage failure"
        for sender in crowd:
            assert sender.wire.expect_error()["message"] == "storage failure"
        assert broker.wait(ENDS_WITHIN) == 74
    assert re.search(r"level=error.*failed|error.*\bfailed\b", broker.stderr())
    is_told(broker, busy, *crowd)


@pytest.mark.parametrize("inject", ["fsync:error=EIO", "rename:error=EIO", "pwritev2:error=EIO"])
def test_an_error_of_the_disk_in_a_checkpoint_is_no_lesser_one(own_broker: Make, join: Join, inject: str) -> None:
    broker = own_broker({"storage": {"checkpoint": '"1MiB"'}}).start()
    sender = join(broker, "q")
    with injected(broker, inject, "checkpoint"):
        assert not sender.send_until_it_ends(named=False)
        assert broker.wait(ENDS_WITHIN) == 74
    is_told(broker, sender)


@pytest.mark.parametrize("inject", ["pwritev2:error=ENOSPC", "openat:error=ENOSPC"])
def test_no_room_for_a_checkpoint_is_a_warning(own_broker: Make, join: Join, inject: str) -> None:
    broker = own_broker({"storage": {"checkpoint": '"1MiB"'}}).start()
    sender = join(broker, "q")
    with injected(broker, inject, "checkpoint"):
        assert sender.send_until_it_ends(30)
        broker.stop()
    assert "no checkpoint was written" in broker.stderr()
    is_told(broker, sender)


def test_everyone_who_waits_for_a_receipt_hears_of_the_failure(own_broker: Make, join: Join) -> None:
    broker = own_broker().start()
    senders = [join(broker, f"s{number}") for number in range(5)]
    with injected(broker, "fdatasync:error=EIO:delay_enter=300000"):
        for sender in senders:
            sender.send()
        for sender in senders:
            assert not sender.hear()
            assert sender.error == "storage failure"
        assert broker.wait(ENDS_WITHIN) == 74
    is_told(broker, *senders)


def test_an_ack_whose_sync_failed_is_not_receipted(own_broker: Make, join: Join) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    assert sender.send_until_it_ends(3)
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q", ack="client-individual")
        first, *_ = wire.messages(3)
        with injected(broker, "fdatasync:error=EIO"):
            wire.tell("ACK", {"id": first["ack"], "receipt": "acked"})
            error = wire.expect("ERROR")
            assert (error["message"], error["receipt-id"]) == ("storage failure", "acked")
            wire.expect_closed()
            assert broker.wait(ENDS_WITHIN) == 74
    broker.start()
    there = found(broker, "q")
    assert there in (sender.receipted, sender.receipted[1:])  # an ACK without its receipt may be forgotten


def test_a_segment_that_cannot_be_removed_is_a_failure_of_the_disk(own_broker: Make, join: Join) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    with injected(broker, "unlink:error=EIO", "segments"), Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q", ack="client-individual")
        ended = False
        for _ in range(40):  # some segments die
            sender.send(BODY)
            if not sender.hear(named=False):  # it may fail between two SENDs
                ended = True
                break
            with contextlib.suppress(WireClosed, OSError):
                wire.tell("ACK", {"id": wire.expect("MESSAGE")["ack"]})
        assert ended
        assert broker.wait(ENDS_WITHIN) == 74
    assert "Traceback" not in broker.stderr()
    broker.start()
    assert set(found(broker, "q")) <= set(sender.sent[-3:])


GOES_ON = [
    Case("interrupted-sync", "fdatasync:error=EINTR:when=2"),
    Case("interrupted-write", "pwritev2:error=EINTR:when=2"),
    Case("interrupted-new-file-sync", "fsync:error=EINTR:when=1", "new"),
    Case("interrupted-allocate", "fallocate:error=EINTR:when=1", "new"),
]


@pytest.mark.parametrize("case", GOES_ON, ids=lambda case: case.name)
def test_a_call_that_was_only_interrupted_is_made_again(own_broker: Make, join: Join, case: Case) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    with injected(broker, case.inject, case.where):
        assert sender.send_until_it_ends(20)
        broker.stop()
    is_told(broker, sender)


STOPS = [
    Case("close", "close:error=EIO", "segments"),
    Case("unlink-of-the-next-segment", "unlink:error=EIO", "new"),
    Case("close-of-the-lock", "close:error=EIO", "lock"),
]


@pytest.mark.parametrize("case", STOPS, ids=lambda case: case.name)
def test_an_error_behind_the_last_sync_of_a_clean_stop_is_nobodys(own_broker: Make, join: Join, case: Case) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    assert sender.send_until_it_ends(6)  # past half of the segment, so that the next one is prepared
    with injected(broker, case.inject, case.where):
        broker.stop()
    is_told(broker, sender)


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inject", ["fallocate:error=ENOSPC", "fallocate:error=EDQUOT", "pwritev2:error=ENOSPC"])
def test_a_full_disk_holds_producers_back_and_lets_them_go_on_when_there_is_room(
    own_broker: Make, join: Join, inject: str
) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    with injected(broker, inject):
        for _ in range(40):  # until one is not answered
            sender.send(BODY)
            if sender.wire.idle(1.0):
                break
            assert sender.hear()
        assert len(sender.receipted) < len(sender.sent)
        says(broker, "disk-alarm")
        with Wire(broker.address) as wire:
            wire.connect()  # it serves
    while len(sender.receipted) < len(sender.sent):
        assert sender.hear()
    says(broker, "disk-alarm-over")
    assert sender.send_until_it_ends(3)
    broker.stop()
    is_told(broker, sender)


def says(broker: BrokerProcess, event: str) -> None:
    """Wait for that event in its log."""
    deadline = time.monotonic() + 20
    while not re.search(rf"\b{event}\b(?!-)", broker.stderr()):
        assert time.monotonic() < deadline, broker.stderr()[-3000:]
        time.sleep(0.02)


def test_a_write_that_found_no_room_once_is_made_again(own_broker: Make, join: Join) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    with injected(broker, "pwritev2:error=ENOSPC:when=3"):
        assert sender.send_until_it_ends(12)
        broker.stop()
    is_told(broker, sender)


# --- reading back -----------------------------------------------------------------------------------------------------


def test_a_queue_that_cannot_be_read_fails_closed_and_the_others_go_on(own_broker: Make, join: Join) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    assert sender.send_until_it_ends(10)
    broker.crash()  # nothing of it is in memory now
    with injected(broker, "pread64:error=EIO", "segments"), Wire(broker.address) as wire:
        wire.connect()
        wire.tell("SUBSCRIBE", {"id": "s", "destination": "/queue/q", "ack": "client-individual"})
        error = wire.expect_error()
        assert error["message"] == "queue is damaged"
        assert ".seg: offset " in error.body.decode()
        other = join(broker, "other")
        assert other.send_until_it_ends(2)
        assert found(broker, "other") == other.receipted
        broker.stop()
    is_told(broker, sender)


def test_a_read_for_which_no_file_could_be_opened_is_made_again(own_broker: Make, join: Join) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    assert sender.send_until_it_ends(10)
    broker.crash()
    with injected(broker, "openat:error=EMFILE:when=1", "segments"):
        assert found(broker, "q") == sender.receipted
        broker.stop()


# --- while it starts ------------------------------------------------------------------------------------------------

REFUSED = [
    Case("lock", "flock:error=EIO", "lock"),
    Case("open-meta", "openat:error=EIO", "meta"),
    Case("read-meta", "pread64:error=EIO", "meta"),
    Case("list-log", "getdents64:error=EIO", "folder"),
    Case("sync-log-folder", "fsync:error=EIO", "folder"),
    Case("open-segment", "openat:error=EMFILE", "segments"),
    Case("sync-segment", "fdatasync:error=EIO:when=1", "segments"),
    Case("read-segment", "pread64:error=EIO:when=2", "segments"),
    Case("write-header", "pwritev2:error=EIO:when=1", "new"),
    Case("sync-new-segment", "fsync:error=EIO:when=1", "new"),
    Case("rename-new-segment", "rename:error=EIO:when=1", "new"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_an_error_of_the_disk_at_the_start_ends_it_with_74_and_harms_nothing(
    own_broker: Make, join: Join, case: Case
) -> None:
    broker = own_broker().start()
    sender = join(broker, "q")
    assert sender.send_until_it_ends(10)
    sender.send()  # under way when the kill comes
    broker.kill()
    broker.prefix = strace(broker.data_dir, case.inject, case.where)
    broker.start(wait=False)
    assert broker.wait() == 74
    is_told(broker, sender)


# --- a disk that hangs ------------------------------------------------------------------------------------------------


def test_a_disk_that_hangs_holds_receipts_back_and_nothing_else(own_broker: Make, join: Join) -> None:
    broker = own_broker({"shutdown": {"drain": '"5s"'}}).start()
    sender = join(broker, "q")
    assert sender.send_until_it_ends(1)
    with injected(broker, "fdatasync:delay_enter=3000000:when=1"):
        sender.send()
        assert sender.wire.idle(0.5)
        with Wire(broker.address) as other, Wire(broker.address) as reader:
            other.connect()  # the loop does not hang with the disk
            reader.connect()
            reader.tell("SUBSCRIBE", {"id": "s", "destination": "/queue/other"})
            other.tell("SEND", {"destination": "/queue/other", "persistent": "false"}, b"not for the disk")
            assert health(broker, "livez") == 200
            broker.signal(signal.SIGTERM)
            says(broker, "stopping")
        assert sender.hear()  # the stop waits for what was asked, and answers it
        sender.wire.expect_closed()
        assert broker.wait() == 0
    is_told(broker, sender)


def health(broker: BrokerProcess, path: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{broker.http_port}/{path}", timeout=5) as answer:
        status: int = answer.status
        return status
