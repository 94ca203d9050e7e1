"""Backups of a broker under load, each started and drained; and the ways of moving that docs/operations.md names."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.process import BrokerProcess, run_command
from tests.support.wire import Wire, WireError

QUEUE = "/queue/load"
BODY = b"x" * 2000
COUNT = 5


class Load:
    """A producer and a consumer, each with a receipt for all it does, until told to stop.

    sent, acked: numbers whose receipt came. asked: those whose ACK was on its way.
    """

    def __init__(self, broker: BrokerProcess) -> None:
        self._broker = broker
        self.sent: set[int] = set()
        self.asked: set[int] = set()
        self.acked: set[int] = set()
        self._end = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(part,)) for part in (self._produce, self._consume)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def wait_for(self, sent: int) -> None:
        while len(self.sent) < sent and not self._errors:
            self._end.wait(0.005)

    def _run(self, part: Callable[[Wire], Iterator[None]]) -> None:
        try:
            with Wire(self._broker.address) as wire:
                wire.connect()
                for _ in part(wire):
                    if self._end.is_set():
                        return
        except (WireError, OSError) as error:
            self._errors.append(error)

    def _produce(self, wire: Wire) -> Iterator[None]:
        number = 0
        while True:
            numbers = range(number, number + 20)
            for number in numbers:
                wire.tell("SEND", {"destination": QUEUE, "receipt": str(number)}, b"%d %s" % (number, BODY))
            wire.receipt(str(number))
            self.sent.update(numbers)
            number += 1
            yield

    def _consume(self, wire: Wire) -> Iterator[None]:
        wire.subscribe(QUEUE, ack="client-individual")
        while True:
            got = wire.expect("MESSAGE", 30.0)
            number = number_of(got.body)
            if number % 10 != 7:  # some stay, so that old files stay
                self.asked.add(number)
                wire.ack(got)
                self.acked.add(number)
            yield


def number_of(body: bytes) -> int:
    return int(body.split(b" ")[0])


def drained(broker: BrokerProcess) -> list[int]:
    """Everything that waits, in the order in which it comes; then a marker shows that nothing more does."""
    numbers: list[int] = []
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish(QUEUE, b"-1 the end")
        wire.subscribe(QUEUE, ack="client-individual", prefetch_count="100")
        while (number := number_of((got := wire.expect("MESSAGE")).body)) != -1:
            numbers.append(number)
            wire.tell("ACK", {"id": got["ack"]})
        wire.ack(got)
    return numbers


def backed_up(broker: BrokerProcess, target: Path, *options: str) -> dict[str, int]:
    done = run_command("backup", "--config", str(broker.config), "--json", *options, str(target), cwd=broker.folder)
    assert done.returncode == 0, done.stderr
    report: dict[str, int] = json.loads(done.stdout)
    return report


def test_backups_under_load_start_and_hold_what_was_receipted_before(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker().start()
    promised: list[tuple[set[int], set[int]]] = []
    reports = []
    with Load(broker) as load:
        for number in range(COUNT):
            load.wait_for(sent=300 * (number + 1))
            promised.append((set(load.sent), set(load.acked)))
            reports.append(backed_up(broker, broker.folder / f"backup{number}", *(["--copy"] if number == 2 else [])))
        asked = load.asked
    for number, (sent, acked) in enumerate(promised):
        copy = own_broker()
        shutil.rmtree(copy.data_dir, ignore_errors=True)
        (broker.folder / f"backup{number}").rename(copy.data_dir)
        copy.start()
        found = drained(copy)
        assert found == sorted(set(found))
        assert set(found) >= sent - asked, number
        assert not set(found) & acked, number
        copy.stop()
    assert reports[-1]["linked"] > 0 and reports[2]["linked"] == 0
    rest = drained(broker)  # and nothing of all this touched the original
    assert set(rest) >= load.sent - asked and not set(rest) & load.acked
    broker.stop()


def test_a_folder_that_is_not_empty_is_refused_with_64(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker().start()
    (broker.folder / "full").mkdir()
    (broker.folder / "full" / "letter").write_text("dear")
    done = run_command("backup", "--config", str(broker.config), "full", cwd=broker.folder)
    assert done.returncode == 64 and b"not empty" in done.stderr
    assert [path.name for path in (broker.folder / "full").iterdir()] == ["letter"]
    broker.stop()


@pytest.mark.parametrize("stopped", [True, False])
def test_moving_to_another_machine_loses_nothing(own_broker: Callable[..., BrokerProcess], stopped: bool) -> None:
    """By the lines of docs/operations.md: stopped and copied, or a backup that is copied; links cross no disk."""
    broker, other = own_broker().start(), own_broker()
    with Wire(broker.address) as wire:
        wire.connect()
        for number in range(100):
            wire.tell("SEND", {"destination": QUEUE, "receipt": str(number)}, b"%d %s" % (number, BODY))
        wire.receipt("99")
    if stopped:
        broker.stop()
        source = broker.data_dir
    else:
        source = broker.folder / "backup"
        done = run_command("backup", "--data-dir", str(broker.data_dir), str(source), cwd=broker.folder)
        assert done.returncode == 0 and b"segments 1 to" in done.stdout, done.stderr
    shutil.copytree(source, other.data_dir)
    other.start()
    assert drained(other) == list(range(100))
    other.stop()
