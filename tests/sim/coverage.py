"""What a thousand seeds must have gone through: a simulation that never reaches a state proves nothing about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Each at least so often in 1,000 seeds; about a third of what is usual, so that a change of the broker that shifts the
# seeds does not alarm, and one that makes a state unreachable does.
FLOOR: Final[dict[str, int]] = {
    "deliveries": 80_000,
    "receipts": 50_000,
    "resets": 1000,
    "kills": 500,
    "power losses": 600,
    "stops": 100,
    "clean starts": 400,
    "crash during start": 300,
    "start failed": 30,
    "storage failed": 80,
    "crash before storage was done": 300,
    "crash before storage was reported": 100,
    "disk full": 100,
    "faults set": 400,
    "event dead-letter": 200,
    "event slow-subscriber": 20,
    "error broker is over its memory limit": 100,
    "error storage failure": 300,
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
