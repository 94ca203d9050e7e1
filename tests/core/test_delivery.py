"""Who gets a message, when, and in which order."""

from __future__ import annotations

import pytest

from tests.core.world import World, drain, texts


def test_ten_messages_over_four_consumers_are_three_three_two_two() -> None:
    world = World()
    consumers = [world.connect().subscribe("/queue/a") for _ in range(4)]
    world.auto = False
    producer = world.connect()
    for n in range(10):
        producer.publish("/queue/a", str(n))
    world.run()
    assert [len(c.take()) for c in consumers] == [3, 3, 2, 2]


def test_messages_that_come_one_at_a_time_go_round_all_consumers() -> None:
    world = World()
    consumers = [world.connect().subscribe("/queue/a") for _ in range(3)]
    producer = world.connect()
    for n in range(7):
        producer.publish("/queue/a", str(n))
    assert [c.bodies() for c in consumers] == [["0", "3", "6"], ["1", "4"], ["2", "5"]]


def test_the_round_goes_on_when_a_consumer_leaves() -> None:
    world = World()
    consumers = [world.connect().subscribe("/queue/a") for _ in range(3)]
    producer = world.connect()
    producer.publish("/queue/a", "0").publish("/queue/a", "1")
    consumers[0].ack(consumers[0].one()).send("UNSUBSCRIBE", {"id": "s"})
    producer.publish("/queue/a", "2").publish("/queue/a", "3")
    assert (consumers[1].bodies(), consumers[2].bodies()) == (["1", "3"], ["2"])


def test_nothing_is_delivered_before_its_record_is_synced() -> None:
    world = World()
    producer = world.connect()
    consumer = world.connect().subscribe("/queue/a")
    producer.publish("/queue/a", "before")
    assert consumer.bodies() == ["before"]
    world.auto = False
    producer.publish("/queue/a", "x")
    for _ in range(3):
        world.turn()
    assert consumer.take() == []
    world.complete()
    world.turn()
    assert consumer.bodies() == ["x"]


def test_a_batch_that_is_synced_lets_nothing_of_the_next_one_pass() -> None:
    world = World()
    producer = world.connect()
    consumer = world.connect().subscribe("/queue/a")
    producer.publish("/queue/a", "before")
    assert consumer.bodies() == ["before"]
    world.auto = False
    producer.publish("/queue/a", "1", receipt="r1")
    world.turn()
    producer.publish("/queue/a", "2", receipt="r2")
    world.turn()
    world.complete()
    world.turn()
    assert consumer.bodies() == ["1"]
    assert producer.receipts() == ["r1"]
    world.complete()
    world.turn()
    assert consumer.bodies() == ["2"]
    assert producer.receipts() == ["r2"]


@pytest.mark.parametrize("ack", ["client", "client-individual"])
def test_prefetch_bounds_what_is_unacknowledged(ack: str) -> None:
    world = World()
    consumer = world.connect().subscribe("/queue/a", ack=ack, prefetch=2)
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    got = consumer.take()
    assert texts(got) == ["0", "1"]
    consumer.ack(got[0])
    assert consumer.bodies() == ["2"]


def test_prefetch_has_no_effect_with_ack_auto() -> None:
    world = World()
    consumer = world.connect().subscribe("/queue/a", ack="auto", prefetch=1)
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    assert consumer.bodies() == ["0", "1", "2", "3", "4"]


def test_an_ack_in_client_mode_covers_all_before_it_and_nothing_behind_it() -> None:
    world = World()
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    consumer = world.connect().subscribe("/queue/a", ack="client", prefetch=5)
    got = consumer.take()
    consumer.ack(got[2]).disconnect()
    assert texts(drain(world, "/queue/a")) == ["3", "4"]


def test_a_nack_in_client_mode_covers_all_before_it() -> None:
    world = World()
    producer = world.connect()
    for n in range(4):
        producer.publish("/queue/a", str(n))
    consumer = world.connect().subscribe("/queue/a", ack="client", prefetch=4)
    consumer.nack(consumer.take()[1])
    got = consumer.take()
    assert [(m.body, m["delivery-count"]) for m in got] == [(b"0", "2"), (b"1", "2")]


def test_what_comes_back_takes_its_old_place() -> None:
    world = World()
    producer = world.connect()
    for n in range(6):
        producer.publish("/queue/a", str(n))
    first = world.connect().subscribe("/queue/a", prefetch=4)
    got = first.take()
    first.ack(got[1])
    first.lose()
    second = world.connect().subscribe("/queue/a", prefetch=10)
    assert [(m.body.decode(), m.get("redelivered")) for m in second.take()] == [
        ("0", "true"), ("2", "true"), ("3", "true"), ("4", "true"), ("5", None),
    ]  # fmt: skip


def test_delivery_count_counts_deliveries() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    for n in range(1, 5):
        client = world.connect().subscribe("/queue/a")
        assert client.one().get("delivery-count") == (str(n) if n > 1 else None)
        client.disconnect()


def test_ack_auto_is_settled_when_the_kernel_has_it_and_not_before() -> None:
    world = World()
    client = world.connect()
    client.stuck = True
    client.subscribe("/queue/a", ack="auto")
    producer = world.connect().publish("/queue/a", "x")
    client.lose()
    assert producer.world.broker.queues["/queue/a"].in_flight == 0
    again = world.connect().subscribe("/queue/a", ack="auto")
    assert again.one()["redelivered"] == "true"
    again.lose()
    assert drain(world, "/queue/a") == []


def test_nothing_is_handed_out_beyond_the_room_of_the_output() -> None:
    world = World(limits={"output": 64 * 1024})
    producer = world.connect()
    for n in range(300):
        producer.publish("/queue/a", b"x" * 1000, note=str(n))
    client = world.connect()
    client.stuck = True
    client.subscribe("/queue/a", ack="auto")
    assert client.buffered <= 64 * 1024 + 2000
    client.read()
    world.run()
    assert len(client.take()) == 300


def test_long_headers_count_against_the_room_of_the_output() -> None:
    world = World(limits={"output": 64 * 1024})
    producer = world.connect()
    for _ in range(100):
        producer.publish("/queue/a", "", note="x" * 7000)
    client = world.connect()
    client.stuck = True
    client.subscribe("/queue/a", ack="auto")
    assert client.buffered <= 64 * 1024 + 8000


def test_two_subscriptions_of_one_connection_share_its_room() -> None:
    world = World(limits={"output": 64 * 1024})
    client = world.connect()
    for n in range(20):
        client.subscribe("/queue/a", id=str(n))
    client.stuck = True
    world.auto = False
    producer = world.connect()
    for _ in range(20):
        producer.publish("/queue/a", b"x" * 60_000)
    world.run()
    assert client.buffered <= 64 * 1024 + 61_000


def test_after_disconnect_nothing_more_is_delivered() -> None:
    world = World()
    consumer = world.connect().subscribe("/queue/a", ack="auto")
    producer = world.connect()
    world.auto = False
    consumer.publish("/queue/b", "unsynced").disconnect()
    producer.publish("/queue/a", "x")
    world.run()
    assert [f.command for f in consumer.frames] == ["RECEIPT"]
    world.auto = True
    assert [m.get("redelivered") for m in drain(world, "/queue/a")] == [None]


def test_counters_of_a_queue_come_back_to_zero() -> None:
    world = World()
    producer = world.connect()
    for n in range(8):
        producer.publish("/queue/a", str(n))
    one = world.connect().subscribe("/queue/a", prefetch=3)
    two = world.connect().subscribe("/queue/a", ack="client", prefetch=3)
    three = world.connect().subscribe("/queue/a", ack="auto")
    queue = world.broker.queues["/queue/a"]
    assert queue.in_flight == 6
    one.ack(one.take()[0])
    two.nack(two.take()[1])
    for client in (one, two, three, producer):
        client.lose()
    assert (queue.in_flight, queue.pending, queue.marked) == (0, 0, 0)
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}


def test_a_consumer_whose_output_was_full_of_receipts_gets_its_messages_when_it_reads() -> None:
    world = World(limits={"output": 4096})
    client = world.connect().subscribe("/queue/a")
    client.stuck = True
    for n in range(300):
        client.publish("/queue/b", "x", receipt=f"receipt-{n}")
    world.connect().publish("/queue/a", "waits")
    client.read()
    assert client.bodies() == ["waits"]


def test_a_long_subscription_id_counts_against_the_room_of_the_output() -> None:
    world = World(limits={"output": 64 * 1024})
    producer = world.connect()
    for n in range(100):
        producer.publish("/queue/a", str(n))
    client = world.connect()
    client.stuck = True
    client.subscribe("/queue/a", id="i" * 7000)
    assert client.buffered <= 64 * 1024 + 8000
