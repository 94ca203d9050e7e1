"""The turn of the loop: the broker's jobs, the storage thread, and what goes out to every connection."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

from broker.budget import Budget
from broker.config import Settings
from broker.core import Broker, Keep, Read, Timer, Write
from broker.errors import NoRoom, StorageFailed
from broker.journal import Damage, Reader, Record, Writer
from broker.server.logs import EventLog
from broker.server.workers import Worker
from broker.session import Session
from broker.system import Clock, Rng

JOURNAL_HIGH = 16 << 20  # bytes waiting for the disk; above this nothing more is read until a batch is done
STUCK_LOOK = 1.0  # s; how often those that do not read are looked at while there are any
TOPIC_STALL = 60.0  # s that a topic subscriber may read nothing; a queue's consumer may be at work for longer
NO_ROOM_RETRY = 0.5  # s; how often the writer tries again while the disk has no room at all
WORKERS_GRACE = 2.0  # s that a stop waits for a read or a checkpoint under way
STUCK_AFTER = 2.0  # s in which a peer took next to nothing; then it may have to go in favour of the others


class Peer(Protocol):
    """A connection, as far as the hub is concerned."""

    session: Session
    moved_at: float  # while its socket takes no more: when it last took a good deal

    def flush(self) -> None: ...
    def book(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def refuse(self) -> None: ...
    def cut_off(self, why: str) -> None: ...
    def broken(self, error: Exception) -> None: ...


class Hub:
    """Owns the connections and decides when the broker's turn comes: once per turn of the loop in which anything came.

    `failed` is called once, with what ended the broker.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        rng: Rng,
        events: EventLog,
        broker: Broker,
        writer: Writer,
        reader: Reader,
        failed: Callable[[BaseException], None],
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.rng = rng
        self.events = events
        self.broker = broker
        self.budget: Budget = broker.budget
        self.output = self.budget.account("output")
        self.connections: dict[Session, Peer] = {}
        self.dirty: list[Session] = []  # sessions with output
        # Not read for now: the journal's queue is long, or the budget is used up.
        self._held: dict[Peer, None] = {}
        self.clogged: dict[Peer, None] = {}  # their sockets take no more for now
        self._looking = False
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._failed = failed
        self._giving_up = threading.Event()
        self._writer = writer
        self._storage = Worker("storage", self._write, self._loop, self._written, self.crash)
        self._reader = reader
        self._reading = Worker("reader", self._look_up, self._loop, self._read, self.crash)
        self._keeping = Worker("keeper", _keep, self._loop, self._kept, self.crash)
        self._journal_high = min(JOURNAL_HIGH, settings.memory.limit // 4)

    def wake(self) -> None:
        """Something happened: have a turn after the sockets that are ready now have been read."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    @property
    def congested(self) -> bool:
        return self.broker.journal.queued > self._journal_high

    def hold(self, connection: Peer) -> None:
        """Do not read from it before there is room again."""
        self._held[connection] = None
        connection.pause()

    def clogs(self, connection: Peer) -> None:
        """Its socket takes no more for now."""
        self.clogged[connection] = None
        if not self._looking:
            self._looking = True
            self._loop.call_later(STUCK_LOOK, self._look)

    def _look(self) -> None:
        """While the budget is used up, those who read nothing hold everybody back: the slowest goes, one at a time."""
        self._looking = bool(self.clogged)
        if not self._looking:
            return
        self._loop.call_later(STUCK_LOOK, self._look)
        now = self._loop.time()
        for connection in list(self.clogged):
            if now - connection.moved_at >= STUCK_AFTER:
                connection.book()
            if now - connection.moved_at >= TOPIC_STALL and connection.session.has_topics:
                connection.cut_off(f"a topic subscriber took next to nothing for {TOPIC_STALL:.0f} s")
        if self.budget.full:
            slowest = min(self.clogged, key=lambda connection: connection.moved_at, default=None)
            if slowest is not None and now - slowest.moved_at >= STUCK_AFTER:
                slowest.cut_off("memory.limit is used up, and this peer reads nothing")

    def _turn(self) -> None:
        self._scheduled = False
        try:
            for job in self.broker.turn():
                if isinstance(job, Write):
                    self._storage.put(job)
                elif isinstance(job, Read):
                    self._reading.put(job)
                elif isinstance(job, Keep):
                    self._keeping.put(job)
                else:
                    self._arm(job)
            self._flush()
            if self._held:
                self._release()
        except StorageFailed as error:
            self.storage_failed(error)
        except Exception as error:
            self.crash(error)

    def _flush(self) -> None:
        dirty = self.dirty
        if dirty:
            sessions = dirty.copy()
            dirty.clear()
            connections = self.connections
            for session in sessions:
                if (connection := connections.get(session)) is not None:
                    try:
                        connection.flush()
                    except StorageFailed:
                        raise
                    except Exception as error:
                        connection.broken(error)

    def _release(self) -> None:
        if self.congested:
            return
        now = self.clock.monotonic()
        held, self._held = self._held, {}
        for connection in held:
            if connection.session.release(now):
                self.wake()  # for what it went on with: this turn's batch has been taken already
            if connection.session.paused:
                self._held[connection] = None
            else:
                connection.resume()

    def _arm(self, timer: Timer) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(timer.due, self._tick)

    def _tick(self) -> None:
        try:
            self.broker.tick()
        except StorageFailed as error:
            self.storage_failed(error)
        except Exception as error:
            self.crash(error)
        self.events.flush()
        self.wake()

    def _write(self, job: Write) -> None:
        """In the storage thread. A full disk is waited for: what has no room now is not lost, nor receipted."""
        while True:
            try:
                return self._writer.run(job.batch)
            except NoRoom:
                if self._giving_up.is_set():
                    raise
                with suppress(RuntimeError):  # the loop is closed, the process is ending
                    self._loop.call_soon_threadsafe(self.broker.out_of_room)
                self._giving_up.wait(NO_ROOM_RETRY)

    def give_up(self) -> None:
        """The broker is to stop: if the writer waits for room on the disk, it waits no longer."""
        self._giving_up.set()

    def _look_up(self, job: Read | Write) -> object:
        """In the reader thread. A batch that removed segments: an open file would keep their room on the disk."""
        if isinstance(job, Read):
            return self._reader.read(job.places, job.limit)
        for segment in job.batch.unlink:
            self._reader.forget(segment.number)
        return None

    def _written(self, job: Write, _: object, error: OSError | None) -> None:
        if job.batch.unlink:
            self._reading.put(job)
        # The turn comes at once and not later: receipts have waited long enough.
        self._done(lambda: self.broker.written(job.batch, error), self._turn)

    def _read(self, job: Read | Write, results: object, _: OSError | None) -> None:
        if not isinstance(job, Read):
            return
        found = cast("list[Record | Damage]", results)
        self._done(lambda: self.broker.read(job, found), self._turn)

    def _kept(self, job: Keep, result: object, error: OSError | None) -> None:
        self._done(lambda: self.broker.kept(job, result, error), self.wake)

    def _done(self, tell: Callable[[], None], then: Callable[[], None]) -> None:
        """A job came back: tell the broker, and go on if it did not end with that."""
        try:
            tell()
        except StorageFailed as failure:
            self.storage_failed(failure)
            return
        except Exception as failure:
            self.crash(failure)
            return
        if self.broker.journal.failed is not None:
            self.storage_failed(self.broker.journal.failed)
        else:
            then()

    def storage_failed(self, error: StorageFailed) -> None:
        """No receipt leaves from here on; everyone who waits for one hears it."""
        self._failed(error)  # first: whatever goes wrong with the last words, the broker stops
        for session, connection in list(self.connections.items()):
            session.storage_failed(error)
            connection.flush()

    def report(self, error: BaseException) -> None:
        """A bug of ours, for the log: where it happened, without any values."""
        trace = "; ".join(
            f"{frame.filename.rpartition('broker')[2].lstrip('/')}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        )
        self.events.event("error", "trace", trace, kind=type(error).__name__)

    def crash(self, error: BaseException) -> None:
        """A bug of ours in the broker itself: its state cannot be trusted any more. What was receipted is on disk."""
        self._failed(error)

    def close_all(self) -> None:
        """Say the last words to every connection, then close it."""
        for session in list(self.connections):
            session.shut_down(innocent=True)
        self._flush()

    def stop_storage(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._storage.stop()
        self._writer.close()
        # Whatever they are at, it is no one's promise: not waited for where a disk is slow.
        self._reading.stop(WORKERS_GRACE)
        self._keeping.stop(WORKERS_GRACE)

    @property
    def idle(self) -> bool:
        """Whether everything that was appended is on the medium."""
        return self.broker.journal.failed is not None or self.broker.journal.queued == 0


def _keep(job: Keep) -> object:
    return job.task.run()
