"""What a thousand seeds must have gone through: a simulation that never reaches a state proves nothing about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Each at least so often in 1,000 seeds; about a third of what is usual, so that a change of the broker that shifts the
# seeds does not alarm, and one that makes a state unreachable does.
FLOOR: Final[dict[str, int]] = {
    "deliveries": 65_000,
    "receipts": 35_000,
    "resets": 1000,
    # How runs of the broker end and begin.
    "kills": 600,
    "power losses": 800,
    "stops": 150,
    "clean starts": 450,
    "crash during start": 300,
    "start failed": 35,
    "starts on a checkpoint": 350,
    "checkpoints compared": 240,
    "verified": 230,
    # What it was at when it died.
    "power gone in Write": 190,
    "power gone in Begin": 20,
    "power gone in Add": 10,
    "power gone in Finish": 13,
    "power gone in loading": 20,
    "power gone in copying": 3,
    "crash, Write not done": 350,
    "crash, Write done and not reported": 100,
    "crash, Finish not done": 15,
    "crash, copying not done": 35,
    "crash, copying done and not reported": 18,
    "crash while loading": 170,
    "crash with messages on disk only": 800,
    # Memory, disk, space.
    "spilled": 800,
    "loaded": 11_000,
    "settled while it was read": 3,
    "checkpoints": 600,
    "carried": 600,
    "trimmed": 1800,
    "scrubbed": 500_000,
    "faults set": 500,
    "storage failed": 100,
    "disk full": 170,
    "writer waits for room": 95,
    "event disk-alarm": 50,
    "event disk-alarm-over": 8,
    "event damaged": 8,
    # Clients.
    "event dead-letter": 210,
    "event slow-subscriber": 30,
    "error broker is over its memory limit": 480,
    "error broker has no room on its disk": 35,
    "error queue is damaged": 10,
    "error storage failure": 400,
    "error unknown id": 80,
}


def missing(counts: Mapping[str, int], seeds: int) -> list[str]:
    """What happened too seldom in so many seeds, in words. Says nothing about fewer than 200."""
    if seeds < 200:
        return []
    return [
        f"{name}: {counts.get(name, 0)}, expected {floor * seeds // 1000} at least"
        for name, floor in FLOOR.items()
        if counts.get(name, 0) < floor * seeds // 1000
    ]
