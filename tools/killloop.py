"""kill -9 under load, round after round, and a check of all that the clients saw.

    python tools/killloop.py --rounds 50 --seed 1

Each round starts the broker on the same data folder, lets three producers and two consumers loose on it
over real sockets, and kills it with SIGKILL at a random moment 5 to 500 ms later; every fifth round the kill
hits the start. At the end one consumer drains the queues, and the whole history is held against the rules of
tests/support/history.py. The plan of a run (who sends what, when the kill comes) follows from the seed; how
far the processes get before the kill does not. Exit code 0: every promise was kept; 1: it was not, and the
history is kept.

A kill leaves the page cache in place, so this loop cannot see a missing fsync: tools/receiptproof.py and
tools/logsim.py can.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.history import Event, Violation, What, check
from tests.support.process import BrokerFailed, BrokerProcess
from tests.support.wire import Got, Wire, WireClosed, WireError

SOLO = ("/queue/solo.0", "/queue/solo.1")  # one consumer each
SHARED = "/queue/shared"
MOVED = "/queue/moved"  # what consumers send on, in the transaction of their ACK
QUEUES = (*SOLO, SHARED)
PRODUCERS = 3
CONSUMERS = 2
WINDOW = 60  # SENDs of a producer without a receipt yet
DRAIN_SECONDS = 60.0


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


class Round:
    """The clients of one round: threads that run until the broker is gone."""

    def __init__(self, broker: BrokerProcess, recorder: Recorder, label: str, seed: str) -> None:
        self.broker = broker
        self.recorder = recorder
        self.failures: list[str] = []
        jobs = [(f"p{index}.{label}", "") for index in range(PRODUCERS)]
        jobs += [(f"c{index}.{label}", SOLO[index]) for index in range(CONSUMERS)]
        self.threads = [
            threading.Thread(
                target=self._run, args=(name, solo, random.Random(f"{seed} {name}")), daemon=True
            )
            for name, solo in jobs
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(30)
            if thread.is_alive():
                self.failures.append(f"{thread.name} did not notice the end of the broker")

    def _run(self, name: str, solo: str, rng: random.Random) -> None:
        current: list[Peer] = []

        def dial() -> Peer:
            suffix = f"/{len(current)}" if current else ""
            current.append(Peer(name + suffix, self.broker.address, self.recorder))
            return current[-1]

        try:
            peer = dial()
            if solo:
                consume(peer, rng, solo, dial)
            else:
                produce(peer, rng)
        except (WireClosed, OSError):
            pass  # the kill; what was in the socket has been read up to here
        except WireError as error:
            # A frame that the kill cut off ends as WireClosed above: anything else is a finding.
            self.failures.append(f"{name}: {error}")
        finally:
            for peer in current:
                peer.close()


def drain(broker: BrokerProcess, recorder: Recorder) -> bool:
    """Take everything off all queues up to an end mark in each. False where they do not come in time."""
    peer = Peer("drain", broker.address, recorder)
    queues = [*QUEUES, MOVED, *(queue.replace("/queue/", "/queue/DLQ.") for queue in (*QUEUES, MOVED))]
    marks = set(queues)
    for queue in queues:
        peer.wire.call("SEND", {"destination": queue, "mark": queue}, b"mark")
    for number, queue in enumerate(queues):
        peer.subscribe(queue, str(number), "client-individual", 1000)
    deadline = time.monotonic() + DRAIN_SECONDS
    while (marks or peer.waiting) and time.monotonic() < deadline:
        got = peer.wire.poll(1.0)
        if got is None:
            continue
        if got.get("mark") is not None:
            marks.discard(got["mark"])
            peer.wire.tell("ACK", {"id": got["ack"]})
            continue
        peer._take(got)
        while peer.inbox:
            peer.settle(peer.inbox.popleft(), receipt=True)
    peer.leave()
    return not marks


def run(rounds: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """All rounds, the drain and the check. What is wrong, one line each; empty: nothing."""
    plan = random.Random(seed)
    recorder = Recorder()
    broker = BrokerProcess(folder)
    problems: list[str] = []
    try:
        for number in range(rounds):
            moment = plan.uniform(0.005, 0.5)
            during_start = number % 5 == 4
            broker.start(wait=not during_start)
            clients = Round(broker, recorder, str(number), f"{seed} {number}")
            if not during_start:
                clients.start()
            time.sleep(moment)
            if not broker.alive():
                raise BrokerFailed(f"it ended by itself in round {number}:\n{broker.stderr()[-3000:]}")
            broker.kill()
            if not during_start:
                clients.join()
            problems += clients.failures
            events = len(recorder.events)
            say(f"round {number + 1}/{rounds}: killed after {moment * 1000:.0f} ms, {events} events")
        began = time.monotonic()
        broker.start()
        say(f"last start: served after {time.monotonic() - began:.2f} s")
        drained = drain(broker, recorder)
        broker.stop()
        problems += [str(found) for found in judged(recorder, drained=drained)]
    except (BrokerFailed, WireError, OSError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    finally:
        broker.close()
    counts = Counter(event.what.value for event in recorder.events)
    say(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    if problems:
        path = folder / "history.txt"
        path.write_text("".join(f"{event}\n" for event in recorder.events))
        problems.append(f"history and data are kept in {folder}")
    return problems


def judged(recorder: Recorder, *, drained: bool) -> list[Violation]:
    return check(recorder.events, solo=SOLO, drained=drained)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="kill -9 under load, and a check of all that the clients saw",
        epilog="example: python tools/killloop.py --rounds 50 --seed 1",
    )
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="how often it is killed (50)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the plan of the run (1)")
    parser.add_argument("--folder", metavar="DIR", help="where data and history go (a new temporary folder)")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="killloop-")).resolve()
    problems = run(args.rounds, args.seed, folder)
    for problem in problems[:40]:
        print(problem)
    if problems:
        print(f"FAILED: {len(problems)} findings, seed {args.seed}")
        return 1
    if not args.folder:
        shutil.rmtree(folder)
    print(f"OK: {args.rounds} kills, nothing lost, nothing back, order kept (seed {args.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
