"""A backlog larger than memory, checkpoints of it, and old segments copied forward: nothing is lost or changes."""

from __future__ import annotations

import pytest

from broker.core import Keep, Read
from broker.core.checkpoints import Finish
from tests.core.world import SEGMENT, Client, World, drain, texts

KIB = 1024
SMALL = 512 * KIB  # memory.limit; half of it is for messages


def body(number: int, size: int = KIB) -> bytes:
    return b"%06d" % number + b"x" * (size - 6)


def number(text: bytes) -> int:
    return int(text[:6])


def fill(world: World, first: int, count: int, queue: str = "/queue/a") -> None:
    producer = world.connect()
    for n in range(first, first + count):
        producer.publish(queue, body(n))
    producer.disconnect()


def take_all(world: World, queue: str = "/queue/a") -> list[int]:
    return [number(message.body) for message in drain(world, queue)]


def empty(world: World) -> None:
    """Nobody is connected and nothing waits: no account may hold anything."""
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}


# --- a backlog larger than memory -------------------------------------------------------------------------------------


def test_a_backlog_larger_than_memory_comes_back_whole_and_in_order() -> None:
    world = World(memory=SMALL)
    fill(world, 0, 2000)
    assert world.broker.counters.spilled
    assert world.budget.used <= SMALL
    assert take_all(world) == list(range(2000))
    assert world.broker.counters.loaded
    empty(world)


def test_messages_that_come_while_a_backlog_is_read_back_stay_behind_it() -> None:
    world = World(memory=SMALL)
    fill(world, 0, 1000)
    consumer = world.connect().subscribe("/queue/a", prefetch=10)
    producer = world.connect()
    seen: list[int] = []
    for n in range(1000, 2000):
        producer.publish("/queue/a", body(n))
        for message in consumer.take():
            seen.append(number(message.body))
            if n % 3:
                consumer.ack(message)
            else:
                consumer.disconnect()
                consumer = world.connect().subscribe("/queue/a", prefetch=10)
                break
    consumer.disconnect()
    rest = [number(message.body) for message in drain(world, "/queue/a")]
    assert rest == sorted(set(rest))
    assert set(seen) | set(rest) == set(range(2000))
    first_sight = list(dict.fromkeys(seen + rest))
    assert first_sight == sorted(first_sight)


@pytest.mark.parametrize("how", ["clean", "kill", "power"])
def test_after_a_restart_a_backlog_is_whole_in_order_and_takes_no_memory_until_it_is_wanted(how: str) -> None:
    world = World(memory=SMALL)
    fill(world, 0, 2000)
    world.restart(how)
    positions = world.budget.account("positions on disk").used
    assert world.budget.used == positions
    assert positions <= 32 * 2000
    assert take_all(world) == list(range(2000))
    empty(world)


def test_messages_in_flight_hold_no_bodies() -> None:
    world = World(memory=SMALL)
    fill(world, 0, 900)
    consumer = world.connect().subscribe("/queue/a", prefetch=900)
    assert len(consumer.take()) == 900
    assert world.budget.account("messages").used < 900 * 300


# --- reading while other things happen --------------------------------------------------------------------------------


def spilled(count: int = 1200) -> tuple[World, Client]:
    """A backlog on disk after a restart, whose first read is under way."""
    world = World(memory=SMALL)
    fill(world, 0, count)
    world.restart()
    world.auto = False
    consumer = world.connect()
    consumer.subscribe("/queue/a", prefetch=20)
    world.turn()
    assert [job for job in world.jobs if isinstance(job, Read)]
    return world, consumer


def test_a_segment_that_is_being_read_is_not_removed() -> None:
    world, _ = spilled()
    read = next(job for job in world.jobs if isinstance(job, Read))
    oldest = world.journal.segments[0]
    assert oldest.readers
    oldest.live, live = 0, oldest.live  # as if all that is left of it had been settled meanwhile
    while len(world.jobs) > 1:
        world.complete(at=next(at for at, job in enumerate(world.jobs) if job is not read))
    world.turn()
    assert world.journal.dead_segments() == []
    assert world.journal.segments[0] is oldest
    oldest.live = live
    world.auto = True
    world.run()
    assert not oldest.readers


def test_messages_that_come_while_a_read_is_under_way_stay_behind_it() -> None:
    """All that is on disk is being read; what comes then must not get in front of it."""
    world = World(memory=SMALL)
    fill(world, 0, 300)
    world.restart()
    world.auto = False
    consumer = world.connect()
    consumer.subscribe("/queue/a", prefetch=1000)
    reads: list[Read] = []
    while not (reads and not world.broker.queues["/queue/a"].stored):
        world.turn()
        reads += [job for job in world.jobs if isinstance(job, Read)]
        for at, job in enumerate(world.jobs):
            if not isinstance(job, Read) or world.broker.queues["/queue/a"].stored:
                world.complete(at=at)
                break
    producer = world.connect()
    producer.publish("/queue/a", body(300))
    for _ in range(3):
        world.turn()
        for at, job in enumerate(world.jobs):
            if not isinstance(job, Read):
                world.complete(at=at)
                break
    world.auto = True
    world.run()
    assert [number(message.body) for message in consumer.take()] == list(range(301))


def test_a_record_that_cannot_be_read_closes_its_queue_and_no_other() -> None:
    world = World(memory=SMALL)
    fill(world, 0, 1200)
    fill(world, 0, 3, "/queue/b")
    world.restart()
    path = world.journal.segments[0].path
    data = bytearray(world.disk.contents(path))
    data[4000] ^= 1
    world.disk.put(path, bytes(data))
    consumer = world.connect().subscribe("/queue/a")
    assert "damaged" in consumer.one("ERROR")["message"]
    assert consumer.take() == []
    assert take_all(world, "/queue/b") == [0, 1, 2]


# --- old segments are copied forward ----------------------------------------------------------------------------------


def churn(world: World, rounds: int, keep: str = "") -> None:
    """Traffic that fills segments and leaves nothing behind, but for one message in `keep`."""
    producer = world.connect()
    for n in range(rounds):
        producer.publish("/queue/churn", b"y" * 40_000)
        if keep and n == 2:
            producer.publish(keep, "kept", x="1")
        drain(world, "/queue/churn")
    producer.disconnect()


def compacted(world: World, oldest: int) -> None:
    """Until the segment with that number is gone."""
    world.advance(120, until=lambda: world.journal.segments[0].number > oldest)
    assert world.journal.segments[0].number > oldest
    assert world.broker.counters.carried


def test_one_old_message_does_not_pin_the_log_and_is_the_same_after_it_was_carried() -> None:
    world = World()
    churn(world, 30, "/queue/keep")
    first = world.journal.segments[0].number
    compacted(world, first)
    world.restart("power")
    (message,) = drain(world, "/queue/keep", ack=False)
    assert (message.body, message["x"], message.get("redelivered")) == (b"kept", "1", None)
    size = sum(segment.size for segment in world.journal.segments)
    assert size <= 6 * SEGMENT


def test_counts_and_failures_go_with_a_message_that_is_carried() -> None:
    world = World()
    churn(world, 30, "/queue/keep")
    client = world.connect().subscribe("/queue/keep")
    for _ in range(3):
        client.nack(client.one())
    client.one()
    client.disconnect()
    compacted(world, world.journal.segments[0].number)
    world.restart("kill")
    client = world.connect().subscribe("/queue/keep")
    message = client.one()
    assert (message["redelivered"], message["delivery-count"]) == ("true", "5")
    for _ in range(6):
        client.nack(message)
        message = client.one()
    assert client.take() == []
    client.nack(message)  # the tenth failure
    client.disconnect()
    assert texts(drain(world, "/queue/keep")) == []
    assert texts(drain(world, "/queue/DLQ.keep")) == ["kept"]


def test_a_dead_letter_says_why_after_it_was_carried() -> None:
    world = World()
    churn(world, 4, "/queue/keep")
    client = world.connect().subscribe("/queue/keep")
    client.nack(client.one(), requeue="false")
    client.disconnect()
    churn(world, 30)
    compacted(world, world.journal.segments[0].number)
    world.restart("kill")
    (letter,) = drain(world, "/queue/DLQ.keep", ack=False)
    assert (letter["dead-letter-reason"], letter["original-destination"]) == ("rejected", "/queue/keep")


def test_what_was_acknowledged_while_it_was_read_for_copying_is_not_copied() -> None:
    world = World()
    churn(world, 4, "/queue/keep")
    churn(world, 4, "/queue/other")
    client = world.connect().subscribe("/queue/keep")
    message = client.one()
    churn(world, 20)
    world.auto = False
    for _ in range(400):
        world.clock.now += 0.1
        world.turn()
        copying = [job for job in world.jobs if isinstance(job, Read) and job.copying]
        if copying:
            break
        while world.complete():
            world.turn()
    assert copying, "nothing was copied"
    client.ack(message)
    world.auto = True
    world.run()
    world.restart("power")
    assert texts(drain(world, "/queue/keep")) == []
    assert texts(drain(world, "/queue/other")) == ["kept"]


def test_a_message_settled_late_while_another_consumer_has_it_is_not_carried() -> None:
    """Its record is carried, for another message in it is wanted."""
    world = World()
    churn(world, 2)
    producer = world.connect()
    frames = [b"SEND\ndestination:/queue/keep\n\n%b\0" % text for text in (b"settled", b"kept")]
    producer.feed(b"".join(frames))
    client = world.connect().subscribe("/queue/keep", prefetch=1)
    message = client.one()
    client.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect().subscribe("/queue/keep", prefetch=1)
    assert other.one().body == b"settled"
    client.ack(message)  # late, and now `other` holds what is settled
    first = world.journal.segments[0].number
    churn(world, 30)
    compacted(world, first)
    world.restart("power")
    assert texts(drain(world, "/queue/keep")) == ["kept"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_finished_only_when_the_journal_is_synced_up_to_its_end() -> None:
    world = World(storage={"checkpoint": 64 * KIB}, auto=False)
    world.turn()
    producer = world.connect()
    finished = 0
    for n in range(400):
        producer.publish("/queue/a", body(n))
        world.turn()
        for at, job in enumerate(world.jobs):
            if isinstance(job, Keep):
                if isinstance(job.task, Finish):
                    finished += 1
                    assert job.task.basis.end_lsn <= world.journal.synced
                world.complete(at=at)
                break
        else:
            if n % 2:
                world.complete()
    assert finished >= 2


def test_a_dead_letter_that_moves_while_a_checkpoint_is_made_is_not_lost() -> None:
    """Its record lies in front of where the next start begins to read, and its queue is dumped after it left."""
    world = World(storage={"checkpoint": 256 * KIB})
    producer = world.connect()
    producer.publish("/queue/keep", "kept")
    client = world.connect().subscribe("/queue/keep")
    message = client.one()
    for n in range(200):
        producer.publish("/queue/other", body(n, 4 * KIB))
    world.auto = False
    for n in range(1000):
        producer.publish("/queue/other", body(n, 4 * KIB))
        world.turn()
        kept = [at for at, job in enumerate(world.jobs) if isinstance(job, Keep)]
        if kept:
            break
        world.complete()
    assert kept, "no checkpoint was begun"
    client.nack(message, requeue="false")
    world.auto = True
    world.run()
    assert world.broker.counters.checkpoints
    world.restart("kill")
    assert world.log.checkpoint is not None
    assert texts(drain(world, "/queue/DLQ.keep")) == ["kept"]
    assert texts(drain(world, "/queue/keep")) == []


def test_a_start_with_a_checkpoint_and_one_without_come_to_the_same() -> None:
    world = World(memory=SMALL, storage={"checkpoint": 256 * KIB})
    fill(world, 0, 1000)
    client = world.connect().subscribe("/queue/a", prefetch=100)
    messages = client.take()
    for message in messages[10:60]:
        client.ack(message)
    for message in messages[5:8]:
        client.nack(message)
    fill(world, 1000, 1000)
    client.disconnect()
    assert world.broker.counters.checkpoints
    world.restart("kill")
    assert world.log.checkpoint is not None
    with_it = [(number(m.body), m.get("redelivered")) for m in drain(world, "/queue/a", ack=False)]
    world.kill()
    for path in world.disk.files("data/ckpt"):
        world.disk.remove(path)
    world.start()
    assert world.log.checkpoint is None
    without = [(number(m.body), m.get("redelivered")) for m in drain(world, "/queue/a", ack=False)]
    assert [one for one, _ in without] == [one for one, _ in with_it]
    assert len(with_it) == 1950


def test_a_start_with_a_checkpoint_has_what_was_in_flight() -> None:
    world = World(storage={"checkpoint": 256 * KIB})
    producer = world.connect()
    producer.publish("/queue/keep", "kept")
    client = world.connect().subscribe("/queue/keep")
    client.one()
    for n in range(600):
        producer.publish("/queue/other", body(n, 4 * KIB))
    assert world.broker.counters.checkpoints
    world.restart("kill")
    assert world.log.checkpoint is not None
    (message,) = drain(world, "/queue/keep")
    assert (message.body, message["redelivered"]) == (b"kept", "true")
