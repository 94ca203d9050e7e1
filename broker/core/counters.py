"""What the core tells those who run it: counts and events."""

from __future__ import annotations

from typing import Protocol


class Events(Protocol):
    def event(self, level: str, name: str, text: str, /, **fields: object) -> None:
        """Tell the operator."""


class Counters:
    """What an operator counts; only ever grows."""

    __slots__ = (
        "acknowledged", "dead_lettered", "delivered", "dropped_replies", "dropped_slow", "received", "returned",
    )  # fmt: skip

    def __init__(self) -> None:
        self.received = 0
        self.delivered = 0
        self.acknowledged = 0
        self.returned = 0
        self.dead_lettered = 0
        self.dropped_slow = 0  # topic messages that a slow subscriber did not get
        self.dropped_replies = 0  # sent to a temporary queue that is gone
