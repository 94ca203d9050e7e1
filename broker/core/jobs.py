"""Work for outside. `Broker.turn` returns it; the shell has it done in a thread and comes back with the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from broker.core.queue import Queue
from broker.journal import Batch


@dataclass(frozen=True, slots=True)
class Write:
    """Have the writer run this batch, then call `Broker.written`."""

    batch: Batch


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Have the reader read the records at `places`, but no more of them than fit into `limit` bytes; then call
    `Broker.read`.

    queue: for whom. copying: to be copied forward, not to be handed out.
    """

    queue: Queue
    places: Sequence[int]
    limit: int
    copying: bool = False


class Task(Protocol):
    """Something slow that is nobody's hurry. Raises OSError."""

    def run(self) -> object: ...


@dataclass(frozen=True, slots=True, eq=False)
class Keep:
    """Have `task` run, then call `Broker.kept` with what it returned, or its OSError."""

    task: Task


@dataclass(frozen=True, slots=True)
class Timer:
    """Call `Broker.tick` at this time (monotonic seconds), unless another Timer came first."""

    due: float


Job = Write | Read | Keep | Timer
