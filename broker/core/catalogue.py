"""Which queues there are, and which of them are to be looked at in the next turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.budget import Account
from broker.core.destination import DEAD_LETTER_PREFIX
from broker.core.queue import Queue
from broker.errors import LimitReached
from broker.system import Clock

QUEUE_IDLE: Final = 600.0  # s; a queue without messages and consumers is forgotten


class Catalogue:
    """Owns the queues by name. `dirty`: those that may have something to hand out."""

    def __init__(self, most: int, clock: Clock, positions: Account) -> None:
        """positions: the account of what queues know of messages on disk."""
        self._positions = positions
        self.by_name: dict[str, Queue] = {}
        self.dirty: dict[Queue, None] = {}
        self._most = most  # limits.queues
        self._clock = clock
        self._temporary: dict[str, list[Queue]] = {}  # by the token of their connection
        self.forgotten: Callable[[Queue], None] = lambda queue: None  # hears of a queue before it goes

    def queue(self, name: str, owner: str = "") -> Queue:
        """The queue of that name, made if it is not there. Raises LimitReached."""
        queue = self.by_name.get(name)
        if queue is None:
            self.make_room({name})
            queue = self.add(name, owner)
        return queue

    def add(self, name: str, owner: str = "") -> Queue:
        """A new queue, past the limit as well: a dead letter has to go somewhere."""
        dead = name.startswith(DEAD_LETTER_PREFIX)
        queue = self.by_name[name] = Queue(name, self._positions, owner, dead=dead)
        queue.idle_since = self._clock.monotonic()
        if owner:
            self._temporary.setdefault(owner, []).append(queue)
        return queue

    def make_room(self, names: set[str]) -> None:
        """See that all of these can be there together. Raises LimitReached before the first one is made."""
        missing = names - self.by_name.keys()
        if not missing or len(self.by_name) + len(missing) <= self._most:
            return
        self.forget_idle(0.0)
        missing = names - self.by_name.keys()
        if len(self.by_name) + len(missing) > self._most:
            raise LimitReached(f"there are {len(self.by_name)} queues, limits.queues allows no {len(missing)} more")

    def forget_idle(self, idle: float = QUEUE_IDLE) -> None:
        """Forget what was not in use for `idle` seconds."""
        now = self._clock.monotonic()
        for queue in list(self.by_name.values()):
            if queue.in_use:
                queue.idle_since = now
            elif queue.idle_since <= now - idle and not queue.owner:
                self._forget(queue)

    def drop_temporary(self, owner: str) -> None:
        """The connection with this token has gone, and its temporary queues with it."""
        for queue in self._temporary.pop(owner, ()):
            self._forget(queue)

    def _forget(self, queue: Queue) -> None:
        queue.gone = True
        self.forgotten(queue)
        del self.by_name[queue.name]
        self.dirty.pop(queue, None)
