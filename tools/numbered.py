"""A quick client for backlogs of numbered messages: `fill` sends them, `Drain` takes them and holds their order.

Each body begins with 19 digits: the number of its queue and its own number there.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BODY_BYTES: Final = 1024
NUMBER_DIGITS: Final = 19
QUEUE_FACTOR: Final = 10**10  # number in a body = queue * this + number in the queue
BATCH: Final = 500  # SENDs behind one receipt
BATCHES_WAITING: Final = 4
SILENCE_SECONDS_MAX: Final = 60.0  # without any byte from the broker
SUBSCRIPTIONS_PER_CONNECTION: Final = 100  # what limits.subscriptions allows


class Wrong(Exception):
    """A message is missing, came twice or out of order, or the broker refused something."""


class Wire:
    """A blocking STOMP connection that reads whole frames at a time and takes them apart quickly."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 2.0)
        self.socket.settimeout(SILENCE_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tail = b""
        self.receipts = 0
        self.send(b"CONNECT\naccept-version:1.2\nhost:x\nheart-beat:0,0\n\n\0")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> list[tuple[int, bytes]]:
        """(number in the body, ack id) of the messages in what comes next; receipts are counted."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise Wrong("the broker closed a connection")
        *frames, self._tail = (self._tail + data).split(b"\0")
        found = []
        for frame in frames:
            head, _, body = frame.partition(b"\n\n")
            head = head.lstrip(b"\n")
            if head.startswith(b"MESSAGE\n"):
                at = head.index(b"\nack:") + 5
                end = head.find(b"\n", at)
                found.append((int(body[:NUMBER_DIGITS]), head[at : end if end > 0 else len(head)]))
            elif head.startswith(b"RECEIPT\n"):
                self.receipts += 1
            elif head.startswith(b"ERROR\n"):
                raise Wrong(f"ERROR: {head[:300]!r} {body[:200]!r}")
        return found

    def close(self) -> None:
        self.socket.close()


def destination(queue: int) -> bytes:
    return b"/queue/backlog.%d" % queue


def fill(port: int, queues: int, each: int) -> float:
    """Messages 0 to `each` - 1 for every queue, in turn, a receipt per batch. Seconds until the last receipt."""
    wire = Wire(port)
    filling = b"x" * (BODY_BYTES - NUMBER_DIGITS)
    heads = [b"SEND\ndestination:%s\n" % destination(queue) for queue in range(queues)]
    start = time.perf_counter()
    batches, frames = 0, 0
    parts: list[bytes] = []
    last = queues * each
    for number in range(each):
        for queue in range(queues):
            frames += 1
            ends = frames % BATCH == 0 or frames == last
            receipt = b"receipt:%d\n" % batches if ends else b""
            body = b"%019d" % (queue * QUEUE_FACTOR + number)
            parts.append(b"%s%s\n%s%s\0" % (heads[queue], receipt, body, filling))
            if ends:
                batches += 1
                wire.send(b"".join(parts))
                parts.clear()
                while batches - wire.receipts >= BATCHES_WAITING:
                    wire.read()
    while wire.receipts < batches:
        wire.read()
    wire.close()
    return time.perf_counter() - start


@dataclass
class Drained:
    seconds: float  # until the last ACK was receipted
    first: float  # seconds until the first message
    pause: float  # the longest time between two chunks of messages


class Drain:
    """Takes and acknowledges everything, and holds that each queue gives 0, 1, 2 ... `each` - 1."""

    def __init__(self, port: int, queues: int, each: int) -> None:
        self._port = port
        self._each = each
        self._left = queues * each
        self._expected = [0] * queues
        self._selector = selectors.DefaultSelector()
        self._first = self._last = self._pause = 0.0
        # A connection of its own for each hundred queues; one is enough for one.
        self._shares = [
            range(at, min(at + SUBSCRIPTIONS_PER_CONNECTION, queues))
            for at in range(0, queues, SUBSCRIPTIONS_PER_CONNECTION)
        ]

    def run(self, start: float) -> Drained:
        """`start`: perf_counter() from which both numbers count. Connects again and again until it can.

        The first connection has its first message before the others connect.
        """
        wires: list[Wire] = []
        while self._left:
            if len(wires) < len(self._shares) and (self._first or not wires):
                wires.append(self._subscribe(self._shares[len(wires)], start))
                continue
            ready = self._selector.select(SILENCE_SECONDS_MAX)
            if not ready:
                raise Wrong(f"silence, {self._left} messages are missing")
            for key, _ in ready:
                taken = key.data.read()
                if taken:
                    now = time.perf_counter() - start
                    self._first = self._first or now
                    self._pause = max(self._pause, now - (self._last or now))
                    self._last = now
                self._check(taken)
                key.data.send(b"".join(b"ACK\nid:%s\n\n\0" % ack for _, ack in taken))
        for wire in wires:  # a receipt for all the ACKs
            wire.send(b"DISCONNECT\nreceipt:bye\n\n\0")
        for wire in wires:
            while not wire.receipts:
                if wire.read():
                    raise Wrong("a message came that was not sent")
            wire.close()
        seconds = time.perf_counter() - start
        self._selector.close()
        return Drained(seconds, self._first, self._pause)

    def _subscribe(self, share: range, start: float) -> Wire:
        prefetch = 1000 if len(self._expected) == 1 else 100
        wire = self._connect(start)
        wire.send(
            b"".join(
                b"SUBSCRIBE\nid:%d\ndestination:%s\nack:client-individual\nprefetch:%d\n\n\0"
                % (queue, destination(queue), prefetch)
                for queue in share
            )
        )
        self._selector.register(wire.socket, selectors.EVENT_READ, wire)
        return wire

    def _connect(self, start: float) -> Wire:
        while True:
            try:
                return Wire(self._port)
            except OSError:
                if time.perf_counter() - start > 300:
                    raise
                time.sleep(0.002)

    def _check(self, taken: Sequence[tuple[int, bytes]]) -> None:
        expected = self._expected
        for number, _ in taken:
            queue, index = divmod(number, QUEUE_FACTOR)
            if index != expected[queue]:
                raise Wrong(f"queue {queue}: message {index} came, {expected[queue]} was to come")
            expected[queue] = index + 1
        self._left -= len(taken)
