"""What the broker keeps and forgets: queues, segments, memory."""

from __future__ import annotations

import pytest

from tests.core.world import World, drain, texts


def test_an_unused_queue_is_forgotten_after_ten_minutes() -> None:
    world = World()
    world.connect().publish("/queue/a", "x").publish("/queue/b", "y")
    drain(world, "/queue/a")
    world.advance(800)
    assert list(world.broker.queues) == ["/queue/b"]
    world.connect().publish("/queue/a", "z")
    assert texts(drain(world, "/queue/a")) == ["z"]


def test_a_queue_in_use_is_never_forgotten() -> None:
    world = World()
    client = world.connect().subscribe("/queue/a")
    world.advance(2000)
    client.publish("/queue/a", "x")
    assert client.bodies() == ["x"]


def test_one_queue_too_many_is_refused_and_unused_ones_make_room() -> None:
    world = World(limits={"queues": 2})
    world.connect().publish("/queue/a", "x").publish("/queue/b", "x")
    refused = world.connect().publish("/queue/c", "x", receipt="r")
    assert refused.one("ERROR")["receipt-id"] == "r" and refused.closed
    drain(world, "/queue/a")
    assert world.connect().publish("/queue/c", "x", receipt="r").receipts() == ["r"]


def test_a_transaction_that_needs_one_queue_too_many_changes_nothing() -> None:
    world = World(limits={"queues": 3})
    world.connect().publish("/queue/a", "x").publish("/queue/b", "x")
    client = world.connect()
    client.send("BEGIN", {"transaction": "t"})
    for name in "cde":
        client.publish(f"/queue/{name}", "x", transaction="t")
    client.send("COMMIT", {"transaction": "t", "receipt": "r"})
    assert client.one("ERROR")["receipt-id"] == "r"
    world.restart("kill")
    assert sorted(world.broker.queues) == ["/queue/a", "/queue/b"]


def test_a_transaction_never_puts_messages_into_a_queue_that_it_made_another_forget() -> None:
    world = World(limits={"queues": 2})
    world.connect().publish("/queue/a", "x")
    client = world.connect()
    client.send("BEGIN", {"transaction": "t"})
    client.publish("/queue/b", "x", transaction="t").publish("/queue/c", "x", transaction="t")
    client.send("COMMIT", {"transaction": "t", "receipt": "r"})
    assert client.closed and client.receipts() == []
    drain(world, "/queue/a")
    assert world.connect().publish("/queue/b", "y", receipt="r").receipts() == ["r"]
    assert texts(drain(world, "/queue/b")) == ["y"]


def test_a_queue_with_nothing_but_messages_that_were_settled_late_is_forgotten() -> None:
    world = World()
    client = world.connect().subscribe("/queue/a")
    client.publish("/queue/a", "x")
    message = client.one()
    client.send("UNSUBSCRIBE", {"id": "s"}).ack(message).disconnect()
    world.advance(800)
    assert "/queue/a" not in world.broker.queues


def test_dead_segments_go_and_live_messages_stay() -> None:
    world = World()
    producer = world.connect()
    for n in range(30):
        producer.publish("/queue/a", b"x" * 40_000)
        if n == 15:
            producer.publish("/queue/keep", "kept")
        drain(world, "/queue/a")
    assert world.journal.segments[0].number > 1
    world.restart("power")
    assert texts(drain(world, "/queue/keep")) == ["kept"]


@pytest.mark.parametrize("again", ["other", "dead"])
def test_a_message_that_is_settled_twice_is_counted_once_in_its_segment(again: str) -> None:
    world = World()
    client = world.connect().subscribe("/queue/a")
    client.publish("/queue/a", "x").publish("/queue/a", "kept")
    early = client.take()[0]
    client.send("UNSUBSCRIBE", {"id": "s"})
    if again == "other":
        second = world.connect().subscribe("/queue/a", prefetch=1)
        second.ack(second.one()).send("UNSUBSCRIBE", {"id": "s"})
    else:
        second = world.connect().subscribe("/queue/a", prefetch=1)
        second.nack(second.one(), requeue="false").send("UNSUBSCRIBE", {"id": "s"})
        drain(world, "/queue/DLQ.a")
    client.ack(early)
    assert not client.closed
    assert sum(segment.live for segment in world.journal.segments) == 1
    assert world.broker.queues["/queue/a"].marked == 0
    assert texts(drain(world, "/queue/a")) == ["kept"]


def test_all_accounts_are_empty_when_all_connections_are_gone() -> None:
    world = World(auto=False, limits={"output": 64 * 1024})
    client = world.connect()
    client.send("BEGIN", {"transaction": "t"}).publish("/queue/a", b"x" * 1000, transaction="t")
    client.feed(b"SEND\ndestination:/queue/a\ncontent-length:100000\n\nxxx")
    slow = world.connect().subscribe("/topic/a")
    slow.stuck = True
    for _ in range(5):
        world.connect().publish("/topic/a", b"x" * 30_000).publish("/queue/a", b"y" * 50_000)
    world.turn()
    assert {name for name, account in world.budget.accounts.items() if account.used} == {
        "frames in the making", "journal", "messages", "slow topic subscribers", "transactions",
    }  # fmt: skip
    for each in list(world.clients.values()):
        each.lose()
    world.run()
    drain(world, "/queue/a")
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}
    assert world.budget.used == 0
