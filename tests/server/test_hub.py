"""Peers whose sockets are full: who has to go, and when."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from broker.errors import NoRoom
from broker.server.hub import STUCK_AFTER, TOPIC_STALL, Hub
from tests.core.world import World


@dataclass(eq=False)
class FullPeer:
    """A connection that took something `since` seconds ago for the last time."""

    since: float
    topics: bool = False
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moved_at = asyncio.get_running_loop().time() - self.since
        self.session = SimpleNamespace(has_topics=self.topics)

    def book(self) -> None:
        """Nothing has moved."""

    def cut_off(self, why: str) -> None:
        self.said.append(why)


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    world = World()
    made = Hub(
        world.settings, world.clock, world.rng, world.events, world.broker, world.writer, world.reader,
        lambda error: None,
    )  # fmt: skip
    yield made
    made.stop_storage()


async def test_a_topic_subscriber_that_reads_nothing_for_a_minute_is_cut_off(hub: Hub) -> None:
    stuck, slow, at_work = FullPeer(TOPIC_STALL + 1, True), FullPeer(TOPIC_STALL - 1, True), FullPeer(TOPIC_STALL * 9)
    for peer in (stuck, slow, at_work):
        hub.clogs(peer)
    hub._look()
    assert [len(peer.said) for peer in (stuck, slow, at_work)] == [1, 0, 0]


async def test_over_the_budget_the_slowest_goes_one_at_a_time(hub: Hub) -> None:
    slower, slow, moving = FullPeer(STUCK_AFTER * 3), FullPeer(STUCK_AFTER * 2), FullPeer(0.0)
    for peer in (slow, slower, moving):
        hub.clogs(peer)
    hub.output.book(hub.budget.limit)
    hub._look()
    assert [len(peer.said) for peer in (slower, slow, moving)] == [1, 0, 0]


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("paused", [True, False])
async def test_who_was_held_back_gets_a_turn_if_it_went_on_and_only_then(hub: Hub, goes_on: bool, paused: bool) -> None:
    peer = FullPeer(0.0)
    peer.session = SimpleNamespace(paused=paused, release=lambda now: goes_on)
    peer.pause = peer.resume = lambda: None  # type: ignore[attr-defined]
    hub.hold(peer)
    hub._turn()
    # What it went on with is in the journal's queue, and nothing else may happen for a long time; but a turn for
    # nothing would hold again, release again, and never end.
    assert hub._scheduled is goes_on


class FullDisk:
    """A writer without room, until there is some."""

    def __init__(self) -> None:
        self.room = threading.Event()
        self.runs = 0

    def run(self, batch: object) -> None:
        self.runs += 1
        if not self.room.is_set():
            raise NoRoom(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None: ...


async def until(what: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 10.0
    while not what():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_a_writer_without_room_is_an_alarm_and_the_same_batch_is_run_again(hub: Hub) -> None:
    hub._writer = disk = FullDisk()  # type: ignore[assignment]
    journal = hub.broker.journal
    journal.append_witness()
    durable = journal.durable
    hub.wake()
    await until(lambda: disk.runs > 1 and bool(hub.budget.alarm))
    assert journal.durable == durable and journal.failed is None
    disk.room.set()
    await until(lambda: journal.durable == journal.lsn)
    assert journal.failed is None


async def test_a_stop_does_not_wait_for_room_for_ever(hub: Hub) -> None:
    hub._writer = disk = FullDisk()  # type: ignore[assignment]
    hub.broker.journal.append_witness()
    hub.wake()
    await until(lambda: disk.runs > 0)
    hub.give_up()
    await until(lambda: hub.broker.journal.failed is not None)
    assert hub.idle
