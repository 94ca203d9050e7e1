"""One connection's STOMP conversation, sans-IO: bytes in, calls on the broker, bytes out.

The shell calls `receive` with what came, `tick` when it is due, and takes `out` once per turn of the loop.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from broker.budget import Budget
from broker.config import Limits
from broker.core import DROPPED, AckMode, Broadcast, Broker, Message, Rejects, Subscription
from broker.errors import (
    BadFrame,
    DiskFull,
    HeldTooLong,
    LimitReached,
    NotAllowedNow,
    NotStomp,
    ProtocolError,
    QueueDamaged,
    StorageFailed,
)
from broker.session import connecting
from broker.session.consuming import Consumer, settlement
from broker.session.delivering import NOT_KEPT, encode, encode_broadcast
from broker.session.receipts import Waiting, asked_for, receipt, receipts
from broker.session.sending import STEERING, Address, address
from broker.session.states import NEXT, State
from broker.session.transactions import Transactions, by_queue
from broker.stomp import AckRun, Frame, Parser, SendRun, WireLimits

_BIG_BODY: Final = 64 * 1024  # a body over this takes its room from the budget before it is read
_SLOWEST_BODY: Final = 1024  # bytes/s that a body must keep up after the frame deadline

Item = SendRun | AckRun | Frame | ProtocolError


class Session:
    """Owns the state of the conversation and the order of everything that goes out.

    out:     bytes to be written, in order; the shell joins and clears it.
    room:    bytes of deliveries that may still be added; the shell sets it after each write.
    paused:  nothing more is to be read from the peer for now.
    closing: write `out`, then close.
    due:     when `tick` is to be called next, monotonic seconds.
    """

    def __init__(
        self, broker: Broker, budget: Budget, limits: Limits, token: str, now: float, dirty: list[Session]
    ) -> None:
        self.broker = broker
        self.limits = limits
        self.token = token
        self.state = State.NEW
        self.out: list[bytes] = []
        self.room = limits.output
        self.closing = False
        self.paused = False
        self.fault: ProtocolError | None = None
        self._innocent = False  # the end of this connection says nothing against the message in hand
        self._dirty = dirty  # sessions with output, for the shell; each is in it once
        self._budget = budget
        self._frames = budget.account("frames in the making")
        self._booked = 0
        self._parser = Parser(
            WireLimits(
                preauth_frame=limits.preauth_frame,
                header_line=limits.header_line,
                headers=limits.headers,
                header_block=limits.header_block,
                body=limits.body,
            ),
            steering=STEERING,
        )
        self._consumer = Consumer(broker, self, token, limits)
        self._transactions = Transactions(limits, budget.account("transactions"))
        self._waiting = Waiting()
        self._last_lsn = 0
        self._watched = 0
        self._backlog: deque[Item] = deque()
        self._held_since = 0.0
        self._frame_since = 0.0
        self._handed: list[tuple[Subscription, list[Message]]] = []  # for ack:auto, not yet with the kernel
        self.blocked = False  # deliveries wait for room
        self._heart = connecting.Heart(now)
        self.beats = False  # the peer wants heart-beats: `wrote` is to be called after each write
        self.due = now + limits.login_deadline
        self._opened = now

    # --- in -----------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """What the peer sent. Raises StorageFailed; everything that is the peer's fault becomes an ERROR."""
        self._heart.heard = now
        if self.state in (State.CLOSING, State.CLOSED):
            return
        self._take_in(self._parser.feed(data), now)

    def _take_in(self, items: list[Item], now: float) -> None:
        if self._held_since:
            self._backlog += items
        else:
            self._process(items, now)
        parser = self._parser
        if self.state is State.CLOSING:
            return
        if parser.mid_frame:
            if items or not self._frame_since:
                self._frame_since = now
                self.due = min(self.due, now + self.limits.frame_deadline)
            self._book_frames(parser.wanted, now)
        elif self._frame_since:
            self._frame_since = 0.0
            self._book_frames(0, now)

    def _book_frames(self, wanted: int, now: float) -> None:
        """What the frame in the making holds, or will. A large body is held back, or refused, before it is read."""
        self._frames.book(wanted - self._booked)
        self._booked = wanted
        if wanted > _BIG_BODY and self._budget.over and not self._held_since:
            if self._consumer.busy:
                self._fail(self._refusal(), None)
            else:
                self._hold(now)

    def _process(self, items: list[Item], now: float) -> None:
        for at, item in enumerate(items):
            if self.state is State.CLOSING:
                return
            try:
                if type(item) is SendRun:
                    if self._budget.over and not self._may_wait(now):
                        self._backlog.extendleft(reversed(items[at:]))
                        return
                    self._send(item)
                elif type(item) is AckRun:
                    self._ack_run(item)
                elif isinstance(item, ProtocolError):
                    raise item
                elif isinstance(item, Frame):
                    if item.command == "COMMIT" and self._budget.alarm and not self._may_commit(item, now):
                        self._backlog.extendleft(reversed(items[at:]))
                        return
                    self._frame(item, now)
            except ProtocolError as error:
                self._fail(error, item)

    def _frame(self, frame: Frame, now: float) -> None:
        state = NEXT.get((self.state, frame.command))
        if state is None:
            raise NotAllowedNow(f"{frame.command} is not allowed in state {self.state.value}")
        if frame.command in ("CONNECT", "STOMP"):
            self._connect(frame, now)
            return
        lsn = 0
        headers = frame.headers
        if frame.command == "SUBSCRIBE":
            self._consumer.subscribe(headers)
        elif frame.command == "UNSUBSCRIBE":
            lsn = self._consumer.unsubscribe(headers)
        elif frame.command in ("ACK", "NACK"):
            lsn = self._ack(frame)
        elif frame.command == "BEGIN":
            self._transactions.begin(connecting.needed(frame, "transaction"))
        elif frame.command == "COMMIT":
            lsn = self._commit(connecting.needed(frame, "transaction"))
        elif frame.command == "ABORT":
            self._consumer.undo(self._transactions.end(connecting.needed(frame, "transaction")))
        self._last_lsn = max(self._last_lsn, lsn)
        if frame.command == "DISCONNECT":
            self.state = State.CLOSING
            self.room = 0  # an ACK in front of it gave credit: nothing may be handed out on that
            self._innocent = True
            self._answer(receipt(frame.receipt) if frame.receipt is not None else b"", close=True)
        elif frame.receipt is not None:
            self._answer(receipt(frame.receipt))

    def _connect(self, frame: Frame, now: float) -> None:
        version, beats = connecting.negotiate(frame, self.limits)
        self._parser.version = self._consumer.version = version
        self._heart.start(beats, now)
        self.beats = beats[0] > 0
        self.due = self._heart.due(now)
        self.state = State.OPEN
        self._write(connecting.connected(frame, version, self.token, self.limits))
        self.room = self.limits.output
        self._take_in(self._parser.resume(), now)

    # --- SEND ---------------------------------------------------------------------------------------------------------

    def _send(self, run: SendRun) -> None:
        memo: Address | None = run.block.memo
        if memo is None:
            memo = run.block.memo = address(run.block, self.token, self.limits)
        dropped = False
        if memo.reply_to is not None:
            self._consumer.expect_replies(memo.reply_to)
        if memo.transaction is None:
            lsn = self.broker.publish(memo.route, run.owns, run.bodies)
            if lsn > 0:
                self._last_lsn = lsn
            elif lsn == DROPPED:
                dropped = True
        else:
            transaction = self._transactions.get(memo.transaction)
            size = sum(map(len, run.bodies)) + (sum(map(len, run.owns)) if run.owns else 0)
            self._transactions.count(transaction, len(run.bodies), size)
            transaction.sends.append((memo.route, run.owns, run.bodies))
        if run.receipts is not None:
            self._answer(receipts(run.receipts, dropped=dropped))

    def _may_wait(self, now: float) -> bool:
        """No room in memory or on the disk: whether this SEND may go on now. reliability.md 2.8, "holding back".

        A connection that may acknowledge is refused at once, its ACKs would be stuck behind the pause; any other
        is paused. Raises HeldTooLong.
        """
        if self._consumer.busy:
            raise self._refusal()
        self._hold(now)
        return False

    def _may_commit(self, frame: Frame, now: float) -> bool:
        """The disk is full: whether this COMMIT may go on now. One without SENDs always may; it frees what it names."""
        name = frame.headers.get("transaction")
        return not name or not self._transactions.sends(name) or self._may_wait(now)

    def _refusal(self) -> HeldTooLong:
        budget = self._budget
        if budget.alarm:
            return DiskFull(budget.alarm)
        return HeldTooLong(f"the broker holds {budget.used} bytes, memory.limit is {budget.limit}")

    def _held_out(self) -> HeldTooLong:
        held = f"held back for {self.limits.hold:g} s"
        if self._budget.alarm:
            return DiskFull(f"{held}: {self._budget.alarm}")
        return HeldTooLong(f"{held}, the broker is over memory.limit")

    def _hold(self, now: float) -> None:
        self._held_since = now
        self.paused = True
        self.due = min(self.due, now + self.limits.hold)

    def release(self, now: float) -> bool:
        """The budget may have room again: go on where the session was held back. Returns whether it did."""
        if not self._held_since or self._budget.over:
            return False
        self._held_since = 0.0
        self.paused = False
        items = list(self._backlog)
        self._backlog.clear()
        self._process(items, now)
        return True

    # --- ACK, NACK, transactions --------------------------------------------------------------------------------------

    def _ack_run(self, run: AckRun) -> None:
        lsn = self._consumer.ack_run(run.ids, run.headers.get("subscription"))
        self._last_lsn = max(self._last_lsn, lsn)

    def _ack(self, frame: Frame) -> int:
        named = settlement(frame)
        if named.transaction is None:
            if frame.command == "ACK":
                return self._consumer.ack(named.id, named.subscription)
            return self._consumer.nack(named.id, named.subscription, requeue=named.requeue, failure=named.failure)
        transaction = self._transactions.get(named.transaction)
        self._transactions.count(transaction, 1, len(named.failure))
        held = self._consumer.hold(named.id, named.subscription)
        if frame.command == "ACK":
            transaction.acks += held
            if not held:
                transaction.late += self._consumer.hold_late(named.id)
        else:
            transaction.rejects.append((held, named.requeue, named.failure))
        # A cumulative one gives credit for all of them at once: each counts, or prefetch would bound nothing.
        self._transactions.count(transaction, max(len(held) - 1, 0), 0)
        return 0

    def _commit(self, name: str) -> int:
        transaction = self._transactions.get(name)
        rejects: Rejects = [
            (queue, messages, requeue, failure)
            for batch, requeue, failure in transaction.rejects
            for queue, messages in by_queue(batch).items()
        ]
        late = [(queue, message) for _, queue, message in transaction.late]
        lsn = self.broker.commit(transaction.sends, list(by_queue(transaction.acks).items()), late, rejects)
        self._transactions.end(name)
        self._consumer.committed(transaction)
        return lsn

    # --- out ----------------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if not self.out:
            self._dirty.append(self)
        self.out.append(data)

    def _answer(self, data: bytes, *, close: bool = False) -> None:
        """A receipt, or the last words, in frame order: behind everything that this connection's frames wait for."""
        lsn = self._last_lsn
        if not self._waiting and lsn <= self.broker.journal.durable:
            self._emit(data, close)
            return
        self._waiting.add(lsn, data, close)
        if lsn > self._watched:
            self._watched = lsn
            self.broker.watch(lsn, self)

    def _emit(self, data: bytes, close: bool) -> None:
        if self.state is State.CLOSED:
            return
        self._write(data)
        self.closing = self.closing or close

    def durable(self, lsn: int) -> None:
        if self.state is State.CLOSED or not self._waiting:
            return
        if not self.out:
            self._dirty.append(self)
        self.closing = self._waiting.take(lsn, self.out) or self.closing

    def refuse(self, text: str) -> None:
        if self.state is State.OPEN:
            self._fail(QueueDamaged(text), None)

    def deliver(self, subscription: Subscription, messages: list[Message]) -> int:
        if not self.out:
            self._dirty.append(self)
        count, size = encode(self.out, subscription, messages, self._parser.version, self.room)
        self.room -= size
        self.blocked = self.room <= 0
        self.broker.counters.delivered += count
        if subscription.ack is AckMode.AUTO:
            # Settled once the kernel has it: until then it is `_handed`, and an ACK of it changes nothing.
            subscription.credit += count
            if subscription.queue is not None:
                self._handed.append((subscription, messages if count == len(messages) else messages[:count]))
            else:
                subscription.in_flight.clear()
        elif subscription.queue is None:
            # Nothing of a topic ever comes back, so the ids are all that is kept.
            subscription.in_flight.update((message.id, NOT_KEPT) for message in messages[:count])
        return count

    def broadcast(self, subscription: Subscription, broadcast: Broadcast) -> None:
        data = encode_broadcast(subscription, broadcast, self._parser.version)
        self._write(data)
        self.room -= len(data)
        self.blocked = self.room <= 0
        self.broker.counters.delivered += len(broadcast.messages)

    def flushed(self) -> bool:
        """Everything in `out` is with the kernel: what went to `ack:auto` subscriptions is settled by that.

        Returns whether that changed anything for the broker. Raises StorageFailed.
        """
        if self.blocked:
            # There was no room before; who waits for it is looked at again.
            self.blocked = False
            self._consumer.touch()
        elif not self._handed:
            return False
        handed, self._handed = self._handed, []
        for subscription, messages in handed:
            if subscription.queue is not None:
                subscription.in_flight.clear()
                self._last_lsn = max(self._last_lsn, self.broker.settle(subscription.queue, messages))
        return True

    def make_room(self, size: int) -> None:
        """What the peer's output may take now, in bytes. A connection that is ending takes nothing."""
        self.room = size if self.state is State.OPEN else 0
        self.blocked = self.blocked or size <= 0

    @property
    def has_topics(self) -> bool:
        return self._consumer.has_topics

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _fail(self, error: ProtocolError, item: Item | None) -> None:
        """The peer's fault, or a refusal: ERROR behind what waits for its receipt, then close. STOMP 1.2, "ERROR"."""
        # Its traceback leads back to this session and to the bytes that came: a circle that only the collector ends.
        error.__traceback__ = error.__context__ = None
        self.fault = error
        self._innocent = isinstance(error, HeldTooLong | QueueDamaged)
        known = self.state is State.OPEN
        self.state = State.CLOSING
        self.room = 0
        self.drop_input()
        if isinstance(error, NotStomp):
            self._answer(connecting.HTTP_REFUSAL if error.hint == "http" else b"", close=True)
            return
        about = asked_for(item) if known else None
        self._answer(connecting.error_frame(error, self._parser.version, about, known=known), close=True)

    def storage_failed(self, error: StorageFailed) -> None:
        """Nothing is receipted any more: whoever waits is told so, with the first receipt that it will not get."""
        if self.state in (State.CLOSING, State.CLOSED) and not self._waiting:
            return
        missed = self._waiting.clear()
        self.state = State.CLOSING
        self._innocent = True
        self.drop_input()
        self._emit(connecting.storage_error(missed), close=True)

    def shut_down(self, *, innocent: bool) -> None:
        """No more input; close behind what is still to be receipted.

        innocent: the broker stops, and the messages in flight have nothing to do with it; else the peer hung up.
        """
        if self.state in (State.NEW, State.OPEN):
            self.state = State.CLOSING
            self.room = 0
            self._innocent = innocent
            self.drop_input()
            self._answer(b"", close=True)

    def drop_input(self) -> None:
        self._backlog.clear()
        self._frames.book(-self._booked)
        self._booked = 0
        self._held_since = 0.0
        self.paused = False

    def ended(self) -> None:
        """The connection is closed; what it had in flight returns. Raises StorageFailed."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.room = 0
        self.drop_input()
        self._waiting.clear()
        self.out.clear()
        # DISCONNECT, a stop and a refusal for want of room say nothing about the messages in flight; anything else
        # may mean that the consumer died of one.
        lost = not self._innocent
        handed, self._handed = self._handed, []
        blamed: set[Subscription] = set()
        for subscription, messages in handed:
            if subscription.queue is not None:
                failures = 1 if lost and subscription not in blamed else 0
                blamed.add(subscription)
                subscription.in_flight.clear()
                self.broker.give_back(subscription.queue, messages, failures=failures)
        for transaction in self._transactions.end_all():
            self._consumer.undo(transaction)
        self._consumer.end_all(lost=lost)

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now: float, *, moving: bool) -> None:
        """Deadlines and heart-beats. `moving`: the peer took some of our output since the last call."""
        limits = self.limits
        if self.state is State.NEW:
            if now >= self._opened + limits.login_deadline:
                self._fail(BadFrame(f"no CONNECT within {limits.login_deadline:g} s"), None)
            self.due = self._opened + limits.login_deadline
            return
        if self.state is not State.OPEN:
            self.due = now + 3600.0
            return
        due = self._heart.due(now)
        if self._held_since:
            self.release(now)
            if self._held_since and now >= self._held_since + limits.hold:
                self._held_since = 0.0
                why = self._held_out()
                self._fail(why, self._backlog[0] if self._backlog else None)
                return
            due = min(due, now + 1.0)
            self._heart.heard = now  # it is we who do not read
            if self._frame_since:
                self._frame_since = now
        if self._frame_since:
            waited = now - self._frame_since
            if waited >= limits.frame_deadline and self._parser.held < waited * _SLOWEST_BODY:
                late = f"a frame that began {waited:.0f} s ago is not complete (limits.frame_deadline)"
                self._fail(BadFrame(late), None)
                return
            due = min(due, max(self._frame_since + limits.frame_deadline, now + 1.0))
        if moving:
            self._heart.heard = now
        if self._heart.dead(now):
            silence = f"nothing was heard for {now - self._heart.heard:.1f} s, not even a heart-beat"
            self._fail(LimitReached(silence), None)
            return
        if self._heart.beat(now):
            self._write(b"\n")
        self.due = min(due, self._heart.due(now))

    def wrote(self, now: float) -> None:
        self._heart.wrote = now
