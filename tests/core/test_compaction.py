"""Space comes back: old messages are copied forward with all of their state, and never come back when they are gone."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable

import pytest

from broker.core import Read, Write, compaction
from broker.journal import offset_of, segment_name
from tests.core.audit import audit
from tests.core.world import DATA_DIR, Client, World, drain, texts
from tests.support.simdisk import PowerLoss
from tests.support.wire import Got

A, DEAD = "/queue/a", "/queue/DLQ.a"
SIZE = 32 * 1024  # of a segment


def small_world(**options: object) -> World:
    return World(storage={"segment_size": SIZE, "scrub_rate": 0}, **options)  # type: ignore[arg-type]


def bodies(count: int) -> list[str]:
    return [f"{n} {'x' * (20 + n % 7)}" for n in range(count)]


def run_of(count: int) -> bytes:
    """Messages that come in one read of the socket: they share records."""
    return b"".join(b"SEND\ndestination:/queue/a\nkind:old\n\n%b\0" % body.encode() for body in bodies(count))


class Churn:
    """Other traffic: it rolls segments and is gone at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client = world.connect().subscribe("/queue/churn", ack="auto")

    def run(self, until: Callable[[], bool], most: int = 400) -> None:
        for _ in range(most):
            if until():
                return
            self.client.publish("/queue/churn", b"y" * 3000)
            self.client.take()
            self.world.advance(0.2)
        raise AssertionError("it does not happen")

    def roll(self, times: int = 2) -> None:
        """Until the oldest segments of now are gone, `times` times over."""
        for _ in range(times):
            number = self.world.journal.segment.number
            self.run(lambda number=number: self.world.journal.segments[0].number > number)  # type: ignore[misc]
        audit(self.world)


def check(world: World, expected: list[str], where: str = A, **headers: str | None) -> list[Got]:
    """All that waits there, before and after each kind of stop: the bodies, and these headers on each."""
    found: list[Got] = []
    for how in ("", "clean", "kill", "power"):
        if how:
            world.restart(how)
        audit(world)
        found = drain(world, where, ack=False)
        assert texts(found) == expected, how
        for name, value in headers.items():
            assert {message.get(name.replace("_", "-")) for message in found} == {value}, how
    audit(world)
    return found


# --- what is copied ---------------------------------------------------------------------------------------------------


def test_one_old_message_does_not_pin_the_log() -> None:
    world = small_world()
    world.connect().publish(A, "old", kind="first")
    churn = Churn(world)
    churn.roll()
    for _ in range(200):
        churn.client.publish("/queue/churn", b"y" * 3000)
        world.advance(0.2)
        assert len(world.journal.segments) <= 5
    assert world.broker.counters.carried >= 2
    check(world, ["old"], kind="first")


def test_runs_are_copied_whole_and_in_part() -> None:
    world = small_world()
    world.connect().feed(run_of(200))
    world.restart("clean")  # all of it waits on disk now
    client = world.connect().subscribe(A, prefetch=90)
    for message in client.take()[::2]:
        client.ack(message)
    client.disconnect()
    world.restart("clean")
    Churn(world).roll()
    check(world, [body for n, body in enumerate(bodies(200)) if n >= 90 or n % 2], kind="old")


def test_what_is_taken_after_a_copy_that_cut_across_its_records_never_comes_back() -> None:
    """64 messages a copy, but the first ten are gone: copies lie across the records that they were made of."""
    world = small_world()
    world.connect().feed(run_of(256))
    client = world.connect().subscribe(A, prefetch=10)
    for message in client.take()[:10]:
        client.ack(message)
    client.disconnect()
    world.run()
    taken = world.broker.counters.acknowledged
    Churn(world).run(lambda: world.broker.counters.carried >= 256 - taken)
    client = world.connect().subscribe(A, prefetch=100)
    first = client.take()[:100]
    for message in first[:-1]:
        client.ack(message)
    client.ack(first[-1], receipt="r")
    assert client.receipts() == ["r"]
    number = first[-1].body.decode().split()[0]
    expected = bodies(256)[int(number) + 1 :]
    world.restart("clean")
    audit(world)
    assert texts(drain(world, A, ack=False)) == expected
    check(world, expected)


def test_what_was_delivered_before_keeps_its_counts_and_its_flag() -> None:
    world = small_world()
    world.connect().feed(run_of(10))
    client = world.connect().subscribe(A, prefetch=10)
    for message in client.take():
        client.nack(message)
    client.disconnect()
    before = [(m["delivery-count"], m["redelivered"]) for m in drain(world, A, ack=False)]
    Churn(world).roll()
    after = [(m["delivery-count"], m["redelivered"]) for m in drain(world, A, ack=False)]
    assert [(str(int(count) + 1), flag) for count, flag in before] == after
    check(world, bodies(10), redelivered="true")


def test_failures_are_copied_with_a_message() -> None:
    world = small_world()
    client = world.connect().subscribe(A, prefetch=1)
    client.publish(A, "poison")
    churn = Churn(world)
    for _ in range(9):
        client.nack(client.one())
    churn.roll()
    client.nack(client.one())
    assert client.take() == []
    check(world, ["poison"], DEAD, dead_letter_reason="max-deliveries", redelivered="true")


def test_dead_letters_are_copied_with_their_notes() -> None:
    world = small_world()
    world.connect().feed(run_of(100))
    client = world.connect().subscribe(A, prefetch=100)
    reasons = [f"reason {n % 3}" for n in range(100)]
    for message, reason in zip(client.take(), reasons, strict=True):
        client.nack(message, requeue="false", failure_reason=reason)
    client.disconnect()
    time = drain(world, DEAD, ack=False)[0]["dead-letter-time"]
    Churn(world).roll()
    found = check(world, bodies(100), DEAD, dead_letter_queue=A, original_destination=A, dead_letter_time=time)
    assert [message["failure-reason"] for message in found] == reasons


@pytest.mark.parametrize("where", ["in flight", "given back and in flight", "dead and in flight"])
def test_a_message_with_a_consumer_is_copied_and_its_ack_holds(where: str) -> None:
    world = small_world()
    world.connect().feed(run_of(20))
    client = world.connect().subscribe(A, prefetch=20)
    messages = client.take()
    if where == "given back and in flight":
        for message in messages:
            client.nack(message)
        messages = client.take()
    if where == "dead and in flight":
        for message in messages:
            client.nack(message, requeue="false", failure_reason="why")
        client.subscribe(DEAD, "d", prefetch=20)
        messages = client.take()
    Churn(world).roll()
    for message in messages[:9]:
        client.ack(message)
    client.ack(messages[9], receipt="r")
    assert client.receipts() == ["r"]
    audit(world)
    world.restart("kill")
    audit(world)
    queue = DEAD if "dead" in where else A
    found = check(world, bodies(20)[10:], queue, redelivered="true")
    if "dead" in where:
        assert {message["failure-reason"] for message in found} == {"why"}


def test_messages_of_a_transaction_are_copied_out_of_its_record() -> None:
    world = small_world()
    client = world.connect()
    client.send("BEGIN", {"transaction": "t"})
    for n, body in enumerate(bodies(20)):
        client.publish(A if n % 2 else "/queue/b", body, transaction="t")
    client.send("COMMIT", {"transaction": "t", "receipt": "r"})
    Churn(world).roll()
    check(world, bodies(20)[1::2])
    check(world, bodies(20)[0::2], "/queue/b")


def test_many_queues_are_copied_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "QUEUES_A_TURN", 3)
    monkeypatch.setattr(compaction, "PORTION_MESSAGES", 2)
    world = small_world()
    producer = world.connect()
    for n in range(40):
        producer.publish(f"/queue/q{n}", f"{n}")
    Churn(world).roll()
    for how in ("kill", "clean"):
        world.restart(how)
        assert [texts(drain(world, f"/queue/q{n}", ack=False)) for n in range(40)] == [[f"{n}"] for n in range(40)]


def test_what_is_mostly_wanted_is_not_copied() -> None:
    world = small_world()
    producer = world.connect()
    for n in range(60):
        producer.publish(A, f"{n} {'x' * 2000}")
    world.advance(10)
    assert world.broker.counters.carried == 0


# --- between the steps ------------------------------------------------------------------------------------------------


def by_hand(world: World, wanted: Callable[[], bool]) -> None:
    """Turns and jobs, until it is so."""
    for _ in range(2000):
        if wanted():
            return
        world.turn()
        if wanted():
            return
        if not world.complete():
            world.clock.now += 0.3
            world.broker.tick()
    raise AssertionError("it does not happen")


def copying(world: World) -> list[Read]:
    return [job for job in world.jobs if isinstance(job, Read) and job.copying]


def about_to_copy(world: World) -> None:
    """The oldest segment is to be copied; its read is out."""
    churn = Churn(world)
    number = world.journal.segment.number
    for _ in range(100):
        if world.journal.segment.number > number:
            break
        churn.client.publish("/queue/churn", b"y" * 3000)
    churn.client.disconnect()
    world.auto = False
    by_hand(world, lambda: bool(copying(world)))


@pytest.mark.parametrize("what", ["ack", "nack", "dead", "leave"])
def test_what_happens_between_the_read_and_the_copy_is_not_undone(what: str) -> None:
    world = small_world()
    world.connect().feed(run_of(10))
    client = world.connect().subscribe(A, prefetch=10)
    messages = client.take()
    about_to_copy(world)
    if what == "ack":
        client.ack(messages[4], receipt="r")
    elif what == "nack":
        client.nack(messages[4], receipt="r")
    elif what == "dead":
        client.nack(messages[4], requeue="false", receipt="r")
    else:
        client.lose()
    audit(world)
    world.complete(at=world.jobs.index(copying(world)[0]))
    audit(world)
    world.auto = True
    world.run()
    assert client.receipts() == (["r"] if what != "leave" else [])
    audit(world)
    gone = {"ack", "dead"} & {what}
    expected = [body for n, body in enumerate(bodies(10)) if not gone or n != 4]
    Churn(world).roll(1)
    world.restart("power")
    check(world, expected)
    if what == "dead":
        check(world, [bodies(10)[4]], DEAD)


@pytest.mark.parametrize(("how", "seed"), [("kill", 0), *(("power", seed) for seed in range(6))])
def test_a_crash_at_every_step_of_a_copy_loses_nothing_and_brings_nothing_back(how: str, seed: int) -> None:
    """The copies, the TRIM, the unlink: after each call on the disk the power goes once, or the process is killed."""
    steps = 0
    for call in range(1, 50):
        world = small_world(seed=100 * seed + call)
        world.connect().feed(run_of(30))
        client = world.connect().subscribe(A, prefetch=30)
        for message in client.take()[::3]:
            client.ack(message)
        client.disconnect()
        world.run()
        about_to_copy(world)
        oldest = f"{DATA_DIR}/log/{segment_name(world.journal.segments[0].number)}"
        world.disk.power_at = world.disk.calls + call
        done = False
        with contextlib.suppress(PowerLoss):
            by_hand(world, lambda disk=world.disk, oldest=oldest: oldest not in disk.files(f"{DATA_DIR}/log"))  # type: ignore[misc]
            world.complete()
            done = True
        world.disk.power_at = None
        world.auto = True
        world.restart(how)
        audit(world)
        expected = [body for n, body in enumerate(bodies(30)) if n % 3]
        assert texts(drain(world, A, ack=False)) == expected, call
        Churn(world).roll(1)
        assert texts(drain(world, A)) == expected, call
        if done:
            break
        steps += 1
    assert done and steps >= 6


def test_what_is_copied_twice_is_there_once() -> None:
    world = small_world()
    world.connect().feed(run_of(100))
    churn = Churn(world)
    for _ in range(4):
        churn.roll(1)
    assert world.broker.counters.carried >= 300
    check(world, bodies(100))


def test_a_write_that_fails_while_copies_are_written_is_a_storage_failure() -> None:
    world = small_world()
    world.connect().feed(run_of(30))
    about_to_copy(world)
    world.complete(at=world.jobs.index(copying(world)[0]))
    by_hand(world, lambda: any(isinstance(job, Write) for job in world.jobs))
    world.complete(OSError(errno.EIO, "broken"))
    assert world.failed is not None
    world.restart("power")
    assert texts(drain(world, A)) == bodies(30)


# --- what cannot be copied --------------------------------------------------------------------------------------------


def test_a_damaged_message_in_the_oldest_segment_closes_its_queue_and_stays() -> None:
    world = small_world()
    world.connect().feed(run_of(3))
    kept: Client = world.connect()
    kept.publish("/queue/b", "sound")
    world.restart("clean")
    (entry, *_) = world.broker.queues[A].stored
    name = segment_name(entry[1] >> 32)
    path = f"{DATA_DIR}/log/{name}"
    data = bytearray(world.disk.contents(path))
    data[offset_of(entry[1]) + 60] ^= 1
    world.disk.put(path, bytes(data))
    churn = Churn(world)
    churn.run(lambda: bool(world.broker.queues[A].damage))
    for text in (world.broker.queues[A].damage, world.connect().subscribe(A).one("ERROR").body.decode()):
        assert name in text
        assert f"offset {offset_of(entry[1])}" in text
    for _ in range(30):
        churn.client.publish("/queue/churn", b"y" * 3000)
        world.advance(0.2)
    assert world.disk.files(f"{DATA_DIR}/log")[0].endswith(name)
    assert texts(drain(world, "/queue/b")) == ["sound"]
    audit(world)
    errors = [text for level, event, text in world.events.seen if (level, event) == ("error", "damaged")]
    assert len(errors) == 1
