"""Looks at the room on the disk, and while there is hardly any: holds producers back, never consumers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from broker.budget import Budget
from broker.core.compaction import Compaction
from broker.core.counters import Counters, Events
from broker.core.jobs import Keep
from broker.errors import passing
from broker.journal import Ballast, Batch, Journal, Room, SpaceWatch
from broker.system import Clock

EVERY: Final = 1.0  # s between two looks
BYTES: Final = 64 << 20  # of log written; then a look comes earlier


class Settings(Protocol):
    @property
    def min_free(self) -> int:
        """Bytes of the disk that are to stay free; 0 for what suits it."""

    @property
    def segment_size(self) -> int:
        """Bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One look, which also makes the ballast again where it is gone."""

    ballast: Ballast
    probe: int

    def run(self) -> Room:
        return self.ballast.look(self.probe)


class DiskWatch:
    """Owns the alarm; `Budget.alarm` shows it to whoever admits messages."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        budget: Budget,
        counters: Counters,
        events: Events,
        compaction: Compaction,
        settings: Settings,
        ballast: Ballast,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._budget = budget
        self._counters = counters
        self._events = events
        self._compaction = compaction
        self._ballast = ballast
        self._watch = SpaceWatch(settings.min_free, settings.segment_size)
        self._next = clock.monotonic()
        self._written = 0  # bytes of log at the last look
        self._out = False
        self._room: Room | None = None

    @property
    def due(self) -> float:
        return 0.0 if self._out else self._next

    def jobs(self) -> list[Keep]:
        now, written = self._clock.monotonic(), self._journal.written
        if self._out or self._journal.failed is not None or (now < self._next and written - self._written < BYTES):
            return []
        self._next, self._written = now + EVERY, written
        self._out = True
        return [Keep(Look(self._ballast, self._watch.probe))]

    def kept(self, task: object, result: object, error: OSError | None) -> bool:
        """A task is done; returns whether it was one of these. An error of the medium is the journal's end."""
        if not isinstance(task, Look):
            return False
        self._out = False
        if error is not None:
            if not passing(error):  # else the next look tells
                self._journal.fail(error)
        elif isinstance(result, Room):
            self._room = result
            self._watch.looked(result, sum(segment.live for segment in self._journal.segments))
            self._tell()
        return True

    def written(self, batch: Batch) -> None:
        """The writer may have met a full disk, and got along."""
        if batch.no_room:
            self.refused()

    def refused(self) -> None:
        """There was no room for what had to be written."""
        self._watch.refused()
        self._tell()

    def _tell(self) -> None:
        alarm, before = self._watch.alarm, self._budget.alarm
        self._budget.alarm = alarm
        self._journal.small_segments = self._compaction.urgent = bool(alarm)
        room = self._room
        numbers = {"free": room.free, "total": room.total, "low": self._watch.low(room.total)} if room else {}
        if alarm and not before:
            self._counters.disk_alarms += 1
            text = f"{alarm}: producers are held back, consumers go on"
            self._events.event("warning", "disk-alarm", text, **numbers)
        elif before and not alarm:
            self._events.event("info", "disk-alarm-over", "there is room on the disk again", **numbers)
