"""A queue: where each of its messages is (pending, ready, returned, in flight) and in which order."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import Final, Protocol

from broker.core.message import SETTLED, Message
from broker.core.subscription import Subscription

MARK_STEP: Final = 1000  # how far the delivered mark runs ahead, in seqs
MARK_STEP_MAX: Final = 16_000  # the same for consumers so fast that they had to wait for a mark


class MarkKeeper(Protocol):
    def ask_mark(self, queue: Queue, seq: int) -> None:
        """Journal that messages up to `seq` may have been delivered; `queue.mark` follows when it is durable."""


class Queue:
    """One durable FIFO.

    ready:    never delivered, in order of seq.
    returned: delivered before, as a heap of (seq, message). All of it comes before `ready`: what was delivered
              stood in front of what was not.
    pending:  how many accepted messages are not visible yet (their record is not synced).
    mark:     the delivered high-water mark (reliability.md 2.7): after a crash every message up to it counts as
              delivered. It is durable before a first delivery crosses it.
    owner:    the token of the connection that a temporary queue belongs to, "" for others.
    """

    __slots__ = (
        "_late_mark", "_turn", "gone", "idle_since", "in_flight", "key", "late", "mark", "mark_asked", "mark_segment",
        "name", "owner", "pending", "ready", "returned", "step", "subscriptions",
    )  # fmt: skip

    def __init__(self, name: str, owner: str = "") -> None:
        self.name = name
        self.key = name.encode()
        self.owner = owner
        self.ready: deque[Message] = deque()
        self.returned: list[tuple[int, Message]] = []
        self.pending = 0
        self.in_flight = 0
        self.late = 0  # messages marked SETTLED that are still in `returned` or in a subscription's in_flight
        self.mark = 0
        self.mark_asked = 0
        self.mark_segment = 0  # the number of the segment that holds the newest mark
        self.step = MARK_STEP
        self._late_mark = 0  # the mark at which consumers had to wait last
        self.subscriptions: list[Subscription] = []
        self._turn = 0
        self.idle_since = 0.0
        self.gone = False

    @property
    def waiting(self) -> int:
        """Messages that a consumer could get now."""
        return len(self.returned) + len(self.ready)

    @property
    def in_use(self) -> bool:
        # Messages that were settled late and still stand in `returned` are nothing to keep a queue for.
        return bool(self.in_flight or self.pending or self.subscriptions or self.waiting > self.late)

    def attach(self, subscription: Subscription) -> None:
        subscription.queue = self
        self.subscriptions.append(subscription)
        self.step = MARK_STEP

    def detach(self, subscription: Subscription) -> None:
        at = self.subscriptions.index(subscription)
        del self.subscriptions[at]
        if at < self._turn:
            self._turn -= 1

    def put_back(self, message: Message) -> None:
        """To its old place, as one that was delivered before."""
        if message.deliveries == SETTLED:
            self.late -= 1
        else:
            heappush(self.returned, (message.seq, message))

    def dispatch(self, keeper: MarkKeeper) -> None:
        """Hand out what waits: to each subscription that is able a fair share, round robin."""
        while waiting := len(self.returned) + len(self.ready):
            able = [s for s in self.subscriptions if s.credit > 0 and s.outlet.room > 0]
            if not able:
                return
            subscriptions = self.subscriptions
            turn = self._turn % len(subscriptions)
            if turn and len(able) > 1:
                # Whoever comes after the one that was served last.
                rotated = subscriptions[turn:] + subscriptions[:turn]
                able = [s for s in rotated if s.credit > 0 and s.outlet.room > 0]
            left = len(able)
            last: Subscription | None = None
            short = False  # the mark has to become durable first
            for subscription in able:
                if subscription.outlet.room <= 0:
                    left -= 1  # another subscription of the same connection has used up its room
                    continue
                batch = self._take(min(-(-waiting // left), subscription.credit), keeper)
                if not batch:
                    short = True
                    break
                taken = subscription.outlet.deliver(subscription, batch)
                if taken < len(batch):
                    self._undo(batch[taken:])
                subscription.credit -= taken
                self.in_flight += taken
                last = subscription
                waiting = len(self.returned) + len(self.ready)
                if not waiting:
                    break
                left -= 1
            if last is not None:  # looked up once a round: there may be thousands
                self._turn = subscriptions.index(last) + 1
            if short:
                return

    def _take(self, count: int, keeper: MarkKeeper) -> list[Message]:
        """Up to `count` from the front; none where the mark has to become durable first."""
        if self.returned:
            batch = self._take_returned(count)
            if batch or not self.ready:
                return batch
            # All that had returned was settled late: on with what was never delivered.
        ready = self.ready
        if count >= len(ready):
            batch = list(ready)
            ready.clear()
        else:
            popleft = ready.popleft
            batch = [popleft() for _ in range(count)]
        last = batch[-1].seq
        if last > self.mark or last + (self.step >> 1) > self.mark_asked:
            batch = self._within_mark(batch, keeper)
        return batch

    def _take_returned(self, count: int) -> list[Message]:
        batch: list[Message] = []
        while self.returned and len(batch) < count:
            message = heappop(self.returned)[1]
            if message.deliveries == SETTLED:
                self.late -= 1
            else:
                batch.append(message)
        return batch

    def _within_mark(self, batch: list[Message], keeper: MarkKeeper) -> list[Message]:
        """Keep back what is beyond the durable mark, and ask for the next mark before consumers have to wait for it.

        Messages in memory only may always go: a crash ends them.
        """
        highest = 0
        for at, message in enumerate(batch):
            if message.segment is not None:
                highest = message.seq
                if highest > self.mark:
                    highest = batch[-1].seq
                    self.ready.extendleft(reversed(batch[at:]))
                    batch = batch[:at]
                    if self._late_mark < self.mark < self.mark_asked:
                        # The next mark was asked for in time and is not there yet: ask earlier from here on.
                        self._late_mark = self.mark
                        self.step = min(2 * self.step, MARK_STEP_MAX)
                    break
        if highest and highest + (self.step >> 1) > self.mark_asked:
            keeper.ask_mark(self, highest + self.step)
        return batch

    def _undo(self, batch: list[Message]) -> None:
        """What an outlet did not take goes back as if it had not been touched."""
        if batch[0].deliveries:
            for message in batch:
                heappush(self.returned, (message.seq, message))
        else:
            self.ready.extendleft(reversed(batch))
