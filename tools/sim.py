"""The whole broker under a seed: clients, network, clock, disk and crashes from one random source, on one page of time.

    python tools/sim.py --seeds 0:1000              many, on all cores; the first failures name their seeds
    python tools/sim.py --seed 4711 --trace         one, told step by step, with the history that was judged
    python tools/sim.py --seed 4711                 one; prints its digest, which is the same wherever it runs

Checked in each (docs/testing.md): the history at the broker's end of every connection against the rules of
tests/support/exact.py, what must hold inside the broker whenever it comes to rest, and that nothing is left at the end.
Exit code 1 where a promise was broken, or where the seeds did not reach what they are meant to reach.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.sim.coverage import FLOOR, missing
from tests.sim.run import run_seed
from tests.sim.shell import Broken

CHUNK = 20  # seeds that a process takes at a time
FAILURES_MAX = 10  # then there is no point in going on


def run_chunk(seeds: range) -> tuple[range, Counter[str], list[str], bytes]:
    """Counts, failures, and all digests in one."""
    total: Counter[str] = Counter()
    failed: list[str] = []
    digest = blake2b(digest_size=8)
    for seed in seeds:
        try:
            counts, of_seed = run_seed(seed)
        except Broken as error:
            failed.append(str(error))
            continue
        total.update(counts)
        digest.update(of_seed.encode())
    return seeds, total, failed, digest.digest()


def chunks(first: int, last: int) -> Iterator[range]:
    for at in range(first, last, CHUNK):
        yield range(at, min(at + CHUNK, last))


class Progress:
    def __init__(self, total: int) -> None:
        self._total = total
        self._began = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def tell(self, done: int, failed: int) -> None:
        """A line each ten seconds, for those who look at a terminal or a log."""
        now = time.monotonic()
        if now - self._told >= 10.0:
            self._told = now
            rate = done / (now - self._began)
            left = (self._total - done) / rate
            print(f"{done:,} of {self._total:,} seeds, {failed} failed, {rate:.1f}/s, {left:.0f} s left", flush=True)


def run_many(first: int, last: int, jobs: int) -> int:
    total: Counter[str] = Counter()
    digests: dict[int, bytes] = {}
    done = failed = 0
    progress = Progress(last - first)
    # Fresh processes: forked ones would share what a thread of the pool may hold at that moment.
    with get_context("spawn").Pool(jobs) as pool:
        for seeds, counts, failures, digest in pool.imap_unordered(run_chunk, chunks(first, last)):
            digests[seeds.start] = digest
            total.update(counts)
            done += len(seeds)
            for text in failures:
                failed += 1
                print(f"FAILED {text[:1500]}", flush=True)
            progress.tell(done, failed)
            if failed >= FAILURES_MAX:
                break
    whole = blake2b(b"".join(digests[at] for at in sorted(digests)), digest_size=8).hexdigest()
    print("; ".join(f"{name} {total[name]:,}" for name in summary(total)))
    seldom = [] if failed else missing(total, done)
    for text in seldom:
        print(f"NOT REACHED {text}")
    print(f"{done:,} seeds, {failed} failed, {progress.seconds:.1f} s, digest of all {whole}")
    return 1 if failed or seldom else 0


def summary(total: Counter[str]) -> list[str]:
    first = ["steps", "connections", "records"]
    return [*first, *FLOOR, *sorted(name for name in total if name not in FLOOR and name not in (*first, "seeds"))]


def run_one(seed: int, trace: bool) -> int:
    try:
        counts, digest = run_seed(seed, print if trace else None)
    except Broken as error:
        print(f"FAILED {error}")
        return 1
    print("; ".join(f"{name} {counts[name]}" for name in sorted(counts)))
    print(f"seed {seed}: digest {digest}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Simulates the whole broker under seeds.")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="with --seed: told step by step")
    parser.add_argument("--seeds", metavar="A:B", help="the seeds from A to B-1")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (as many as there are cores)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return run_one(options.seed, options.trace)
    if options.seeds is None:
        parser.error("say --seed N or --seeds A:B")
    first, _, last = options.seeds.partition(":")
    return run_many(int(first), int(last), max(1, options.jobs))


if __name__ == "__main__":
    sys.exit(main())
