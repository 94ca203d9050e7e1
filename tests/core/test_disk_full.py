"""A full disk stops producers, not consumers, and is over by itself (reliability.md 2.8)."""

from __future__ import annotations

from random import Random

import pytest

from broker.core import Envelope, Message
from broker.errors import StorageFailed
from tests.core.world import DATA_DIR, SEGMENT, Client, World, drain, texts
from tests.support.simdisk import SimDisk

BODY = "x" * 1000
ACKED_EACH = 20
RESERVE = f"{DATA_DIR}/RESERVE"


def world_of(capacity: int, seed: int = 1, **storage: object) -> World:
    disk = SimDisk(Random(seed), capacity=capacity)
    return World(seed, disk=disk, storage={"segment_size": SEGMENT, "min_free": 2 * SEGMENT, **storage})


def looked(world: World) -> None:
    """A look at the disk is due every second."""
    world.advance(1.1)
    world.run()


def fill_with_sends(world: World, producer: Client, most: int = 20_000) -> int:
    """SENDs with receipts until one is held back; how many were receipted."""
    sent = 0
    while not producer.session.paused and sent < most:
        producer.publish("/queue/a", f"{sent} {BODY}", receipt=str(sent))
        world.advance(0.05)
        sent += len(producer.receipts())
    assert producer.session.paused, sent
    return sent


def number_of(text: str) -> int:
    return int(text.split(" ")[0])


@pytest.mark.parametrize("capacity", [14 * SEGMENT, 17 * SEGMENT + 777, 24 * SEGMENT])
def test_sends_stop_acks_go_on_and_the_alarm_ends_by_itself(capacity: int) -> None:
    world = world_of(capacity)
    producer = world.connect()
    sent = fill_with_sends(world, producer)
    assert sent > 100 and world.budget.alarm and world.failed is None
    assert world.journal.small_segments  # what is left of the disk goes a longer way
    assert world.disk.free(".")[0] < 4 * SEGMENT
    assert [level for level, name, _ in world.events.seen if name == "disk-alarm"] == ["warning"]

    consumer = world.connect().subscribe("/queue/a", prefetch=50)
    got: list[str] = []
    while world.budget.alarm:
        world.run()
        messages = consumer.take()
        assert messages, "consumers starve while the alarm is on"
        got += texts(messages)
        for message in messages:
            consumer.ack(message, receipt=message["message-id"])
        world.run()
        assert len(consumer.receipts()) == len(messages)
        looked(world)
    assert ("info", "disk-alarm-over") in [(level, name) for level, name, _ in world.events.seen]
    world.run()
    assert not world.journal.small_segments
    assert not producer.session.paused and producer.receipts() == [str(sent)]  # the one that was held back
    consumer.disconnect()
    got += texts(drain(world, "/queue/a"))
    assert list(map(number_of, got)) == list(range(sent + 1))
    assert RESERVE in world.disk.files(DATA_DIR)


def test_a_connection_that_may_acknowledge_is_refused_at_once_and_told_that_it_is_the_disk() -> None:
    world = world_of(14 * SEGMENT)
    fill_with_sends(world, world.connect())
    both = world.connect().subscribe("/queue/a", prefetch=1)
    world.run()
    both.publish("/queue/b", BODY, receipt="r")
    world.run()
    error = both.one("ERROR")
    assert error["message"] == "broker has no room on its disk" and error["receipt-id"] == "r" and both.closed


def test_a_producer_that_is_held_back_for_too_long_hears_that_it_is_the_disk() -> None:
    world = world_of(14 * SEGMENT)
    producer = world.connect()
    fill_with_sends(world, producer)
    world.advance(world.settings.limits.hold + 1)
    assert producer.one("ERROR")["message"] == "broker has no room on its disk" and producer.closed


def test_a_commit_with_sends_is_refused_whole_and_one_of_acks_alone_is_admitted() -> None:
    world = world_of(14 * SEGMENT)
    commits = world.connect().subscribe("/queue/mine", prefetch=2)
    patient = world.connect()
    for client in (commits, patient):
        for name in ("acks", "sends"):
            client.send("BEGIN", {"transaction": name})
        client.publish("/queue/b", "in a transaction", transaction="sends")
    world.connect().publish("/queue/mine", "1").publish("/queue/mine", "2")
    world.run()
    first, second = commits.take()
    commits.ack(first, transaction="acks")
    commits.ack(second, transaction="sends")
    fill_with_sends(world, world.connect())
    commits.send("COMMIT", {"transaction": "acks", "receipt": "of acks"})
    world.run()
    assert commits.receipts() == ["of acks"]
    commits.send("COMMIT", {"transaction": "sends", "receipt": "of sends"})
    world.run()
    error = commits.one("ERROR")
    assert error["message"] == "broker has no room on its disk" and error["receipt-id"] == "of sends"
    patient.send("COMMIT", {"transaction": "sends", "receipt": "of sends"})  # it has nothing to acknowledge: it waits
    world.run()
    assert patient.session.paused and not patient.take("ERROR")
    world.disk.capacity = 1 << 40
    looked(world)
    looked(world)
    assert patient.receipts() == ["of sends"]
    assert texts(drain(world, "/queue/b")) == ["in a transaction"]
    assert texts(drain(world, "/queue/mine")) == ["2"]  # the transaction of which its ACK was a part is undone


def test_slow_topic_subscribers_lose_nothing_to_a_full_disk() -> None:
    """What waits for them waits in memory: the disk has no say in that, and `memory.limit` has."""
    world = World()
    slow = world.connect().subscribe("/topic/t", ack="auto")
    slow.stuck = True
    world.budget.alarm = "the disk is full"
    envelope = Envelope("/topic/t", b"", 0, b"p-")
    for number in range(600):  # more than `limits.output`, less than what is kept for one
        world.broker.topics.publish("t", [Message(number, BODY.encode(), b"", envelope, 0, 0)])
        world.flush()
    assert slow.session.blocked and world.broker.counters.dropped_slow == 0


def test_without_a_free_byte_the_batch_waits_and_goes_on_when_there_is_room() -> None:
    """Somebody else has taken all of the disk, the reserve is used up: receipts wait, nothing fails."""
    world = world_of(1 << 30)
    producer = world.connect()
    looked(world)
    assert RESERVE in world.disk.files(DATA_DIR)
    world.disk.capacity = (1 << 30) - world.disk.free(".")[0]
    world.auto = False  # the messages are in before anybody can know
    sent = 3000
    for number in range(sent):
        producer.publish("/queue/a", f"{number} {BODY}", receipt=str(number))
    world.run()
    assert world.stuck and world.budget.alarm and world.failed is None
    assert RESERVE not in world.disk.files(DATA_DIR)
    receipted = [int(receipt) for receipt in producer.receipts()]
    assert len(receipted) < sent
    looked(world)
    assert world.stuck and producer.receipts() == []
    world.disk.capacity = 1 << 30
    for _ in range(4):
        looked(world)
    assert not world.budget.alarm and world.failed is None
    receipted += [int(receipt) for receipt in producer.receipts()]
    assert receipted == list(range(sent))
    assert list(map(number_of, texts(drain(world.restart("kill"), "/queue/a")))) == list(range(sent))


@pytest.mark.parametrize("seed", range(24))
def test_whatever_the_level_and_wherever_it_crashes_nothing_receipted_is_lost(seed: int) -> None:
    """Producers and a consumer on a disk that others fill and empty; kills and power cuts at any time."""
    random = Random(seed)
    world = world_of((8 + random.randrange(20)) * SEGMENT + random.randrange(SEGMENT), seed, checkpoint=1 << 20)
    most = world.disk.capacity or 0
    receipted: set[int] = set()
    asked: set[int] = set()
    acked: set[int] = set()
    number = alarms = stuck = 0
    for _ in range(3):
        producer, consumer = world.connect(), world.connect()
        consumer.subscribe("/queue/a", prefetch=20)
        for _ in range(300):
            if producer.closed:
                producer = world.connect()
            if not producer.session.paused:
                producer.publish("/queue/a", f"{number} {BODY * random.choice([1, 1, 5])}", receipt=str(number))
                number += 1
            if random.random() < 0.3:
                for message in consumer.take():
                    which = number_of(message.body.decode())
                    assert which not in acked, seed
                    asked.add(which)
                    consumer.ack(message, receipt=str(which))
            if random.random() < 0.02:
                used = most - world.disk.free(".")[0] if world.disk.capacity == most else world.disk.capacity or 0
                world.disk.capacity = random.choice([most, used, max(used, most - random.randrange(most // 2))])
            if random.random() < 0.02:  # more than the reserve holds is under way before anybody can know
                world.auto = False
                for _ in range(300):
                    if not producer.closed and not producer.session.paused:
                        producer.publish("/queue/a", f"{number} {BODY * 5}", receipt=str(number))
                        number += 1
                world.auto = True
            world.advance(0.1)
            receipted |= {int(receipt) for receipt in producer.receipts()}
            acked |= {int(receipt) for receipt in consumer.receipts()}
            alarms += bool(world.budget.alarm)
            stuck += world.stuck
            assert world.failed is None, (seed, world.failed)
        world.disk.capacity = most if random.random() < 0.5 else world.disk.capacity
        if random.random() < 0.5:
            world.kill()
        else:
            world.power_off()
        try:
            world.start()
        except StorageFailed:
            # No room at all, and the reserve is gone: refused, and nothing is lost by that.
            assert world.disk.free(".")[0] < 4 * SEGMENT, seed
            world.kill()
            world.disk.capacity = 1 << 40
            world.start()
            world.disk.capacity = most
    world.disk.capacity = 1 << 40
    looked(world)
    left = list(map(number_of, texts(drain(world, "/queue/a"))))
    assert left == sorted(set(left)), seed
    assert set(left) >= receipted - asked, seed
    assert not set(left) & acked, seed
    OUTCOMES.append((alarms, stuck))


OUTCOMES: list[tuple[int, int]] = []


def test_the_seeds_have_met_alarms() -> None:
    if len(OUTCOMES) == 24:
        assert sum(alarms > 0 for alarms, _ in OUTCOMES) > 10
        assert sum(stuck > 0 for _, stuck in OUTCOMES) > 0
