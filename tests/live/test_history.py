"""The history checker finds each kind of broken promise, and nothing in histories that are right."""

from __future__ import annotations

import pytest

from tests.support.history import Event, Rule, What, check


def send(message: str, by: str = "p", queue: str = "q", transaction: str = "", receipt: str = "") -> Event:
    return Event(What.SEND, by, message, queue, transaction, receipt)


def receipted(name: str, by: str = "p") -> Event:
    return Event(What.RECEIPT, by, receipt=name)


def came(
    message: str,
    to: str = "c",
    queue: str = "q",
    ident: str = "",
    *,
    again: bool = False,
    intact: bool = True,
) -> Event:
    return Event(What.DELIVERED, to, message, queue, ident=ident, redelivered=again, intact=intact)


def ack(message: str, by: str = "c", transaction: str = "", receipt: str = "") -> Event:
    return Event(What.ACK, by, message, transaction=transaction, receipt=receipt)


def commit(transaction: str, by: str = "p", receipt: str = "") -> Event:
    return Event(What.COMMIT, by, transaction=transaction, receipt=receipt)


def abort(transaction: str, by: str = "p") -> Event:
    return Event(What.ABORT, by, transaction=transaction)


def closed(connection: str) -> Event:
    return Event(What.CLOSED, connection)


SENT = [send("a", receipt="1"), receipted("1")]
DONE = [came("a"), ack("a", receipt="9"), receipted("9", "c")]

GOOD: dict[str, list[Event]] = {
    "nothing happened": [],
    "sent, delivered, acknowledged": [*SENT, *DONE],
    "an unreceipted SEND is lost": [send("a"), closed("p")],
    "an unreceipted SEND is kept": [send("a"), closed("p"), *DONE],
    "an unreceipted ACK is forgotten": [
        *SENT,
        came("a"),
        ack("a"),
        closed("c"),
        came("a", "d", again=True),
        ack("a", "d"),
    ],
    "a flag that is too careful": [*SENT, came("a", again=True), ack("a")],
    "a crash between delivery and ACK": [
        *SENT,
        came("a"),
        closed("c"),
        came("a", "d", again=True),
        ack("a", "d"),
    ],
    "an aborted transaction": [send("a", transaction="t"), abort("t"), closed("p")],
    "a transaction without the receipt of its COMMIT that happened": [
        send("a", transaction="t"),
        send("b", transaction="t"),
        commit("t"),
        closed("p"),
        came("a"),
        came("b"),
        ack("a"),
        ack("b"),
    ],
    "a transaction without the receipt of its COMMIT that did not happen": [
        send("a", transaction="t"),
        send("b", transaction="t"),
        commit("t"),
        closed("p"),
    ],
    "two consumers, each in order": [
        send("a"),
        send("b", receipt="1"),
        receipted("1"),
        came("b", "d"),
        came("a", "c"),
        ack("a"),
        ack("b", "d"),
    ],
    "a NACK brings it again, to another consumer": [
        *SENT,
        came("a"),
        Event(What.NACK, "c", "a"),
        came("a", "d", again=True),
        ack("a", "d"),
    ],
}

BAD: dict[str, tuple[Rule, list[Event]]] = {
    "a receipted SEND is gone": (Rule.LOSS, [*SENT]),
    "a SEND that a later receipt covers is gone": (
        Rule.LOSS,
        [send("a"), send("b", receipt="1"), receipted("1"), came("b"), ack("b")],
    ),
    "a receipted SEND is gone after its first delivery": (Rule.LOSS, [*SENT, came("a"), closed("c")]),
    "a SEND of a receipted COMMIT is gone": (
        Rule.LOSS,
        [send("a", transaction="t"), commit("t", receipt="1"), receipted("1")],
    ),
    "a message that nobody sent": (Rule.GHOST, [came("x")]),
    "a body that is not the one that was sent": (Rule.GHOST, [*SENT, came("a", intact=False), *DONE]),
    "a message in another queue": (Rule.GHOST, [*SENT, came("a", queue="other"), *DONE]),
    "one SEND became two messages": (
        Rule.GHOST,
        [*SENT, came("a", ident="1"), closed("c"), came("a", "d", ident="2", again=True), ack("a", "d")],
    ),
    "an acknowledged message comes back": (
        Rule.RETURN,
        [*SENT, *DONE, closed("c"), came("a", "d", again=True)],
    ),
    "one whose ACK a later receipt covers comes back": (
        Rule.RETURN,
        [
            send("b", receipt="0"),
            receipted("0"),
            *SENT,
            came("b"),
            came("a"),
            ack("b"),
            ack("a", receipt="9"),
            receipted("9", "c"),
            closed("c"),
            came("b", "d", again=True),
        ],
    ),
    "one that a receipted COMMIT acknowledged comes back": (
        Rule.RETURN,
        [
            *SENT,
            came("a"),
            ack("a", transaction="t"),
            commit("t", "c", "9"),
            receipted("9", "c"),
            closed("c"),
            came("a", "d", again=True),
        ],
    ),
    "two messages change places": (
        Rule.FIFO,
        [send("a"), send("b", receipt="1"), receipted("1"), came("b"), came("a"), ack("a"), ack("b")],
    ),
    "a message of a transaction takes the place of its SEND, not of its COMMIT": (
        Rule.FIFO,
        [
            send("a", transaction="t"),
            send("b"),
            commit("t", receipt="1"),
            receipted("1"),
            came("a"),
            came("b"),
            ack("a"),
            ack("b"),
        ],
    ),
    "two messages of a transaction change places": (
        Rule.FIFO,
        [
            send("a", transaction="t"),
            send("b", transaction="t"),
            commit("t"),
            came("b"),
            came("a"),
            ack("a"),
            ack("b"),
        ],
    ),
    "a returned message loses its place in a queue with one consumer": (
        Rule.FIFO,
        [
            send("a", queue="solo"),
            send("b", queue="solo", receipt="1"),
            receipted("1"),
            came("a", queue="solo"),
            closed("c"),
            came("b", "d", queue="solo"),
            came("a", "d", queue="solo", again=True),
            ack("a", "d"),
            ack("b", "d"),
        ],
    ),
    "a second delivery without the flag": (
        Rule.FLAG,
        [*SENT, came("a"), closed("c"), came("a", "d"), ack("a", "d")],
    ),
    "a second delivery to the same client without the flag": (
        Rule.FLAG,
        [*SENT, came("a"), Event(What.NACK, "c", "a"), came("a"), ack("a")],
    ),
    "a message with two consumers": (
        Rule.OWNER,
        [*SENT, came("a"), came("a", "d", again=True), ack("a", "d")],
    ),
    "a message whose ACK waits in an open transaction goes to another": (
        Rule.OWNER,
        [*SENT, came("a"), ack("a", transaction="t"), came("a", "d", again=True), ack("a", "d")],
    ),
    "a SEND of an aborted transaction": (Rule.ATOMIC, [send("a", transaction="t"), abort("t"), *DONE]),
    "a SEND of a transaction that was never committed": (
        Rule.ATOMIC,
        [send("a", transaction="t"), closed("p"), *DONE],
    ),
    "half of a transaction": (
        Rule.ATOMIC,
        [send("a", transaction="t"), send("b", transaction="t"), commit("t"), closed("p"), *DONE],
    ),
    "a transaction that sent, but did not acknowledge": (
        Rule.ATOMIC,
        [
            *SENT,
            came("a"),
            ack("a", transaction="t"),
            send("b", "c", transaction="t"),
            commit("t", "c"),
            closed("c"),
            came("b", "d"),
            came("a", "d", again=True),
            ack("a", "d"),
            ack("b", "d"),
        ],
    ),
    "a transaction that acknowledged, but did not send": (
        Rule.ATOMIC,
        [
            *SENT,
            came("a"),
            ack("a", transaction="t"),
            send("b", "c", transaction="t"),
            commit("t", "c"),
            closed("c"),
        ],
    ),
    "a receipt twice": (Rule.RECEIPT, [*SENT, receipted("1"), *DONE]),
    "a receipt that nobody asked for": (Rule.RECEIPT, [receipted("7")]),
    "a receipt for another connection": (Rule.RECEIPT, [send("a", receipt="1"), receipted("1", "c")]),
    "receipts out of order": (
        Rule.RECEIPT,
        [
            send("a", receipt="1"),
            send("b", receipt="2"),
            receipted("2"),
            came("a"),
            came("b"),
            ack("a"),
            ack("b"),
        ],
    ),
    "a receipt after an ERROR": (
        Rule.RECEIPT,
        [send("a", receipt="1"), Event(What.ERROR, "p"), receipted("1"), *DONE],
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_right_history_passes(name: str) -> None:
    assert check(GOOD[name], solo=["solo"]) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_rejected_by_the_right_rule(name: str) -> None:
    rule, events = BAD[name]
    assert rule in {found.rule for found in check(events, solo=["solo"])}


def test_queues_that_do_not_drain_are_rejected() -> None:
    assert {found.rule for found in check([], drained=False)} == {Rule.LIVENESS}


def test_every_rule_has_a_bad_history_and_there_are_twenty() -> None:
    exact = {Rule.CREDIT, Rule.DEAD}  # tests/sim/test_exact.py
    assert {rule for rule, _ in BAD.values()} | {Rule.LIVENESS} | exact == set(Rule)
    assert len(BAD) >= 20
