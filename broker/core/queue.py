"""A queue: where each of its messages is (pending, ready, waiting on disk, loading, in flight) and in which order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, Protocol

from broker.budget import Account
from broker.core.entries import Entry, Removed, entries_of, pack_counts
from broker.core.message import MESSAGE_COST, SETTLED, Message
from broker.core.positions import Runs, Singles
from broker.core.subscription import Subscription

MARK_STEP: Final = 1000  # how far the delivered mark runs ahead, in seqs
MARK_STEP_MAX: Final = 16_000  # the same for consumers so fast that they had to wait for a mark
LOAD_LOW: Final = 2048  # ready messages; with fewer of them more are read back from disk


class Keeper(Protocol):
    """What a queue asks of the rest of the core while it hands out."""

    def ask_mark(self, queue: Queue, seq: int) -> None:
        """Journal that messages up to `seq` may have been delivered; `queue.mark` follows when it is durable."""

    def ask_load(self, queue: Queue) -> None:
        """Read what comes next back from disk; `queue.loaded` is called when it is there."""

    def handed(self, queue: Queue, messages: list[Message]) -> None:
        """These are with a consumer now: they need no body any more."""


class Loading:
    """Entries that are being read back. fresh: they come from `stored`, else from `counted`.

    gone: those of their messages that were settled meanwhile.
    """

    __slots__ = ("entries", "fresh", "gone")

    def __init__(self, entries: list[Entry], *, fresh: bool) -> None:
        self.entries = entries
        self.fresh = fresh
        self.gone: set[int] = set()


class Queue:
    """One durable FIFO. What is in memory is its head, and sometimes its tail; the rest are positions on disk.

    Never delivered, in order of seq: `ready`, then what is loading, then `stored`, then `tail`.
    Delivered before, or dead letters: `returned`, a heap of seqs whose messages are in `again`, and `counted`. All of
    it comes before `ready`: what was delivered stood in front of what was not.

    kept:    messages in memory only that stand in `stored` or `counted` with the place 0.
    spilled: so much waits on disk that new messages need not be kept in memory.
    pending: how many accepted messages are not visible yet (their record is not synced).
    leaving: subscriptions that have ended, and what was written to them is not yet with the kernel (`ack:auto`).
    marked:  how many messages in flight or pending are SETTLED.
    mark:    the delivered high-water mark (reliability.md 2.7): after a crash every message up to it counts as
             delivered. It is durable before a first delivery crosses it.
    owner:   the token of the connection that a temporary queue belongs to, "" for others.
    served:  the turn in which it handed out something last.
    damage:  what is wrong with a message that had to be read; nothing is handed out then.
    """

    __slots__ = (
        "_late_mark", "_turn", "again", "counted", "damage", "dead", "gone", "idle_since", "in_flight", "kept", "key",
        "leaving", "loading", "mark", "mark_asked", "mark_segment", "marked", "name", "owner", "pending", "ready",
        "returned", "served", "spilled", "step", "stored", "subscriptions", "tail",
    )  # fmt: skip

    def __init__(self, name: str, account: Account, owner: str = "", *, dead: bool = False) -> None:
        """account: where its positions are booked. dead: it holds dead letters."""
        self.name = name
        self.key = name.encode()
        self.owner = owner
        self.dead = dead
        self.ready: deque[Message] = deque()
        self.loading: Loading | None = None
        self.stored = Runs(account)
        self.tail: list[Message] = []
        self.returned: list[int] = []
        self.again: dict[int, Message] = {}
        self.counted = Singles(account)
        self.kept: dict[int, Message] = {}
        self.spilled = False
        self.pending = 0
        self.in_flight = 0
        self.leaving: list[Subscription] = []
        self.marked = 0
        self.mark = 0
        self.mark_asked = 0
        self.mark_segment = 0  # the number of the segment that holds the newest mark
        self.step = MARK_STEP
        self._late_mark = 0  # the mark at which consumers had to wait last
        self.subscriptions: list[Subscription] = []
        self._turn = 0
        self.served = 0
        self.idle_since = 0.0
        self.damage = ""
        self.gone = False

    @property
    def waiting(self) -> int:
        """Messages that a consumer could get now or when they are read back."""
        count = len(self.ready) + len(self.tail) + len(self.again) + self.stored.count + self.counted.count
        if (loading := self.loading) is not None:
            weigh = (self.stored if loading.fresh else self.counted).weigh
            count += sum(weigh(a, b)[0] for _, _, a, b in loading.entries) - len(loading.gone)
        return count

    @property
    def in_use(self) -> bool:
        return bool(self.in_flight or self.pending or self.subscriptions or self.waiting)

    def attach(self, subscription: Subscription) -> None:
        subscription.queue = self
        self.subscriptions.append(subscription)
        self.step = MARK_STEP

    def detach(self, subscription: Subscription) -> None:
        at = self.subscriptions.index(subscription)
        del self.subscriptions[at]
        if at < self._turn:
            self._turn -= 1

    # --- in -----------------------------------------------------------------------------------------------------------

    def show(self, messages: list[Message]) -> None:
        """Messages that were never delivered become visible; they come behind all that is here."""
        if self.stored or (self.loading is not None and self.loading.fresh):
            self.tail += messages
        else:
            self.ready += messages

    def put_back(self, message: Message) -> None:
        """To its old place, as one that was delivered before."""
        if message.deliveries == SETTLED:
            self.marked -= 1
            return
        if not message.place:
            self.kept[message.seq] = message
        counts = pack_counts(message.deliveries, message.failures, message.size)
        self.counted.add(message.seq, message.place, message.envelope.note, counts)

    def loaded(self, messages: list[Message], *, fresh: bool) -> None:
        """What was read back is in memory now."""
        self.loading = None
        if fresh:
            self.ready += messages
            if not self.stored:
                self.ready += self.tail
                self.tail = []
        else:
            for message in messages:
                self.again[message.seq] = message
                heappush(self.returned, message.seq)

    def withdraw(self, seq: int) -> list[Removed] | Message | None:
        """Take a message that was delivered before out of here, wherever it waits.

        The message, or what is known of it where it is on disk; None where it does not wait here.
        """
        if removed := self.counted.discard(seq, seq):
            self.kept.pop(seq, None)
            return removed
        if (message := self.again.pop(seq, None)) is not None:
            return message  # its seq in the heap is passed over
        loading = self.loading
        if loading is not None and not loading.fresh and seq not in loading.gone:
            for entry in loading.entries:
                if entry[0] == seq:
                    _, place, note, counts = entry
                    if place:
                        loading.gone.add(seq)
                    else:
                        loading.entries.remove(entry)
                        del self.kept[seq]
                    return [Removed(place, note, 1, counts >> 32)]
        return None

    def flying(self, id: bytes) -> Message | None:
        """The message with this id that is with a consumer."""
        for subscription in (*self.subscriptions, *self.leaving):
            if (message := subscription.in_flight.get(id)) is not None:
                return message
        return None

    def in_memory(self) -> Iterator[Message]:
        """Every message here that is an object: waiting, loaded or in flight. Not those in `kept`."""
        yield from self.loose()
        yield from self.ready
        yield from self.tail

    def loose(self) -> Iterator[Message]:
        """Those of them that were delivered, or are."""
        for subscription in (*self.leaving, *self.subscriptions):
            yield from subscription.in_flight.values()
        yield from self.again.values()

    # --- to disk ------------------------------------------------------------------------------------------------------

    def spill_tail(self) -> int:
        """What is in memory behind `stored` becomes part of it. Returns how many bytes of memory that frees."""
        tail, self.tail = self.tail, []
        for entry in entries_of(self._placed(tail)):
            self.stored.add(*entry)
        return _freed(tail)

    def spill_ready(self, keep: int) -> int:
        """The same for the head, but for `keep` messages. Not while messages behind it are being read."""
        excess = len(self.ready) - keep
        if excess <= 0 or self.loading is not None:
            return 0
        pop = self.ready.pop
        spilled = [pop() for _ in range(excess)]
        spilled.reverse()
        self.stored.add_front(entries_of(self._placed(spilled)))
        return _freed(spilled)

    def spill_again(self) -> int:
        """The same for what was delivered before."""
        if self.loading is not None:
            return 0
        spilled = list(self.again.values())
        self.again.clear()
        self.returned.clear()
        for message in spilled:
            self.put_back(message)
        return _freed(spilled)

    def _placed(self, messages: list[Message]) -> list[Message]:
        """Keeps those in memory only, for which an entry can only hold their turn."""
        if not all(map(_place, messages)):
            self.kept.update((message.seq, message) for message in messages if not message.place)
        return messages

    # --- out ----------------------------------------------------------------------------------------------------------

    def dispatch(self, keeper: Keeper) -> None:
        """Hand out what waits: to each subscription that is able a fair share, round robin."""
        while waiting := len(self.again) + len(self.ready) or self._on_disk:
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
            short = False  # the mark has to become durable first, or what comes next has to be read
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
                    del batch[taken:]
                subscription.credit -= taken
                self.in_flight += taken
                keeper.handed(self, batch)
                last = subscription
                waiting = len(self.again) + len(self.ready)
                if not waiting:
                    break
                left -= 1
            if last is not None:  # looked up once a round: there may be thousands
                self._turn = subscriptions.index(last) + 1
            if short:
                return

    @property
    def _on_disk(self) -> int:
        """1 where something waits that has to be read back first."""
        return 1 if self.stored or self.counted or self.loading is not None else 0

    def _take(self, count: int, keeper: Keeper) -> list[Message]:
        """Up to `count` from the front; none where the mark has to become durable, or they have to be read, first."""
        if self.again or self.counted or (self.loading is not None and not self.loading.fresh):
            batch = self._take_returned(count)
            if not batch:
                keeper.ask_load(self)
            return batch
        ready = self.ready
        if len(ready) < LOAD_LOW and self.stored and not self._awaits_mark:
            keeper.ask_load(self)
        if not ready:
            return []
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

    @property
    def _awaits_mark(self) -> bool:
        """Whether what comes next cannot go out before a mark is durable. What is read back then might have to go for
        want of memory, and be read again, in circles.
        """
        if self.ready:
            return self.ready[0].place > 0 and self.ready[0].seq > self.mark
        return self.mark < self.mark_asked and self.stored.first > self.mark and self.stored.first_place > 0

    def _take_returned(self, count: int) -> list[Message]:
        """Those that come before all that are still on disk."""
        limit = self.counted.first if self.counted else 1 << 64
        if self.loading is not None and not self.loading.fresh:
            limit = min(limit, self.loading.entries[0][0])
        batch: list[Message] = []
        returned, again = self.returned, self.again
        while returned and len(batch) < count:
            if returned[0] > limit:
                break
            if (message := again.pop(heappop(returned), None)) is not None:
                batch.append(message)
        return batch

    def _within_mark(self, batch: list[Message], keeper: Keeper) -> list[Message]:
        """Keep back what is beyond the durable mark, and ask for the next mark before consumers have to wait for it.

        Messages in memory only may always go: a crash ends them.
        """
        highest = 0
        for at, message in enumerate(batch):
            if message.place:
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
                self.again[message.seq] = message
                heappush(self.returned, message.seq)
        else:
            self.ready.extendleft(reversed(batch))


_place = attrgetter("place")
_size = attrgetter("size")


def _freed(spilled: list[Message]) -> int:
    """Memory that goes back when these are on disk only. Those in memory only stay what they are."""
    placed = spilled if all(map(_place, spilled)) else [message for message in spilled if message.place]
    size: int = sum(map(_size, placed))
    return size + MESSAGE_COST * len(placed)
