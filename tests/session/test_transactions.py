"""BEGIN, COMMIT, ABORT: all or nothing, in one record."""

from __future__ import annotations

import pytest

from broker.journal import RecordType
from tests.core.world import Client, World, drain, failures, texts


def begun(world: World, name: str = "t", queue: str = "/queue/a", ack: str = "client-individual") -> Client:
    client = world.connect()
    if queue:
        client.subscribe(queue, ack=ack)
    return client.send("BEGIN", {"transaction": name})


def filled(count: int) -> World:
    world = World()
    producer = world.connect()
    for n in range(count):
        producer.publish("/queue/a", str(n))
    return world


def end(client: Client, command: str, name: str = "t") -> Client:
    return client.send(command, {"transaction": name, "receipt": command})


def test_nothing_of_a_transaction_is_seen_before_its_commit_and_all_after_it() -> None:
    world = filled(2)
    client = begun(world)
    first = client.take()[0]
    client.publish("/queue/b", "1", transaction="t").publish("/queue/c", "2", transaction="t")
    client.ack(first, transaction="t")
    assert drain(world, "/queue/b") == []
    end(client, "COMMIT")
    assert client.receipts() == ["COMMIT"]
    world.restart("power")
    assert [texts(drain(world, f"/queue/{name}")) for name in "abc"] == [["1"], ["1"], ["2"]]


def test_a_transaction_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    world = filled(3)
    client = begun(world)
    one, two, three = client.take()
    client.publish("/queue/b", "1", transaction="t").ack(one, transaction="t")
    client.nack(two, transaction="t").nack(three, transaction="t", requeue="false")
    types = []
    append = world.journal.append

    def noted(kind: RecordType, payload: list[bytes]) -> int:
        types.append(kind)
        return append(kind, payload)

    monkeypatch.setattr(world.journal, "append", noted)
    world.auto = False
    end(client, "COMMIT")
    assert types == [RecordType.TRANSACTION]
    world.turn()
    world.complete()
    world.auto = True
    world.restart("power")
    assert [texts(drain(world, f"/queue/{name}")) for name in ("a", "b", "DLQ.a")] == [["1"], ["1"], ["2"]]


def test_what_was_not_committed_is_gone_after_a_kill() -> None:
    world = filled(1)
    client = begun(world)
    client.publish("/queue/b", "1", transaction="t").ack(client.one(), transaction="t")
    world.restart("kill")
    assert texts(drain(world, "/queue/a")) == ["0"]
    assert drain(world, "/queue/b") == []


@pytest.mark.parametrize("ack", ["client", "client-individual"])
@pytest.mark.parametrize("command", ["ACK", "NACK"])
def test_abort_leaves_acknowledged_messages_in_flight_to_be_acknowledged_again(ack: str, command: str) -> None:
    world = filled(3)
    client = begun(world, ack=ack)
    got = client.take()
    client.ack(got[1], command, transaction="t").publish("/queue/b", "x", transaction="t")
    end(client, "ABORT")
    assert client.take() == [] and drain(world, "/queue/b") == []
    for message in got if ack == "client-individual" else got[2:]:
        client.ack(message, receipt="r")
    assert not client.closed
    client.disconnect()
    assert drain(world, "/queue/a") == []
    assert world.broker.queues["/queue/a"].in_flight == 0


def test_abort_puts_every_delivery_back_in_its_place() -> None:
    world = filled(6)
    client = begun(world, ack="client", name="one")
    client.send("BEGIN", {"transaction": "two"})
    got = client.take()
    client.ack(got[1], transaction="one").ack(got[3], transaction="two")
    end(client, "ABORT", "one")
    end(client, "ABORT", "two")
    client.ack(got[2], receipt="r").disconnect()
    assert texts(drain(world, "/queue/a")) == ["3", "4", "5"]


def test_a_lost_connection_after_an_abort_blames_the_oldest() -> None:
    world = filled(2)
    client = begun(world)
    client.ack(client.take()[1], transaction="t")
    end(client, "ABORT")
    client.lose()
    assert failures(world, "/queue/a") == [1, 0]


def test_an_ack_in_a_transaction_frees_its_slot() -> None:
    world = filled(3)
    client = world.connect().subscribe("/queue/a", prefetch=1).send("BEGIN", {"transaction": "t"})
    client.ack(client.one(), transaction="t")
    assert client.one().body == b"1"


def test_a_cumulative_ack_passes_over_what_a_transaction_holds() -> None:
    world = filled(4)
    client = begun(world, ack="client")
    got = client.take()
    client.ack(got[1], transaction="t").ack(got[3], receipt="r")
    assert client.receipts() == ["r"]
    end(client, "ABORT")
    client.disconnect()
    assert texts(drain(world, "/queue/a")) == ["0", "1"]


def test_what_a_transaction_holds_cannot_be_acknowledged_beside_it() -> None:
    world = filled(1)
    client = begun(world)
    message = client.one()
    client.ack(message, transaction="t").ack(message)
    assert client.one("ERROR")["message"] == "unknown id"
    assert texts(drain(world, "/queue/a")) == ["0"]


@pytest.mark.parametrize("how", ["lose", "disconnect"])
def test_the_end_of_a_connection_aborts(how: str) -> None:
    world = filled(2)
    client = begun(world)
    client.publish("/queue/b", "x", transaction="t").ack(client.take()[0], transaction="t")
    client.lose() if how == "lose" else client.disconnect()
    assert texts(drain(world, "/queue/a")) == ["0", "1"] and drain(world, "/queue/b") == []
    assert world.budget.accounts["transactions"].used == 0


def test_unsubscribe_leaves_to_the_transaction_what_it_holds() -> None:
    world = filled(2)
    client = begun(world)
    client.ack(client.take()[0], transaction="t").send("UNSUBSCRIBE", {"id": "s"})
    assert texts(drain(world, "/queue/a")) == ["1"]
    end(client, "COMMIT")
    world.restart("power")
    assert drain(world, "/queue/a") == []


def test_abort_after_unsubscribe_gives_back_and_a_late_ack_still_counts() -> None:
    world = filled(2)
    client = begun(world)
    zero = client.take()[0]
    client.ack(zero, transaction="t").send("UNSUBSCRIBE", {"id": "s"})
    end(client, "ABORT")
    assert world.broker.queues["/queue/a"].waiting == 2
    client.ack(zero, receipt="r")
    assert client.receipts() == ["ABORT", "r"]
    assert texts(drain(world, "/queue/a")) == ["1"]


def test_a_late_ack_in_a_transaction_counts_at_its_commit() -> None:
    world = filled(2)
    client = begun(world)
    zero, one = client.take()
    client.send("UNSUBSCRIBE", {"id": "s"}).ack(zero, transaction="t")
    end(client, "COMMIT")
    client.send("BEGIN", {"transaction": "t"}).ack(one, transaction="t")
    end(client, "ABORT")
    world.restart("power")
    assert texts(drain(world, "/queue/a")) == ["1"]


def test_a_transaction_keeps_its_order_of_persistent_and_other_messages() -> None:
    world = World()
    client = begun(world, queue="")
    for n in range(6):
        client.publish("/queue/a", str(n), transaction="t", persistent="true" if n % 2 else "false")
    end(client, "COMMIT")
    assert texts(drain(world, "/queue/a")) == [str(n) for n in range(6)]


@pytest.mark.parametrize("command", ["COMMIT", "ABORT"])
def test_the_end_of_an_unknown_transaction_is_an_error(command: str) -> None:
    client = end(World().connect(), command, "none")
    assert client.one("ERROR")["receipt-id"] == command and client.closed


@pytest.mark.parametrize("command", ["SEND", "ACK", "NACK"])
def test_a_frame_in_an_unknown_transaction_is_an_error_and_changes_nothing(command: str) -> None:
    world = filled(1)
    client = world.connect().subscribe("/queue/a")
    headers = {"transaction": "none", "id": client.one()["ack"], "destination": "/queue/b"}
    client.send(command, headers)
    assert client.one("ERROR")["message"] == "unknown id"
    assert texts(drain(world, "/queue/a")) == ["0"] and drain(world, "/queue/b") == []


def test_a_transaction_that_has_begun_cannot_begin_again() -> None:
    client = begun(World(), queue="").send("BEGIN", {"transaction": "t"})
    assert client.one("ERROR")["message"] == "unknown id"


def test_limits_of_transactions_are_held() -> None:
    limits = {"transactions": 2, "transaction_actions": 3, "transaction_bytes": 4096}
    world = World(limits=limits)
    client = begun(world, queue="").send("BEGIN", {"transaction": "2"}).send("BEGIN", {"transaction": "3"})
    assert client.one("ERROR")["message"] == "limit reached"
    client = begun(world, queue="")
    for _ in range(4):
        client.publish("/queue/a", "x", transaction="t")
    assert client.one("ERROR")["message"] == "limit reached"
    client = begun(world, queue="").publish("/queue/a", b"x" * 5000, transaction="t")
    assert client.one("ERROR")["message"] == "limit reached"
    assert drain(world, "/queue/a") == []
    assert world.budget.used == 0


def test_each_delivery_of_a_cumulative_ack_counts_as_an_action() -> None:
    world = World(limits={"transaction_actions": 3})
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    client = world.connect().subscribe("/queue/a", ack="client").send("BEGIN", {"transaction": "t"})
    messages = client.take()
    client.ack(messages[2], transaction="t")
    assert not client.closed
    client.ack(messages[4], transaction="t")
    assert client.one("ERROR")["message"] == "limit reached"
    assert texts(drain(world, "/queue/a")) == ["0", "1", "2", "3", "4"]
