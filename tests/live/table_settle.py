"""Cases about ACK, NACK and transactions."""

from __future__ import annotations

from tests.live.scene import (
    NONE,
    Case,
    Save,
    Step,
    c,
    case,
    error,
    hang_up,
    leave,
    left,
    put,
    receipt,
    receipt_among,
    s,
    up,
)
from tests.live.table_frames import VERSIONS, ids


def subscribed(version: str, mode: str, who: str = "a") -> tuple[Step, ...]:
    """A connection of that version with one subscription `1` to <q>."""
    frame = f"SUBSCRIBE\nid:1\ndestination:<q>\nack:{mode}\nreceipt:sub\n\n\0"
    return up(version, who), c(frame, who), receipt("sub", who)


def taken(version: str, number: str, body: str, who: str = "a", **headers: str | None) -> Step:
    """The next MESSAGE, remembered as `number`."""
    saves: dict[str, str | Save | None] = {"message-id": Save(f"mid{number}")}
    if version == "1.2":
        saves["ack"] = Save(f"ack{number}")
    saves.update({name.replace("_", "-"): value for name, value in headers.items()})
    return s("MESSAGE", saves, body, who)


def settle(version: str, number: str, command: str = "ACK", extra: str = "") -> str:
    """An ACK or NACK of the MESSAGE remembered as `number`, the way of that version."""
    names = {
        "1.0": f"message-id:<mid{number}>",
        "1.1": f"subscription:1\nmessage-id:<mid{number}>",
        "1.2": f"id:<ack{number}>",
    }
    return f"{command}\n{names[version]}\n{extra}\n\0"


CASES: list[Case] = []

for v in VERSIONS:
    individual = "client" if v == "1.0" else "client-individual"
    CASES += [
        case(
            f"{v}: what was not acknowledged comes to the next consumer, redelivered",
            f"{v} ACK",
            *subscribed(v, "client"),
            put("x"),
            taken(v, "1", "x", redelivered=None),
            leave(),
            *subscribed(v, "client", "b"),
            taken(v, "2", "x", "b", redelivered="true"),
            musts="0-ack-pending" if v == "1.0" else ids(v, "client-ack"),
        ),
        case(
            f"{v}: what was acknowledged never comes again",
            f"{v} ACK",
            *subscribed(v, "client"),
            put("x"),
            taken(v, "1", "x"),
            c(settle(v, "1", extra="receipt:a\n")),
            receipt("a"),
            leave(),
            left(),
            musts={"1.0": "0-ack", "1.1": "1-ack-message-id 1-ack-subscription", "1.2": "2-ack-id"}[v],
        ),
        case(
            f"{v}: an ACK in client mode covers all before it",
            f"{v} SUBSCRIBE ack Header",
            *subscribed(v, "client"),
            put("1", "2", "3", "4"),
            *(taken(v, n, n) for n in "1234"),
            c(settle(v, "3", extra="receipt:a\n")),
            receipt("a"),
            leave(),
            left("4"),
            musts="" if v == "1.0" else ids(v, "client-ack"),
        ),
        case(
            f"{v}: an ACK that names nothing is refused",
            f"{v} ACK",
            *subscribed(v, "client"),
            put("x"),
            taken(v, "1", "x"),
            c("ACK\nreceipt:a\n\n\0"),
            error({"receipt-id": "a"}),
            left("x"),
            musts={"1.0": "0-ack", "1.1": "1-ack-message-id", "1.2": "2-ack-id"}[v],
        ),
        case(
            f"{v}: an ACK of what was never delivered is refused",
            f"{v} ACK",
            *subscribed(v, "client"),
            put("x"),
            taken(v, "1", "x"),
            c("ACK\nsubscription:1\nmessage-id:no-such\nid:no-such\nreceipt:a\n\n\0"),
            error({"receipt-id": "a"}),
            left("x"),
            musts={"1.0": "0-ack", "1.1": "1-ack-message-id", "1.2": "2-ack-id"}[v],
        ),
        case(
            f"{v}: a second ACK of the same message is refused",
            f"{v} ACK",
            *subscribed(v, individual),
            put("x", "y"),
            taken(v, "1", "x"),
            taken(v, "2", "y"),
            c(settle(v, "1", extra="receipt:a\n")),
            receipt("a"),
            c(settle(v, "1", extra="receipt:b\n")),
            error({"receipt-id": "b"}),
            left("y"),
        ),
        case(
            f"{v}: an unacknowledged message of a lost connection comes again",
            f"{v} ACK",
            *subscribed(v, "client"),
            put("x"),
            taken(v, "1", "x"),
            *subscribed(v, "client", "b"),
            hang_up("a"),
            taken(v, "2", "x", "b", redelivered="true"),
        ),
        *(
            case(
                f"{v}: {command} without a transaction is refused",
                f"{v} {command}",
                up(v),
                c(f"{command}\nreceipt:t\n\n\0"),
                error({"receipt-id": "t"}),
                musts=ids(v, command.lower()),
            )
            for command in ("BEGIN", "COMMIT", "ABORT")
        ),
        *(
            case(
                f"{v}: {command} of a transaction that is not open is refused",
                f"{v} {command}",
                up(v),
                c(f"BEGIN\ntransaction:t\n\n\0{command}\ntransaction:other\nreceipt:r\n\n\0"),
                error({"receipt-id": "r"}),
                musts="" if v == "1.0" else ids(v, command.lower()),
            )
            for command in ("COMMIT", "ABORT")
        ),
        case(
            f"{v}: a SEND in a transaction is seen after COMMIT, and not before",
            f"{v} BEGIN",
            up(v),
            c("BEGIN\ntransaction:t\n\n\0SEND\ndestination:<q>\ntransaction:t\nreceipt:1\n\nlate\0"),
            receipt("1"),
            put("early"),
            c("COMMIT\ntransaction:t\nreceipt:2\n\n\0"),
            receipt("2"),
            left("early", "late"),
            musts="0-send-transaction" if v == "1.0" else "",
        ),
        case(
            f"{v}: a SEND in an aborted transaction is never seen",
            f"{v} ABORT",
            up(v),
            c("BEGIN\ntransaction:t\n\n\0SEND\ndestination:<q>\ntransaction:t\nreceipt:1\n\nnever\0"),
            receipt("1"),
            c("ABORT\ntransaction:t\nreceipt:2\n\n\0"),
            receipt("2"),
            left(),
        ),
        case(
            f"{v}: an ACK in an aborted transaction leaves the message here, to be acknowledged again",
            f"{v} ABORT",
            *subscribed(v, individual),
            put("x"),
            taken(v, "1", "x"),
            c("BEGIN\ntransaction:t\n\n\0" + settle(v, "1", extra="transaction:t\n")),
            c("ABORT\ntransaction:t\nreceipt:2\n\n\0"),
            receipt("2"),
            c(settle(v, "1", extra="receipt:3\n")),
            receipt("3"),
            leave(),
            left(),
        ),
        case(
            f"{v}: an ACK and a SEND of one transaction happen together",
            f"{v} COMMIT",
            *subscribed(v, individual),
            put("question"),
            taken(v, "1", "question"),
            c("BEGIN\ntransaction:t\n\n\0" + settle(v, "1", extra="transaction:t\n")),
            c(
                "SEND\ndestination:<q>-answers\ntransaction:t\n\nanswer\0COMMIT\ntransaction:t\nreceipt:2\n\n\0"
            ),
            receipt("2"),
            leave(),
            left(),
            left("answer", at="<q>-answers"),
        ),
        case(
            f"{v}: DISCONNECT aborts what is open",
            f"{v} BEGIN",
            *subscribed(v, individual),
            put("x"),
            taken(v, "1", "x"),
            c("BEGIN\ntransaction:t\n\n\0SEND\ndestination:<q>\ntransaction:t\n\nnever\0"),
            c(settle(v, "1", extra="transaction:t\n")),
            leave(),
            left("x"),
            musts="2-implicit-abort" if v == "1.2" else "",
        ),
        case(
            f"{v}: a lost connection aborts what is open",
            f"{v} BEGIN",
            *subscribed(v, individual),
            put("x"),
            taken(v, "1", "x"),
            c("BEGIN\ntransaction:t\n\n\0SEND\ndestination:<q>\ntransaction:t\n\nnever\0"),
            c(settle(v, "1", extra="transaction:t\nreceipt:1\n")),
            receipt("1"),
            *subscribed(v, "client", "b"),
            hang_up("a"),
            taken(v, "2", "x", "b", redelivered="true"),
            put("next"),
            taken(v, "3", "next", "b"),
            musts="2-implicit-abort" if v == "1.2" else "",
        ),
    ]

for v in ("1.1", "1.2"):
    CASES += [
        case(
            f"{v}: an ACK in client-individual mode covers one message",
            f"{v} SUBSCRIBE ack Header",
            *subscribed(v, "client-individual"),
            put("1", "2", "3"),
            *(taken(v, n, n) for n in "123"),
            c(settle(v, "2", extra="receipt:a\n")),
            receipt("a"),
            leave(),
            left("1", "3"),
            musts=ids(v, "individual"),
        ),
        case(
            f"{v}: a NACK in client-individual mode returns one message to its place",
            f"{v} NACK",
            *subscribed(v, "client-individual"),
            put("1", "2", "3"),
            *(taken(v, n, n) for n in "123"),
            c(settle(v, "2", "NACK", "receipt:n\n")),
            receipt_among("n"),
            leave(),
            left("1", "2", "3"),
            musts=ids(v, "individual"),
        ),
        case(
            f"{v}: a NACK brings the message again, redelivered and counted",
            f"{v} NACK",
            *subscribed(v, "client-individual"),
            put("x"),
            taken(v, "1", "x", redelivered=None, delivery_count=None),
            c(settle(v, "1", "NACK")),
            taken(v, "2", "x", redelivered="true", delivery_count="2"),
            c(settle(v, "2", "NACK")),
            taken(v, "3", "x", redelivered="true", delivery_count="3"),
            c(settle(v, "3", extra="receipt:done\n")),
            receipt("done"),
        ),
        case(
            f"{v}: a NACK in client mode covers all before it",
            f"{v} NACK",
            *subscribed(v, "client"),
            put("1", "2", "3"),
            *(taken(v, n, n) for n in "123"),
            c(settle(v, "2", "NACK")),
            taken(v, "4", "1", redelivered="true"),
            taken(v, "5", "2", redelivered="true"),
        ),
        case(
            f"{v}: a NACK that names nothing is refused",
            f"{v} NACK",
            *subscribed(v, "client-individual"),
            put("x"),
            taken(v, "1", "x"),
            c("NACK\nreceipt:n\n\n\0"),
            error({"receipt-id": "n"}),
            musts={"1.1": "1-nack", "1.2": "2-nack-id"}[v],
        ),
        case(
            f"{v}: a NACK of what was never delivered is refused",
            f"{v} NACK",
            *subscribed(v, "client-individual"),
            c("NACK\nid:no-such\nmessage-id:no-such\nsubscription:1\nreceipt:n\n\n\0"),
            error({"receipt-id": "n"}),
            musts={"1.1": "1-nack", "1.2": "2-nack-id"}[v],
        ),
        case(
            f"{v}: a second BEGIN of the same transaction is refused",
            f"{v} BEGIN",
            up(v),
            c("BEGIN\ntransaction:t\n\n\0BEGIN\ntransaction:t\nreceipt:2\n\n\0"),
            error({"receipt-id": "2"}),
            musts=ids(v, "begin-unique"),
        ),
        case(
            f"{v}: a transaction's name is free again after COMMIT and after ABORT",
            f"{v} BEGIN",
            up(v),
            c("BEGIN\ntransaction:t\n\n\0COMMIT\ntransaction:t\n\n\0BEGIN\ntransaction:t\n\n\0"),
            c("ABORT\ntransaction:t\n\n\0BEGIN\ntransaction:t\nreceipt:3\n\n\0"),
            receipt("3"),
        ),
        case(
            f"{v}: two transactions of one connection do not mix",
            f"{v} BEGIN",
            up(v),
            c("BEGIN\ntransaction:a\n\n\0BEGIN\ntransaction:b\n\n\0"),
            c("SEND\ndestination:<q>\ntransaction:a\n\nin a\0SEND\ndestination:<q>\ntransaction:b\n\nin b\0"),
            c("ABORT\ntransaction:a\n\n\0COMMIT\ntransaction:b\nreceipt:1\n\n\0"),
            receipt("1"),
            left("in b"),
        ),
        case(
            f"{v}: a SEND into a transaction that is not open is refused",
            f"{v} SEND",
            up(v),
            c("SEND\ndestination:<q>\ntransaction:none\nreceipt:1\n\nx\0"),
            error({"receipt-id": "1"}),
            left(),
            musts=ids(v, "send-error"),
        ),
        case(
            f"{v}: an ACK into a transaction that is not open is refused",
            f"{v} ACK",
            *subscribed(v, "client-individual"),
            put("x"),
            taken(v, "1", "x"),
            c(settle(v, "1", extra="transaction:none\nreceipt:1\n")),
            error({"receipt-id": "1"}),
            left("x"),
        ),
        case(
            f"{v}: a NACK in a transaction happens at COMMIT",
            f"{v} NACK",
            *subscribed(v, "client-individual"),
            put("x"),
            taken(v, "1", "x"),
            c("BEGIN\ntransaction:t\n\n\0" + settle(v, "1", "NACK", "transaction:t\nreceipt:1\n")),
            receipt("1"),
            c("COMMIT\ntransaction:t\n\n\0"),
            taken(v, "2", "x", redelivered="true", delivery_count="2"),
        ),
    ]

CASES += [
    case(
        "1.1: an ACK with the id of another subscription is refused",
        "1.1 ACK",
        *subscribed("1.1", "client-individual"),
        c("SUBSCRIBE\nid:2\ndestination:<q>-other\nack:client-individual\nreceipt:sub2\n\n\0"),
        receipt("sub2"),
        put("x"),
        taken("1.1", "1", "x"),
        c("ACK\nsubscription:2\nmessage-id:<mid1>\nreceipt:a\n\n\0"),
        error({"receipt-id": "a"}),
        left("x"),
        musts="1-ack-subscription",
    ),
    case(
        "1.1: an ACK with the id of no subscription is refused",
        "1.1 ACK",
        *subscribed("1.1", "client-individual"),
        put("x"),
        taken("1.1", "1", "x"),
        c("ACK\nsubscription:nine\nmessage-id:<mid1>\nreceipt:a\n\n\0"),
        error({"receipt-id": "a"}),
        left("x"),
        musts="1-ack-subscription",
    ),
    case(
        "1.2: a message that is delivered again has an ack of its own",
        "1.2 MESSAGE",
        *subscribed("1.2", "client-individual"),
        put("x"),
        taken("1.2", "1", "x"),
        c(settle("1.2", "1", "NACK")),
        s("MESSAGE", {"message-id": "<mid1>", "ack": Save("ack2"), "transaction": NONE}, "x"),
        c(settle("1.2", "2", extra="receipt:a\n")),
        receipt("a"),
        leave(),
        left(),
        musts="2-msg-ack",
    ),
]
