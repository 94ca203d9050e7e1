"""One disk operation after the other is made to fail, in a scripted life of the whole broker.

    python tools/faults.py                     every case (some minutes)
    python tools/faults.py --some 400          a spread over all of them
    python tools/faults.py --case write:17:EIO:once

The script (tools/faulty.py) sends, acknowledges, rejects, commits, piles up more than memory holds, reads it back,
lets the log be compacted and checkpointed, and starts anew after a kill, a power loss and a clean stop. It is run once
to count the calls on the disk. Then for every call of every operation it is run again and that call fails, with each
of the errors, once or from then on. Whatever the broker does (go on, refuse, fail), nothing but its own errors may come
out; started again, the script goes on; and at the end, after a kill and after a power loss on a disk that is well
again, everything receipted has to be there and nothing acknowledged may come back (tests/support/history.py).

Exit code 0: it held in every case; 1: the cases in which it did not are named and can be run again by `--case`.
"""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from broker.errors import StompdError
from broker.system import Handle
from tests.support.history import check
from tests.support.simdisk import Fault, SimDisk
from tools.faulty import SCRIPT, Ended, Refused, Stage, drain, play

SHORT = "SHORT"  # a write takes only a part, and says so
ERRORS = ("EIO", "ENOSPC", "EROFS", "EMFILE", "EINTR", "EDQUOT")
KINDS = (*ERRORS, SHORT, "EIO-revert")  # EIO-revert: after the failed sync the cache shows the old bytes (Btrfs)
SOLO = ("/queue/deep",)
STARTS = 4  # how often a broker that ended is started again while the fault lasts
RELIEF = 40.0  # s of the broker's clock after which a disk that is well again must have been noticed


@dataclass(frozen=True, slots=True)
class Case:
    """The call number `at` of `op` fails with `kind`; sticky: all later ones, too."""

    op: str
    at: int
    kind: str
    sticky: bool

    def __str__(self) -> str:
        return f"{self.op}:{self.at}:{self.kind}:{'sticky' if self.sticky else 'once'}"

    @classmethod
    def parse(cls, text: str) -> Case:
        op, at, kind, how = text.split(":")
        return cls(op, int(at), kind, how == "sticky")


class FaultyDisk(SimDisk):
    """Keeps its fault over restarts, since the disk does not get well by that; and can take a part of a write only."""

    def __init__(self, seed: int) -> None:
        super().__init__(Random(seed))
        self.lasting: Fault | None = None
        self.short: Fault | None = None

    def _restarted(self) -> None:
        super()._restarted()
        self.faults = [self.lasting] if self.lasting else []

    def arm(self, case: Case) -> None:
        code = getattr(errno, case.kind.removesuffix("-revert"), 0)
        fault = Fault(case.at, code, case.op, case.sticky, case.kind == "EIO-revert")
        if case.kind == SHORT:
            self.short = fault
        else:
            self.lasting = fault
            self.faults = [fault]

    def heal(self) -> None:
        self.lasting = self.short = None
        self.faults = []

    @property
    def hits(self) -> int:
        return sum(fault.hits for fault in (self.lasting, self.short) if fault)

    def write(self, handle: Handle, buffers: Sequence[bytes], offset: int) -> int:
        short, number = self.short, self.counts.get("write", 0) + 1
        if short is not None and (number == short.at or (short.sticky and number > short.at)):
            data = b"".join(buffers)
            if len(data) > 1:
                short.hits += 1
                # Once it has failed for good, a byte at a time would take for ever: halves do as well.
                return super().write(handle, [data[: (len(data) + 1) // 2]], offset)
        return super().write(handle, buffers, offset)


@dataclass
class Outcome:
    """What one case came to. ways: how the broker took it."""

    ways: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def attempt(stage: Stage, outcome: Outcome) -> None:
    """The script under the fault, as a supervisor would have it: what ended is started again, a few times."""
    starts = 0
    steps = iter(SCRIPT)
    step = None
    running = False
    while True:
        try:
            if not running:
                starts += 1
                stage.gone()
                stage.disk.kill()
                stage.start()
                running = True
            step = next(steps, None)
            if step is None:
                return
            step(stage)
        except Refused:
            outcome.ways.add("refused")
        except Ended:
            outcome.ways.add("failed")
            if starts == STARTS:
                return
            running = False
        except StompdError as error:
            outcome.ways.add(f"start refused with {int(error.exit_code)}")
            if error.exit_code != 74:
                outcome.problems.append(f"a start on a disk without damage was refused: {error}")
            if starts == STARTS:
                return
            running = False


def finish(stage: Stage, how: str) -> list[str]:
    """The disk is well again; the broker is started after a kill or a power loss, and everything is taken out."""
    if how == "kill":
        stage.disk.kill()
    else:
        stage.disk.crash()
    try:
        stage.start()
        drained = drain(stage)
    except (Ended, Refused, StompdError) as error:
        return [f"after the {how}: {type(error).__name__}: {error}"]
    stage.gone()
    return [f"after the {how}: {found}" for found in check(stage.history, solo=SOLO, drained=drained)]


def relieve(stage: Stage) -> list[str]:
    """A broker that did not fail has to go on as if nothing had been, once the disk is well."""
    try:
        stage.settle_down(RELIEF)
        peer = stage.peer("relief")
        peer.send("/queue/work", 40)
        stage.settle_down(1.0)
        if peer.waiting:
            return ["the disk is well again, but a SEND gets no receipt"]
        waiting = [receipt for other in stage.peers.values() for receipt in sorted(other.waiting)]
        if waiting:
            return [f"the disk is well again, but nobody answers {waiting[:3]}"]
    except (Ended, Refused) as error:
        return [f"the disk is well again, but {type(error).__name__}: {error}"]
    return []


def run_case(case: Case) -> Outcome:
    outcome = Outcome()
    disk = FaultyDisk(case.at)
    disk.arm(case)
    stage = Stage(disk)
    try:
        attempt(stage, outcome)
        hits = disk.hits
        if not hits:
            outcome.ways.add("not reached")
        disk.heal()
        if stage.alive:
            outcome.problems += relieve(stage)
        elif not case.sticky and hits and "failed" not in outcome.ways and not refused(outcome):
            outcome.problems.append("it is down, and nobody said why")
        stage.gone()
        for how in ("kill", "power loss"):
            outcome.problems += finish(stage.branch(), how)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-4:]
        steps = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(where))
        outcome.problems.append(f"{type(error).__name__} escaped: {error} ({steps})")
    if not outcome.ways:
        outcome.ways.add("went on")
    return outcome


def refused(outcome: Outcome) -> bool:
    return any(way.startswith("start refused") for way in outcome.ways)


def survey() -> tuple[dict[str, int], list[tuple[str, int]], list[str]]:
    """The calls of the script by operation, where each step begins, and what is wrong without any fault."""
    disk = FaultyDisk(0)
    stage = Stage(disk)
    marks: list[tuple[str, int]] = []
    play(stage, at=lambda name: marks.append((name, disk.calls)))
    counts = dict(disk.counts)
    problems = [f"an ERROR without a fault: {text}" for text in stage.errors]
    stage.gone()
    for how in ("kill", "power loss"):
        problems += finish(stage.branch(), how)
    return counts, marks, problems


def all_cases(counts: dict[str, int]) -> Iterator[Case]:
    for op, count in sorted(counts.items()):
        for kind in KINDS:
            if (kind == SHORT and op != "write") or (kind == "EIO-revert" and not op.startswith("sync_")):
                continue
            for at in range(1, count + 1):
                for sticky in (False, True):
                    yield Case(op, at, kind, sticky)


def some_cases(counts: dict[str, int], number: int, seed: int = 1) -> list[Case]:
    """A spread over operations and kinds of error, by chance under the seed, in the order of `all_cases`."""
    everything = list(all_cases(counts))
    strata: dict[tuple[str, str, bool], list[int]] = {}
    for index, case in enumerate(everything):
        strata.setdefault((case.op, case.kind, case.sticky), []).append(index)
    random = Random(seed)
    chosen: set[int] = set()
    piles = [random.sample(pile, len(pile)) for pile in strata.values()]
    while len(chosen) < min(number, len(everything)):
        for pile in piles:
            if pile and len(chosen) < number:
                chosen.add(pile.pop())
    return [everything[index] for index in sorted(chosen)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="each disk operation fails in turn, in a scripted life of the whole broker",
        epilog="example: python tools/faults.py --some 400",
    )
    parser.add_argument("--some", type=int, metavar="N", help="a spread of N cases instead of all")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="which ones (1)")
    parser.add_argument("--case", metavar="OP:N:ERROR:once|sticky", help="one case")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
    args = parser.parse_args()
    if args.case:
        outcome = run_case(Case.parse(args.case))
        print(", ".join(sorted(outcome.ways)))
        print("\n".join(outcome.problems) or "all is well")
        return 1 if outcome.problems else 0
    counts, marks, problems = survey()
    print(f"{sum(counts.values())} calls: " + ", ".join(f"{count} {op}" for op, count in sorted(counts.items())))
    print("steps: " + ", ".join(f"{name} from {at}" for name, at in marks))
    for problem in problems:
        print(f"without a fault: {problem}")
    cases = list(all_cases(counts)) if args.some is None else some_cases(counts, args.some, args.seed)
    ways: Counter[str] = Counter()
    failed = 0
    began = time.monotonic()
    with multiprocessing.Pool(args.jobs) as pool:
        for case, outcome in zip(cases, pool.imap(run_case, cases, chunksize=16), strict=True):
            ways.update(outcome.ways)
            if outcome.problems:
                failed += 1
                if failed <= 40:
                    print(f"{case}: {'; '.join(outcome.problems)}", flush=True)
    took = time.monotonic() - began
    print(", ".join(f"{count} {way}" for way, count in sorted(ways.items())))
    print(f"{'FAILED' if failed or problems else 'ok'}: {len(cases)} cases, {failed} failed, {took:.0f} s")
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main())
