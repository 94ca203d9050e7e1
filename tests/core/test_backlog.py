"""Backlog beyond memory: what does not fit waits on disk, keeps its order and its state, and is read back in time."""

from __future__ import annotations

import errno
from random import Random

import pytest

from broker.core import Read, Write, backlog, queue
from broker.journal import offset_of, segment_name
from tests.core.audit import audit
from tests.core.world import DATA_DIR, Client, World, drain, failures, texts
from tests.support.simdisk import Fault
from tests.support.wire import Got

A, B, DEAD = "/queue/a", "/queue/b", "/queue/DLQ.a"
PAD = "x" * 100


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog of some hundred messages is a large one here."""
    monkeypatch.setattr(queue, "LOAD_LOW", 8)
    monkeypatch.setattr(backlog, "LOAD_MESSAGES", 16)
    monkeypatch.setattr(backlog, "HEAD", 4)
    monkeypatch.setattr(backlog, "SPILL_END", 32)


def squeezed(memory: int = 40_000, **options: object) -> World:
    """A world in which half of `memory` bytes is what waiting messages may take."""
    world = World(memory=memory, **options)  # type: ignore[arg-type]
    world.budget.limit = 1 << 30  # nobody is held back: that is another test's matter
    return world


def fill(client: Client, name: str, first: int, count: int, **headers: str) -> list[str]:
    bodies = [f"{n} {PAD}" for n in range(first, first + count)]
    for body in bodies:
        client.publish(name, body, **headers)
    return bodies


def one_read(world: World) -> Read:
    """By hand until somebody reads: exactly one read is out."""
    for _ in range(20):
        world.turn()
        if reads := [job for job in world.jobs if isinstance(job, Read) and not job.copying]:
            assert len(reads) == 1
            return reads[0]
        world.complete()
    raise AssertionError("nothing is read")


def finish(world: World, job: Read) -> None:
    world.complete(at=world.jobs.index(job))
    audit(world)


def spoil(world: World, place: int) -> str:
    """One byte of the record there is wrong from now on; the name of its file."""
    name = segment_name(place >> 32)
    path = f"{DATA_DIR}/log/{name}"
    data = bytearray(world.disk.contents(path))
    data[offset_of(place) + 100] ^= 1
    world.disk.put(path, bytes(data))
    return name


def take_all(world: World, client: Client, reader: Client) -> list[Got]:
    """Everything that the client gets, acknowledged as it comes."""
    found: list[Got] = []
    while messages := client.take():
        found += messages
        for message in messages:
            reader.ack(message)
        world.run()
        audit(world)
    return found


# --- larger than memory -----------------------------------------------------------------------------------------------


def test_a_queue_larger_than_memory_goes_to_disk_and_comes_back_in_order() -> None:
    world = squeezed()
    producer = world.connect()
    bodies = fill(producer, A, 0, 1000)
    world.run()
    audit(world)
    assert world.budget.accounts["messages"].used <= 20_000 + 16 * 400
    assert world.broker.queues[A].stored.count > 800
    consumer = world.connect().subscribe(A, prefetch=10)
    assert texts(take_all(world, consumer, consumer)) == bodies
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}
    assert sum(segment.live + segment.live_bytes for segment in world.journal.segments) == 0


@pytest.mark.parametrize("how", ["clean", "kill", "power"])
def test_a_backlog_is_there_after_every_kind_of_stop(how: str) -> None:
    world = squeezed()
    bodies = fill(world.connect(), A, 0, 300)
    world.run()
    world.restart(how)
    audit(world)
    assert texts(drain(world, A)) == bodies


def test_messages_that_come_while_others_wait_on_disk_come_out_behind_them() -> None:
    world = squeezed()
    producer = world.connect()
    bodies = fill(producer, A, 0, 300)
    consumer = world.connect().subscribe(A, prefetch=7)
    got = []
    for n in range(300, 400):
        bodies += fill(producer, A, n, 1)
        for message in consumer.take():
            got.append(message)
            consumer.ack(message)
        audit(world)
    got += take_all(world, consumer, consumer)
    assert texts(got) == bodies


def test_volatile_messages_keep_their_place_among_those_on_disk() -> None:
    world = squeezed()
    producer = world.connect()
    bodies = []
    for n in range(300):
        kind = {"persistent": "false"} if n % 3 == 0 else {}
        bodies += fill(producer, A, n, 1, **kind)
        if n % 50 == 0:
            audit(world)
    assert world.broker.queues[A].kept
    consumer = world.connect().subscribe(A, prefetch=9)
    assert texts(take_all(world, consumer, consumer)) == bodies
    assert not world.broker.queues[A].kept
    assert world.budget.used == 0


def test_volatile_messages_are_gone_after_a_stop_and_the_others_are_not() -> None:
    world = squeezed()
    producer = world.connect()
    kept = []
    for n in range(300):
        some = fill(producer, A, n, 1, **({"persistent": "false"} if n % 3 == 0 else {}))
        kept += some if n % 3 else []
    world.restart("clean")
    assert texts(drain(world, A)) == kept


def test_the_queue_that_was_served_longest_ago_goes_to_disk_first() -> None:
    world = squeezed(60_000)
    producer = world.connect()
    for name in (A, B):
        fill(producer, name, 0, 30)
    reader = world.connect()
    reader.subscribe(B, "b", prefetch=1)
    reader.ack(reader.take()[0])
    queues = world.broker.queues
    for n in range(300):
        fill(producer, "/queue/c", n, 1)
        if queues[A].stored:
            break
    assert len(queues[A].ready) <= 4
    assert len(queues[B].ready) > 4
    audit(world)


def test_a_transaction_to_a_queue_on_disk_comes_out_behind_it_in_its_order() -> None:
    world = squeezed()
    producer = world.connect()
    bodies = fill(producer, A, 0, 200)
    producer.send("BEGIN", {"transaction": "t"})
    bodies += fill(producer, A, 200, 100, transaction="t")
    producer.send("COMMIT", {"transaction": "t", "receipt": "r"})
    bodies += fill(producer, A, 300, 50)
    audit(world)
    world.restart("kill")
    consumer = world.connect().subscribe(A, prefetch=11)
    assert texts(take_all(world, consumer, consumer)) == bodies


def test_a_temporary_queue_larger_than_memory_leaves_nothing_behind() -> None:
    world = squeezed()
    owner = world.connect()
    owner.subscribe("/temp-queue/t", prefetch=1)
    reply = world.connect()
    asker = world.connect().subscribe(A)
    owner.send("SEND", {"destination": A, "reply-to": "/temp-queue/t"}, b"ask")
    address = asker.one()["reply-to"]
    bodies = fill(reply, address, 0, 400)
    world.run()
    audit(world)
    assert owner.bodies() == bodies[:1]
    owner.lose()
    world.run()
    for client in list(world.clients.values()):
        client.lose()
    drain(world, A)
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}


# --- delivered before ---------------------------------------------------------------------------------------------


def test_what_a_consumer_gives_back_comes_again_first_with_its_body_and_its_flag() -> None:
    world = squeezed()
    bodies = fill(world.connect(), A, 0, 200)
    first = world.connect().subscribe(A, prefetch=20)
    early = first.take()
    assert texts(early) == bodies[:20]
    for message in early[:3]:
        first.nack(message)
    world.run()
    again = first.take()
    assert texts(again)[:3] == bodies[:3]
    assert [message["redelivered"] for message in again[:3]] == ["true"] * 3
    first.lose()
    world.run()
    audit(world)
    second = world.connect().subscribe(A, prefetch=200)
    world.run()
    found = second.take()
    assert texts(found) == bodies
    assert [message.get("redelivered") for message in found] == ["true"] * 20 + [None] * 180


def test_dead_letters_keep_their_notes_and_counts_through_stops_and_disk() -> None:
    world = squeezed()
    bodies = fill(world.connect(), A, 0, 100)
    client = world.connect().subscribe(A, prefetch=100)
    for message, reason in zip(client.take(), ["one", "two"] * 50, strict=True):
        client.nack(message, requeue="false", failure_reason=reason)
    client.disconnect()
    audit(world)
    for how in ("clean", "kill", "power"):
        world.restart(how)
        audit(world)
        found = drain(world, DEAD, ack=False)
        assert texts(found) == bodies
        assert [message["failure-reason"] for message in found] == ["one", "two"] * 50
        assert {message["original-destination"] for message in found} == {A}
        assert {message["redelivered"] for message in found} == {"true"}
        audit(world)


def test_two_rejects_in_one_transaction_keep_each_its_own_reason() -> None:
    world = squeezed()
    world.connect().feed(b"".join(b"SEND\ndestination:/queue/a\n\n%d\0" % n for n in range(4)))
    client = world.connect().subscribe(A)
    client.send("BEGIN", {"transaction": "t"})
    for message in client.take():
        reason = f"because {message.body.decode()}"
        client.nack(message, requeue="false", failure_reason=reason, transaction="t")
    client.send("COMMIT", {"transaction": "t", "receipt": "r"})
    assert client.receipts() == ["r"]
    for _ in range(2):
        found = drain(world, DEAD, ack=False)
        assert [m["failure-reason"] for m in found] == [f"because {n}" for n in range(4)]
        world.restart("clean")


def test_failures_count_on_when_a_message_went_to_disk_in_between() -> None:
    world = squeezed()
    client = world.connect().subscribe(A, prefetch=1)
    client.publish(A, "poison")
    for n in range(1, 10):
        client.nack(client.one())
        if n == 5:
            client.disconnect()
            world.restart("clean")
            assert failures(world, A) == [5]
            client = world.connect().subscribe(A, prefetch=1)
    client.nack(client.one())
    assert client.take() == []
    dead = drain(world, DEAD)
    assert texts(dead) == ["poison"]
    assert dead[0]["dead-letter-reason"] == "max-deliveries"


# --- late ACKs ----------------------------------------------------------------------------------------------------


def late(world: World, volatile: bool) -> tuple[Client, list[Got]]:
    """A client that got ten messages, every other of them in memory only where `volatile`, and has unsubscribed."""
    client = world.connect().subscribe(A, prefetch=10)
    for n in range(10):
        client.publish(A, f"{n} {PAD}", **({"persistent": "false"} if volatile and n % 2 else {}))
    messages = client.take()
    assert len(messages) == 10
    client.send("UNSUBSCRIBE", {"id": "s"})
    world.run()
    audit(world)
    return client, messages


STATES = ["on disk", "loading", "in memory", "in flight", "pending", "dead", "dead loading", "dead in memory"]


@pytest.mark.parametrize("volatile", [False, True], ids=["persistent", "mixed"])
@pytest.mark.parametrize("state", STATES)
def test_a_late_ack_ends_a_message_wherever_it_is(state: str, volatile: bool) -> None:
    world = squeezed()
    client, messages = late(world, volatile)
    number = 3
    others = [f"{n} {PAD}" for n in range(10) if n != number]
    where = A
    if state in ("dead", "dead loading", "dead in memory", "pending"):
        where = DEAD
        killer = world.connect().subscribe(A, prefetch=10)
        doomed = killer.take()
        world.auto = state != "pending"
        for message in doomed:
            killer.nack(message, requeue="false")
    if state in ("loading", "in memory", "dead loading", "dead in memory"):
        world.auto = False
        reader = world.connect()
        if "in memory" in state:  # nobody takes them out of memory once they are there
            reader.subscribe(where, prefetch=10)
            finish(world, one_read(world))
            reader.send("UNSUBSCRIBE", {"id": "s"})
            assert world.broker.queues[where].again
        else:
            reader.subscribe(where, prefetch=10)
            one_read(world)
            assert world.broker.queues[where].loading is not None
    holder = world.connect().subscribe(A, prefetch=10) if state == "in flight" else None
    audit(world)
    client.ack(messages[number], receipt="late")
    audit(world)
    world.auto = True
    world.run()
    audit(world)
    assert client.receipts() == ["late"]
    for each in list(world.clients.values()):
        each.lose()
    world.run()
    audit(world)
    assert holder is None or holder.closed
    if not volatile:
        world.restart("kill")
    assert texts(drain(world, where)) == others
    assert drain(world, A) == []
    assert {name: account.used for name, account in world.budget.accounts.items() if account.used} == {}
    assert sum(s.live + s.live_bytes for s in world.journal.segments) == 0


def test_a_late_ack_in_a_transaction_finds_a_message_on_disk() -> None:
    world = squeezed()
    client, messages = late(world, volatile=False)
    client.send("BEGIN", {"transaction": "t"})
    for message in messages[:5]:
        client.ack(message, transaction="t")
    client.send("COMMIT", {"transaction": "t", "receipt": "r"})
    assert client.receipts() == ["r"]
    audit(world)
    world.restart("power")
    assert texts(drain(world, A)) == [f"{n} {PAD}" for n in range(5, 10)]


# --- what comes too late, and what cannot be read -----------------------------------------------------------------


def test_what_is_read_back_after_its_consumer_has_gone_waits_for_the_next_one() -> None:
    world = squeezed()
    bodies = fill(world.connect(), A, 0, 200)
    world.restart("clean")
    world.auto = False
    consumer = world.connect().subscribe(A, prefetch=5)
    job = one_read(world)
    consumer.send("UNSUBSCRIBE", {"id": "s"})
    finish(world, job)
    world.auto = True
    world.run()
    assert texts(drain(world, A)) == bodies


def test_a_message_given_back_while_later_ones_are_read_in_vain_keeps_its_place() -> None:
    """The read fails for want of a file descriptor: what it was about goes back behind what came meanwhile."""
    world = squeezed()
    client = world.connect().subscribe(A, prefetch=1)
    holder = world.connect()
    for n in range(10):
        client.publish(A, f"{n} {PAD}")
    early = client.one()
    rest = world.connect().subscribe(A, prefetch=9)
    late_ones = rest.take()
    rest.send("UNSUBSCRIBE", {"id": "s"})  # nine wait again behind the one that is out
    world.auto = False
    holder.subscribe(A, prefetch=9)
    job = one_read(world)
    client.send("UNSUBSCRIBE", {"id": "s"})
    world.turn()
    world.disk.faults.append(Fault(1, errno.EMFILE, "open", sticky=True))
    world.disk.faults.append(Fault(1, errno.EMFILE, "read", sticky=True))
    world.reader.close()
    finish(world, job)
    world.disk.faults.clear()
    rest.ack(late_ones[4], receipt="late")
    world.auto = True
    world.advance(2)
    audit(world)
    assert rest.receipts() == ["late"]
    assert texts([early]) == [f"0 {PAD}"]
    got = holder.take()
    assert texts(got) == [f"{n} {PAD}" for n in range(10) if n != 5]


@pytest.mark.parametrize("counted", [False, True], ids=["fresh", "delivered before"])
def test_a_damaged_record_closes_its_queue_and_no_other(counted: bool) -> None:
    world = squeezed(storage={"scrub_rate": 0})
    producer = world.connect()
    fill(producer, A, 0, 100)
    bodies = fill(producer, B, 0, 100)
    if counted:
        drain(world, A, ack=False)
    world.restart("clean")
    name = world.broker.queues[A]
    place = next(iter(name.counted if counted else name.stored))[1]
    file = spoil(world, place)
    consumer = world.connect().subscribe(A)
    world.run()
    error = consumer.one("ERROR")
    assert consumer.take() == []
    told = [text for level, event, text in world.events.seen if (level, event) == ("error", "damaged")]
    assert len(told) == 1
    for text in (error.body.decode(), *told):
        assert file in text
        assert f"offset {offset_of(place)}" in text
    again = world.connect().subscribe(A)
    assert file in again.one("ERROR").body.decode()
    producer = world.connect()
    assert producer.publish(A, "new", receipt="r").receipts() == ["r"]
    assert texts(drain(world, B)) == bodies
    audit(world)


def test_every_read_is_over_when_its_segment_goes() -> None:
    world = squeezed(storage={"segment_size": 8192})
    producer = world.connect()
    fill(producer, A, 0, 300)
    world.restart("clean")
    world.auto = False
    consumer = world.connect().subscribe(A, prefetch=3)
    random = Random(1)
    for _ in range(3000):
        if world.jobs and random.random() < 0.6:
            at = random.randrange(len(world.jobs))
            if isinstance(world.jobs[at], Write):
                at = next(at for at, job in enumerate(world.jobs) if isinstance(job, Write))
            world.complete(at=at)
        else:
            world.turn()
        for message in consumer.take():
            consumer.ack(message)
        audit(world)
        if not world.broker.queues[A].in_use and not world.jobs:
            break
    world.auto = True
    world.run()
    assert world.broker.queues[A].waiting == 0
    assert all(segment.readers == 0 for segment in world.journal.segments)
    assert len(world.journal.segments) <= 2
