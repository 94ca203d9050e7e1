"""Temporary queues: their owner alone consumes, others reply, and they go with their connection."""

from __future__ import annotations

import pytest

from tests.core.world import World


def test_a_request_finds_its_way_back() -> None:
    world = World()
    asker = world.connect()
    worker = world.connect().subscribe("/queue/work")
    asker.publish("/queue/work", "question", reply_to="/temp-queue/answers")
    question = worker.one()
    assert question["reply-to"] == f"/temp-queue/{asker.session.token}.answers"
    worker.publish(question["reply-to"], "answer", receipt="r").ack(question)
    receipt = worker.one("RECEIPT")
    assert receipt.get("dropped") is None
    answer = asker.one()
    assert answer.body == b"answer" and answer["subscription"] == "/temp-queue/answers"


def test_an_asker_that_listens_already_is_not_subscribed_again() -> None:
    world = World()
    asker = world.connect().subscribe("/temp-queue/answers", id="mine", ack="auto")
    worker = world.connect().subscribe("/queue/work")
    for _ in range(2):
        asker.publish("/queue/work", "q", reply_to="/temp-queue/answers")
    for question in worker.take():
        worker.publish(question["reply-to"], "answer")
    assert [m["subscription"] for m in asker.take()] == ["mine", "mine"]


def test_a_reply_to_may_be_handed_on_to_another_worker() -> None:
    world = World()
    asker = world.connect()
    router = world.connect().subscribe("/queue/in", ack="auto")
    worker = world.connect().subscribe("/queue/out", ack="auto")
    asker.publish("/queue/in", "q", reply_to="/temp-queue/answers")
    router.publish("/queue/out", "q", receipt="r", reply_to=router.one()["reply-to"])
    assert router.receipts() == ["r"]
    worker.publish(worker.one()["reply-to"], "answer")
    assert asker.bodies() == ["answer"]


@pytest.mark.parametrize("name", ["{token}.t", "t"])
def test_nobody_else_may_consume_from_it(name: str) -> None:
    world = World()
    owner = world.connect().subscribe("/temp-queue/t", ack="auto")
    other = world.connect().subscribe("/temp-queue/" + name.format(token=owner.session.token), ack="auto")
    world.connect().publish(f"/temp-queue/{owner.session.token}.t", "secret")
    assert other.take() == [] and owner.bodies() == ["secret"]
    assert other.closed is ("token" in name)


def test_a_message_to_one_that_is_gone_is_dropped_and_receipted_as_such() -> None:
    world = World()
    owner = world.connect().subscribe("/temp-queue/t", ack="auto")
    name = f"/temp-queue/{owner.session.token}.t"
    owner.lose()
    client = world.connect().publish(name, "x", receipt="1").publish("/queue/a", "y", receipt="2")
    got = client.take("RECEIPT")
    assert [(f["receipt-id"], f.get("dropped")) for f in got] == [("1", "true"), ("2", None)]
    assert world.broker.counters.dropped_replies == 1
    assert name not in world.broker.queues


def test_it_is_never_journaled() -> None:
    world = World()
    owner = world.connect().subscribe("/temp-queue/t")
    lsn = world.journal.lsn
    owner.publish("/temp-queue/t", "x", persistent="true")
    owner.ack(owner.one())
    assert world.journal.lsn == lsn
    assert world.broker.queues[f"/temp-queue/{owner.session.token}.t"].in_flight == 0


def test_a_transaction_may_answer_one_that_is_gone() -> None:
    world = World()
    client = world.connect().send("BEGIN", {"transaction": "t"})
    client.publish("/temp-queue/" + "0" * 16 + ".t", "x", transaction="t").publish("/queue/a", "y", transaction="t")
    client.send("COMMIT", {"transaction": "t", "receipt": "r"})
    assert client.receipts() == ["r"]


def test_a_busy_connection_with_a_temporary_queue_leaves_nothing_behind() -> None:
    world = World()
    owner = world.connect().subscribe("/temp-queue/t")
    owner.publish("/temp-queue/t", "1").publish("/temp-queue/t", "2")
    owner.lose()
    assert list(world.broker.queues) == [] and world.budget.used == 0


def test_one_connection_cannot_take_all_the_queues_with_temporary_ones() -> None:
    world = World(limits={"subscriptions": 3})
    client = world.connect()
    for n in range(4):
        assert not client.closed
        client.subscribe(f"/temp-queue/{n}", id=str(n)).send("UNSUBSCRIBE", {"id": str(n)})
    assert client.one("ERROR")["message"] == "limit reached" and client.closed
    assert list(world.broker.queues) == []
