"""Topics: who gets a message, and what a slow subscriber costs."""

from __future__ import annotations

import pytest

from broker.core.destination import matches
from broker.core.topics import TOPIC_BACKLOG
from tests.core.world import World

MATCHES = [
    ("a", "a", True), ("a", "b", False), ("a.b", "a", False), ("a", "a.b", False),
    ("*", "a", True), ("*", "a.b", False), ("a.*", "a.b", True), ("a.*", "a", False), ("*.b", "a.b", True),
    ("#", "a", True), ("#", "a.b.c", True), ("a.#", "a", True), ("a.#", "a.b.c", True), ("#.c", "a.b.c", True),
    ("#.c", "c", True), ("#.c", "a.b", False), ("a.#.c", "a.c", True), ("a.#.c", "a.b.b.c", True),
    ("a.#.#.c", "a.c", True), ("#.a.#.a.#", "a.b.a", True), ("#.a.#.a.#", "b.a.b", False), ("a.*.#", "a", False),
    ("a.>", "a", True), ("a.>", "a.b.c", True), (">", "a.b", True),
    ("#", "$x", False), ("*", "$x", False), (">", "$x.y", False), ("$x.#", "$x.y", True), ("$x", "$x", True),
    ("a..b", "a..b", True), ("a.*.b", "a..b", True),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "topic", "expected"), MATCHES)
def test_a_pattern_matches_what_the_table_says(pattern: str, topic: str, expected: bool) -> None:
    assert matches(tuple(pattern.split(".")), tuple(topic.split("."))) is expected


def test_every_present_subscriber_gets_each_message_once_per_subscription() -> None:
    world = World()
    one = world.connect().subscribe("/topic/a.b", ack="auto")
    two = world.connect().subscribe("/topic/a.*", id="1", ack="auto").subscribe("/topic/#", id="2", ack="auto")
    other = world.connect().subscribe("/topic/c", ack="auto")
    world.connect().publish("/topic/a.b", "x")
    late = world.connect().subscribe("/topic/a.b", ack="auto")
    assert one.bodies() == ["x"] and other.bodies() == [] and late.bodies() == []
    assert sorted(m["subscription"] for m in two.take()) == ["1", "2"]


def test_an_unsubscribed_one_gets_nothing_more() -> None:
    world = World()
    client = world.connect().subscribe("/topic/a", ack="auto")
    client.publish("/topic/a", "x").send("UNSUBSCRIBE", {"id": "s"}).publish("/topic/a", "y")
    assert client.bodies() == ["x"]


def test_a_slow_subscriber_is_bounded_and_counted_and_blocks_nobody() -> None:
    world = World(limits={"output": 64 * 1024})
    slow = world.connect().subscribe("/topic/a", ack="auto")
    fast = world.connect().subscribe("/topic/a", ack="auto")
    slow.stuck = True
    producer = world.connect()
    for n in range(60):
        producer.publish("/topic/a", bytes([65 + n % 26]) * 50_000)
    assert len(fast.take()) == 60
    held = world.budget.accounts["slow topic subscribers"].used
    assert 0 < held <= TOPIC_BACKLOG + 51_000
    assert slow.buffered <= 64 * 1024 + 51_000
    dropped = world.broker.counters.dropped_slow
    assert dropped > 0
    slow.read()
    bodies = slow.bodies()
    assert len(bodies) == 60 - dropped
    assert [body[0] for body in bodies] == [chr(65 + n % 26) for n in range(len(bodies))]
    assert world.budget.accounts["slow topic subscribers"].used == 0
    assert any(name == "slow-subscriber" for _, name, _ in world.events.seen)


def test_the_backlog_of_a_slow_subscriber_goes_with_it() -> None:
    world = World(limits={"output": 64 * 1024})
    slow = world.connect().subscribe("/topic/a", ack="auto")
    slow.stuck = True
    for _ in range(10):
        world.connect().publish("/topic/a", b"x" * 50_000)
    slow.lose()
    assert world.budget.accounts["slow topic subscribers"].used == 0


@pytest.mark.parametrize("ack", ["client", "client-individual"])
def test_an_acknowledging_topic_subscriber_has_credit_and_keeps_no_bodies(ack: str) -> None:
    world = World()
    client = world.connect().subscribe("/topic/a", ack=ack, prefetch=2)
    producer = world.connect()
    for n in range(4):
        producer.publish("/topic/a", str(n))
    got = client.take()
    assert [m.body for m in got] == [b"0", b"1"]
    for each in client.session._consumer.subscriptions.values():
        assert not any(message.body for message in each.in_flight.values())
    client.ack(got[1] if ack == "client" else got[0])
    assert client.bodies() == (["2", "3"] if ack == "client" else ["2"])


def test_acks_of_two_topic_subscriptions_of_one_connection_are_told_apart() -> None:
    world = World()
    client = world.connect()
    client.subscribe("/topic/a", id="1", prefetch=1).subscribe("/topic/a", id="2", prefetch=1)
    client.publish("/topic/a", "x").publish("/topic/a", "y")
    got = {m["subscription"]: m for m in client.take()}
    assert got["1"]["ack"] != got["2"]["ack"]
    client.ack(got["2"])
    assert [(m["subscription"], m.body) for m in client.take()] == [("2", b"y")]


def test_a_topic_keeps_the_order_of_what_was_accepted_even_behind_a_transaction() -> None:
    world = World()
    listener = world.connect().subscribe("/topic/a", ack="auto")
    client = world.connect()
    world.auto = False
    client.send("BEGIN", {"transaction": "t"})
    client.publish("/queue/q", "persistent", transaction="t").publish("/topic/a", "first", transaction="t")
    client.send("COMMIT", {"transaction": "t"}).publish("/topic/a", "second")
    assert listener.take() == []
    world.run()
    assert listener.bodies() == ["first", "second"]
