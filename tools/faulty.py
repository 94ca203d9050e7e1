"""A scripted life of a whole broker on a simulated disk, written down as a history, for the fault and damage tools.

The broker is tests/core/world.py's World: no process, no socket, no clock. Its clients write down what they do and
see, so that tests/support/history.py can judge it. The same script makes the same calls on the disk every time.
"""

from __future__ import annotations

import copy
import sys
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.core.world import Client, World
from tests.support.history import Event, What
from tests.support.simdisk import SimDisk
from tests.support.wire import Got

KIB = 1024
QUEUES = ("/queue/work", "/queue/pin", "/queue/deep")
ALL_QUEUES = (*QUEUES, *(queue.replace("/queue/", "/queue/DLQ.") for queue in QUEUES))
STORAGE = {"segment_size": 16 * KIB, "checkpoint": 48 * KIB}
MEMORY = 96 * KIB  # less than the backlog of the script, so that bodies have to be read back
DRAIN_ROUNDS = 400


class Ended(Exception):
    """The broker of the script has failed; whoever runs the script may start it again."""


class Refused(Exception):
    """A client got an ERROR; the step that it was in is given up."""


def body_of(message: str, size: int) -> bytes:
    """The body that belongs to a message: its name, its size, and filling."""
    head = f"{message}|{size}|".encode()
    return head + bytes([zlib.crc32(head) % 251]) * max(0, size - len(head))


def is_intact(got: Got) -> bool:
    name, _, rest = got.body.partition(b"|")
    size = rest.partition(b"|")[0].decode()
    message = name.decode()
    return got.body == body_of(message, int(size)) and got.get("name") == message and got.get("check") == f"c:{message}"


class Peer:
    """One connection that writes down what it does and sees."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.name = name
        self.client: Client = stage.world.connect()
        self.inbox: deque[Got] = deque()
        self.waiting: set[str] = set()  # receipts that have not come
        self.refused = ""  # the text of the ERROR that it got
        self._serial = 0

    def note(self, what: What, message: str = "", **more: str | bool) -> None:
        self.stage.history.append(Event(what, self.name, message, **more))  # type: ignore[arg-type]

    def tell(self, what: What, headers: dict[str, str], body: bytes = b"", *, receipt: bool, **event: str) -> None:
        """Write the event down, then send its frame."""
        name = ""
        if receipt:
            self._serial += 1
            name = f"{self.name}.r{self._serial}"
            self.waiting.add(name)
            headers = {**headers, "receipt": name}
        self.note(what, receipt=name, **event)
        self.client.send(what.value.upper(), headers, body)
        self.stage.observe()

    def send(self, queue: str, size: int = 60, transaction: str = "", *, receipt: bool = True) -> str:
        message = self.stage.new_name()
        headers = {"destination": queue, "name": message, "check": f"c:{message}"}
        if transaction:
            headers["transaction"] = transaction
        self.tell(
            What.SEND,
            headers,
            body_of(message, size),
            receipt=receipt,
            message=message,
            queue=queue,
            transaction=transaction,
        )
        return message

    def settle(self, got: Got, what: What = What.ACK, transaction: str = "", **headers: str) -> None:
        fields = {"id": got["ack"], **headers}
        if transaction:
            fields["transaction"] = transaction
        self.tell(what, fields, receipt=not transaction, message=got["name"], transaction=transaction)

    def end(self, transaction: str, what: What = What.COMMIT) -> None:
        self.tell(what, {"transaction": transaction}, receipt=True, transaction=transaction)

    def take(self, count: int) -> list[Got]:
        """Up to `count` of the messages that came."""
        return [self.inbox.popleft() for _ in range(min(count, len(self.inbox)))]

    def look(self) -> None:
        """Write down what came."""
        frames, self.client.frames = self.client.frames, []
        for got in frames:
            if got.command == "RECEIPT":
                self.waiting.discard(got["receipt-id"])
                self.note(What.RECEIPT, receipt=got["receipt-id"])
            elif got.command == "ERROR":
                self.refused = f"{got['message']}: {got.body.decode(errors='replace')}"
                self.note(What.ERROR)
            elif got.command == "MESSAGE":
                self.inbox.append(got)
                self.note(
                    What.DELIVERED,
                    got.get("name") or f"nameless {got['message-id']}",
                    queue=got.get("original-destination") or got["destination"],
                    ident=got["message-id"],
                    redelivered=got.get("redelivered") == "true",
                    intact=is_intact(got),
                )


class Stage:
    """A disk, the broker on it, and everything that clients of all its lives saw."""

    def __init__(
        self, disk: SimDisk, *, memory: int = MEMORY, storage: Mapping[str, int | float | str] = STORAGE
    ) -> None:
        self.disk = disk
        self.memory = memory
        self.storage = storage
        self.history: list[Event] = []
        self.errors: list[str] = []  # texts of all ERROR frames
        self.peers: dict[str, Peer] = {}
        self._serial = 0
        self._lives = 0
        self._made: World | None = None
        self._up = False

    @property
    def world(self) -> World:
        if self._made is None:
            raise Ended("the broker did not start")
        return self._made

    @property
    def alive(self) -> bool:
        return self._up and self._made is not None and self._made.failed is None

    def start(self) -> None:
        """Raises StompdError where the start is refused."""
        self._up = False
        self._lives += 1
        if self._made is None:
            self._made = World(self._lives, storage=self.storage, memory=self.memory, disk=self.disk)
        else:
            self._made.start()
        self._up = True

    def branch(self) -> Stage:
        """Another future: the same disk, cache included, and the same history, with no broker running."""
        disk = copy.deepcopy(self.disk)
        other = Stage(disk, memory=self.memory, storage=self.storage)
        other.history, other.errors = self.history.copy(), self.errors.copy()
        other._serial, other._lives = self._serial, self._lives
        return other

    def gone(self) -> None:
        """All connections are lost: the broker has ended."""
        for peer in self.peers.values():
            peer.look()
            peer.note(What.CLOSED)
            if peer.refused:
                self.errors.append(peer.refused)
        self.peers.clear()

    def new_name(self) -> str:
        self._serial += 1
        return f"m{self._serial}"

    def peer(self, role: str) -> Peer:
        """The open connection of that role, or a new one."""
        self.check()
        found = self.peers.get(role)
        if found is None:
            self._serial += 1
            found = self.peers[role] = Peer(self, f"{role}.{self._lives}.{self._serial}")
        return found

    def check(self) -> None:
        if not self.alive:
            raise Ended("the broker has failed" if self._up else "it did not start")

    def observe(self) -> None:
        """Write down what everybody sees. Raises Ended, Refused."""
        refused = ""
        for role, peer in list(self.peers.items()):
            peer.look()
            if peer.client.closed:
                peer.note(What.CLOSED)
                del self.peers[role]
                if peer.refused:
                    self.errors.append(peer.refused)
                refused = refused or peer.refused or "closed without a word"
        self.check()
        if refused:
            raise Refused(refused)

    def settle_down(self, seconds: float = 0.0) -> None:
        """Let everything that is under way be done, and time pass."""
        if seconds:
            self.world.advance(seconds)
        self.world.after()
        self.observe()

    def leave(self, role: str) -> None:
        """DISCONNECT; from there on the messages belong to others."""
        peer = self.peers.pop(role, None)
        if peer is not None:
            peer.note(What.CLOSED)
            peer.client.disconnect()
            if peer.client.frames and peer.client.frames[-1].command != "RECEIPT":
                self.errors.append(f"no receipt for DISCONNECT but {peer.client.frames[-1]}")
            self.check()


# --- the script ---------------------------------------------------------------------------------------------------

Step = Callable[[Stage], None]


def opening(stage: Stage) -> None:
    stage.peer("p")


def sends(stage: Stage) -> None:
    peer = stage.peer("p")
    peer.send("/queue/pin", 200)  # never consumed: it pins the old end of the log
    for number in range(12):
        peer.send("/queue/work", 30 + 90 * (number % 4), receipt=number % 3 != 1)


def acks(stage: Stage) -> None:
    consumer = stage.peer("c")
    consumer.client.subscribe("/queue/work", prefetch=6)
    stage.settle_down()
    for got in consumer.take(3):
        consumer.settle(got)
    for got in consumer.take(1):
        consumer.settle(got, What.NACK)


def rejects(stage: Stage) -> None:
    consumer = stage.peer("c")
    for got in consumer.take(2):
        consumer.settle(got, What.NACK, requeue="false", **{"failure-reason": "no use"})


def transactions(stage: Stage) -> None:
    peer, consumer = stage.peer("p"), stage.peer("c")
    peer.client.send("BEGIN", {"transaction": "t1"})
    for _ in range(3):
        peer.send("/queue/work", 80, "t1", receipt=False)
    peer.send("/queue/deep", 300, "t1")
    peer.end("t1")
    name = f"t{stage.new_name()}"
    consumer.client.send("BEGIN", {"transaction": name})
    for got in consumer.take(2):
        consumer.settle(got, transaction=name)
    consumer.send("/queue/deep", 100, name, receipt=False)
    consumer.end(name)
    peer.client.send("BEGIN", {"transaction": "t2"})
    peer.send("/queue/work", 80, "t2")
    peer.end("t2", What.ABORT)
    stage.leave("c")


def idle(stage: Stage) -> None:
    stage.settle_down(1.0)


def backlog(stage: Stage) -> None:
    """More than memory holds."""
    peer = stage.peer("p")
    for _ in range(60):
        peer.send("/queue/deep", 2 * KIB)


def read_back(stage: Stage) -> None:
    consumer = stage.peer("c")
    consumer.client.subscribe("/queue/deep", prefetch=10)
    for _ in range(45):
        stage.settle_down()
        for got in consumer.take(1):
            consumer.settle(got)


def churn(stage: Stage) -> None:
    """The log grows and nearly everything in it dies; the pin has to be copied forward for room to come back."""
    peer, consumer = stage.peer("p"), stage.peer("c")
    consumer.client.subscribe("/queue/work", id="w", prefetch=10)
    for _ in range(30):
        peer.send("/queue/work", 3 * KIB)
        for got in consumer.take(1):
            consumer.settle(got)
    stage.settle_down(5.0)


def quiet(stage: Stage) -> None:
    """Time for the scrub, and for whatever else is done by the clock."""
    stage.settle_down(6.0)
    stage.peer("p").send("/queue/work", 50)
    stage.settle_down(32.0)


def restart(how: str) -> Step:
    def step(stage: Stage) -> None:
        if how == "clean":
            stage.world.stop()
            stage.gone()
            stage.check()
            stage.disk.kill()
        else:
            stage.gone()
            stage.disk.kill() if how == "kill" else stage.disk.crash()
        stage.start()

    step.__name__ = f"restart_{how}"
    return step


SCRIPT: tuple[Step, ...] = (
    opening, sends, acks, rejects, transactions, idle, restart("kill"), backlog, read_back, restart("power"),
    churn, quiet, restart("clean"), sends, acks, idle,
)  # fmt: skip


def drain(stage: Stage) -> bool:
    """A consumer takes all that is left off every queue. False where that does not come to an end."""
    peer = stage.peer("drain")
    for number, queue in enumerate(ALL_QUEUES):
        peer.client.subscribe(queue, id=str(number), prefetch=50)
    empty = 0
    for _ in range(DRAIN_ROUNDS):
        stage.settle_down()
        found = peer.take(50)
        for got in found:
            peer.settle(got)
        empty = 0 if found or peer.waiting else empty + 1
        if empty == 3:
            return True
    return False


def fresh_disk(seed: int = 1) -> SimDisk:
    return SimDisk(Random(seed))


def play(stage: Stage, script: tuple[Step, ...] = SCRIPT, at: Callable[[str], None] = lambda name: None) -> None:
    """The script on a disk that does nothing wrong. `at` is told the name of each step. Raises Ended, Refused."""
    at("start")
    stage.start()
    for step in script:
        at(step.__name__)
        step(stage)

