"""What the system can do to a running broker: a disk that fails, a table of open files that is full."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support.process import BrokerProcess
from tests.support.wire import Got, Wire, WireError, close_all

Make = Callable[..., BrokerProcess]


def can_inject() -> bool:
    strace = shutil.which("strace")
    if strace is None:
        return False
    command = [strace, "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "true"]
    return subprocess.run(command, capture_output=True).returncode == 0


def failing(make: Make, call: str, error: str, when: int) -> BrokerProcess:
    """A broker in which that system call fails, from its `when`-th time on."""
    inject = f"inject={call}:error={error}:when={when}+"
    return make(prefix=["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject])


def send_until_it_ends(wire: Wire) -> tuple[list[int], Got]:
    """SENDs one by one with receipts, until an ERROR comes instead; the receipted ones and the ERROR."""
    receipted: list[int] = []
    for number in range(10_000):
        wire.tell("SEND", {"destination": "/queue/q", "receipt": str(number)}, str(number).encode())
        got = wire.frame()
        if got.command == "ERROR":
            assert got.get("receipt-id") == str(number)
            return receipted, got
        assert got["receipt-id"] == str(number)
        receipted.append(number)
    raise WireError("it never failed")


@pytest.mark.skipif(
    not can_inject(), reason="strace is missing, or may not trace here (apt-get install strace)"
)
@pytest.mark.parametrize(
    ("call", "error"), [("fdatasync", "EIO"), ("fdatasync", "ENOSPC"), ("pwritev2", "EIO")]
)
def test_a_storage_failure_is_never_receipted_and_ends_with_74(
    own_broker: Make, call: str, error: str
) -> None:
    broker = failing(own_broker, call, error, 40).start()
    with Wire(broker.address) as wire:
        wire.connect()
        receipted, got = send_until_it_ends(wire)
        wire.expect_closed()
    assert got["message"] == "storage failure"
    assert broker.wait(6) == 74
    assert "Traceback" not in broker.stderr()
    broker.prefix = []
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q")
        assert wire.bodies(len(receipted)) == [str(number) for number in receipted]


def test_when_no_file_can_be_opened_those_who_are_in_go_on(own_broker: Make) -> None:
    broker = own_broker(open_files=192).start()
    friend = Wire(broker.address)
    crowd: list[Wire] = []
    try:
        friend.connect()
        friend.subscribe("/queue/friend", ack="client-individual")
        for _ in range(250):
            crowd.append(Wire(broker.address))
        for number in range(20):
            friend.publish("/queue/friend", str(number))
            friend.ack(friend.expect("MESSAGE"))
        close_all(crowd)
        deadline = time.monotonic() + 15
        while not lets_in(broker):
            assert time.monotonic() < deadline
        broker.stop()
    finally:
        close_all([friend, *crowd])


def lets_in(broker: BrokerProcess) -> bool:
    with Wire(broker.address) as wire:
        try:
            wire.connect()
        except (WireError, OSError):
            return False
        return True


def test_a_folder_that_cannot_be_written_is_refused_with_a_sentence(own_broker: Make) -> None:
    broker = own_broker()
    broker.data_dir.write_text("a file where the folder should be")
    broker.start(wait=False)
    assert broker.wait() in (69, 74, 78)
    said = broker.stderr()
    assert str(broker.data_dir) in said
    assert not re.search("Traceback", said)
