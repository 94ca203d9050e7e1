"""`redelivered` is never false for what a client may have got, and exact after a clean stop (reliability.md 2.7)."""

from __future__ import annotations

from itertools import product

import pytest

from tests.core.world import World, drain, texts


def flags(world: World, queue: str = "/queue/a") -> dict[str, bool]:
    """Body -> redelivered, of everything that waits; nothing is acknowledged or counted as failed."""
    return {m.body.decode(): m.get("redelivered") == "true" for m in drain(world, queue, ack=False)}


def test_a_first_delivery_waits_for_its_mark_to_be_synced() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    world.auto = False
    consumer = world.connect()
    consumer.subscribe("/queue/a")
    world.turn()
    assert consumer.take() == []
    world.sync()
    assert consumer.bodies() == ["x"]


def test_a_mark_that_was_asked_for_but_is_not_synced_lets_nothing_pass() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    world.auto = False
    consumer, other = world.connect(), world.connect()
    consumer.subscribe("/queue/a")
    world.turn()
    other.subscribe("/queue/a", prefetch=1)  # makes the broker look at the queue once more
    world.turn()
    assert consumer.take() + other.take() == []
    world.kill()
    world.auto = True
    world.start()
    assert flags(world) == {"x": False}


def test_after_a_kill_what_a_client_got_is_flagged() -> None:
    world = World()
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    consumer = world.connect().subscribe("/queue/a", prefetch=2)
    got = texts(consumer.take())
    world.restart("power")
    found = flags(world)
    assert got == ["0", "1"] and all(found[body] for body in got) and len(found) == 5


def test_a_kill_flags_nothing_in_a_queue_that_never_delivered() -> None:
    world = World()
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    world.restart("kill")
    assert not any(flags(world).values())


def test_flags_are_exact_after_a_clean_stop() -> None:
    world = World()
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    world.connect().subscribe("/queue/a", prefetch=2)
    world.restart("clean")
    assert flags(world) == {"0": True, "1": True, "2": False, "3": False, "4": False}


@pytest.mark.parametrize("stops", list(product(("clean", "kill", "power"), repeat=3)))
def test_a_flag_survives_stops_in_every_order(stops: tuple[str, ...]) -> None:
    world = World()
    producer = world.connect()
    for n in range(4):
        producer.publish("/queue/a", str(n))
    consumer = world.connect().subscribe("/queue/a", prefetch=2)
    assert len(consumer.take()) == 2
    for stop in stops:
        world.restart(stop)
    found = flags(world)
    assert found["0"] and found["1"]
    if stops[0] == "clean":
        assert not found["2"] and not found["3"]


@pytest.mark.parametrize("stops", list(product(("clean", "kill"), repeat=2)))
def test_a_count_survives_stops_in_every_order(stops: tuple[str, ...]) -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    consumer = world.connect().subscribe("/queue/a")
    consumer.nack(consumer.one())
    consumer.nack(consumer.one())
    consumer.disconnect()
    for stop in stops:
        world.restart(stop)
    assert int(drain(world, "/queue/a")[0]["delivery-count"]) >= 4


def test_after_a_start_the_mark_of_an_empty_queue_flags_nothing_new() -> None:
    world = World()
    producer = world.connect()
    producer.publish("/queue/a", "x")
    producer.publish("/queue/b", "it keeps the segment that has the mark" * 100)
    world.connect().subscribe("/queue/a", ack="auto").take()
    world.restart("clean")
    world.connect().publish("/queue/a", "y")  # stands below the mark of the run before
    world.restart("kill")
    assert flags(world) == {"y": False}


def test_dead_segments_go_and_the_mark_stays() -> None:
    world = World()
    producer = world.connect().publish("/queue/pin", "pins the first segment")
    consumer = world.connect().subscribe("/queue/a")
    producer.publish("/queue/a", "x")  # asks for a mark that covers the next thousand, in the first segment
    consumer.ack(consumer.one())
    for _ in range(8):
        producer.publish("/queue/b", b"x" * 60_000)
        drain(world, "/queue/b")
    assert world.journal.segments[0].number == 1
    producer.publish("/queue/a", "later")
    assert consumer.bodies() == ["later"]
    drain(world, "/queue/pin")
    assert world.journal.segments[0].number > 1
    world.restart("power")
    assert flags(world) == {"later": True}


def test_a_mark_that_went_with_its_segment_is_asked_for_again() -> None:
    world = World()
    producer = world.connect()
    producer.publish("/queue/a", "x")
    drain(world, "/queue/a")
    for _ in range(12):
        producer.publish("/queue/b", b"x" * 60_000)
        drain(world, "/queue/b")
    assert world.journal.segments[0].number > 1
    producer.publish("/queue/a", "y")
    consumer = world.connect().subscribe("/queue/a")
    assert consumer.bodies() == ["y"]
    world.restart("power")
    assert flags(world) == {"y": True}


def test_messages_in_memory_do_not_carry_persistent_ones_over_the_mark() -> None:
    world = World()
    producer = world.connect()
    producer.publish("/queue/a", "v1", persistent="false")
    producer.publish("/queue/a", "p1")
    producer.publish("/queue/a", "v2", persistent="false")
    world.auto = False
    consumer = world.connect()
    consumer.subscribe("/queue/a")
    world.turn()
    assert consumer.bodies() == ["v1"]
    world.sync()
    assert consumer.bodies() == ["p1", "v2"]


def test_many_consumers_get_a_long_backlog_in_order_and_each_message_once() -> None:
    world = World()
    producer = world.connect()
    body = "".join(f"SEND\ndestination:/queue/a\n\n{n}\0" for n in range(3000))
    producer.feed(body.encode())
    consumers = [world.connect().subscribe("/queue/a", prefetch=50) for _ in range(3)]
    seen: list[int] = []
    while any(got := [c.take() for c in consumers]):
        for consumer, messages in zip(consumers, got, strict=True):
            numbers = [int(m.body) for m in messages]
            assert numbers == sorted(numbers)
            seen += numbers
            for message in messages:
                consumer.ack(message)
    assert sorted(seen) == list(range(3000))


def test_ids_of_messages_in_memory_are_not_given_again_after_a_restart() -> None:
    world = World()
    seen: set[str] = set()
    for how in ("clean", "kill", "clean"):
        producer = world.connect()
        consumer = world.connect().subscribe("/queue/a", ack="auto")
        for n in range(3):
            producer.publish("/queue/a", str(n), persistent="false")
        got = [m["message-id"] for m in consumer.take()]
        assert len(got) == 3 and seen.isdisjoint(got)
        seen.update(got)
        world.restart(how)
