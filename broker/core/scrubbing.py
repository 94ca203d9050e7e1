"""The scrub: what lies on the disk is read again, slowly and for ever, so that rot is found before it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.core.counters import Counters, Events
from broker.core.jobs import Keep
from broker.journal import Journal, Scrub, ScrubResult, Segment
from broker.system import Clock

EVERY: Final = 1.0  # s between two steps
STEP_MAX: Final = 4 << 20  # bytes


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Some bytes of a segment, from an offset on."""

    scrub: Scrub
    segment: Segment
    offset: int
    budget: int

    def run(self) -> ScrubResult:
        segment = self.segment
        return self.scrub.step(
            segment.number, segment.first_lsn, segment.last_lsn, segment.end, self.offset, self.budget
        )


class Scrubbing:
    """Owns the place where the scrub is. rate: bytes/s, 0 for none."""

    def __init__(
        self, journal: Journal, clock: Clock, counters: Counters, events: Events, scrub: Scrub, rate: int
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._counters = counters
        self._events = events
        self._scrub = scrub
        self._rate = rate
        self._number = 0  # of the segment that it is at
        self._offset = 0
        self._out = False
        self._next = clock.monotonic() + EVERY
        self._known: set[int] = set()  # places of damage that was told

    @property
    def due(self) -> float:
        return self._next if self._rate and not self._out and len(self._journal.segments) > 1 else 0.0

    @property
    def _segment(self) -> Segment | None:
        """The one to go on with, or the next one; only what is full and synced."""
        journal = self._journal
        full = [s for s in journal.segments if s is not journal.segment and s.last_lsn <= journal.synced]
        for segment in full:
            if segment.number >= self._number:
                return segment
        return full[0] if full else None

    def jobs(self) -> list[Keep]:
        now = self._clock.monotonic()
        if not self._rate or self._out or now < self._next:
            return []
        self._next = now + EVERY
        if (segment := self._segment) is None:
            return []
        if segment.number != self._number:
            self._number, self._offset = segment.number, 0
        segment.readers += 1
        self._out = True
        return [Keep(Step(self._scrub, segment, self._offset, min(self._rate, STEP_MAX)))]

    def kept(self, task: object, result: object) -> bool:
        """A task is done; returns whether it was one of these."""
        if not isinstance(task, Step):
            return False
        self._out = False
        task.segment.readers -= 1
        if isinstance(result, ScrubResult):
            self._offset = result.offset
            self._counters.scrubbed += result.size
            if result.done:
                self._number, self._offset = task.segment.number + 1, 0
            for damage in result.damages:
                if not damage.passing and damage.place not in self._known:
                    self._known.add(damage.place)
                    self._counters.damaged += 1
                    self._events.event("error", "scrub", f"damage was found: {damage.text}", file=task.segment.path)
        return True
