"""A real broker on a small file system that becomes full (reliability.md 2.8)."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.process import BrokerProcess
from tests.support.wire import Wire

Make = Callable[..., BrokerProcess]
MIB = 1 << 20
SIZE = 48 * MIB
BODY = b"x" * 20_000
SECONDS = 20.0


@pytest.fixture
def small(own_broker: Make) -> Iterator[BrokerProcess]:
    """Its data folder is a file system of its own."""
    broker = own_broker({"limits": {"hold": '"60s"'}})
    broker.data_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(broker.data_dir)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a tmpfs")
    try:
        yield broker
    finally:
        broker.close()
        subprocess.run(["umount", "-l", str(broker.data_dir)], check=True)


def ready(broker: BrokerProcess) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{broker.http_port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


def fill_with_sends(broker: BrokerProcess, wire: Wire) -> int:
    """SENDs one by one with receipts until one is held back: the number of that one."""
    deadline = time.monotonic() + 3 * SECONDS
    for number in range(10_000):
        wire.tell("SEND", {"destination": "/queue/q", "receipt": str(number)}, b"%d %s" % (number, BODY))
        while (got := wire.poll(0.5)) is None:
            assert time.monotonic() < deadline, "neither receipted nor held back"
            if ready(broker) == (503, "alarm") and wire.idle(0.5):
                return number
        assert got["receipt-id"] == str(number)
    raise AssertionError("it was never full")


def drain(broker: BrokerProcess, count: int) -> list[int]:
    """Each is acknowledged with a receipt before the next comes."""
    numbers = []
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q", ack="client-individual", prefetch_count="1")
        for _ in range(count):
            got = wire.expect("MESSAGE")
            numbers.append(int(got.body.split(b" ")[0]))
            wire.ack(got)
    return numbers


def take_the_rest(broker: BrokerProcess) -> Path:
    """Somebody else fills the file system to the last byte."""
    path = broker.data_dir / "somebody-else"
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return path


def test_sends_stop_consumers_go_on_and_it_ends_by_itself(small: BrokerProcess) -> None:
    small.start()
    with Wire(small.address) as producer:
        producer.connect()
        held = fill_with_sends(small, producer)
        assert held * len(BODY) > SIZE // 4
        wait_until(lambda: ready(small) == (503, "alarm"))
        with Wire(small.address) as both:
            both.connect()
            both.subscribe("/queue/other")
            both.tell("SEND", {"destination": "/queue/q", "receipt": "r"}, b"no")
            error = both.expect_error()
            assert error["message"] == "broker has no room on its disk" and error["receipt-id"] == "r"
        assert drain(small, held) == list(range(held))
        assert producer.frame(SECONDS)["receipt-id"] == str(held)
        wait_until(lambda: ready(small) == (200, "ok"))
        producer.publish("/queue/q", b"%d more" % (held + 1))
    assert drain(small, 2) == [held, held + 1]
    small.stop()
    assert "disk-alarm:" in small.stderr() and "disk-alarm-over:" in small.stderr()


def test_somebody_else_takes_the_whole_disk_and_gives_it_back(small: BrokerProcess) -> None:
    small.start()
    with Wire(small.address) as producer:
        producer.connect()
        for number in range(200):
            producer.publish("/queue/q", b"%d %s" % (number, BODY))
        path = take_the_rest(small)
        wait_until(lambda: ready(small) == (503, "alarm"))
        producer.tell("SEND", {"destination": "/queue/q", "receipt": "held"}, b"200 %s" % BODY)
        assert drain(small, 150) == list(range(150))
        assert producer.idle(0.1)
        path.unlink()
        assert producer.frame(SECONDS)["receipt-id"] == "held"
    small.crash()
    assert drain(small, 51) == list(range(150, 201))
    small.stop()


def test_a_start_without_a_free_byte_works_and_consumers_drain(small: BrokerProcess) -> None:
    small.start()
    with Wire(small.address) as producer:
        producer.connect()
        for number in range(300):
            producer.publish("/queue/q", b"%d %s" % (number, BODY))
    small.kill()
    path = take_the_rest(small)
    assert os.statvfs(small.data_dir).f_bavail == 0
    small.start()
    wait_until(lambda: ready(small) == (503, "alarm"))  # the first look at the disk comes a moment after the start
    assert drain(small, 300) == list(range(300))
    small.kill()
    path.unlink()
    small.start()
    with Wire(small.address) as wire:
        wire.connect()
        wire.publish("/queue/q", b"300 last")
    assert drain(small, 1) == [300]
    small.stop()
