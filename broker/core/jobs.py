"""Work that the core has for the outside. It is a value: the shell runs it and gives the result back."""

from __future__ import annotations

from dataclasses import dataclass

from broker.journal import Batch


@dataclass(frozen=True, slots=True)
class Write:
    """Run `batch` at the writer, then call `Broker.written(batch, error)`. At most one is out at a time."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Timer:
    """Call `Broker.tick()` at `due`, in seconds of the monotonic clock. A later Timer replaces an earlier one."""

    due: float


Job = Write | Timer
