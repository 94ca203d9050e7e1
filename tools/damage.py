"""Every small damage to a whole data folder, one at a time: found and named, or harmless; never silent.

    python tools/damage.py                     everything (some minutes)
    python tools/damage.py --some 2000         a spread over all of it
    python tools/damage.py --case flip:data/log/00000000000000000002.seg:1234:3

A small folder is made by a scripted life of the broker (tools/faulty.py) on a simulated disk: several segments, dead
letters, transactions, a checkpoint. Then, each on a fresh copy: every bit is flipped, every sector zeroed, filled with
junk, swapped with another one or replaced by an older version of itself, every file cut at every length, removed,
replaced by every other file and by every older version of itself. On each the broker is started and all queues are
emptied. Right is:

- refused: the start ends with 65 or 78, and the text names the file;
- exact: every message is there, byte for byte, in order, and nothing else is;
- closed: what is missing is missing behind an ERROR to the consumer of that very queue, which names the file.

Where records were changed and no message was missed by it, the scrub has to find it ("scrubbed").

Everything else is silent damage, but for the one blind spot that docs/journal-format.md states: the loss of the newest
segment file as a whole, where nothing vouches for it. Such cases are counted as "blind". Exit code 0: there was no
silent damage; 1: the cases are named and can be run again by `--case`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from broker.errors import StompdError
from tests.core.world import World
from tests.support.simdisk import SECTOR, Folder, Inode, SimDisk
from tests.support.wire import Got
from tools.faulty import ALL_QUEUES, KIB, Stage, Step, acks, idle, play, rejects, restart, sends, transactions

STORAGE = {"segment_size": 4 * KIB, "checkpoint": 6 * KIB}
MEMORY = 1024 * KIB
# Headers of a delivery that belong to the delivery; redelivered may be said too often, never too seldom.
OF_THE_DELIVERY = ("ack", "subscription", "redelivered")


def more(stage: Stage) -> None:
    """Fills a few segments, half of it dead."""
    peer, consumer = stage.peer("p"), stage.peer("c")
    consumer.client.subscribe("/queue/work", id="w", prefetch=4)
    for number in range(10):
        peer.send("/queue/work" if number % 2 else "/queue/deep", 400)
        for got in consumer.take(1):
            consumer.settle(got)
    stage.leave("c")


def checkpoint(stage: Stage) -> None:
    """Long enough for one."""
    stage.settle_down(40.0)


SCRIPT: tuple[Step, ...] = (
    sends, acks, rejects, transactions, more, checkpoint, restart("kill"), sends, more, checkpoint, sends, idle,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """kind: what is done to the file at `path`; `at` and `how` say where and with what."""

    kind: str
    path: str
    at: int = 0
    how: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}:{self.at}:{self.how}"

    @classmethod
    def parse(cls, text: str) -> Case:
        kind, path, at, how = text.split(":")
        return cls(kind, path, int(at), int(how))


@dataclass
class Base:
    """The sound folder. older: what each file held at earlier moments. expected: what each queue delivers."""

    disk: SimDisk
    files: dict[str, bytes]
    older: dict[str, list[bytes]]
    expected: dict[str, list[Got]]


@dataclass
class Verdict:
    way: str
    problems: list[str] = field(default_factory=list)


def files_of(disk: SimDisk) -> dict[str, bytes]:
    """Path and bytes of all files that the medium holds."""
    found: dict[str, bytes] = {}

    def walk(folder: Folder, path: str) -> None:
        for name, node in sorted(folder.durable.items()):
            if isinstance(node, Folder):
                walk(node, f"{path}{name}/")
            elif isinstance(node, Inode):
                found[path + name] = bytes(node.durable)

    walk(disk.root, "")
    return found


@cache
def base() -> Base:
    """The same in every process."""
    disk = SimDisk(Random(5))
    stage = Stage(disk, memory=MEMORY, storage=STORAGE)
    moments: list[dict[str, bytes]] = []
    play(stage, SCRIPT, at=lambda name: moments.append(files_of(disk)))
    if stage.errors:
        raise RuntimeError(f"the script does not run through: {stage.errors}")
    disk = disk.copy(Random(0))  # the power goes here: everything was synced, and an idle time vouches for it
    files = files_of(disk)
    older: dict[str, list[bytes]] = {}
    for moment in moments:
        for path, data in moment.items():
            known = older.setdefault(path, [])
            if data not in known and data != files.get(path):
                known.append(data)
    world = World(3, storage=STORAGE, memory=MEMORY, disk=disk.copy(Random(0)))
    found, troubles = empty(world)
    if troubles or scrub(world):
        raise RuntimeError(f"the folder is not sound: {troubles}")
    return Base(disk, files, older, found)


def scrub(world: World) -> list[str]:
    """What the scrub finds, once round."""
    world.events.seen.clear()
    world.advance(len(world.journal.segments) + 4.0)
    return [text for _, name, text in world.events.seen if name == "scrub"]


def empty(world: World) -> tuple[dict[str, list[Got]], dict[str, str]]:
    """What each queue delivers, and the texts of the ERRORs that its consumer got. Raises StompdError."""
    found: dict[str, list[Got]] = {}
    troubles: dict[str, str] = {}
    for queue in ALL_QUEUES:
        client = world.connect()
        client.subscribe(queue, prefetch=1000)
        world.run()
        found[queue] = client.take()
        if errors := client.take("ERROR"):
            troubles[queue] = " ".join(f"{got['message']}: {got.body.decode(errors='replace')}" for got in errors)
        client.lose()
    if world.failed is not None:
        raise world.failed
    return found, troubles


# --- the damages --------------------------------------------------------------------------------------------------


def all_cases(folder: Base) -> Iterator[Case]:
    paths = sorted(folder.files)
    for path in paths:
        data = folder.files[path]
        step = SECTOR if path.endswith("RESERVE") else 1  # nobody reads what is in there
        for at in range(0, len(data), step):
            for bit in range(8):
                yield Case("flip", path, at, bit)
        for at in range(0, len(data), step):
            yield Case("cut", path, at)
        sectors = range(0, len(data), SECTOR)
        for at in sectors:
            yield Case("zeros", path, at)
            yield Case("junk", path, at)
            for other in sectors:
                if other > at:
                    yield Case("swap", path, at, other)
            for index, old in enumerate(folder.older.get(path, ())):
                if len(old) > at:
                    yield Case("stale", path, at, index)
        yield Case("gone", path)
        for index in range(len(folder.older.get(path, ()))):
            yield Case("old", path, 0, index)
        for index, other_path in enumerate(paths):
            if other_path != path:
                yield Case("copy", path, 0, index)
        yield Case("twice", path, 1)
        yield Case("twice", path, -1)


def changed(folder: Base, case: Case) -> tuple[str, bytes | None]:
    """The path and its bytes afterwards; None where it is gone."""
    path, at = case.path, case.at
    data = folder.files[path]
    if case.kind == "flip":
        return path, data[:at] + bytes([data[at] ^ 1 << case.how]) + data[at + 1 :]
    if case.kind == "cut":
        return path, data[:at]
    if case.kind == "gone":
        return path, None
    if case.kind == "old":
        return path, folder.older[path][case.how]
    if case.kind == "copy":
        return path, folder.files[sorted(folder.files)[case.how]]
    if case.kind == "twice":
        return neighbour(path, at), data
    size = min(SECTOR, len(data) - at)
    new = {
        "zeros": lambda: bytes(size),
        "junk": lambda: Random(at).randbytes(size),
        "stale": lambda: folder.older[path][case.how][at : at + size].ljust(size, b"\0"),
        "swap": lambda: data[case.how : case.how + size].ljust(size, b"\0"),
    }[case.kind]()
    data = data[:at] + new + data[at + size :]
    if case.kind == "swap":
        other = case.how
        room = min(SECTOR, len(data) - other)
        data = data[:other] + folder.files[path][at : at + SECTOR].ljust(room, b"\0")[:room] + data[other + room :]
    return path, data


def neighbour(path: str, step: int) -> str:
    """The name that a copy of this file gets: numbers go up or down past those that are there."""
    head, _, name = path.rpartition("/")
    number, dot, suffix = name.partition(".")
    if not number.isascii() or not number.isdecimal():
        return f"{path}.copy"
    taken = base().files
    value = int(number)
    while f"{head}/{value:020d}{dot}{suffix}" in taken:
        value += step
    return f"{head}/{max(value, 0):020d}{dot}{suffix}"


def apply(folder: Base, case: Case) -> SimDisk | None:
    """A copy of the disk with the damage; None where it changes nothing."""
    path, data = changed(folder, case)
    if data == folder.files.get(path):
        return None
    disk = folder.disk.copy(Random(1))
    if data is None:
        disk.remove(path)
    elif path in folder.files:
        disk.put(path, data)
    else:
        handle = disk.create(path)
        disk.put(path, data)
        disk.close(handle)
        disk.sync_dir(path.rpartition("/")[0])
    return disk


# --- the verdict --------------------------------------------------------------------------------------------------


def judge(case: Case) -> Verdict:
    folder = base()
    disk = apply(folder, case)
    if disk is None:
        return Verdict("no change")
    name = Path(case.path).name
    try:
        world = World(3, storage=STORAGE, memory=MEMORY, disk=disk)
        records = in_records(folder, case, world)
        found, troubles = empty(world)
        scrubbed = scrub(world) if records and not troubles else []
    except StompdError as error:
        return refusal(error, name, Path(changed(folder, case)[0]).name)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        steps = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(where))
        return Verdict("escaped", [f"{type(error).__name__} escaped: {error} ({steps})"])
    problems = [
        problem
        for queue in ALL_QUEUES
        for problem in differences(queue, folder.expected[queue], found[queue], troubles.get(queue, ""))
    ]
    if problems and not troubles and case.kind == "gone" and case.path == newest(folder):
        return Verdict("blind")
    if not problems and any(name not in text for text in troubles.values()):
        problems.append(f"an ERROR does not name {name}: {troubles}")
    if records and not troubles and not problems:
        if any(name in text for text in scrubbed):
            return Verdict("exact, scrubbed")
        problems.append(f"no message is missed, and the scrub does not find it: {scrubbed}")
    return Verdict("silent" if problems else "closed" if troubles else "exact", problems)


def in_records(folder: Base, case: Case, world: World) -> bool:
    """Whether bytes were changed that are records of a segment of this log."""
    path, after = changed(folder, case)
    before = folder.files.get(path)
    segment = next((each for each in world.journal.segments if each.path == path), None)
    if before is None or segment is None:
        return False
    return after is None or before[: segment.end] != after[: segment.end]


def newest(folder: Base) -> str:
    return max(path for path in folder.files if path.endswith(".seg"))


def refusal(error: StompdError, *names: str) -> Verdict:
    code, text = int(error.exit_code), str(error)
    if code not in (65, 78):
        return Verdict(f"refused with {code}", [f"exit code {code}: {text}"])
    # A file may be missed by its neighbours, which name its number or its folder.
    numbers = [str(int(name.split(".")[0])) for name in names if name.split(".")[0].isdecimal()]
    if not any(name in text for name in names) and not any(f"segment {number}" in text for number in numbers):
        return Verdict(f"refused with {code}", [f"the text does not name {names[0]}: {text}"])
    return Verdict(f"refused with {code}")


def look(got: Got) -> tuple[bytes, dict[str, str]]:
    return got.body, {name: value for name, value in got.headers.items() if name not in OF_THE_DELIVERY}


def differences(queue: str, expected: list[Got], found: list[Got], trouble: str) -> Iterator[str]:
    """What is not as it should be; with an ERROR, messages may be missing, but none may be wrong."""
    left = iter(expected)
    for got in found:
        match = next((each for each in left if look(each) == look(got)), None)
        if match is None:
            yield f"{queue}: delivers {got}, which is wrong or out of order"
            return
        if match.get("redelivered") == "true" and got.get("redelivered") != "true":
            yield f"{queue}: {got} was delivered before and is not flagged"
    if len(found) < len(expected) and not trouble:
        yield f"{queue}: {len(expected) - len(found)} of {len(expected)} messages are missing without a word"


def some_cases(folder: Base, number: int, seed: int) -> list[Case]:
    """A spread over the kinds of damage and the files, by chance under the seed."""
    piles: dict[tuple[str, str], list[Case]] = {}
    for case in all_cases(folder):
        piles.setdefault((case.kind, case.path), []).append(case)
    random = Random(seed)
    shuffled = [random.sample(pile, len(pile)) for pile in piles.values()]
    chosen: list[Case] = []
    while len(chosen) < number and any(shuffled):
        for pile in shuffled:
            if pile and len(chosen) < number:
                chosen.append(pile.pop())
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(
        description="every small damage to a whole data folder, one at a time",
        epilog="example: python tools/damage.py --some 2000",
    )
    parser.add_argument("--some", type=int, metavar="N", help="a spread of N cases instead of all")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="which ones (1)")
    parser.add_argument("--case", metavar="KIND:PATH:AT:HOW", help="one case")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
    args = parser.parse_args()
    if args.case:
        verdict = judge(Case.parse(args.case))
        print(verdict.way, *verdict.problems, sep="\n")
        return 1 if verdict.problems else 0
    folder = base()
    waiting = sum(map(len, folder.expected.values()))
    print(f"{len(folder.files)} files, {sum(map(len, folder.files.values())):,} bytes, {waiting} messages waiting")
    for path, data in sorted(folder.files.items()):
        print(f"  {path}: {len(data):,} bytes, {len(folder.older.get(path, ()))} older versions")
    cases = list(all_cases(folder)) if args.some is None else some_cases(folder, args.some, args.seed)
    ways: Counter[tuple[str, str]] = Counter()
    failed = 0
    began = time.monotonic()
    with multiprocessing.Pool(args.jobs) as pool:
        for case, verdict in zip(cases, pool.imap(judge, cases, chunksize=64), strict=True):
            ways[case.kind, verdict.way] += 1
            if verdict.problems:
                failed += 1
                if failed <= 40:
                    print(f"{case}: {'; '.join(verdict.problems)}", flush=True)
    took = time.monotonic() - began
    for (kind, way), count in sorted(ways.items()):
        print(f"{kind}: {count} {way}")
    print(f"{'FAILED' if failed else 'ok'}: {len(cases)} cases, {failed} failed, {took:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
