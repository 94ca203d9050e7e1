"""A day of traffic in fast motion: does the log stay small, and how much is written for it?

    python tools/longday.py                   # 24 hours, 10 messages a second, one that nobody ever takes
    python tools/longday.py --case stuck      # beside a backlog of 50 MB that nobody takes
    python tools/longday.py --case sieve      # small messages stay among large ones that are taken
    python tools/longday.py --hours 1 --segment 256KiB --seed 3

The whole broker runs on a simulated disk with a clock that is set by hand. In every second, the files of the log
together must be smaller than 3 x what is wanted of it + 4 segments. Exit code 1 where they are not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from broker.config.units import parse_size
from broker.core.compaction import MESSAGE_BYTES
from broker.system import Handle
from tests.core.world import DATA_DIR, Client, World
from tests.support.simdisk import Inode, SimDisk

RATE = 10  # messages a second
SIZES = (200, 2000)  # bytes of a body
STUCK_BYTES = 50_000_000
STUCK_BODY = 10_000


class LeanDisk(SimDisk):
    """Everything is on the medium at once: nothing dies here. Counts what is written."""

    written = 0

    def write(self, handle: Handle, buffers: Sequence[bytes], offset: int) -> int:
        inode = self._of("write", handle)
        data = b"".join(buffers)
        if offset > len(inode.cache):
            inode.cache.extend(bytes(offset - len(inode.cache)))
        inode.cache[offset : offset + len(data)] = data
        self.written += len(data)
        return len(data)

    def _sync(self, inode: Inode) -> None:
        inode.sizes.clear()

    def space(self, folder: str) -> int:
        """Bytes of all files in it."""
        return sum(len(self._file(path).cache) for path in self.files(folder))


class Consumer(Client):
    """Takes what comes and remembers the last acknowledgement's id; anything else is an error."""

    last = b""
    count = 0

    def _take(self, data: bytes) -> None:
        if b"ERROR\n" in data:
            raise RuntimeError(data[:400])
        if (at := data.rfind(b"\nack:")) >= 0:
            self.last = data[at + 5 : data.index(b"\n", at + 5)]
        self.count += data.count(b"MESSAGE\n")


@dataclass
class Day:
    """What a run has seen. Sizes are bytes. worst: the space as a share of what was allowed, at its highest."""

    seconds: int = 0
    traffic: int = 0
    written: int = 0
    most: int = 0
    most_live: int = 0
    worst: float = 0.0
    removed: int = 0
    carried: int = 0
    checkpoints: int = 0
    over: str = ""

    def __str__(self) -> str:
        return (
            f"{self.seconds / 3600:g} h: {self.traffic / 1e6:.1f} MB of bodies, {self.written / 1e6:.1f} MB written "
            f"({self.written / self.traffic:.2f} x); the log took {self.most / 1e6:.1f} MB at most "
            f"({self.worst:.0%} of what is allowed) for {self.most_live / 1e6:.1f} MB wanted at most; "
            f"{self.removed} segments removed, {self.carried} messages copied, {self.checkpoints} checkpoints"
        )


def run(case: str, seconds: int, segment: int, seed: int) -> Day:
    """One run; stops where the log takes too much."""
    random = Random(seed)
    disk = LeanDisk(random)
    world = World(seed, disk=disk, storage={"segment_size": segment, "scrub_rate": 0})
    producer = world.connect()
    producer.publish("/queue/never", random.randbytes(100).hex(), receipt="r")
    if case == "stuck":
        for _ in range(STUCK_BYTES // STUCK_BODY // 20):
            producer.feed(b"".join(send("/queue/never", random.randbytes(STUCK_BODY)) for _ in range(20)))
    consumer = Consumer(world, "1.2")
    consumer.send("CONNECT", {"accept-version": "1.2", "host": "/"})
    consumer.subscribe("/queue/work", ack="client")
    day = Day(written=-disk.written)
    first = world.journal.segments[0].number
    for second in range(seconds):
        frames = []
        for n in range(RATE):
            if case == "sieve" and n == 0:
                frames.append(send("/queue/never", random.randbytes(50)))
                day.traffic += 50
                continue
            body = random.randbytes(random.randrange(*SIZES))
            frames.append(send("/queue/work", body))
            day.traffic += len(body)
        world.clock.now += 1.0
        if world.timer and world.timer <= world.clock.now:
            world.timer = 0.0
            world.broker.tick()
        producer.feed(b"".join(frames))
        consumer.feed(b"ACK\nid:%b\n\n\0" % consumer.last)
        day.seconds = second + 1
        if look(world, disk, day, segment):
            break
    day.written += disk.written
    day.removed = world.journal.segments[0].number - first
    day.carried, day.checkpoints = world.broker.counters.carried, world.broker.counters.checkpoints
    wanted = RATE * day.seconds - (day.seconds if case == "sieve" else 0)
    if consumer.count != wanted:
        day.over = day.over or f"{consumer.count} messages were delivered, {wanted} were sent"
    return day


def send(destination: str, body: bytes) -> bytes:
    return b"SEND\ndestination:%b\ncontent-length:%d\n\n%b\0" % (destination.encode(), len(body), body)


def look(world: World, disk: LeanDisk, day: Day, segment: int) -> bool:
    """Whether the log takes more than it may."""
    live = sum(each.live_bytes + MESSAGE_BYTES * each.live for each in world.journal.segments)
    space = disk.space(f"{DATA_DIR}/log")
    allowed = 3 * live + 4 * segment
    day.most, day.most_live = max(day.most, space), max(day.most_live, live)
    day.worst = max(day.worst, space / allowed)
    if space >= allowed:
        day.over = f"second {day.seconds}: {space} bytes in the log's files, {live} are wanted, {allowed} are allowed"
    return bool(day.over)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("plain", "stuck", "sieve"), default="plain")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--segment", default="1MiB", help="storage.segment_size (1MiB)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    day = run(arguments.case, int(arguments.hours * 3600), parse_size(arguments.segment), arguments.seed)
    print(f"{arguments.case}: {day}; {time.monotonic() - began:.0f} s", flush=True)
    if day.over:
        print(f"longday: {day.over}", file=sys.stderr)
    return 1 if day.over else 0


if __name__ == "__main__":
    sys.exit(main())
