"""What the simulation of the whole broker found (docs/testing.md, "Bugs found"): each was wrong once."""

from __future__ import annotations

import pytest

from broker.core import Read, backlog
from tests.core.world import World, drain, texts
from tests.support.simdisk import PowerLoss

SMALL = 512 * 1024  # memory.limit
HEADERS = ("a", "a", "b:c", "b:c", "")  # of the messages of a transaction


@pytest.fixture
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues keep no head in memory when there is no room."""
    monkeypatch.setattr(backlog, "HEAD", 0)


def transaction(world: World) -> None:
    """One record with three header blocks, in one queue; then so much for another one that it goes to disk."""
    producer = world.connect()
    producer.send("BEGIN", {"transaction": "t"})
    for at, kind in enumerate(HEADERS):
        headers = {"destination": "/queue/t", "transaction": "t", **({"kind": kind} if kind else {})}
        producer.send("SEND", headers, b"%d" % at)
    producer.send("COMMIT", {"transaction": "t"})
    for _ in range(600):
        producer.publish("/queue/full", b"x" * 1000)
    producer.disconnect()
    assert len(world.broker.queues["/queue/t"].ready) == 0


def churn(world: World) -> None:
    """Traffic until the segments that were there are gone: what is left in them is copied forward."""
    last = world.journal.segment.number
    for _ in range(10):
        producer = world.connect()
        for _ in range(8):
            producer.publish("/queue/churn", b"y" * 40_000)
        producer.disconnect()
        drain(world, "/queue/churn")
    world.advance(200, until=lambda: world.journal.segments[0].number > last)
    assert world.journal.segments[0].number > last
    assert world.broker.counters.carried


def check_transaction(world: World) -> None:
    found = drain(world, "/queue/t")
    assert [(int(message.body), message.get("kind") or "") for message in found] == list(enumerate(HEADERS))


def test_messages_of_a_transaction_with_different_headers_are_read_back(nothing_stays: None) -> None:
    world = World(memory=SMALL)
    transaction(world)
    check_transaction(world)


def test_messages_of_a_transaction_keep_their_own_headers_when_they_are_copied_forward(nothing_stays: None) -> None:
    world = World(memory=SMALL)
    transaction(world)
    drain(world, "/queue/full")
    churn(world)
    check_transaction(world)


def run_with_the_first_one_gone(*bodies: bytes, how: str) -> World:
    """Messages of one record; the first is acknowledged, the others were never delivered. Then a restart."""
    world = World()
    producer = world.connect()
    producer.feed(b"".join(b"SEND\ndestination:/queue/q\n\n%b\0" % body for body in bodies))
    consumer = world.connect().subscribe("/queue/q", prefetch=1)
    message = consumer.one()
    consumer.send("UNSUBSCRIBE", {"id": "s"})
    consumer.ack(message, receipt="done")
    assert consumer.receipts() == ["done"]
    return world.restart(how)


def test_what_is_left_of_a_record_is_read_back_after_it_was_copied_forward() -> None:
    world = run_with_the_first_one_gone(b"first", b"second", b"third", how="clean")
    churn(world)
    assert texts(drain(world, "/queue/q")) == ["second", "third"]


def test_what_is_left_of_a_record_is_booked_with_its_own_size() -> None:
    """An entry knows the bytes of all its messages together; of a part of them it knows an average."""
    world = run_with_the_first_one_gone(b"", b"x" * 1000, b"y" * 17, how="kill")
    assert len(drain(world, "/queue/q")) == 2
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}
    assert {segment.number: segment.live_bytes for segment in world.journal.segments if segment.live_bytes} == {}


def test_a_start_that_was_cut_short_does_not_cost_the_next_checkpoint() -> None:
    """It leaves an empty segment behind one without a SEAL: the checkpoint that tells of both is as good as any."""
    world = World(storage={"checkpoint": 1})
    kept = "k" * 150_000  # so much of its segment that it is not copied forward
    world.connect().publish("/queue/q", kept, "r")
    world.kill()

    def cut_short(op: str, path: str) -> None:
        if op == "rename" and path.endswith(".seg"):
            world.disk.power_at = world.disk.calls + 2  # the name is there, no record is

    world.disk.on_call = cut_short
    with pytest.raises(PowerLoss):
        world.start()
    world.disk.on_call = None
    world.restart("kill")
    producer = world.connect()
    for _ in range(8):
        producer.publish("/queue/other", b"x" * 40_000)
    world.advance(40, until=lambda: bool(world.broker.counters.checkpoints))
    world.restart("kill")
    assert world.log.doubts == []
    assert world.log.checkpoint is not None
    assert world.journal.segments[0].number == 1
    assert texts(drain(world, "/queue/q")) == [kept]


def test_what_cannot_be_handed_out_yet_is_not_read_back_again_and_again() -> None:
    """The disk is full, so the delivered mark waits; memory is full of what waits for the disk, too."""
    world = World(memory=SMALL)
    producer = world.connect()
    for _ in range(3):
        producer.publish("/queue/a", b"x" * 40_000)
    world.restart()
    world.auto = False
    world.connect().subscribe("/queue/a")
    producer = world.connect()
    for _ in range(12):
        producer.publish("/queue/b", b"y" * 40_000)
    for _ in range(30):
        world.turn()
        while reads := [at for at, job in enumerate(world.jobs) if isinstance(job, Read)]:
            world.complete(at=reads[0])  # the writer is stuck, the reader is not
    assert world.broker.counters.loaded <= 3
    world.auto = True
    world.run()
    assert len(drain(world, "/queue/a")) == 0  # they are with the consumer
    assert world.broker.queues["/queue/a"].in_flight == 3
