"""Corners of the backlog, of checkpoints and of copying that a review found: each was wrong once."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core import Read, Write
from broker.journal import Messages, Record
from tests.core.world import World, drain
from tests.support.wire import frame

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
    _, second = consumer.take()
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
    for _ in range(80):
        producer.publish("/queue/b", "x" * 4000)
    world.run()
    assert world.broker.counters.checkpoints
    producer.publish("/queue/a", "second")
    assert consumer.one().get("redelivered") is None
    world.restart("kill")
    assert world.log.checkpoint is not None
    (message,) = drain(world, "/queue/a")
    assert message.get("redelivered") == "true"


def scattered(world: World, runs: int, dead: bool = False) -> list[bytes]:
    """What is left of as many records of 512 KiB: a small message in each, which was delivered once."""
    producer = world.connect()
    consumer = world.connect().subscribe("/queue/a", prefetch=runs * 9)
    left = []
    for n in range(runs):
        run = [b"x" * (64 * KIB)] * 8 + [b"%06d" % n]
        producer.feed(b"".join(frame("SEND", {"destination": "/queue/a"}, body, "1.2") for body in run))
        for message in consumer.take():
            if len(message.body) > KIB:
                consumer.ack(message)
            else:
                left.append(message.body)
                if dead:
                    consumer.nack(message, requeue="false", failure_reason=f"because {n}")
    consumer.disconnect()
    world.run()
    return left


@pytest.mark.parametrize("dead", [False, True])
def test_small_messages_that_lie_in_large_records_are_read_back_a_few_records_at_a_time(dead: bool) -> None:
    world = World(memory=16 << 20, storage={"segment_size": 4 << 20})
    left = scattered(world, 40, dead)
    name = "/queue/DLQ.a" if dead else "/queue/a"
    seen: list[int] = []
    read = world.reader.read

    def measured(*args: Any) -> Any:
        results = read(*args)
        places = {result.place for result in results if isinstance(result, Record)}
        values = [value for result in results if isinstance(result, Record) for _, value in result.values]
        seen.append(sum(sum(map(len, value.bodies)) for value in values if isinstance(value, Messages)))
        assert places
        return results

    world.reader.read = measured  # type: ignore[method-assign]
    assert [message.body for message in drain(world, name)] == left
    assert len(seen) > 1
    assert max(seen) <= 3 << 20
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}


@pytest.mark.parametrize("dead", [False, True])
def test_old_segments_are_copied_forward_a_few_records_at_a_time(dead: bool) -> None:
    world = World(memory=16 << 20, storage={"segment_size": 16 << 20, "compaction_rate": 64 << 20})
    left = scattered(world, 40, dead)
    name = "/queue/DLQ.a" if dead else "/queue/a"
    seen: list[int] = []
    read = world.reader.read

    def measured(*args: Any) -> Any:
        results = read(*args)
        values = [value for result in results if isinstance(result, Record) for _, value in result.values]
        seen.append(sum(sum(map(len, value.bodies)) for value in values if isinstance(value, Messages)))
        return results

    world.reader.read = measured  # type: ignore[method-assign]
    world.advance(10)
    assert world.broker.counters.carried
    assert len(seen) > 1
    assert max(seen) <= 5 << 20
    world.restart("kill")
    assert [message.body for message in drain(world, name)] == left


def test_what_a_transaction_of_many_parts_sent_and_rejected_is_read_back_with_its_own_headers_and_reasons() -> None:
    world = World()
    client = world.connect().subscribe("/queue/a", prefetch=100)
    client.send("BEGIN", {"transaction": "t"})
    for n in range(30):
        client.publish("/queue/a", f"{n}", transaction="t", number=f"{n}")
    client.send("COMMIT", {"transaction": "t"})
    client.send("BEGIN", {"transaction": "u"})
    for message in client.take():
        client.nack(message, transaction="u", requeue="false", failure_reason=f"because {message['number']}")
    client.publish("/queue/DLQ.a", "direct", transaction="u")
    client.send("COMMIT", {"transaction": "u"})
    world.restart()
    *dead, direct = drain(world, "/queue/DLQ.a")
    assert direct.body == b"direct"
    assert [(m.body.decode(), m["number"], m["failure-reason"]) for m in dead] == [
        (f"{n}", f"{n}", f"because {n}") for n in range(30)
    ]


def test_what_waits_for_a_mark_is_not_read_again_and_again_while_there_is_no_memory_for_it() -> None:
    """The writer may take long: its disk is full, or slow."""
    world = World(memory=512 * KIB)
    producer = world.connect()
    for _ in range(10):
        producer.publish("/queue/a", "x" * 40 * KIB)
    world.restart()
    producer = world.connect()
    while world.budget.account("messages").used <= world.broker.backlog.soft:
        producer.publish("/queue/b", "x" * KIB, persistent="false")
    world.auto = False
    consumer = world.connect().subscribe("/queue/a", prefetch=10)
    reads = 0
    for _ in range(50):
        world.turn()
        for job in [job for job in world.jobs if not isinstance(job, Write)]:
            reads += isinstance(job, Read)
            world.complete(at=world.jobs.index(job))
    assert consumer.take() == []
    assert reads <= 2
    world.auto = True
    world.run()
    assert len(consumer.take()) == 10


def large(number: int) -> bytes:
    """A SEND whose headers are large, and no other's."""
    headers = {"destination": "/queue/a", "first": f"{number:04}" * 1000, "second": f"{number:04}" * 1000}
    return frame("SEND", headers, b"%d" % number, "1.2")


def test_large_headers_count_as_memory_while_they_are_held_and_go_to_disk_with_their_messages() -> None:
    world = World(memory=1 << 20, storage={"segment_size": 4 << 20})
    producer = world.connect()
    for n in range(300):
        producer.feed(large(n))
        assert world.budget.used <= 1 << 20
    queue = world.broker.queues["/queue/a"]
    assert sum(len(message.envelope.head) for message in queue.in_memory()) <= 512 * KIB
    consumer = world.connect().subscribe("/queue/a", prefetch=1000)
    got = consumer.take()
    assert [message.body for message in got] == [b"%d" % n for n in range(300)]
    assert all(message["first"] == f"{int(message.body):04}" * 1000 for message in got)
    assert all(not message.own and not message.envelope.head for message in queue.in_memory())
    consumer.nack(got[0])
    assert consumer.one()["first"] == "0000" * 1000
    consumer.lose()
    producer.lose()
    assert [message["second"][:4] for message in drain(world, "/queue/a")] == [f"{n:04}" for n in range(300)]
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}


def test_what_a_late_ack_may_name_keeps_no_bodies() -> None:
    world = World()
    producer = world.connect()
    consumer = world.connect().subscribe("/queue/a", prefetch=10)
    producer.publish("/queue/a", "x" * 1000, persistent="false")
    (message,) = consumer.take()
    consumer.send("UNSUBSCRIBE", {"id": "s"})
    ((_, late),) = consumer.session._consumer._late.values()
    assert late.body == b""
    consumer.ack(message)
    assert drain(world, "/queue/a") == []
    assert world.budget.account("messages").used == 0
