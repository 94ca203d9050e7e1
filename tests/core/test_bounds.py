"""What clients can make the core remember has a bound of its own."""

from __future__ import annotations

import tracemalloc

from broker.budget import Budget
from broker.core import AckMode, Broadcast, Envelope, Message, Queue, Subscription
from tests.core.world import World


class Taker:
    """An outlet that takes everything."""

    room = 1

    def deliver(self, subscription: Subscription, messages: list[Message]) -> int:
        subscription.in_flight.update((message.id, message) for message in messages)
        return len(messages)

    def broadcast(self, subscription: Subscription, broadcast: Broadcast) -> None:
        raise AssertionError("a queue does not broadcast")

    def durable(self, lsn: int) -> None:
        raise AssertionError("nothing is watched")


class Counted(Subscription):
    """Counts how often it is compared with another one."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return self is other

    __hash__ = object.__hash__


def test_a_round_over_many_consumers_is_linear() -> None:
    world = World()
    queue = Queue("/queue/q", Budget(1 << 30).account("positions"))
    envelope = Envelope("/queue/q", b"", 0, b"m-")
    outlet = Taker()
    consumers = [Counted(str(n), n, outlet, AckMode.INDIVIDUAL, 2) for n in range(300)]
    for consumer in consumers:
        queue.attach(consumer)
    queue.ready += [Message(n, b"", b"", envelope, 0, 0) for n in range(450)]
    queue.dispatch(world.broker.backlog)
    assert sorted(len(consumer.in_flight) for consumer in consumers) == [1] * 150 + [2] * 150
    assert Counted.compared <= 4 * len(consumers)


def test_topics_remembered_with_all_their_receivers_are_bounded() -> None:
    world = World()
    for _ in range(10):
        client = world.connect()
        for number in range(100):
            client.send("SUBSCRIBE", {"destination": "/topic/#", "id": str(number)})
    topics = world.broker.topics
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(4000):
            topics.receivers(f"name.{number}")
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 4 << 20


def test_one_nack_is_one_record_however_many_messages_it_buries() -> None:
    world = World()
    sender = world.connect()
    for number in range(500):
        sender.publish("/queue/q", f"m{number}")
    client = world.connect()
    client.subscribe("/queue/q", ack="client", prefetch=500)
    got = client.take()
    before = world.journal.lsn
    client.nack(got[-1], requeue="false", failure_reason="r" * 4000)
    assert world.journal.lsn - before < 5
    reader = world.connect()
    reader.subscribe("/queue/DLQ.q", prefetch=1000)
    dead = reader.take()
    assert [m.body for m in dead] == [f"m{number}".encode() for number in range(500)]
    assert dead[0]["dead-letter-reason"] == "rejected"
    assert dead[0]["original-destination"] == "/queue/q"
    world.restart("kill")
    reader = world.connect()
    reader.subscribe("/queue/DLQ.q", prefetch=1000)
    assert len(reader.take()) == 500
