"""The exact checker finds each kind of broken promise, and nothing in histories that are right."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.exact import check_exactly
from tests.support.history import Event, Rule, What

QUEUE, DEAD = "/queue/q", "/queue/DLQ.q"
CRASH, STOP = Event(What.CRASH, ""), Event(What.STOP, "")


def send(message: str, by: str = "p", queue: str = QUEUE, **more: Any) -> Event:
    return Event(What.SEND, by, message, queue, **more)


def subscribe(by: str = "c", sub: str = "s", queue: str = QUEUE, prefetch: int = 9) -> Event:
    return Event(What.SUBSCRIBE, by, queue=queue, subscription=sub, prefetch=prefetch)


def unsubscribe(by: str = "c", sub: str = "s") -> Event:
    return Event(What.UNSUBSCRIBE, by, subscription=sub)


def came(message: str, to: str = "c", sub: str = "s", queue: str = QUEUE, **more: Any) -> Event:
    return Event(What.DELIVERED, to, message, queue, subscription=sub, **more)


def again(message: str, to: str = "d", **more: Any) -> Event:
    return came(message, to, redelivered=True, **more)


def ack(message: str, by: str = "c", sub: str = "s", **more: Any) -> Event:
    return Event(What.ACK, by, message, subscription=sub, **more)


def nack(message: str, by: str = "c", sub: str = "s", **more: Any) -> Event:
    return Event(What.NACK, by, message, subscription=sub, **more)


def end(what: What, name: str, by: str = "c", receipt: str = "") -> Event:
    return Event(what, by, transaction=name, receipt=receipt)


def closed(by: str) -> Event:
    return Event(What.CLOSED, by)


def doubt(by: str) -> Event:
    return Event(What.DOUBT, by)


RECEIPT = Event(What.RECEIPT, "p", receipt="1")
KEPT = [send("a", receipt="1"), RECEIPT]

GOOD: dict[str, list[Event]] = {
    "nothing happened": [],
    "sent, delivered, acknowledged": [send("a"), subscribe(), came("a"), ack("a")],
    "an unreceipted SEND is lost in a crash": [send("a"), closed("p"), CRASH],
    "one that stood behind an error was not looked at": [send("a"), doubt("p"), closed("p")],
    "an unreceipted ACK is forgotten in a crash": [
        *KEPT, subscribe(), came("a"), ack("a"), closed("c"), CRASH, subscribe("d"), again("a"), ack("a", "d"),
    ],
    "after a crash the flag may be too careful": [*KEPT, CRASH, subscribe("d"), again("a"), ack("a", "d")],
    "what is in memory only ends with a stop": [send("a", persistent=False), STOP],
    "a late ACK settles what another has": [
        send("a"), subscribe(), came("a"), unsubscribe(), subscribe("d"), again("a"), ack("a", sub=""), closed("d"),
    ],
    "a transaction frees the slot of what it acknowledges": [
        send("a"), send("b"), subscribe(prefetch=1), came("a"), ack("a", transaction="t"), came("b"),
        end(What.COMMIT, "t"), ack("b"),
    ],
    "a rejected message is a dead letter": [
        send("a"), subscribe(), came("a"), nack("a", requeue=False),
        subscribe("d", queue=DEAD), again("a", queue=DEAD), ack("a", "d"),
    ],
    "one that failed often enough is a dead letter": [
        send("a"), subscribe(), came("a"), nack("a"), again("a", "c"), closed("c"),
        subscribe("d", queue=DEAD), again("a", queue=DEAD), ack("a", "d"),
    ],
    "a topic forgets": [send("a", queue="/topic/t"), closed("p")],
    "one topic message for two subscriptions": [
        subscribe(queue="/topic/t"), subscribe(sub="s2", queue="/topic/#"), send("a", queue="/topic/t"),
        came("a", queue="/topic/t"), came("a", sub="s2", queue="/topic/t"),
    ],
}  # fmt: skip

BAD: dict[str, tuple[Rule, list[Event]]] = {
    "an unreceipted SEND is gone, and nothing crashed": (Rule.LOSS, [send("a"), closed("p")]),
    "an unreceipted SEND is gone after a clean stop": (Rule.LOSS, [send("a"), closed("p"), STOP, CRASH]),
    "one in memory only is gone, and nothing stopped": (Rule.LOSS, [send("a", persistent=False), closed("p")]),
    "a delivered message does not come back after a crash": (
        Rule.LOSS, [send("a"), subscribe(), came("a"), closed("c"), CRASH],
    ),
    "an unreceipted COMMIT took no effect, and nothing crashed": (
        Rule.LOSS, [send("a", transaction="t"), end(What.COMMIT, "t", "p"), closed("p")],
    ),
    "one in memory only comes back after a stop": (
        Rule.GHOST, [send("a", persistent=False), STOP, subscribe(), came("a"), ack("a")],
    ),
    "a delivery to a subscription that has ended": (
        Rule.GHOST, [send("a"), subscribe(), unsubscribe(), came("a"), ack("a")],
    ),
    "a topic message comes twice": (
        Rule.GHOST,
        [subscribe(queue="/topic/t"), send("a", queue="/topic/t"), *[came("a", queue="/topic/t")] * 2],
    ),
    "topic messages change places": (
        Rule.FIFO,
        [
            subscribe(queue="/topic/t"), send("a", queue="/topic/t"), send("b", queue="/topic/t"),
            came("b", queue="/topic/t"), came("a", queue="/topic/t"),
        ],
    ),
    "messages of two senders change places": (
        Rule.FIFO, [send("a"), send("b", "q"), subscribe(), came("b"), came("a"), ack("a"), ack("b")],
    ),
    "what is left at the end is out of order": (
        Rule.FIFO,
        [
            send("a"), send("b"), subscribe(), came("a"), came("b"), closed("c"),
            subscribe("z"), again("b", "z"), again("a", "z"), ack("a", "z"), ack("b", "z"),
        ],
    ),
    "an unreceipted ACK is forgotten, and nothing crashed": (
        Rule.RETURN,
        [send("a"), subscribe(), came("a"), ack("a"), closed("c"), subscribe("d"), again("a"), ack("a", "d")],
    ),
    "a late ACK is forgotten": (
        Rule.RETURN,
        [
            send("a"), subscribe(), came("a"), unsubscribe(), ack("a", sub=""),
            subscribe("d"), again("a"), ack("a", "d"),
        ],
    ),
    "an ACK in an unreceipted COMMIT is forgotten, and nothing crashed": (
        Rule.RETURN,
        [
            send("a"), subscribe(), came("a"), ack("a", transaction="t"), end(What.COMMIT, "t"), closed("c"),
            subscribe("d"), again("a"), ack("a", "d"),
        ],
    ),
    "flagged, and nobody ever got it": (Rule.FLAG, [send("a"), subscribe("d"), again("a"), ack("a", "d")]),
    "flagged after a clean stop, and nobody ever got it": (
        Rule.FLAG, [*KEPT, STOP, subscribe("d"), again("a"), ack("a", "d")],
    ),
    "one more than the prefetch": (
        Rule.CREDIT,
        [send("a"), send("b"), subscribe(prefetch=1), came("a"), came("b"), ack("a"), ack("b")],
    ),
    "an ABORT does not take its slots back": (
        Rule.CREDIT,
        [
            send("a"), send("b"), send("c"), subscribe(prefetch=1), came("a"), ack("a", transaction="t"), came("b"),
            end(What.ABORT, "t"), ack("b"), came("c"), ack("a"), ack("c"),
        ],
    ),
    "a message with two consumers, one of which holds it in a transaction": (
        Rule.OWNER,
        [
            send("a"), subscribe(), subscribe("d"), came("a"), nack("a", transaction="t"), again("a"), ack("a", "d"),
        ],
    ),
    "a dead letter that never failed": (
        Rule.DEAD, [send("a"), subscribe("d", queue=DEAD), again("a", queue=DEAD), ack("a", "d")],
    ),
    "a dead letter that failed too seldom": (
        Rule.DEAD,
        [
            send("a"), subscribe(), came("a"), nack("a"),
            subscribe("d", queue=DEAD), again("a", queue=DEAD), ack("a", "d"),
        ],
    ),
    "half of a COMMIT that a crash interrupted": (
        Rule.ATOMIC,
        [
            send("a", transaction="t"), send("b", transaction="t"), end(What.COMMIT, "t", "p"), closed("p"), CRASH,
            subscribe(), came("a"), ack("a"),
        ],
    ),
}  # fmt: skip


def rules(events: list[Event]) -> set[Rule]:
    return {found.rule for found in check_exactly(events, drains=["z"], failures=2)}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_history_passes(name: str) -> None:
    assert rules(GOOD[name]) == set()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_rejected_by_the_right_rule(name: str) -> None:
    rule, events = BAD[name]
    assert rule in rules(events)


def test_there_are_twenty_bad_histories_and_every_rule_has_one_here_or_with_the_other_checker() -> None:
    assert len(BAD) >= 20
    elsewhere = {Rule.RECEIPT, Rule.LIVENESS}  # tests/live/test_history.py
    assert {rule for rule, _ in BAD.values()} | elsewhere == set(Rule)
