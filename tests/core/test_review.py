"""Corners of the backlog, of checkpoints and of copying that a review found: each was wrong once."""

from __future__ import annotations

from broker.core import Keep, Read
from tests.core.world import World, drain

KIB = 1024


def only(world: World, kind: type) -> int:
    """The place in the bag of the only job of this kind."""
    (at,) = [at for at, job in enumerate(world.jobs) if isinstance(job, kind)]
    return at


def test_a_late_ack_of_a_message_in_memory_only_gives_its_memory_back_once() -> None:
    """It stands between messages that are being read back, when the ACK of its first delivery arrives."""
    world = World()
    producer = world.connect()
    producer.publish("/queue/a", "on disk")
    producer.publish("/queue/a", "in memory", persistent="false")
    consumer = world.connect().subscribe("/queue/a", prefetch=10)
    first, second = consumer.take()
    consumer.send("UNSUBSCRIBE", {"id": "s"})
    world.auto = False
    consumer.subscribe("/queue/a", id="t", prefetch=10)
    world.turn()
    at = only(world, Read)
    consumer.ack(second)
    world.complete(at=at)
    world.auto = True
    world.run()
    (again,) = consumer.take()
    assert again.body == b"on disk"
    consumer.ack(again)
    assert world.broker.queues["/queue/a"].kept == {}
    assert world.budget.account("messages").used == 0


def test_a_checkpoint_tells_the_mark_of_a_queue_that_is_empty() -> None:
    """Its next messages may be delivered below that mark, and no record says so again."""
    world = World(storage={"checkpoint": 1})
    producer = world.connect()
    consumer = world.connect().subscribe("/queue/a", prefetch=10)
    producer.publish("/queue/a", "first")
    consumer.ack(consumer.one())
    for n in range(80):
        producer.publish("/queue/b", "x" * 4000)
    world.run()
    assert world.broker.counters.checkpoints
    producer.publish("/queue/a", "second")
    assert consumer.one().get("redelivered") is None
    world.restart("kill")
    assert world.log.checkpoint is not None
    (message,) = drain(world, "/queue/a")
    assert message.get("redelivered") == "true"
