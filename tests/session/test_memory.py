"""What a connection held goes with it: at once, not when the collector comes by."""

from __future__ import annotations

import gc
import weakref

import pytest

from tests.core.world import World


@pytest.mark.parametrize(
    "last", [b"SEND\ndestination:/topic/t\ncontent-length:4000\n\n" + b"x" * 3000, b"ACK\nid:none\n\n\0" * 2]
)
def test_a_lost_connection_leaves_no_circle_behind(last: bytes) -> None:
    world = World()
    client = world.connect()
    client.subscribe("/queue/q")
    client.publish("/queue/q", "one").ack(client.one())
    gc.collect()
    gc.disable()
    try:
        client.feed(last)
        client.lose()
        session = client.session
        gone = weakref.ref(session)
        world.clients.clear()
        world.dirty.clear()
        del client, session
        assert gone() is None
    finally:
        gc.enable()
