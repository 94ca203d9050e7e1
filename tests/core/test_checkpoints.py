"""Checkpoints: taken while traffic goes on, they say at any moment what the whole log says, and what really happened.

A seed is replayed by `pytest tests/core/test_checkpoints.py -k "[17]"`.
"""

from __future__ import annotations

import errno
from random import Random
from typing import NamedTuple

import pytest

from broker.budget import Budget
from broker.core import Keep, Replay, Write, backlog, checkpoints, compaction, queue, replayed
from broker.core.entries import unpack_counts
from broker.core.positions import Singles
from broker.core.restoring import Restorer
from broker.errors import StorageFailed
from broker.journal import Record, open_log
from tests.core.audit import audit
from tests.core.world import DATA_DIR, Client, SeededRng, World, drain, texts
from tests.support.simdisk import SimDisk
from tests.support.wire import Got

QUEUES = ("a", "b", "c")


class Known(NamedTuple):
    """What a start would find of one message. reason: of a dead letter, "" for others."""

    queue: str
    failures: int
    reason: str


class Found(NamedTuple):
    place: int
    note: int
    deliveries: int
    known: Known
    body: str


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some messages are many here: a dump takes many steps."""
    monkeypatch.setattr(checkpoints, "SLICE_MESSAGES", 10)
    monkeypatch.setattr(checkpoints, "SLICE_QUEUES", 3)
    monkeypatch.setattr(checkpoints, "SLICE_BYTES", 600)
    monkeypatch.setattr(checkpoints, "PART_BYTES", 320)
    monkeypatch.setattr(compaction, "LIVE_SHARE", 0.9)
    monkeypatch.setattr(compaction, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(compaction, "PORTION_MESSAGES", 5)
    monkeypatch.setattr(queue, "LOAD_LOW", 4)
    monkeypatch.setattr(backlog, "LOAD_MESSAGES", 5)
    monkeypatch.setattr(backlog, "HEAD", 2)
    monkeypatch.setattr(backlog, "SPILL_END", 10)


def start_on(world: World, disk: SimDisk, *, use: bool) -> tuple[dict[tuple[str, int], Found], bool]:
    """What a start on this disk finds, by queue and seq; and whether it began with a checkpoint."""
    log = open_log(disk, DATA_DIR, world.settings.storage, world.clock, SeededRng(Random(0)))
    account = Budget(1 << 30).account("positions")
    if use:
        replay = replayed(log, account)
        assert not log.doubts, log.doubts
    else:
        replay = Replay(account)
        for item in log.replay(False, skim=True):
            replay.apply(item)
    reader, restorer = log.reader(), Restorer(b"")
    found: dict[tuple[str, int], Found] = {}

    def values(place: int) -> object:
        (record,) = reader.read([place])
        assert isinstance(record, Record), record
        return record.values

    for key, one in replay._queues.items():
        name = key.decode().removeprefix("/queue/")
        for entry in one.fresh:
            for message in restorer.fresh(key, entry, values(entry[1])):  # type: ignore[arg-type]
                known = Known(name, 0, "")
                found[name, message.seq] = Found(entry[1], 0, 0, known, message.body.decode())
        counted: Singles = one.counted
        for entry in counted:
            seq, place, note, counts = entry
            message = restorer.counted(key, entry, values(place), values(note) if note else None)  # type: ignore[arg-type]
            deliveries, failures, _ = unpack_counts(counts)
            reason = dict(message.envelope.extra).get("failure-reason", "")
            assert (name, seq) not in found, f"{name} has {seq} twice"
            found[name, seq] = Found(place, note, deliveries, Known(name, failures, reason), message.body.decode())
    reader.close()
    log.close()
    return found, log.checkpoint is not None


class Life:
    """Random traffic by hand: every job is done when the seed says so. `model`: what must be there, by body."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.world = World(
            seed,
            memory=random.choice((4000, 20_000, 1 << 20)),
            storage={
                "segment_size": random.choice((4096, 16_384)), "checkpoint": random.choice((200, 600)), "scrub_rate": 0,
            },
        )  # fmt: skip
        self.world.auto = False
        self.model: dict[str, Known] = {}
        self.serial = 0
        self.compared = 0
        self.open()

    def open(self) -> None:
        self.world.budget.limit = 1 << 30  # nobody is held back
        self.client: Client = self.world.connect()
        self.held: dict[str, tuple[str, Got]] = {}  # body: queue, message
        self.late: dict[str, Got] = {}
        self.subscribed: set[str] = set()

    # --- what the client does

    def send(self) -> None:
        name = self.random.choice(QUEUES)
        many = self.random.choice((1, 1, 3, 9))
        headers = {}
        if whole := self.random.random() < 0.2:
            headers["transaction"] = "t"
            self.client.send("BEGIN", {"transaction": "t"})
        frames = []
        for _ in range(many):
            self.serial += 1
            body = f"m{self.serial} {'x' * self.random.randrange(60)}"
            self.model[body] = Known(name, 0, "")
            frames.append((body, headers))
        for body, more in frames:
            self.client.publish(f"/queue/{name}", body, **more)
        if whole:
            self.client.send("COMMIT", {"transaction": "t"})

    def subscribe(self) -> None:
        name = self.random.choice([*QUEUES, *(f"DLQ.{each}" for each in QUEUES)])
        if name in self.subscribed:
            self.client.send("UNSUBSCRIBE", {"id": name})
            self.subscribed.remove(name)
            self.collect()
            for body, (where, message) in list(self.held.items()):
                if where == name:
                    del self.held[body]
                    self.late[body] = message
        else:
            self.subscribed.add(name)
            self.client.subscribe(f"/queue/{name}", name, prefetch=self.random.choice((1, 5, 30)))

    def collect(self) -> None:
        for message in self.client.take():
            body = message.body.decode()
            assert self.model[body].queue == message["subscription"], "it was not there"
            assert body not in self.held
            self.held[body] = (message["subscription"], message)
            self.late.pop(body, None)

    def settle(self) -> None:
        self.collect()
        for _ in range(self.random.choice((1, 3, 9))):
            if not self.held:
                return
            body = self.random.choice(list(self.held))
            name, message = self.held.pop(body)
            known = self.model[body]
            choice = self.random.random()
            if choice < 0.6:
                del self.model[body]
                self.client.ack(message)
            elif choice < 0.8 and known.failures < 8:
                self.model[body] = known._replace(failures=known.failures + 1)
                self.client.nack(message)
            elif name.startswith("DLQ."):
                self.client.nack(message, requeue="false")
                self.model[body] = known._replace(failures=known.failures + 1)
            else:
                self.serial += 1
                reason = f"because {self.serial}"
                self.client.nack(message, requeue="false", failure_reason=reason)
                self.model[body] = Known(f"DLQ.{name}", 0, reason)

    def late_ack(self) -> None:
        self.collect()
        if self.late:
            body = self.random.choice(list(self.late))
            message = self.late.pop(body)
            del self.model[body]
            self.client.ack(message)

    # --- what the world does

    def job(self) -> None:
        jobs = self.world.jobs
        if jobs:
            at = self.random.randrange(len(jobs))
            job = jobs[at]
            self.world.complete(at=at)
            if isinstance(job, Keep) and isinstance(job.task, checkpoints.Add | checkpoints.Finish):
                self.compare()
        else:
            self.world.turn()

    def tick(self) -> None:
        self.world.clock.now += 0.3
        self.world.broker.tick()
        self.world.turn()

    def step(self) -> None:
        actions = {
            self.send: 5, self.settle: 9, self.subscribe: 2, self.late_ack: 1, self.job: 40, self.world.turn: 6,
            self.tick: 6,
        }  # fmt: skip
        self.random.choices(list(actions), list(actions.values()))[0]()
        assert not self.client.closed, self.client.frames

    # --- what must hold

    def compare(self) -> None:
        """On a copy of what is on the medium: the state with the newest checkpoint is that of the whole log; and where
        all is synced, it is what was asked for."""
        copy = self.world.disk.copy(Random(self.random.random()))
        short, checkpoint = start_on(self.world, copy, use=True)
        if checkpoint:
            self.compared += 1
            whole, _ = start_on(self.world, copy, use=False)
            assert short == whole
        journal = self.world.journal
        if journal.lsn == journal.synced:
            assert {found.body: found.known for found in short.values()} == self.model

    def sync(self) -> None:
        """Whatever is to be written is on the medium; what the keeper has to do is left where it is."""
        while True:
            self.world.turn()
            at = next((at for at, job in enumerate(self.world.jobs) if isinstance(job, Write)), None)
            if at is None:
                return
            self.world.complete(at=at)


@pytest.mark.parametrize("seed", range(24))
def test_a_start_with_a_checkpoint_finds_what_a_start_without_one_finds(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(seed)
    monkeypatch.setattr("broker.core.positions.BLOCK_WORDS", life.random.choice((8, 16, 2048)))
    for _ in range(3):
        for _ in range(400):
            life.step()
        audit(life.world)
        life.sync()
        life.collect()
        life.compare()
        # What was with a consumer at the crash comes back as it was before.
        life.world.restart(life.random.choice(("kill", "power")))
        audit(life.world)
        life.open()
        life.sync()
        life.compare()
    assert life.compared >= 3
    life.world.auto = True
    life.world.run()
    left: dict[str, str] = {}
    for name in [*QUEUES, *(f"DLQ.{each}" for each in QUEUES)]:
        for message in drain(life.world, f"/queue/{name}"):
            left[message.body.decode()] = name
    assert left == {body: known.queue for body, known in life.model.items()}
    life.world.connect().disconnect()
    life.world.run()
    audit(life.world)


def test_every_point_of_a_dump_is_a_good_one_to_die() -> None:
    """The same traffic in every gap between two steps of one checkpoint, and a crash behind each."""
    for how in ("kill", "power"):
        for gap in range(60):
            if not _one_dump(how, gap):
                break
        else:
            raise AssertionError("a dump has no end")
        assert gap > 5


def _one_dump(how: str, gap: int) -> bool:
    """Returns whether the dump was still going on after so many steps."""
    world = World(gap, storage={"segment_size": 4096, "checkpoint": 1 << 30, "scrub_rate": 0})
    client = world.connect()
    for n in range(30):
        client.publish("/queue/a", f"a{n}").publish("/queue/b", f"b{n}")
    client.subscribe("/queue/a", "a", prefetch=10).subscribe("/queue/b", "b", prefetch=10)
    held = {message.body.decode(): message for message in client.take()}
    gone = world.connect().subscribe("/queue/a", prefetch=5)
    late = gone.take()
    gone.send("UNSUBSCRIBE", {"id": "s"})
    world.run()
    held.update((message.body.decode(), message) for message in client.take())
    world.auto = False
    world.broker._checkpoints._bytes = 1  # now
    world.turn()
    steps = 0
    while steps < gap:
        at = next((at for at, job in enumerate(world.jobs) if isinstance(job, Keep)), None)
        if at is None:
            world.sync()
            if not any(isinstance(job, Keep) for job in world.jobs):
                break
            continue
        world.complete(at=at)
        world.broker._checkpoints._bytes = 1 << 30  # no second one
        world.turn()
        steps += 1
    going = steps == gap
    client.ack(held["a0"]).nack(held["a1"]).nack(held["b0"], requeue="false", failure_reason="why").ack(held["b9"])
    gone.ack(late[3], receipt="late")
    client.publish("/queue/a", "new")
    for _ in range(400):  # whatever there is to do, to its end: the dump, what is written, what is copied
        world.turn()
        if not world.complete():
            break
    assert gone.receipts() == ["late"]
    world.restart(how)
    world.auto = True
    world.run()
    audit(world)
    late_body = late[3].body.decode()
    expected = [f"a{n}" for n in range(30)] + ["new"]
    expected = [body for body in expected if body not in ("a0", late_body)]
    assert texts(drain(world, "/queue/a")) == expected, (how, gap)
    assert texts(drain(world, "/queue/b")) == [f"b{n}" for n in range(30) if n not in (0, 9)], (how, gap)
    (dead,) = drain(world, "/queue/DLQ.b")
    assert (dead.body, dead["failure-reason"]) == (b"b0", "why")
    return going


# --- what can go wrong --------------------------------------------------------------------------------------------


def begun(world: World) -> None:
    """A checkpoint is being made; its first task is at the keeper."""
    client = world.connect()
    for n in range(40):
        client.publish("/queue/a", f"{n}")
    world.auto = False
    for _ in range(50):
        client.publish("/queue/a", "more")
        world.turn()
        if any(isinstance(job, Keep) for job in world.jobs):
            return
        world.complete()
    raise AssertionError("no checkpoint is begun")


@pytest.mark.parametrize("step", range(4))
def test_a_checkpoint_that_finds_no_room_is_left_out_and_all_goes_on(step: int) -> None:
    world = World(storage={"checkpoint": 2000, "scrub_rate": 0})
    begun(world)
    for _ in range(step):
        world.complete(at=next(at for at, job in enumerate(world.jobs) if isinstance(job, Keep)))
        world.sync()
    world.complete(OSError(errno.ENOSPC, "full"), at=next(a for a, j in enumerate(world.jobs) if isinstance(j, Keep)))
    world.auto = True
    world.run()
    assert world.failed is None
    assert [name for level, name, _ in world.events.seen if level == "warning"] == ["checkpoint"]
    assert not [path for path in world.disk.files(f"{DATA_DIR}/ckpt") if path.endswith(".tmp")]
    client = world.connect()
    for n in range(200):
        client.publish("/queue/b", f"{n}")
    world.run()
    assert world.broker.counters.checkpoints >= 1
    assert world.disk.files(f"{DATA_DIR}/ckpt")


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_any_other_error_of_a_checkpoint_is_a_failure_of_the_storage(code: int) -> None:
    world = World(storage={"checkpoint": 2000, "scrub_rate": 0})
    begun(world)
    client = world.connect()
    world.complete(OSError(code, "broken"), at=next(a for a, j in enumerate(world.jobs) if isinstance(j, Keep)))
    assert isinstance(world.failed, StorageFailed)
    client.publish("/queue/a", "x", receipt="r")
    assert client.receipts() == []


def test_a_stop_in_the_middle_of_a_checkpoint_leaves_a_log_that_starts() -> None:
    world = World(storage={"checkpoint": 2000, "scrub_rate": 0})
    begun(world)
    world.complete(at=next(at for at, job in enumerate(world.jobs) if isinstance(job, Keep)))
    waiting = world.broker.queues["/queue/a"].waiting + world.broker.queues["/queue/a"].pending
    world.restart("clean")
    world.auto = True
    assert not [path for path in world.disk.files(f"{DATA_DIR}/ckpt") if path.endswith(".tmp")]
    assert len(drain(world, "/queue/a")) == waiting


def test_nothing_is_written_for_a_broker_that_does_nothing() -> None:
    world = World(storage={"checkpoint": 1 << 20, "scrub_rate": 0})
    world.connect().publish("/queue/a", "x")
    world.advance(1)
    written = world.journal.written
    world.advance(500)
    assert world.broker.counters.checkpoints == 0
    assert world.journal.written == written
