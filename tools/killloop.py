"""kill -9 under load, round after round, and a check of all that the clients saw.

    python tools/killloop.py --rounds 200 --seed 1
    python tools/killloop.py --rounds 50 --seed 1 --plain

Each round starts the broker on the same data folder, lets producers and consumers loose on it over real sockets, and
kills it with SIGKILL at a random moment 5 to 500 ms later; every fifth round the kill hits the start. Unless it is
--plain, a backlog larger than memory.limit lies on disk all the time, fed at one end and consumed at the other, behind
a message that nobody ever takes, so that the log is checkpointed and compacted all the time; every fifth round waits
until a checkpoint is being written, and every fifth until a segment was removed, and kills it right there. At the end
one consumer drains the queues, and the whole history is held against the rules of tests/support/history.py.

The plan of a run (who sends what, when the kill comes) follows from the seed; how far the processes get before the kill
does not. Exit code 0: every promise was kept; 1: it was not, and the history is kept.

A kill leaves the page cache in place, so this loop cannot see a missing fsync: tools/receiptproof.py, tools/logsim.py
and tools/faults.py can.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.history import Violation, check
from tests.support.process import BrokerFailed, BrokerProcess
from tests.support.wire import WireClosed, WireError
from tools.killpeers import (
    DEEP,
    DEEP_BYTES,
    MOVED,
    PIN,
    QUEUES,
    SOLO,
    Balance,
    Peer,
    Recorder,
    consume,
    feed_deep,
    pile_up,
    produce,
    take_deep,
)

PRODUCERS = 3
CONSUMERS = 2
DRAIN_SECONDS = 60.0  # without a message, before it is given up
MIB = 1 << 20
SETTINGS = {"memory": {"limit": '"16MiB"'}, "storage": {"segment_size": '"1MiB"', "checkpoint": '"1MiB"'}}
BACKLOG_BYTES = 24 * MIB
WATCH_SECONDS = 1.0  # how long a round waits for what it wants to hit


class Round:
    """The clients of one round: threads that run until the broker is gone."""

    def __init__(self, broker: BrokerProcess, recorder: Recorder, label: str, seed: str, deep: Balance | None) -> None:
        self.broker = broker
        self.balance = deep or Balance()
        self.recorder = recorder
        self.failures: list[str] = []
        jobs = [(f"p{index}.{label}", "") for index in range(PRODUCERS)]
        jobs += [(f"c{index}.{label}", SOLO[index]) for index in range(CONSUMERS)]
        if deep:
            jobs += [(f"deep.{label}", ""), (f"taker.{label}", "")]
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
            if name.startswith("deep."):
                feed_deep(peer, self.balance)
            elif name.startswith("taker."):
                take_deep(peer, rng, self.balance)
            elif solo:
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


def drain(broker: BrokerProcess, recorder: Recorder, *, deep: bool) -> bool:
    """Take everything off all queues up to an end mark in each. False where they do not come in time."""
    peer = Peer("drain", broker.address, recorder)
    queues = [*QUEUES, MOVED, *((DEEP, PIN) if deep else ())]
    queues += [queue.replace("/queue/", "/queue/DLQ.") for queue in queues]
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
        deadline = time.monotonic() + DRAIN_SECONDS
        if got.get("mark") is not None:
            marks.discard(got["mark"])
            peer.wire.tell("ACK", {"id": got["ack"]})
            continue
        peer._take(got)
        while peer.inbox:
            peer.settle(peer.inbox.popleft(), receipt=True)
    peer.leave()
    return not marks


class Loop:
    """The rounds. slowest: seconds of the longest start, and its round. hits: what the kills were aimed at and hit."""

    def __init__(self, rounds: int, seed: int, folder: Path, say: Callable[[str], None], *, deep: bool) -> None:
        self.rounds = rounds
        self.seed = seed
        self.say = say
        self.deep = deep
        self.balance = Balance() if deep else None
        self.plan = random.Random(seed)
        self.recorder = Recorder()
        self.broker = BrokerProcess(folder, SETTINGS if deep else None)
        self.problems: list[str] = []
        self.slowest = (0.0, 0)
        self.largest = 0  # bytes of the log
        self.hits: Counter[str] = Counter()

    def start(self, number: int) -> float:
        began = time.monotonic()
        self.broker.start()
        took = time.monotonic() - began
        self.slowest = max(self.slowest, (took, number))
        return took

    def pile_up(self) -> None:
        self.broker.start()
        peer = Peer("deep.pile", self.broker.address, self.recorder)
        pile_up(peer, BACKLOG_BYTES // DEEP_BYTES)
        peer.leave()
        self.broker.kill()

    def round(self, number: int) -> None:
        moment = self.plan.uniform(0.005, 0.5)
        aim = {4: "start", 2: "checkpoint", 3: "removal"}.get(number % 5, "") if self.deep or number % 5 == 4 else ""
        if aim == "start":
            self.broker.start(wait=False)
        else:
            self.start(number + 1)
        clients = Round(self.broker, self.recorder, str(number), f"{self.seed} {number}", self.balance)
        if aim != "start":
            clients.start()
        if aim in ("checkpoint", "removal") and self.watch(aim):
            self.hits[aim] += 1
            moment /= 25  # right there, not somewhere behind it
        time.sleep(moment)
        if not self.broker.alive():
            raise BrokerFailed(f"it ended by itself in round {number}:\n{self.broker.stderr()[-3000:]}")
        self.broker.kill()
        if aim != "start":
            clients.join()
        self.problems += clients.failures
        self.largest = max(self.largest, sum(path.stat().st_size for path in self.segments()))
        self.say(
            f"round {number + 1}/{self.rounds}: killed after {moment * 1000:.0f} ms"
            f"{f' in a {aim}' if aim else ''}, {len(self.recorder.events)} events"
        )

    def segments(self) -> list[Path]:
        return sorted((self.broker.data_dir / "log").glob("*.seg"))

    def watch(self, aim: str) -> bool:
        """Wait until a checkpoint is being written, or the oldest segment goes. False where that takes too long."""
        deadline = time.monotonic() + WATCH_SECONDS
        oldest = self.segments()[:1]
        folder = self.broker.data_dir / "ckpt"
        while time.monotonic() < deadline and self.broker.alive():
            if aim == "checkpoint" and any(folder.glob("*.tmp")):
                return True
            if aim == "removal" and self.segments()[:1] != oldest:
                return True
        return False

    def run(self) -> list[str]:
        """All rounds, the drain and the check. What is wrong, one line each; empty: nothing."""
        try:
            if self.deep:
                self.pile_up()
            for number in range(self.rounds):
                self.round(number)
            self.say(f"last start: served after {self.start(self.rounds + 1):.2f} s")
            drained = drain(self.broker, self.recorder, deep=self.deep)
            self.broker.stop()
            self.problems += [str(found) for found in judged(self.recorder, drained=drained)]
        except (BrokerFailed, WireError, OSError) as error:
            self.problems.append(f"{type(error).__name__}: {error}")
        finally:
            self.broker.close()
        counts = Counter(event.what.value for event in self.recorder.events)
        self.say(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
        if self.problems:
            path = self.broker.folder / "history.txt"
            path.write_text("".join(f"{event}\n" for event in self.recorder.events))
            self.problems.append(f"history and data are kept in {self.broker.folder}")
        return self.problems


def run(rounds: int, seed: int, folder: Path, say: Callable[[str], None] = print, *, deep: bool = True) -> list[str]:
    """One run. What is wrong, one line each; empty: nothing."""
    loop = Loop(rounds, seed, folder, say, deep=deep)
    problems = loop.run()
    hits = ", ".join(f"{count} in a {aim}" for aim, count in sorted(loop.hits.items())) or "none at what they aimed at"
    say(
        f"slowest start: {loop.slowest[0]:.2f} s (round {loop.slowest[1]}); "
        f"log at most {loop.largest / MIB:.0f} MiB; kills: {hits}"
    )
    return problems


def judged(recorder: Recorder, *, drained: bool) -> list[Violation]:
    return check(recorder.events, solo=(*SOLO, DEEP), drained=drained)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="kill -9 under load, and a check of all that the clients saw",
        epilog="example: python tools/killloop.py --rounds 200 --seed 1",
    )
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="how often it is killed (50)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the plan of the run (1)")
    parser.add_argument("--plain", action="store_true", help="without the backlog, so that little is on disk")
    parser.add_argument("--folder", metavar="DIR", help="where data and history go (a new temporary folder)")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="killloop-")).resolve()
    began = time.monotonic()
    problems = run(args.rounds, args.seed, folder, deep=not args.plain)
    for problem in problems[:40]:
        print(problem)
    if problems:
        print(f"FAILED: {len(problems)} findings, seed {args.seed}")
        return 1
    if not args.folder:
        shutil.rmtree(folder)
    took = time.monotonic() - began
    print(f"OK: {args.rounds} kills, nothing lost, nothing back, order kept (seed {args.seed}, {took:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
