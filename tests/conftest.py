"""Fixtures that several test folders share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import BrokerProcess
from tests.support.wire import Wire, close_all

_names = itertools.count(1)


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One broker for all tests that neither stop it nor need settings of their own."""
    broker = BrokerProcess(tmp_path_factory.mktemp("broker"))
    try:
        yield broker.start()
    finally:
        broker.close()


@pytest.fixture
def broker(shared_broker: BrokerProcess) -> BrokerProcess:
    """The shared broker; it is started again if a test before has ended it."""
    if not shared_broker.alive():
        shared_broker.close()
        shared_broker.start()
    return shared_broker


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Callable[..., BrokerProcess]]:
    """Makes brokers that belong to one test: `own_broker({"limits": {"body": '"64KiB"'}})`. Not started."""
    made: list[BrokerProcess] = []

    def make(sections: dict[str, dict[str, str]] | None = None, **more: Any) -> BrokerProcess:
        broker = BrokerProcess(tmp_path / f"broker-{len(made)}", sections, **more)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def name() -> str:
    """A word that no other test of this run uses, for destinations."""
    return f"n{next(_names)}"


@pytest.fixture
def dial(broker: BrokerProcess) -> Iterator[Callable[..., Wire]]:
    """Opens connections: `dial()` speaks 1.2, `dial("1.0")` 1.0, `dial(None)` only opens the socket."""
    wires: list[Wire] = []

    def make(version: str | None = "1.2", **headers: str) -> Wire:
        wire = Wire(broker.address)
        wires.append(wire)
        if version is not None:
            wire.connect(version, {key.replace("_", "-"): value for key, value in headers.items()})
        return wire

    yield make
    close_all(wires)
