"""What the daemon does around the broker (broker/server), without thread, socket and clock.

Jobs wait in lanes, as they would for their threads. `run` does what a thread would do, `report` tells the broker of it:
between the two anything may happen, and does.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any

from broker.budget import Budget
from broker.config import Settings
from broker.core import Broker, Keep, Read, Timer, Write, replayed
from broker.errors import NoRoom, StorageFailed
from broker.journal import Log, Writer, open_log
from broker.session import Session
from tests.support.history import Event
from tests.support.simdisk import PowerLoss, SimDisk
from tests.support.wire import Got

if TYPE_CHECKING:
    from tests.sim.line import Line


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_700_000_000_000 - 1_000_000

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return self.wall + int(self.now * 1000)


class Chance:
    def __init__(self, random: Random) -> None:
        self._random = random

    def token(self, size: int) -> bytes:
        return self._random.randbytes(size)


class Broken(AssertionError):
    """A promise was broken, or the broker has a bug."""


class Stuck(Broken):
    """The broker does not come to rest."""


@dataclass(eq=False)
class Task:
    """A job in its lane. `ran`: the thread is through with it, the loop does not know yet."""

    job: Any
    ran: bool = False
    result: Any = None
    error: OSError | None = None

    @property
    def name(self) -> str:
        if isinstance(self.job, Read):
            return "copying" if self.job.copying else "loading"
        return type(self.job.task if isinstance(self.job, Keep) else self.job).__name__


class Shell:
    """Owns one broker after the other on the same disk. `say`: hears what happens, for a trace."""

    def __init__(self, random: Random, disk: SimDisk, settings: Settings, say: Callable[[str], None] | None) -> None:
        self.random = random
        self.rng = Chance(random)
        self.clock = Clock()
        self.disk = disk
        self.settings = settings
        self.say = say
        self.digest = blake2b(digest_size=16)
        self.history: list[Event] = []
        self.counts: Counter[str] = Counter()
        self.sent: dict[str, tuple[bytes, dict[str, str]]] = {}  # body and headers by message name
        self.congestion = 4096  # bytes waiting for the disk, above which nothing is read
        self.running = False
        self.idle = False  # so much time went by that queues may have been forgotten
        self._clear()

    def _clear(self) -> None:
        self.lines: dict[Session, Line] = {}
        self.dirty: list[Session] = []
        self.lanes: dict[str, deque[Task]] = {"storage": deque(), "reader": deque(), "keeper": deque()}
        self.timer = 0.0
        self.woken = False
        self.failed: StorageFailed | None = None
        self._erred = False
        self.giving_up = False  # the broker stops: nothing waits for room any more

    def note(self, *parts: bytes) -> None:
        """For the digest: what came, what went, which call the disk is at."""
        self.digest.update(b"%d " % self.disk.calls)
        for part in parts:
            self.digest.update(part)

    @property
    def disk_erred(self) -> bool:
        """Whether a call of this run failed."""
        return self._erred or any(fault.hits for fault in self.disk.faults)

    def mend_disk(self) -> None:
        """From here on nothing fails any more."""
        self._erred = self.disk_erred
        self.disk.faults.clear()
        self.disk.power_at = None
        self.disk.capacity = None
        self.disk.short_writes = 0.0

    # Events
    def event(self, level: str, name: str, text: str, /, **fields: object) -> None:
        self.counts[f"event {name}"] += 1
        self.note(b"!", text.encode())
        if self.say is not None:
            self.say(f"  event {name}: {text}")
        if name in ("damaged", "scrub") and not self.disk_erred:
            raise Broken(f"a false alarm, the disk has done nothing: {text}")

    # --- start, stop --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """From the lock to the first client. Raises StorageFailed, PowerLoss; DataDamaged, which is a false alarm."""
        self._clear()
        self.log: Log = open_log(self.disk, "data", self.settings.storage, self.clock, self.rng)
        self.budget = Budget(self.settings.memory.limit)
        replay = replayed(self.log, self.budget.account("positions on disk"))
        self.clean = self.log.summary.clean
        self.counts["starts on a checkpoint"] += self.log.checkpoint is not None
        if self.log.doubts and not self.disk_erred:
            raise Broken(f"nothing was damaged, and a checkpoint is not used: {self.log.doubts}")
        self.journal, writer = self.log.start()
        self.writer: Writer = writer
        self.reader = self.log.reader()
        self.broker = Broker(
            self.settings, self.clock, self.journal, self.budget, self,
            self.log.checkpoint_file(), self.log.scrub(), self.log.ballast,
        )  # fmt: skip
        replay.finish(self.broker, clean=self.clean)
        self.running = True
        self.note(b"start", self.log.log_id)

    def session(self) -> Session:
        token = self.rng.token(8).hex()
        return Session(self.broker, self.budget, self.settings.limits, token, self.clock.now, self.dirty)

    def die(self) -> None:
        """The process is gone; what its disk makes of it is the disk's matter."""
        if self.running:
            counters = self.broker.counters
            for name in ("spilled", "loaded", "carried", "checkpoints", "scrubbed", "damaged"):
                self.counts[name] += getattr(counters, name)
            self.counts["trimmed"] += self.journal.segments[0].number
        self.running = False
        for line in list(self.lines.values()):
            line.going.clear()
            line.closed = True
            line.coming.clear()
        self._clear()

    def at(self, name: str) -> bool:
        """Whether a task of that name is out."""
        return bool(name) and any(task.name == name for lane in self.lanes.values() for task in lane)

    def note_crash(self) -> None:
        """Count what the broker was at when it died."""
        if not self.running:
            return
        for task in (task for lane in self.lanes.values() for task in lane):
            state = "done and not reported" if task.ran else "not done"
            self.counts[f"crash, {task.name} {state}"] += 1
        queues = self.broker.queues.values()
        self.counts["crash while loading"] += any(queue.loading is not None for queue in queues)
        self.counts["crash with messages on disk only"] += any(queue.stored or queue.counted for queue in queues)

    def hang_up(self) -> None:
        """A stop in good order, first half: nothing more is handed out or read."""
        self.broker.draining = True
        self.giving_up = True
        for line in list(self.lines.values()):
            line.session.shut_down(innocent=True)
            line._last_words = True

    def close(self) -> None:
        """The second half: all has been written and synced. Raises OSError."""
        for line in list(self.lines.values()):
            line.end()
        self.settle()
        if self.failed is None:
            self.broker.stop()
            self.settle()
        if self.failed is None:
            self.writer.close()
            self.log.close()

    # --- lines --------------------------------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        return bool(self.journal.queued > self.congestion)

    def receive(self, line: Line, data: bytes) -> None:
        self.note(b"<", line.name.encode(), data)
        try:
            line.session.receive(data, self.clock.now)
        except StorageFailed as error:
            self.storage_failed(error)
        loading = [queue.loading for queue in self.broker.queues.values() if queue.loading is not None]
        self.counts["settled while it was read"] += any(each.gone for each in loading)

    def flushed(self, line: Line) -> None:
        try:
            self.woken |= line.session.flushed()
        except StorageFailed as error:
            self.storage_failed(error)

    def gone(self, line: Line) -> None:
        self.lines.pop(line.session, None)
        try:
            line.session.ended()
        except StorageFailed as error:
            self.storage_failed(error)

    def error(self, line: Line, got: Got) -> None:
        text = got.get("message") or ""
        self.counts[f"error {text}"] += 1
        if self.say is not None:
            self.say(f"  ERROR to {line.name}: {text} {got.body.decode()}")

    def intact(self, message: str, got: Got, version: str) -> bool:
        """Whether a MESSAGE carries the body and the headers of the SEND of that name."""
        if message not in self.sent:
            return False
        body, headers = self.sent[message]
        return got.body == body and all(
            # What STOMP 1.0 cannot say is left out for its clients.
            got.get(name) == value or ("\n" in value and version == "1.0" and got.get(name) is None)
            for name, value in headers.items()
        )

    # --- the turn -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        self.woken = False
        try:
            for job in self.broker.turn():
                self._take(job)
        except StorageFailed as error:
            self.storage_failed(error)
        self._flush()
        if self.failed is None and not self.congested:
            for line in list(self.lines.values()):
                if line.session.paused:
                    try:
                        self.woken |= line.session.release(self.clock.now)
                    except StorageFailed as error:
                        self.storage_failed(error)
                    line.look()

    def _take(self, job: Any) -> None:
        if isinstance(job, Timer):
            self.timer = job.due
        elif isinstance(job, Write):
            self.lanes["storage"].append(Task(job))
        elif isinstance(job, Read):
            self.lanes["reader"].append(Task(job))
        elif isinstance(job, Keep):
            self.lanes["keeper"].append(Task(job))
        else:
            raise Broken(f"a job that nobody knows: {job}")

    def _flush(self) -> None:
        while self.dirty:
            sessions = self.dirty.copy()
            self.dirty.clear()
            for session in sessions:
                if (line := self.lines.get(session)) is not None:
                    line.flush()

    def run(self, lane: str) -> bool:
        """The thread of that lane does its next job. PowerLoss goes through."""
        task = next((task for task in self.lanes[lane] if not task.ran), None)
        if task is None:
            return False
        try:
            task.result = self._do(task.job)
        except PowerLoss:
            self.counts[f"power gone in {task.name}"] += 1
            raise
        except NoRoom as error:
            self.counts["writer waits for room"] += 1
            self.broker.out_of_room()
            if not self.giving_up:
                return False
            task.error = error
        except OSError as error:
            if isinstance(task.job, Read):
                raise Broken(f"the reader raised {error!r}") from error
            task.error = error
        task.ran = True
        self.note(b"ran", lane.encode())
        return True

    def _do(self, job: Any) -> Any:
        if isinstance(job, Write):
            return self.writer.run(job.batch)
        if isinstance(job, Read):
            return self.reader.read(job.places, job.limit)
        if isinstance(job, Keep):
            return job.task.run()
        raise Broken(f"a job that nobody does: {job}")

    def report(self, lane: str) -> bool:
        """The loop hears of the lane's first job that is done."""
        tasks = self.lanes[lane]
        if not tasks or not tasks[0].ran:
            return False
        task = tasks.popleft()
        try:
            if isinstance(task.job, Write):
                self.broker.written(task.job.batch, task.error)
            elif isinstance(task.job, Read):
                self.broker.read(task.job, task.result)
            elif isinstance(task.job, Keep):
                self.broker.kept(task.job, task.result, task.error)
        except StorageFailed as error:
            self.storage_failed(error)
        if self.journal.failed is not None:
            self.storage_failed(self.journal.failed)
        else:
            self.turn()
        return True

    def settle(self) -> None:
        """Turns and jobs until nothing is left to do."""
        quiet = 0
        for _ in range(3000):
            if self.failed is not None:
                return
            self.turn()
            busy = bool(self.dirty or self.woken)
            for lane in self.lanes:
                busy |= self.run(lane)
                if self.failed is None:
                    busy |= self.report(lane)
            quiet = 0 if busy else quiet + 1
            if quiet == 2:
                return
        raise Stuck("the broker does not come to rest")

    def advance(self, seconds: float) -> None:
        """Time passes at once; what was due meanwhile comes now."""
        self.clock.now += seconds
        self.idle = self.idle or seconds > 60.0
        now = self.clock.now
        try:
            if self.timer and self.timer <= now:
                self.timer = 0.0
                self.broker.tick()
            for line in list(self.lines.values()):
                if line.session.due <= now:
                    line.session.tick(now, moving=False)
                    line.look()
        except StorageFailed as error:
            self.storage_failed(error)
        self.woken = True

    def storage_failed(self, error: StorageFailed) -> None:
        """Everybody is told, nothing is receipted; then the process ends."""
        if self.failed is None:
            self.failed = error
            if self.say is not None:
                self.say(f"  storage failed: {error}")
            for line in list(self.lines.values()):
                line.session.storage_failed(error)
            self._flush()
