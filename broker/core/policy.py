"""Policies: what the configuration, or the first client, says about a queue or topic (features.md, "Queue policy")."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Overflow(Enum):
    """What happens to a SEND, or for its sake, when the queue is full."""

    BLOCK = "block"
    REJECT = "reject"
    DROP_OLDEST = "drop-oldest"
    DROP_NEWEST = "drop-newest"
    DEAD_LETTER_OLDEST = "dead-letter-oldest"


@dataclass(frozen=True, slots=True)
class Redelivery:
    """Failed deliveries: after the last one the message is a dead letter. delay, max_delay: milliseconds."""

    max_deliveries: int = 10
    delay: int = 1000
    backoff: float = 2.0
    max_delay: int = 300_000


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Times are milliseconds, 0 for none; counts and sizes 0 for no limit.

    dead_letter: the destination of dead letters; None: /queue/DLQ.NAME; "": they are dropped. expires: a queue that was
    unused for so long goes, with its messages. max_rate: messages a second handed out, 0 for no limit. tap: a topic
    that gets a copy of all, "" for none.
    """

    max_length: int = 0
    max_bytes: int = 0
    overflow: Overflow = Overflow.BLOCK
    ttl: int = 0
    expires: int = 0
    dead_letter: str | None = None
    dead_letter_expired: bool = False
    redelivery: Redelivery = field(default_factory=Redelivery)
    dedup_window: int = 600_000
    dedup_count: int = 100_000
    exclusive: bool = False
    strict_groups: bool = False
    priorities: bool = True
    tap: str = ""
    max_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class TopicPolicy:
    """routes: queues that get a copy of everything. disconnect: a slow subscriber is cut off, not passed over."""

    retain: bool = False
    disconnect: bool = False
    routes: tuple[str, ...] = ()


PLAIN: QueuePolicy = QueuePolicy()
