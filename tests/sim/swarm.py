"""What a seed plays with: each run has some of the features and some of the troubles, in its own mixture.

A run in which everything happens all the time reaches less than runs that differ (Groce et al., "Swarm Testing").
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from random import Random

from broker.config import Limits, Memory, Settings, Storage

ACTIONS = {
    "send": 20, "settle": 24, "subscribe": 8, "unsubscribe": 3, "begin": 4, "commit": 5, "abort": 1, "late": 5,
    "leave": 2, "reply": 3, "garbage": 1, "stick": 2,
}  # fmt: skip
NEEDED = ("send", "settle", "subscribe")
# A small world reaches only small numbers: what guards thousands guards a few here.
SMALL: dict[str, tuple[float, ...]] = {
    "queue.MARK_STEP": (2, 5, 20, 1000),
    "queue.LOAD_LOW": (1, 4, 50),
    "backlog.LOAD_MESSAGES": (1, 3, 20),
    "backlog.HEAD": (0, 2, 10),
    "backlog.SPILL_END": (0, 5, 40),
    "checkpoints.EVERY": (0.5, 5.0, 30.0),
    "checkpoints.SLICE_MESSAGES": (1, 5, 1000),
    "checkpoints.SLICE_QUEUES": (1, 2, 1000),
    "checkpoints.PART_BYTES": (32, 128, 1 << 20),
    "compaction.LIVE_SHARE": (0.3, 0.3, 0.7, 0.95),
    "compaction.PORTION_BYTES": (1, 500, 1 << 20),
    "compaction.PORTION_MESSAGES": (1, 5, 1000),
    "compaction.RECORD_MESSAGES": (1, 3, 64),
    "positions.BLOCK_WORDS": (8, 16, 2048),
}


@dataclass(frozen=True)
class Swarm:
    """One seed's mixture. Sizes are bytes."""

    steps: int
    cycles: int  # runs of the broker, each but the last with an end that the seed picks
    clients: int
    weights: dict[str, int]
    queues: tuple[str, ...]
    topics: bool
    temporary: bool
    versions: tuple[str, ...]
    receipts: float  # how likely a frame asks for one
    volatile: float  # how likely a message is persistent:false
    dead: float  # how likely a NACK has requeue:false
    body: int  # the most that a body is filled up with
    window: int  # what a socket takes
    cuts: bool  # bytes arrive in small pieces
    resets: float  # how likely a step cuts a connection
    faults: float  # how likely a step breaks the disk
    full: float  # how likely a step fills the disk up
    endings: tuple[str, ...]
    lanes: dict[str, float]  # how fast each thread is
    ambush: str  # a task that invites the end
    rest: float  # how likely a step lets everything come to rest
    small: dict[str, float]  # constants of modules of the core, by "module.NAME"
    failures: int  # deliveries that make a dead letter
    settings: Settings


def draw(random: Random) -> Swarm:
    choice = random.choice
    weights = {
        name: weight * choice((0, 1, 1, 2)) if name not in NEEDED else weight * choice((1, 1, 2))
        for name, weight in ACTIONS.items()
    }
    fsync = random.choices(("always", "interval", "never"), (18, 1, 1))[0]
    endings = ["stop", "kill", "kill in a call", "kill", "power", "power in a call", "power in a call", "power"]
    if fsync != "always":  # then only what the kernel lost with the power may be gone
        endings = ["stop", "kill", "kill in a call"]
    calm = random.random() < 0.3  # no trouble but the endings
    return Swarm(
        steps=choice((200, 200, 300, 300, 600)),
        cycles=random.randrange(2, 7),
        clients=random.randrange(2, 9),
        weights=weights,
        queues=tuple("abcdefg"[: choice((1, 2, 2, 3, 6))]),
        topics=random.random() < 0.3,
        temporary=random.random() < 0.2,
        versions=choice((("1.2",), ("1.2",), ("1.0", "1.1", "1.2"))),
        receipts=choice((0.05, 0.4, 0.9)),
        volatile=choice((0.0, 0.0, 0.1, 0.5)),
        dead=choice((0.0, 0.3, 0.8)),
        body=choice((0, 20, 20, 100, 400, 1500)),
        window=choice((400, 4000, 1 << 20)),
        cuts=random.random() < 0.4,
        resets=0.0 if calm else choice((0.0, 0.01, 0.04)),
        faults=0.0 if calm or fsync != "always" else choice((0.0, 0.005, 0.02)),
        full=0.0 if calm else choice((0.0, 0.0, 0.01)),
        endings=tuple(endings),
        lanes={
            "storage": choice((1.0, 1.0, 0.2)),
            "reader": choice((1.0, 0.3, 0.05)),
            "keeper": choice((1.0, 0.3, 0.1)),
        },
        ambush=choice(("", "", "Finish", "Finish", "Add", "copying", "loading")),
        rest=choice((0.0, 0.02, 0.1)),
        small={name: choice(values) for name, values in SMALL.items()},
        failures=choice((1, 2, 4, 10)),
        settings=_settings(random, fsync),
    )


def _settings(random: Random, fsync: str) -> Settings:
    choice = random.choice
    return dataclasses.replace(
        Settings(),
        data_dir="data",
        storage=dataclasses.replace(
            Storage(),
            segment_size=choice((2, 4, 4, 8, 16, 64)) * 1024,
            fsync=fsync,
            interval=0.05,
            checkpoint=choice((200, 1000, 8000, 1 << 20)),
            compaction_rate=choice((1, 64, 1024)) * 1024,
            scrub_rate=choice((0, 1000, 1 << 20)),
            min_free=choice((0, 0, 1, 6000)),
        ),
        memory=dataclasses.replace(Memory(), limit=choice((6, 12, 12, 24, 64, 1024)) * 1024),
        limits=dataclasses.replace(
            Limits(), output=choice((300, 2000, 64 * 1024)), default_prefetch=choice((1, 3, 256))
        ),
    )
