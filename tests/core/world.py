"""A whole broker without socket and thread: sessions, core and journal on a simulated disk, with a manual clock.

Clients are `Client`s: what they send goes into `Session.receive`, what the broker writes is parsed by the tests' own
parser. The jobs of `Broker.turn` lie in `World.jobs` until somebody completes them: at once (`auto`), by hand, or as a
seed decides. It does what the shell does (broker/server/hub.py and connection.py), and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from broker.budget import Budget
from broker.config import Limits, Memory, Settings, Storage
from broker.core import Broker, Job, Keep, Read, Timer, Write, replayed
from broker.core.entries import unpack_counts
from broker.errors import NoRoom, StorageFailed
from broker.journal import Log, open_log
from broker.session import Session
from tests.support.simdisk import SimDisk
from tests.support.wire import Got, frame, take_frame

DATA_DIR = "data"
SEGMENT = 256 * 1024  # bytes; small, so that segments roll and a start is cheap


class ManualClock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_700_000_000_000

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return self.wall + int((self.now - 1000.0) * 1000)


class SeededRng:
    def __init__(self, random: Random) -> None:
        self._random = random

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def event(self, level: str, name: str, text: str, /, **fields: object) -> None:
        self.seen.append((level, name, text))


class Client:
    """One connection, from the peer's side.

    frames: what came and was not taken yet. stuck: it does not read, so that output piles up in its socket.
    """

    def __init__(self, world: World, version: str) -> None:
        self.world = world
        self.version = version
        token = world.rng.token(8).hex()
        self.session = Session(world.broker, world.budget, world.settings.limits, token, world.clock.now, world.dirty)
        self.frames: list[Got] = []
        self.raw = b""  # bytes that are no whole frame yet
        self.beats = 0  # EOLs that came alone
        self.stuck = False
        self.buffered = 0
        self.closed = False  # the connection is gone
        self.unread: list[bytes] = []
        world.clients[self.session] = self

    # --- what the peer does

    def feed(self, data: bytes) -> Client:
        """Bytes arrive at the broker."""
        if not self.closed:
            try:
                self.session.receive(data, self.world.clock.now)
            except StorageFailed as error:
                self.world.storage_failed(error)
            self.world.after()
        return self

    def send(self, command: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Client:
        return self.feed(frame(command, headers, body, self.version))

    def publish(self, destination: str, body: bytes | str, receipt: str = "", **headers: str) -> Client:
        fields = {"destination": destination, **{k.replace("_", "-"): v for k, v in headers.items()}}
        if receipt:
            fields["receipt"] = receipt
        return self.send("SEND", fields, body.encode() if isinstance(body, str) else body)

    def subscribe(
        self, destination: str, id: str = "s", ack: str = "client-individual", prefetch: int = 0, **headers: str
    ) -> Client:
        fields = {"destination": destination, "id": id, "ack": ack, **headers}
        if prefetch:
            fields["prefetch"] = str(prefetch)
        return self.send("SUBSCRIBE", fields)

    def ack(self, message: Got | str, command: str = "ACK", **headers: str) -> Client:
        id = message if isinstance(message, str) else message["ack"]
        return self.send(command, {"id": id, **{k.replace("_", "-"): v for k, v in headers.items()}})

    def nack(self, message: Got | str, **headers: str) -> Client:
        return self.ack(message, "NACK", **headers)

    def disconnect(self, receipt: str = "bye") -> Client:
        return self.send("DISCONNECT", {"receipt": receipt})

    def lose(self) -> None:
        """The connection breaks."""
        self._end()
        self.world.after()

    def read(self) -> Client:
        """A stuck peer takes everything and goes on reading."""
        self.stuck = False
        data, self.unread = b"".join(self.unread), []
        self.buffered = 0
        self._take(data)
        self.session.make_room(self.world.settings.limits.output)
        self._made_room()
        self.world.after()
        return self

    # --- what the peer sees

    def take(self, command: str = "MESSAGE") -> list[Got]:
        """Every frame of this kind that came since the last time; others stay."""
        found = [got for got in self.frames if got.command == command]
        self.frames = [got for got in self.frames if got.command != command]
        return found

    def one(self, command: str = "MESSAGE") -> Got:
        found = self.take(command)
        if len(found) != 1:
            raise AssertionError(f"one {command} was expected, got {found}; besides {self.frames}")
        return found[0]

    def bodies(self) -> list[str]:
        return [got.body.decode() for got in self.take()]

    def receipts(self) -> list[str]:
        return [got["receipt-id"] for got in self.take("RECEIPT")]

    # --- what the shell does

    def flush(self) -> None:
        session = self.session
        if not session.out:
            return
        data = b"".join(session.out)
        session.out.clear()
        if self.closed:
            return
        session.wrote(self.world.clock.now)
        if self.stuck:
            self.unread.append(data)
            self.buffered += len(data)
        else:
            self._take(data)
        session.make_room(self.world.settings.limits.output - self.buffered)
        if not self.stuck:
            self._made_room()
        if session.closing and not self.stuck:
            self._end()

    def _made_room(self) -> None:
        try:
            self.world.woken |= self.session.flushed()
        except StorageFailed as error:
            self.world.storage_failed(error)

    def _take(self, data: bytes) -> None:
        self.beats += data == b"\n"
        data = self.raw + data
        at = 0
        while True:
            got, at = take_frame(data, self.version, at)
            if got is None:
                break
            self.frames.append(got)
        self.raw = data[at:]

    def _end(self) -> None:
        if not self.closed:
            self.closed = True
            self.world.clients.pop(self.session, None)
            try:
                self.session.ended()
            except StorageFailed as error:
                self.world.storage_failed(error)


class World:
    """`auto`: every Write is run as soon as it is there. Else the test, or a seed, calls `complete`."""

    def __init__(
        self,
        seed: int = 0,
        *,
        auto: bool = True,
        limits: Mapping[str, Any] | None = None,
        storage: Mapping[str, Any] | None = None,
        memory: int = 64 << 20,
        disk: SimDisk | None = None,
    ) -> None:
        self.random = Random(seed)
        self.rng = SeededRng(self.random)
        self.auto = auto
        self.clock = ManualClock()
        self.settings = dataclasses.replace(
            Settings(),
            data_dir=DATA_DIR,
            storage=dataclasses.replace(Storage(), **{"segment_size": SEGMENT, **(storage or {})}),
            memory=dataclasses.replace(Memory(), limit=memory),
            limits=dataclasses.replace(Limits(), **(limits or {})),
        )
        self.disk = disk or SimDisk(Random(seed + 1))
        self.events = Events()
        self.failed: StorageFailed | None = None
        self._entered = False
        self.start()

    # --- start and stop

    def start(self) -> None:
        """What the daemon does from the lock to the first client."""
        self.clients: dict[Session, Client] = {}
        self.dirty: list[Session] = []
        self.jobs: list[Job] = []
        self.timer = 0.0
        self.stuck = False  # the batch at the writer waits for room on the disk
        self.woken = False  # a session has something for the broker's next turn
        self.failed = None
        self.log: Log = open_log(self.disk, DATA_DIR, self.settings.storage, self.clock, self.rng)
        self.budget = Budget(self.settings.memory.limit)
        replay = replayed(self.log, self.budget.account("positions on disk"))
        self.journal, self.writer = self.log.start()
        self.reader = self.log.reader()
        self.broker = Broker(
            self.settings,
            self.clock,
            self.journal,
            self.budget,
            self.events,
            self.log.checkpoint_file(),
            self.log.scrub(),
            self.log.ballast,
        )
        replay.finish(self.broker, clean=self.log.summary.clean)
        self.after()

    def kill(self) -> None:
        """kill -9: what was written stays, what was not is gone."""
        self.disk.kill()

    def power_off(self) -> None:
        """What was not synced is partly gone, as the disk's seed decides."""
        self.disk.crash()

    def stop(self) -> None:
        """SIGTERM: what is in flight returns, everything is synced."""
        auto, self.auto = self.auto, True
        self.broker.draining = True
        for client in list(self.clients.values()):
            client.session.shut_down(innocent=True)
        self.run()
        for client in list(self.clients.values()):
            client.lose()
        self.broker.stop()
        self.run()
        self.writer.close()
        self.log.close()
        self.auto = auto

    def restart(self, how: str = "clean") -> World:
        """how: "clean", "kill" or "power"."""
        {"clean": self.stop, "kill": self.kill, "power": self.power_off}[how]()
        self.start()
        return self

    # --- clients

    def connect(self, version: str = "1.2", **headers: str) -> Client:
        """A client that has been CONNECTED."""
        client = Client(self, version)
        client.send(
            "CONNECT", {"accept-version": version, "host": "/", **{k.replace("_", "-"): v for k, v in headers.items()}}
        )
        self.flush()
        client.one("CONNECTED")
        return client

    def stranger(self) -> Client:
        """A connection on which nothing was said yet."""
        return Client(self, "1.2")

    # --- the turn

    def after(self) -> None:
        """Something happened: have a turn, or in auto as many as it takes until nothing is left to do."""
        if self._entered:
            return
        self._entered = True
        try:
            if self.auto:
                self.run()
        finally:
            self._entered = False

    def turn(self) -> None:
        """One turn of the loop: jobs go into the bag, output to the clients, held sessions go on where they may."""
        try:
            for job in self.broker.turn():
                if isinstance(job, Timer):
                    self.timer = job.due
                else:
                    self.jobs.append(job)
        except StorageFailed as error:
            self.storage_failed(error)
        self.flush()
        for client in list(self.clients.values()):
            if client.session.paused:
                client.session.release(self.clock.now)

    def flush(self) -> None:
        while self.dirty:
            sessions = self.dirty.copy()
            self.dirty.clear()
            for session in sessions:
                if (client := self.clients.get(session)) is not None:
                    client.flush()

    def complete(self, error: OSError | None = None, *, at: int | None = None) -> bool:
        """Do the job `at` of those that are out, without it the batch if there is one. `error`: it fails with that one.

        Returns whether there was one. In production the jobs of one kind are done in their order, those of different
        kinds in any.
        """
        if not self.jobs:
            return False
        if at is None:
            # The batch first; where the disk was full the last time, behind all others.
            at = next((at for at, job in enumerate(self.jobs) if isinstance(job, Write) is not self.stuck), 0)
        job = self.jobs.pop(at)
        try:
            if isinstance(job, Write):
                if not self._write(job, error):
                    return len(self.jobs) > 1
            elif isinstance(job, Read):
                self.broker.read(job, self.reader.read(job.places, job.limit))
            elif isinstance(job, Keep):
                self._keep(job, error)
        except StorageFailed as failure:
            self.storage_failed(failure)
        if self.journal.failed is not None:
            self.storage_failed(self.journal.failed)
        return True

    def _write(self, job: Write, error: OSError | None) -> bool:
        """False: there was no room, so it is to be run again."""
        if error is None:
            try:
                self.writer.run(job.batch)
            except NoRoom:
                self.broker.out_of_room()
                self.jobs.append(job)
                self.stuck = True
                return False
            except OSError as failure:
                error = failure
        self.stuck = False
        for segment in job.batch.unlink:
            self.reader.forget(segment.number)
        self.broker.written(job.batch, error)
        return True

    def _keep(self, job: Keep, error: OSError | None) -> None:
        result: object = None
        if error is None:
            try:
                result = job.task.run()
            except OSError as failure:
                error = failure
        self.broker.kept(job, result, error)

    def run(self) -> None:
        """Turn and complete until nothing is left to do."""
        quiet = 0
        for _ in range(10_000):
            self.turn()
            quiet = 0 if self.complete() or self.dirty or self.woken else quiet + 1
            self.woken = False
            if quiet == 2 or self.failed is not None:
                self.flush()
                return
        raise AssertionError("the broker does not come to rest")

    def sync(self) -> None:
        """By hand: a turn, what was to be done for it, and a turn for what that brings."""
        self.turn()
        for _ in range(len(self.jobs)):
            self.complete()
        self.turn()

    def storage_failed(self, error: StorageFailed) -> None:
        if self.failed is None:
            self.failed = error
            for client in list(self.clients.values()):
                client.session.storage_failed(error)
            self.flush()

    def advance(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass; every timer rings when it is due."""
        end = self.clock.now + seconds
        while self.clock.now < end and not until():
            due = [client.session.due for client in self.clients.values()] + [self.timer or end]
            self.clock.now = min(end, max(min(due), self.clock.now + 0.001))
            if self.timer and self.timer <= self.clock.now:
                self.timer = 0.0
                self.broker.tick()
            for client in list(self.clients.values()):
                if client.session.due <= self.clock.now:
                    client.session.tick(self.clock.now, moving=False)
            self.turn()
            self.after()


def failures(world: World, queue: str) -> list[int]:
    """How often each message that waits to be delivered again has failed, in order."""
    return [unpack_counts(entry[3])[1] for entry in world.broker.queues[queue].counted]


def drain(world: World, queue: str, ack: bool = True) -> list[Got]:
    """Everything that waits in a queue, by a consumer of its own; acknowledged, or given back without a failure."""
    client = world.connect()
    client.subscribe(queue, prefetch=10_000)
    world.run()
    found = client.take()
    if ack:
        for message in found:
            client.ack(message)
    client.disconnect()
    world.run()
    return found


def texts(messages: Iterable[Got]) -> list[str]:
    return [message.body.decode() for message in messages]
