"""The clients of tools/killloop.py: threads on real sockets that write down what they do and see."""

from __future__ import annotations

import random
import sys
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.history import Event, What
from tests.support.wire import Got, Wire, WireError

SOLO = ("/queue/solo.0", "/queue/solo.1")  # one consumer each
SHARED = "/queue/shared"
MOVED = "/queue/moved"  # what consumers send on, in the transaction of their ACK
QUEUES = (*SOLO, SHARED)
DEEP = "/queue/deep"  # more than memory holds; one producer, one consumer
PIN = "/queue/pin"  # never consumed, and the oldest of all
WINDOW = 60  # SENDs of a producer without a receipt yet
DEEP_BYTES = 4096  # of a body in DEEP


class Recorder:
    """The history. `add` is atomic, so the order of the list is the order in time."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, what: What, connection: str, message: str = "", **more: str | bool) -> None:
        self.events.append(Event(what, connection, message, **more))  # type: ignore[arg-type]


def body_of(message: str) -> bytes:
    """The body that belongs to a message: its name, a NUL, and filling of a size that the name decides."""
    digest = zlib.crc32(message.encode())
    size = digest % 40_000 if digest % 97 == 0 else digest % 700
    if message.startswith("deep"):
        size = DEEP_BYTES
    return message.encode() + b"\0" + bytes([digest % 251]) * size


def is_intact(got: Got, message: str) -> bool:
    return got.body == body_of(message) and got.get("name") == message and got.get("check") == f"c:{message}"


class Peer:
    """One connection that writes down what it does and sees."""

    def __init__(self, name: str, address: tuple[str, int], recorder: Recorder) -> None:
        self.name = name
        self.recorder = recorder
        self.wire = Wire(address)
        self.inbox: deque[Got] = deque()
        self.waiting: set[str] = set()
        self._receipts = 0
        self._messages = 0
        try:
            self.wire.connect("1.2")
        except (WireError, OSError):
            self.wire.close()
            raise

    def do(
        self, what: What, headers: dict[str, str], body: bytes = b"", *, receipt: bool, **event: str
    ) -> str:
        """Write the event down, then send its frame. The receipt's name, or ""."""
        name = ""
        if receipt:
            self._receipts += 1
            name = f"r{self._receipts}"
            headers = {**headers, "receipt": name}
            self.waiting.add(name)
        self.recorder.add(what, self.name, receipt=name, **event)
        self.wire.tell(what.value.upper(), headers, body)
        return name

    def send(self, queue: str, *, receipt: bool, transaction: str = "") -> None:
        self._messages += 1
        message = f"{self.name}.{self._messages}"
        headers = {"destination": queue, "name": message, "check": f"c:{message}"}
        if transaction:
            headers["transaction"] = transaction
        self.do(
            What.SEND,
            headers,
            body_of(message),
            receipt=receipt,
            message=message,
            queue=queue,
            transaction=transaction,
        )

    def settle(self, got: Got, what: What = What.ACK, *, receipt: bool, transaction: str = "") -> None:
        headers = {"id": got["ack"]}
        if transaction:
            headers["transaction"] = transaction
        self.do(what, headers, receipt=receipt, message=got["name"], transaction=transaction)

    def begin(self, transaction: str) -> None:
        self.wire.tell("BEGIN", {"transaction": transaction})

    def end(self, transaction: str, what: What, *, receipt: bool) -> None:
        self.do(what, {"transaction": transaction}, receipt=receipt, transaction=transaction)

    def look(self, seconds: float) -> bool:
        """Take in what is there, waiting that long for the first. False where nothing came."""
        got = self.wire.poll(seconds)
        if got is None:
            return False
        while got is not None:
            self._take(got)
            got = self.wire.poll()
        return True

    def _take(self, got: Got) -> None:
        if got.command == "RECEIPT":
            self.waiting.discard(got["receipt-id"])
            self.recorder.add(What.RECEIPT, self.name, receipt=got["receipt-id"])
        elif got.command == "ERROR":
            self.recorder.add(What.ERROR, self.name)
            raise WireError(f"{self.name} got {got}")
        else:
            message = got.get("name") or f"nameless {got['message-id']}"
            self.recorder.add(
                What.DELIVERED,
                self.name,
                message,
                queue=got.get("original-destination") or got["destination"],
                ident=got["message-id"],
                redelivered=got.get("redelivered") == "true",
                intact=is_intact(got, message),
            )
            self.inbox.append(got)

    def subscribe(self, queue: str, name: str, mode: str, prefetch: int) -> None:
        headers = {"id": name, "destination": queue, "ack": mode, "prefetch": str(prefetch)}
        self.wire.tell("SUBSCRIBE", headers)

    def leave(self) -> None:
        """DISCONNECT and wait for its receipt; what was in flight is back in its place then.

        From the DISCONNECT on the messages belong to others, so what still comes here is not looked at.
        """
        self.recorder.add(What.CLOSED, self.name)
        self.wire.tell("DISCONNECT", {"receipt": "bye"})
        while (got := self.wire.poll(10)) is not None and got.get("receipt-id") != "bye":
            if got.command != "MESSAGE":
                self._take(got)
        self.wire.close()

    def close(self) -> None:
        self.recorder.add(What.CLOSED, self.name)
        self.wire.close()


def produce(peer: Peer, rng: random.Random) -> None:
    """SENDs alone and in transactions, most with a receipt, at most WINDOW of them without it yet."""
    number = 0
    while True:
        number += 1
        if rng.random() < 0.06:
            transaction = f"t{number}"
            peer.begin(transaction)
            for _ in range(rng.randint(1, 5)):
                peer.send(rng.choice(QUEUES), receipt=rng.random() < 0.3, transaction=transaction)
            how = What.COMMIT if rng.random() < 0.75 else What.ABORT
            peer.end(transaction, how, receipt=rng.random() < 0.8)
        else:
            peer.send(rng.choice(QUEUES), receipt=rng.random() < 0.8)
        while peer.look(0.0 if len(peer.waiting) < WINDOW else 1.0):
            pass


def consume(peer: Peer, rng: random.Random, solo: str, reconnect: Callable[[], Peer]) -> None:
    """Acknowledge in all the ways there are, and leave and come back now and then."""
    while True:
        mode = rng.choice(("client-individual", "client"))
        peer.subscribe(solo, "solo", mode, rng.choice((1, 10, 100)))
        peer.subscribe(SHARED, "shared", "client-individual", rng.choice((1, 10, 100)))
        pile: list[Got] = []  # for one cumulative ACK
        while rng.random() < 0.996:
            if not peer.inbox:
                peer.look(0.05)
                continue
            got = peer.inbox.popleft()
            if got["subscription"] == "shared" or mode != "client":
                settle_one(peer, rng, got)
                continue
            pile.append(got)
            if not peer.inbox or rng.random() < 0.2:
                for covered in pile[:-1]:
                    peer.recorder.add(What.ACK, peer.name, covered["name"])
                peer.settle(pile[-1], receipt=rng.random() < 0.5)
                pile.clear()
        peer.leave()
        peer = reconnect()


def settle_one(peer: Peer, rng: random.Random, got: Got) -> None:
    """An ACK; or a NACK where the queue is shared; or an ACK together with a SEND in a transaction."""
    chance = rng.random()
    if chance < 0.02 and got["subscription"] == "shared":
        peer.settle(got, What.NACK, receipt=rng.random() < 0.5)
    elif chance < 0.07:
        transaction = f"t{got['name']}"
        peer.begin(transaction)
        peer.settle(got, receipt=False, transaction=transaction)
        peer.send(MOVED, receipt=False, transaction=transaction)
        peer.end(transaction, What.COMMIT, receipt=rng.random() < 0.8)
    else:
        peer.settle(got, receipt=rng.random() < 0.5)


def pile_up(peer: Peer, count: int) -> None:
    """The pin, then so many messages for DEEP, all receipted."""
    peer.send(PIN, receipt=True)
    for _ in range(count):
        peer.send(DEEP, receipt=True)
        while peer.look(0.0 if len(peer.waiting) < 10 * WINDOW else 1.0):
            pass
    while peer.waiting:
        if not peer.look(10.0):
            raise WireError(f"{len(peer.waiting)} receipts do not come")


class Balance:
    """What goes into DEEP follows what comes out of it, so that the backlog stays as large as it is."""

    def __init__(self) -> None:
        self.left = WINDOW


def feed_deep(peer: Peer, balance: Balance) -> None:
    while True:
        if balance.left > 0:
            balance.left -= 1
            peer.send(DEEP, receipt=True)
        while peer.look(0.0 if balance.left > 0 and len(peer.waiting) < WINDOW else 0.05):
            pass


def take_deep(peer: Peer, rng: random.Random, balance: Balance) -> None:
    """Takes from the head of DEEP, which comes back from the disk."""
    peer.subscribe(DEEP, "deep", "client-individual", rng.choice((1, 20, 300)))
    while True:
        if not peer.inbox:
            peer.look(0.05)
            continue
        peer.settle(peer.inbox.popleft(), receipt=rng.random() < 0.3)
        balance.left += 1
