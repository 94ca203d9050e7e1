"""Acknowledgements that come late, twice, or from somebody else."""

from __future__ import annotations

import pytest

from tests.core.world import World, drain, texts


def started(count: int = 1) -> World:
    world = World()
    producer = world.connect()
    for n in range(count):
        producer.publish("/queue/a", str(n))
    return world


def clean(world: World) -> None:
    """Nothing is in flight or counted twice, and the log knows the same."""
    for queue in world.broker.queues.values():
        assert (queue.in_flight, queue.marked) == (0, 0), queue.name
    assert sum(segment.live for segment in world.journal.segments) == sum(
        queue.waiting for queue in world.broker.queues.values()
    )


def test_a_late_ack_settles_a_message_that_went_back_to_its_place() -> None:
    world = started(2)
    client = world.connect().subscribe("/queue/a")
    got = client.take()
    client.send("UNSUBSCRIBE", {"id": "s"}).ack(got[0], receipt="r")
    assert client.receipts() == ["r"]
    world.restart("power")
    assert texts(drain(world, "/queue/a")) == ["1"]
    clean(world)


@pytest.mark.parametrize("then", ["ACK", "NACK", "lose", "UNSUBSCRIBE", "requeue:false"])
def test_a_late_ack_settles_a_message_that_another_has_and_what_that_one_does_changes_nothing(then: str) -> None:
    world = started()
    early = world.connect().subscribe("/queue/a")
    first = early.one()
    early.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect().subscribe("/queue/a")
    second = other.one()
    early.ack(first, receipt="r")
    assert early.receipts() == ["r"]
    if then == "lose":
        other.lose()
    elif then == "UNSUBSCRIBE":
        other.send("UNSUBSCRIBE", {"id": "s"})
    elif then == "requeue:false":
        other.nack(second, requeue="false")
    else:
        other.ack(second, then)
    assert other.take("ERROR") == []
    assert drain(world, "/queue/a") + drain(world, "/queue/DLQ.a") == []
    clean(world)
    world.restart("power")
    assert drain(world, "/queue/a") == []


def test_a_late_ack_settles_a_message_that_an_ack_auto_consumer_has_not_read() -> None:
    world = started()
    early = world.connect().subscribe("/queue/a")
    first = early.one()
    early.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect()
    other.stuck = True
    other.subscribe("/queue/a", ack="auto")
    early.ack(first)
    other.lose()
    assert drain(world, "/queue/a") == []
    clean(world)


@pytest.mark.parametrize("end", ["COMMIT", "ABORT"])
def test_a_late_ack_settles_a_message_that_a_transaction_of_another_holds(end: str) -> None:
    world = started()
    early = world.connect().subscribe("/queue/a")
    first = early.one()
    early.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect().subscribe("/queue/a").send("BEGIN", {"transaction": "t"})
    other.ack(other.one(), transaction="t")
    early.ack(first)
    other.send(end, {"transaction": "t"}).lose()
    assert drain(world, "/queue/a") == []
    clean(world)


def test_a_late_ack_settles_a_dead_letter() -> None:
    world = started()
    early = world.connect().subscribe("/queue/a")
    first = early.one()
    early.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect().subscribe("/queue/a")
    other.nack(other.one(), requeue="false").disconnect()
    world.advance(800)  # the queue where it lived is forgotten meanwhile
    early.ack(first, receipt="r")
    assert early.receipts() == ["r"]
    world.restart("power")
    assert drain(world, "/queue/DLQ.a") == []
    clean(world)


def test_a_late_ack_of_what_is_settled_changes_nothing() -> None:
    world = started(2)
    early = world.connect().subscribe("/queue/a")
    first = early.take()[0]
    early.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect().subscribe("/queue/a", prefetch=1)
    other.ack(other.one()).disconnect()
    early.ack(first, receipt="r")
    assert early.receipts() == ["r"]
    assert texts(drain(world, "/queue/a")) == ["1"]
    clean(world)


def test_a_late_nack_is_ignored() -> None:
    world = started()
    client = world.connect().subscribe("/queue/a")
    message = client.one()
    client.send("UNSUBSCRIBE", {"id": "s"}).nack(message, requeue="false", receipt="r")
    assert client.receipts() == ["r"]
    assert drain(world, "/queue/a")[0]["delivery-count"] == "2"


@pytest.mark.parametrize("command", ["ACK", "NACK"])
@pytest.mark.parametrize("whose", ["another's", "settled", "made up", "wrong number", "of another subscription"])
def test_an_id_that_is_no_delivery_here_is_an_error_and_touches_nothing(command: str, whose: str) -> None:
    world = started()
    owner = world.connect().subscribe("/queue/a")
    message = owner.one()
    if whose == "settled":
        client, id = owner.subscribe("/queue/b", id="2"), message["ack"]
        owner.ack(message)
    elif whose == "of another subscription":
        client = owner.subscribe("/queue/b", id="2")
        owner.send(command, {"id": message["ack"], "subscription": "2"})
        id = ""
    else:
        client = world.connect().subscribe("/queue/b")
        id = {"another's": message["ack"], "made up": "nonsense-1", "wrong number": message["ack"] + "-7"}[whose]
        client = owner if whose == "wrong number" else client
    if id:
        client.send(command, {"id": id})
    error = client.one("ERROR")
    assert error["message"] == "unknown id" and client.closed
    left = texts(drain(world, "/queue/a"))
    assert left == (["0"] if client is owner and whose != "settled" else [])
    if whose == "another's":
        owner.ack(message, receipt="r")
        assert owner.receipts() == ["r"]


def test_an_ack_for_an_ack_auto_subscription_is_ignored_but_not_one_for_another() -> None:
    world = started()
    client = world.connect().subscribe("/queue/a", ack="auto").subscribe("/queue/b", id="2")
    message = client.one()
    client.send("ACK", {"id": message["message-id"], "receipt": "r"})
    assert client.receipts() == ["r"]
    client.send("ACK", {"id": message["message-id"], "subscription": "2"})
    assert client.one("ERROR")["message"] == "unknown id"


def test_acks_in_one_chunk_settle_each_once_even_where_one_comes_twice() -> None:
    world = started(3)
    client = world.connect().subscribe("/queue/a")
    ids = [m["ack"] for m in client.take()]
    wire = "".join(f"ACK\nid:{id}\n\n\0" for id in (ids[0], ids[1], ids[0]))
    client.feed(wire.encode())
    assert client.one("ERROR")["message"] == "unknown id"
    assert texts(drain(world, "/queue/a")) == ["2"]
    clean(world)


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_acknowledgements_work_in_each_version(version: str) -> None:
    world = started(2)
    client = world.connect(version).subscribe("/queue/a")
    for message in client.take():
        id = message["ack"] if version == "1.2" else message["message-id"]
        name = "id" if version == "1.2" else "message-id"
        extra = {"subscription": "s"} if version == "1.1" else {}
        client.send("ACK", {name: id, "receipt": "r", **extra})
    assert client.receipts() == ["r", "r"]
    client.disconnect()
    assert drain(world, "/queue/a") == []


@pytest.mark.parametrize("first", ["owner", "late one"])
def test_the_receipt_of_an_ack_waits_for_the_record_of_whoever_acknowledged_before(first: str) -> None:
    world = started()
    early = world.connect().subscribe("/queue/a")
    message = early.one()
    early.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect().subscribe("/queue/a")
    again = other.one()
    world.auto = False
    if first == "owner":
        other.ack(again)
        early.ack(message, receipt="r")
    else:
        early.ack(message)
        other.ack(again, receipt="r")
    world.turn()
    assert early.receipts() + other.receipts() == []
    world.complete()
    world.turn()
    assert early.receipts() + other.receipts() == ["r"]


@pytest.mark.parametrize("late", [True, False])
def test_the_receipt_of_a_commit_waits_for_the_record_of_whoever_acknowledged_before(late: bool) -> None:
    world = started()
    early = world.connect().subscribe("/queue/a")
    message = early.one()
    early.send("UNSUBSCRIBE", {"id": "s"})
    other = world.connect().subscribe("/queue/a")
    again = other.one()
    world.auto = False
    if late:
        early.send("BEGIN", {"transaction": "t"}).ack(message, transaction="t")
        other.ack(again)
        early.send("COMMIT", {"transaction": "t", "receipt": "r"})
    else:
        other.send("BEGIN", {"transaction": "t"}).ack(again, transaction="t")
        early.ack(message)
        other.send("COMMIT", {"transaction": "t", "receipt": "r"})
    world.turn()
    assert early.receipts() + other.receipts() == []
    world.complete()
    world.turn()
    assert early.receipts() + other.receipts() == ["r"]
