"""What the core tells those who run it: counts and events."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    def event(self, level: str, name: str, text: str, /, **fields: object) -> None:
        """Tell the operator."""


class Counters:
    """What an operator counts; only ever grows."""

    __slots__ = (
        "acknowledged", "carried", "checkpoints", "damaged", "dead_lettered", "delivered", "disk_alarms",
        "dropped_replies", "dropped_slow", "loaded", "received", "returned", "scrubbed", "spilled",
    )  # fmt: skip

    def __init__(self) -> None:
        self.received = 0
        self.delivered = 0
        self.acknowledged = 0
        self.returned = 0
        self.dead_lettered = 0
        self.dropped_slow = 0  # topic messages that a slow subscriber did not get
        self.spilled = 0  # times that a queue's messages went from memory to disk
        self.loaded = 0  # messages read back from disk
        self.carried = 0  # messages copied forward by compaction
        self.checkpoints = 0
        self.scrubbed = 0  # bytes of log that were read again and verified
        self.damaged = 0  # places where the scrub found damage
        self.disk_alarms = 0  # times that producers were held back for want of room
        self.dropped_replies = 0  # sent to a temporary queue that is gone
