"""Peers whose sockets are full: who has to go, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

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
        world.settings, world.clock, world.rng, world.events, world.broker, world.writer, world.reader, lambda error: None
    )
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
