"""Wants: what a SUBSCRIBE's headers ask for, by whichever name (features.md, "SUBSCRIBE")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wants:
    """What is not plain about a subscription; the defaults ask for nothing.

    selector: its text, "" for none. priority: -128 to 127. ack_timeout: ms, 0 for none. max_rate: messages a second,
    0 for no limit. durable: the name of the durable subscription, "" for none. feeds: the queue that a topic
    subscription is kept in (RabbitMQ's `x-queue-name`), "" for none.
    """

    selector: str = ""
    exclusive: bool = False
    priority: int = 0
    browser: bool = False
    no_local: bool = False
    ack_timeout: int = 0
    max_rate: float = 0.0
    durable: str = ""
    feeds: str = ""
