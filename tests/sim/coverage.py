"""What a thousand seeds must have gone through: a simulation that never reaches a state proves nothing about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Each at least so often in 1,000 seeds; about a third of what is usual, so that a change of the broker that shifts the
# seeds does not alarm, and one that makes a state unreachable does.
FLOOR: Final[dict[str, int]] = {
    "deliveries": 70_000,
    "receipts": 40_000,
    "resets": 1000,
    # How runs of the broker end and begin.
    "kills": 600,
    "power losses": 800,
    "stops": 170,
    "clean starts": 500,
    "crash during start": 300,
    "start failed": 30,
    "starts on a checkpoint": 280,
    "checkpoints compared": 180,
    "verified": 240,
    # What it was at when it died.
    "power gone in Write": 190,
    "power gone in Begin": 18,
    "power gone in Add": 6,
    "power gone in Finish": 8,
    "power gone in loading": 25,
    "power gone in copying": 5,
    "crash, Write not done": 330,
    "crash, Write done and not reported": 120,
    "crash, Finish not done": 5,
    "crash, copying not done": 20,
    "crash, copying done and not reported": 12,
    "crash while loading": 180,
    "crash with messages on disk only": 800,
    # Memory, disk, space.
    "spilled": 800,
    "loaded": 13_000,
    "checkpoints": 370,
    "carried": 800,
    "trimmed": 1700,
    "scrubbed": 400_000,
    "faults set": 500,
    "storage failed": 100,
    "disk full": 200,
    "writer waits for room": 130,
    "event disk-alarm": 58,
    "event disk-alarm-over": 11,
    "event damaged": 8,
    # Clients.
    "event dead-letter": 220,
    "event slow-subscriber": 30,
    "error broker is over its memory limit": 480,
    "error broker has no room on its disk": 45,
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
