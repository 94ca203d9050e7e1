"""What counts as a failure, and what becomes of a message that failed too often."""

from __future__ import annotations

import pytest

from tests.core.world import Client, World, drain, failures, texts

HEADERS = ("dead-letter-reason", "dead-letter-queue", "original-destination")


def nack_times(client: Client, times: int) -> None:
    for _ in range(times):
        client.nack(client.one())


def test_the_tenth_failure_moves_a_message_to_the_dead_letter_queue() -> None:
    world = World()
    world.connect().publish("/queue/a", "x", kind="k")
    client = world.connect().subscribe("/queue/a")
    nack_times(client, 9)
    assert client.frames[0]["delivery-count"] == "10"
    nack_times(client, 1)
    assert client.frames == []
    (dead,) = drain(world, "/queue/DLQ.a")
    assert dead["destination"] == "/queue/DLQ.a" and dead["kind"] == "k" and dead.body == b"x"
    assert [dead[name] for name in HEADERS] == ["max-deliveries", "/queue/a", "/queue/a"]
    assert dead["dead-letter-time"].isdigit() and dead["redelivered"] == "true"


@pytest.mark.parametrize("stop", ["clean", "kill", "power"])
def test_failures_are_counted_across_restarts(stop: str) -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    for _ in range(2):
        client = world.connect().subscribe("/queue/a")
        nack_times(client, 5)
        if not client.frames:
            break
        client.disconnect()
        world.restart(stop)
    assert texts(drain(world, "/queue/DLQ.a")) == ["x"]
    assert drain(world, "/queue/a") == []


def test_a_nack_without_requeue_is_a_dead_letter_at_once() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    client = world.connect().subscribe("/queue/a")
    client.nack(client.one(), requeue="false", failure_reason="a:b\nc")
    for how in ("clean", "power"):
        world.restart(how)
    (dead,) = drain(world, "/queue/DLQ.a")
    assert (dead["dead-letter-reason"], dead["failure-reason"]) == ("rejected", "a:b\nc")


def test_dead_letters_never_loop() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    client = world.connect().subscribe("/queue/a")
    client.nack(client.one(), requeue="false")
    undertaker = world.connect().subscribe("/queue/DLQ.a")
    for _ in range(25):
        undertaker.nack(undertaker.one(), requeue="false")
    assert undertaker.one().body == b"x"
    assert sorted(world.broker.queues) == ["/queue/DLQ.a", "/queue/a"]


def test_a_lost_connection_counts_for_the_oldest_of_each_subscription_only() -> None:
    world = World()
    producer = world.connect()
    for n in range(3):
        producer.publish("/queue/a", f"a{n}")
        producer.publish("/queue/b", f"b{n}")
    for _ in range(10):
        client = world.connect().subscribe("/queue/a", id="1").subscribe("/queue/b", id="2", ack="client")
        assert len(client.take()) == 6
        client.lose()
    assert texts(drain(world, "/queue/DLQ.a")) == ["a0"]
    assert texts(drain(world, "/queue/DLQ.b")) == ["b0"]
    assert texts(drain(world, "/queue/a")) == ["a1", "a2"]


def test_what_an_ack_auto_consumer_had_not_read_counts_once_a_connection() -> None:
    world = World(limits={"output": 4096})
    producer = world.connect()
    for n in range(4):
        producer.publish("/queue/a", b"x" * 1000, n=str(n))
    for _ in range(10):
        client = world.connect()
        client.stuck = True
        client.subscribe("/queue/a", ack="auto", id="1")
        producer.publish("/queue/a", b"y", persistent="false")
        client.lose()
    assert len(drain(world, "/queue/DLQ.a")) == 1


def test_the_oldest_is_the_oldest_that_nobody_acknowledged() -> None:
    world = World()
    producer = world.connect()
    producer.publish("/queue/a", "0").publish("/queue/a", "1")
    early = world.connect().subscribe("/queue/a")
    zero = early.take()[0]
    early.send("UNSUBSCRIBE", {"id": "s"})
    client = world.connect().subscribe("/queue/a")
    assert len(client.take()) == 2
    early.ack(zero)  # late: message 0 is settled while `client` has it
    client.lose()
    assert failures(world, "/queue/a") == [1]


@pytest.mark.parametrize("end", ["DISCONNECT", "UNSUBSCRIBE"])
def test_leaving_in_good_order_counts_nothing(end: str) -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    for _ in range(15):
        client = world.connect().subscribe("/queue/a")
        client.one()
        client.send(end, {"id": "s"} if end == "UNSUBSCRIBE" else {})
        client.lose()
    (message,) = drain(world, "/queue/a")
    assert message["delivery-count"] == "16"
    assert "/queue/DLQ.a" not in world.broker.queues


def test_a_message_in_memory_becomes_a_dead_letter_too() -> None:
    world = World()
    client = world.connect().subscribe("/queue/a")
    client.publish("/queue/a", "x", persistent="false")
    client.nack(client.one(), requeue="false")
    assert texts(drain(world, "/queue/DLQ.a")) == ["x"]


def test_a_nack_on_a_temporary_queue_only_returns() -> None:
    world = World()
    client = world.connect().subscribe("/temp-queue/t")
    client.publish("/temp-queue/t", "x")
    client.nack(client.one(), requeue="false")
    assert client.one()["redelivered"] == "true"
    assert list(world.broker.queues) == [f"/temp-queue/{client.session.token}.t"]


def test_a_dead_letter_is_seen_when_its_record_is_synced_and_not_before() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    undertaker = world.connect().subscribe("/queue/DLQ.a")
    client = world.connect().subscribe("/queue/a")
    message = client.one()
    world.auto = False
    client.nack(message, requeue="false")
    world.turn()  # the record is at the writer
    world.turn()
    assert undertaker.take() == []
    world.complete()
    world.run()  # it is read back for the undertaker
    assert undertaker.one().body == b"x"


def test_the_last_nack_says_why_a_message_died() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    client = world.connect().subscribe("/queue/a")
    for attempt in range(10):
        client.nack(client.one(), failure_reason=f"attempt {attempt}")
    (dead,) = drain(world, "/queue/DLQ.a")
    assert dead["failure-reason"] == "attempt 9"
