"""One connection: two directions of a network that delays, cuts and loses, and the record of what the broker saw.

What a client says waits in `coming` until the seed lets some bytes of it arrive; a frame may be cut at any byte. What
the broker writes waits in `going`; what is more than `window` bytes of it stays in the broker's hands (the socket is
full). The history is written here, at the broker's end: a frame when its last byte is read, a delivery when it is
written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.session import Session, State
from tests.sim.view import Delivery, View
from tests.support.history import Event, What
from tests.support.wire import Got, WireError, take_frame

if TYPE_CHECKING:
    from tests.sim.shell import Shell

Deed = Callable[["Line"], None]  # what a frame means, for the record


class Line:
    def __init__(self, shell: Shell, name: str, window: int) -> None:
        self.shell = shell
        self.name = name
        self.window = window
        self.view = View()  # as the broker must see it
        self.session: Session = shell.session()
        self.coming: deque[tuple[bytes, Deed | None]] = deque()
        self._cut = 0  # how many bytes of the first frame in `coming` have arrived
        self.going: deque[tuple[Got, int]] = deque()
        self._sent_bytes = 0  # written by the broker and not yet taken by the client
        self._raw = b""
        self._automatic: list[tuple[str, str]] = []  # (subscription, message), written and not yet with the kernel
        self._last_words = False  # the client has said DISCONNECT, or hung up
        self._doubted = False
        self.version = "1.2"
        self.closed = False
        shell.lines[self.session] = self

    # --- from the client to the broker

    def say(self, data: bytes, deed: Deed | None) -> None:
        """`data` without bytes: the client has hung up."""
        if not self.closed:
            self.coming.append((data, deed))

    @property
    def waiting(self) -> int:
        return sum(len(data) for data, _ in self.coming) - self._cut + bool(self.coming)

    @property
    def read(self) -> bool:
        """Whether the broker reads from this connection now."""
        return not self.closed and not self.session.paused and not self.shell.congested

    def arrive(self, size: int) -> None:
        """Up to `size` more bytes reach the broker in one piece."""
        chunk: list[bytes] = []
        while self.coming and size > 0:
            data, deed = self.coming[0]
            if not data:
                if not chunk:
                    self.coming.popleft()
                    self._last_words = True
                    self.session.shut_down(innocent=False)
                break
            part = data[self._cut : self._cut + size]
            size -= len(part)
            chunk.append(part)
            if self._cut + len(part) < len(data):
                self._cut += len(part)
                break
            self.coming.popleft()
            self._cut = 0
            if deed is not None and self.session.state is not State.CLOSING:
                deed(self)
        if chunk:
            self.shell.receive(self, b"".join(chunk))
        self.look()

    def look(self) -> None:
        """Whether all that was read has been looked at: what is held back, or stands behind an error, was not."""
        session = self.session
        failed = session.fault is not None or (session.state is State.CLOSING and not self._last_words)
        if (failed or session.paused) and not self._doubted and not self.closed:
            self._doubted = True
            self.log(What.DOUBT)

    # --- the record of frames that the broker has read

    def log(self, what: What, message: str = "", **fields: object) -> None:
        self.shell.history.append(Event(what, self.name, message, **fields))  # type: ignore[arg-type]

    def other(self, receipt: str) -> None:
        self.log(What.OTHER, receipt=receipt)

    def goodbye(self, receipt: str) -> None:
        self._last_words = True
        self.other(receipt)

    def subscribe(self, name: str, queue: str, mode: str, prefetch: int, receipt: str) -> None:
        self.view.subscribe(name, queue, mode)
        prefetch = 0 if mode == "auto" else prefetch
        self.log(What.SUBSCRIBE, queue=queue, subscription=name, prefetch=prefetch, receipt=receipt)

    def unsubscribe(self, name: str, receipt: str) -> None:
        self.view.unsubscribe(name)
        self.log(What.UNSUBSCRIBE, subscription=name, receipt=receipt)

    def settle(self, command: str, sub: str, message: str, transaction: str, receipt: str, requeue: bool) -> None:
        covered = self.view.settle(sub, message, transaction)
        what = What.ACK if command == "ACK" else What.NACK
        if sub not in self.view.subs:
            if what is What.ACK:
                self.log(what, message, transaction=transaction, receipt=receipt)
            else:
                self.other(receipt)  # a NACK that comes late is about nothing
            return
        if not covered:
            self.other(receipt)
        for each in covered:
            self.log(
                what, each, transaction=transaction, subscription=sub, requeue=requeue,
                receipt=receipt if each == covered[-1] else "",
            )  # fmt: skip

    def begin(self, name: str, receipt: str) -> None:
        self.view.begin(name)
        self.other(receipt)

    def commit(self, name: str, receipt: str) -> None:
        self.view.commit(name)
        self.log(What.COMMIT, transaction=name, receipt=receipt)

    def abort(self, name: str, receipt: str) -> None:
        self.view.abort(name)
        self.log(What.ABORT, transaction=name, receipt=receipt)

    # --- from the broker to the client

    @property
    def _unsent(self) -> int:
        return max(0, self._sent_bytes - self.window)

    def flush(self) -> None:
        """What the session has to say goes out, or as much as the socket takes."""
        session = self.session
        if not session.out:
            return
        data = b"".join(session.out)
        session.out.clear()
        if self.closed:
            return
        self.shell.note(b">", self.name.encode(), data)
        session.wrote(self.shell.clock.now)
        self._sent_bytes += len(data)
        self._parse(data)
        session.make_room(self.shell.settings.limits.output - self._unsent)
        self._flushed()
        if session.closing and not self._unsent:
            self.end()

    def _flushed(self) -> None:
        if self._unsent:
            return
        for sub, message in self._automatic:
            self.log(What.ACK, message, subscription=sub)
        self._automatic.clear()
        self.shell.flushed(self)

    def _parse(self, data: bytes) -> None:
        data = self._raw + data
        at = 0
        while True:
            got, end = take_frame(data, self.version, at)
            if got is None:
                break
            self.going.append((got, end - at))
            at = end
            self._written(got)
        self._raw = data[at:]

    def _written(self, got: Got) -> None:
        if got.command == "MESSAGE":
            self._message(got)
        elif got.command == "RECEIPT":
            self.log(What.RECEIPT, receipt=got["receipt-id"])
            self.shell.counts["receipts"] += 1
        elif got.command == "ERROR":
            self.log(What.ERROR)
            self.shell.error(self, got)
        else:
            self.version = got["version"]

    def _message(self, got: Got) -> None:
        sub = got["subscription"]
        delivery = self.delivery(got, self.view)
        mode = self.view.subs[sub].mode if sub in self.view.subs else ""
        if not self.view.delivered(sub, delivery):
            if delivery.queue.startswith("/topic/"):
                return  # a topic's messages are encoded when they come, and may meet an UNSUBSCRIBE before the turn
            raise WireError(f"{self.name} gets {delivery.message} for {sub}, which it has ended")
        self.log(
            What.DELIVERED, delivery.message, queue=delivery.queue, subscription=sub, ident=got["message-id"],
            redelivered=got.get("redelivered") == "true", intact=self.shell.intact(delivery.message, got, self.version),
        )  # fmt: skip
        if mode == "auto" and not delivery.queue.startswith("/topic/"):
            self._automatic.append((sub, delivery.message))
        self.shell.counts["deliveries"] += 1

    def delivery(self, got: Got, view: View) -> Delivery:
        """What a MESSAGE is about, as one who has that view must take it."""
        message = got.body.partition(b"|")[0].decode()
        sub = view.subs.get(got["subscription"]) or view.ended[got["subscription"]]
        queue = got["destination"] if sub.queue.startswith("/topic/") else sub.queue
        return Delivery(message, queue, got.get("ack") or got["message-id"])

    def take(self, count: int) -> list[Got]:
        """The client takes up to that many frames out of its socket."""
        frames: list[Got] = []
        while self.going and len(frames) < count:
            got, size = self.going.popleft()
            self._sent_bytes -= size
            frames.append(got)
        if frames and not self.closed:
            self.session.make_room(self.shell.settings.limits.output - self._unsent)
            self._flushed()
            if self.session.closing and not self._unsent and not self.session.out:
                self.end()
        return frames

    # --- the end

    def end(self) -> None:
        """The connection is gone, for the broker; what it wrote before may still arrive."""
        if not self.closed:
            self.closed = True
            self.coming.clear()
            self.log(What.CLOSED)
            self.shell.gone(self)

    def cut(self) -> None:
        """RST: everything under way is lost in both directions."""
        self.going.clear()
        self.end()
