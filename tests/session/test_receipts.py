"""A RECEIPT is an fsync, comes in frame order, and covers everything before it."""

from __future__ import annotations

import errno

import pytest

from broker.core import Write
from tests.core.world import World, drain, texts
from tests.support.wire import frame


def test_a_receipt_leaves_only_after_the_batch_of_its_record_is_done() -> None:
    world = World(auto=False)
    client = world.connect().publish("/queue/a", "x", receipt="r")
    for _ in range(3):
        world.turn()
    assert client.receipts() == []
    world.complete()
    world.flush()
    assert client.receipts() == ["r"]


def test_receipts_leave_in_frame_order_whatever_they_wait_for() -> None:
    world = World(auto=False)
    client = world.connect()
    client.publish("/queue/a", "x", receipt="1").publish("/topic/a", "x", receipt="2")
    world.turn()
    client.publish("/queue/a", "y", receipt="3").send("BEGIN", {"transaction": "t", "receipt": "4"})
    client.publish("/queue/a", "v", receipt="5", persistent="false")
    assert client.receipts() == []
    world.complete()
    world.turn()
    assert client.receipts() == ["1", "2"]
    world.complete()
    world.turn()
    assert client.receipts() == ["3", "4", "5"]


def test_a_receipt_covers_frames_that_asked_for_none() -> None:
    world = World(auto=False)
    client = world.connect().publish("/queue/a", "x")
    client.subscribe("/topic/t", receipt="r")
    world.turn()
    assert client.receipts() == []
    world.complete()
    world.turn()
    assert client.receipts() == ["r"]


def test_the_receipt_of_disconnect_covers_all_before_it_and_then_the_connection_ends() -> None:
    world = World(auto=False)
    client = world.connect().publish("/queue/a", "x").disconnect("bye")
    world.turn()
    assert client.receipts() == [] and not client.closed
    world.complete()
    world.turn()
    assert client.receipts() == ["bye"] and client.closed


@pytest.mark.parametrize("command", ["ACK", "NACK"])
def test_the_receipt_of_an_acknowledgement_waits_for_its_sync(command: str) -> None:
    world = World()
    client = world.connect().subscribe("/queue/a").publish("/queue/a", "x")
    message = client.one()
    world.auto = False
    client.ack(message, command, receipt="r")
    world.turn()
    assert client.receipts() == []
    world.complete()
    world.turn()
    assert client.receipts() == ["r"]


def test_what_was_receipted_as_acknowledged_never_comes_back() -> None:
    world = World()
    producer = world.connect()
    for n in range(5):
        producer.publish("/queue/a", str(n))
    client = world.connect().subscribe("/queue/a", ack="client")
    client.ack(client.take()[3], receipt="r")
    assert client.receipts() == ["r"]
    world.restart("power")
    assert texts(drain(world, "/queue/a")) == ["4"]


def test_no_receipt_is_lost_when_one_record_is_done_after_another() -> None:
    world = World(auto=False)
    clients = [world.connect() for _ in range(5)]
    for n in range(20):
        for at, client in enumerate(clients):
            client.publish("/queue/a", "x", receipt=f"{at}-{n}", note=str(n))
        if n % 3 == 0:
            world.turn()
        if n % 4 == 0:
            world.complete()
    world.run()
    for at, client in enumerate(clients):
        assert client.receipts() == [f"{at}-{n}" for n in range(20)]


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_a_receipt_id_comes_back_as_it_was(version: str) -> None:
    world = World()
    client = world.connect(version)
    client.publish("/queue/a", "x", receipt="a b:c" if version == "1.0" else "a\\b:c\nd")
    assert client.receipts() == ["a b:c" if version == "1.0" else "a\\b:c\nd"]


# --- storage failure


@pytest.mark.parametrize("op", ["sync_data", "write"])
def test_when_storage_fails_nothing_is_receipted_and_who_waits_is_told(op: str) -> None:
    world = World(auto=False)
    waits = world.connect().publish("/queue/a", "x", receipt="r-1").publish("/queue/a", "y", receipt="r-2")
    idle = world.connect()
    world.turn()
    world.complete(OSError(errno.EIO, f"{op} failed"))
    world.flush()
    error = waits.one("ERROR")
    assert (error["message"], error["receipt-id"]) == ("storage failure", "r-1")
    assert waits.receipts() == [] and waits.closed
    assert idle.one("ERROR").get("receipt-id") is None and idle.closed
    world.turn()
    assert not [job for job in world.jobs if isinstance(job, Write)]


def test_after_a_storage_failure_a_restart_serves_only_what_the_medium_holds() -> None:
    world = World()
    client = world.connect().publish("/queue/a", "kept", receipt="1")
    assert client.receipts() == ["1"]
    world.auto = False
    client.publish("/queue/a", "lost", receipt="2")
    world.turn()
    world.complete(OSError(errno.EIO, "no"))
    world.flush()
    assert client.receipts() == []
    world.auto = True
    world.restart("power")
    assert texts(drain(world, "/queue/a")) == ["kept"]


# --- runs


def test_many_frames_in_one_chunk_are_as_good_as_one_by_one() -> None:
    wire = b"".join(
        frame("SEND", {"destination": "/queue/a", "receipt": f"r{n}", "own": str(n)}, b"%d" % n) for n in range(150)
    )
    world = World()
    client = world.connect().feed(wire)
    assert client.receipts() == [f"r{n}" for n in range(150)]
    world.restart("power")
    got = drain(world, "/queue/a")
    assert [(m["own"], m.body) for m in got] == [(str(n), b"%d" % n) for n in range(150)]


@pytest.mark.parametrize("transaction", [False, True])
def test_a_chunk_that_fills_several_segments_is_kept_whole(transaction: bool) -> None:
    world = World()
    client = world.connect()
    extra = {"transaction": "t"} if transaction else {}
    wire = b"".join(
        frame("SEND", {"destination": "/queue/a", "receipt": f"r{n}", **extra}, b"%03d" % n + bytes(30_000))
        for n in range(70)
    )
    client.send("BEGIN", {"transaction": "t"}).feed(wire)
    if transaction:
        client.send("COMMIT", {"transaction": "t", "receipt": "c"})
    assert client.receipts() == [f"r{n}" for n in range(70)] + (["c"] if transaction else [])
    world.restart("power")
    assert [m.body[:3] for m in drain(world, "/queue/a")] == [b"%03d" % n for n in range(70)]
    world.connect().publish("/queue/b", "x")
    assert sum(segment.live for segment in world.journal.segments) == 1


@pytest.mark.parametrize("fsync", ["interval", "never"])
def test_without_a_sync_for_each_batch_everything_still_works(fsync: str) -> None:
    world = World(storage={"fsync": fsync})
    client = world.connect().subscribe("/queue/a").publish("/queue/a", "x", receipt="1").publish("/queue/a", "y")
    assert client.receipts() == ["1"]
    client.ack(client.take()[0], receipt="2")
    assert client.receipts() == ["2"]
    for how in ("clean", "kill"):
        world.restart(how)
        assert texts(drain(world, "/queue/a", ack=False)) == ["y"]
