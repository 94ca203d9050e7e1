"""What real clients send, by its bytes (features.md, "Tolerances that real clients need")."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.live.scene import (
    ANY,
    NONE,
    Case,
    Save,
    Step,
    c,
    case,
    closed,
    error,
    hang_up,
    leave,
    left,
    put,
    receipt,
    s,
    tcp,
    up,
)
from tests.support.process import BrokerProcess

SUB = "SUBSCRIBE\nid:1\ndestination:<q>\nack:client-individual\nreceipt:sub\n\n\0"
WORD = re.compile("[0-9a-z-]+")
FOUR = {
    "version": ANY,
    "session": WORD,
    "server": re.compile("[^:]+"),
    "heart-beat": re.compile("[0-9]+,[0-9]+"),
}


def subscribed(version: str = "1.2", mode: str = "client-individual") -> tuple[Step, ...]:
    return (up(version), c(SUB.replace("client-individual", mode)), receipt("sub"))


def accepted(name: str, connect: str, version: str) -> Case:
    return case(
        name,
        "tolerance CONNECT",
        tcp(),
        c(connect),
        s("CONNECTED", {**FOUR, "version": version}, version=version),
        c("BEGIN\ntransaction:t\nreceipt:works\n\n\0"),
        receipt("works"),
    )


HANDSHAKES = [
    accepted("CONNECT with no header at all", "CONNECT\n\n\0", "1.0"),
    accepted("STOMP with no header at all", "STOMP\n\n\0", "1.0"),
    accepted(
        "host absent (@stomp/stompjs)", "CONNECT\naccept-version:1.2,1.1,1.0\nheart-beat:0,0\n\n\0", "1.2"
    ),
    accepted("host absent in 1.1 (stomp.py)", "STOMP\naccept-version:1.1\n\n\0", "1.1"),
    accepted("host empty (stompest)", "CONNECT\naccept-version:1.0,1.1,1.2\nhost:\n\n\0", "1.2"),
    accepted("host is an address", "CONNECT\naccept-version:1.2\nhost:127.0.0.1\n\n\0", "1.2"),
    accepted("host with a port", "CONNECT\naccept-version:1.2\nhost:127.0.0.1:61613\n\n\0", "1.2"),
    accepted("host is unknown", "CONNECT\naccept-version:1.2\nhost:/production\n\n\0", "1.2"),
    accepted("passcode empty", "CONNECT\naccept-version:1.2\nlogin:me\npasscode:\n\n\0", "1.2"),
    accepted("login empty", "CONNECT\naccept-version:1.2\nlogin:\npasscode:\n\n\0", "1.2"),
    accepted("login where no users are configured", "CONNECT\nlogin:guest\npasscode:guest\n\n\0", "1.0"),
    accepted("a passcode with colons", "CONNECT\naccept-version:1.2\nlogin:a\npasscode:a:b:c\n\n\0", "1.2"),
    accepted("client-id", "CONNECT\naccept-version:1.1\nclient-id:me-1\nhost:x\n\n\0", "1.1"),
    accepted("accept-version falling", "CONNECT\naccept-version:1.2,1.1,1.0\nhost:x\n\n\0", "1.2"),
    accepted("accept-version shuffled", "CONNECT\naccept-version:1.1,1.2,1.0\nhost:x\n\n\0", "1.2"),
    accepted(
        "accept-version with one that is to come", "CONNECT\naccept-version:1.1,2.0\nhost:x\n\n\0", "1.1"
    ),
    accepted(
        "CR LF in CONNECT, whatever comes of it", "CONNECT\r\naccept-version:1.1\r\nhost:x\r\n\r\n\0", "1.1"
    ),
    accepted("CR LF in a CONNECT of 1.0", "CONNECT\r\nlogin:a\r\npasscode:b\r\n\r\n\0\r\n", "1.0"),
    accepted("EOLs before CONNECT", "\n\r\n\n\r\nCONNECT\naccept-version:1.2\nhost:x\n\n\0", "1.2"),
    accepted("an EOL behind CONNECT", "CONNECT\naccept-version:1.2\nhost:x\n\n\0\n\n", "1.2"),
    accepted(
        "content-length:0 on CONNECT (Ruby)", "CONNECT\naccept-version:1.2\ncontent-length:0\n\n\0", "1.2"
    ),
    accepted("a header that nobody knows", "CONNECT\naccept-version:1.2\nx-y:z\nhost:x\n\n\0", "1.2"),
    case(
        "CONNECTED names the user who gave a login",
        "features CONNECT",
        tcp(),
        c("CONNECT\naccept-version:1.2\nhost:x\nlogin:me\npasscode:x\n\n\0"),
        s("CONNECTED", FOUR),
    ),
    case(
        "request-id comes back as response-id, receipt as receipt-id (ActiveMQ)",
        "features CONNECT",
        tcp(),
        c("CONNECT\naccept-version:1.2\nhost:x\nrequest-id:7\nreceipt:hello\n\n\0"),
        s("CONNECTED", {**FOUR, "response-id": "7", "receipt-id": "hello"}),
    ),
    case(
        "SUBSCRIBE right behind CONNECT",
        "tolerance frames",
        put("x"),
        tcp(),
        c("CONNECT\naccept-version:1.2\nhost:x\n\n\0SUBSCRIBE\nid:1\ndestination:<q>\n\n\0"),
        s("CONNECTED", {"version": "1.2"}, version="1.2"),
        s("MESSAGE", {"subscription": "1"}, "x"),
    ),
    case(
        "a CONNECT in single bytes",
        "tolerance frames",
        tcp(),
        *(c(bytes([byte])) for byte in b"\nCONNECT\naccept-version:1.2\nhost:x\n\n\0"),
        s("CONNECTED", {"version": "1.2"}),
    ),
]

FRAMES = [
    *(
        case(
            f"raw colons in a value in {v}",
            "tolerance headers",
            *subscribed(v, "auto"),
            c("SEND\ndestination:<q>\nurl:http://a:80/b?c=d:e\n\nx\0"),
            s("MESSAGE", {"url": "http://a:80/b?c=d:e"}, "x"),
        )
        for v in ("1.0", "1.1", "1.2")
    ),
    case(
        "a raw colon in a receipt comes back as the value it was",
        "tolerance headers",
        up("1.2"),
        c("SEND\ndestination:<q>\nreceipt:a:b\n\nx\0"),
        receipt("a:b"),
    ),
    *(
        case(
            f"{name} repeated with another value is refused",
            "tolerance headers",
            up("1.2"),
            c(frame),
            error(),
        )
        for name, frame in (
            ("content-length", "SEND\ndestination:<q>\ncontent-length:1\ncontent-length:2\n\nxy\0"),
            ("receipt", "SEND\ndestination:<q>\nreceipt:1\nreceipt:2\n\nx\0"),
            ("destination", "SEND\ndestination:<q>\ndestination:/queue/other\n\nx\0"),
        )
    ),
    *(
        case(
            f"{name} repeated with the same value is accepted",
            "tolerance headers",
            up("1.2"),
            c(frame),
            receipt("1"),
            left("x"),
        )
        for name, frame in (
            ("content-length", "SEND\ndestination:<q>\nreceipt:1\ncontent-length:1\ncontent-length:1\n\nx\0"),
            ("receipt", "SEND\ndestination:<q>\nreceipt:1\nreceipt:1\n\nx\0"),
            ("destination", "SEND\ndestination:<q>\ndestination:<q>\nreceipt:1\n\nx\0"),
        )
    ),
    case(
        "CR LF everywhere in 1.2 (telnet)",
        "tolerance EOLs",
        up("1.2"),
        c(SUB.replace("\n", "\r\n") + "\r\n\r\n"),
        receipt("sub"),
        c("SEND\r\ndestination:<q>\r\ncontent-length:3\r\n\r\nabc\0\r\n"),
        s("MESSAGE", {"ack": Save("ack")}, "abc"),
        c("ACK\r\nid:<ack>\r\nreceipt:a\r\n\r\n\0\r\n"),
        receipt("a"),
    ),
    case(
        "1.0 headers with spaces around the colon",
        "tolerance 1.0",
        up("1.0"),
        c("SUBSCRIBE\ndestination : <q>\nack : client\nreceipt : sub\n\n\0"),
        receipt("sub"),
        c("SEND\ndestination: <q>\nprice :  10 \n\nx\0"),
        s("MESSAGE", {"price": "10", "destination": "<q>", "message-id": Save("mid")}, "x"),
        c("ACK\nmessage-id: <mid>\nreceipt: a\n\n\0"),
        receipt("a"),
    ),
    case(
        "1.1 headers keep their spaces, a receipt too",
        "tolerance 1.0",
        up("1.1"),
        c("SEND\ndestination:<q>\nkey: v\nreceipt: 1\n\nx\0"),
        receipt(" 1"),
    ),
    case(
        "content-length:0 on every frame (Ruby)",
        "tolerance content-length",
        up("1.2"),
        c("SUBSCRIBE\nid:1\ndestination:<q>\nack:client-individual\ncontent-length:0\nreceipt:sub\n\n\0"),
        receipt("sub"),
        c("BEGIN\ntransaction:t\ncontent-length:0\n\n\0COMMIT\ntransaction:t\ncontent-length:0\n\n\0"),
        c("SEND\ndestination:<q>\ncontent-length:0\n\n\0"),
        s("MESSAGE", {"ack": Save("ack"), "content-length": "0"}, ""),
        c("ACK\nid:<ack>\ncontent-length:0\nreceipt:a\n\n\0"),
        receipt("a"),
        c("UNSUBSCRIBE\nid:1\ncontent-length:0\n\n\0DISCONNECT\ncontent-length:0\nreceipt:bye\n\n\0"),
        receipt("bye"),
        closed(),
    ),
    case(
        "an ACK that echoes the headers of its MESSAGE, content-length included (PHP)",
        "tolerance content-length",
        *subscribed("1.1"),
        put("hello"),
        s("MESSAGE", {"message-id": Save("mid")}, "hello"),
        c(
            "ACK\nsubscription:1\nmessage-id:<mid>\ncontent-length:5\ndestination:<q>\nfoo:bar\nreceipt:a\n\n\0"
        ),
        receipt("a"),
        leave(),
        left(),
    ),
    case(
        "an empty line or two before the NUL are no body",
        "tolerance content-length",
        up("1.2"),
        c("SUBSCRIBE\nid:1\ndestination:<q>\nreceipt:1\n\n\n\0BEGIN\ntransaction:t\nreceipt:2\n\n\n\n\0"),
        receipt("1"),
        receipt("2"),
        c("ABORT\r\ntransaction:t\r\nreceipt:3\r\n\r\n\r\n\0"),
        receipt("3"),
    ),
    case(
        "more than that is a body, and refused",
        "tolerance content-length",
        up("1.2"),
        c("BEGIN\ntransaction:t\nreceipt:1\n\n\n\n\n\n\0"),
        error(),
    ),
    case(
        "content-length absent on a SEND",
        "tolerance content-length",
        *subscribed("1.2", "auto"),
        c("SEND\ndestination:<q>\n\nabc\0"),
        s("MESSAGE", {"content-length": "3"}, "abc"),
    ),
    *(
        case(
            f"a frame in segments cut at {cut}",
            "tolerance frames",
            *subscribed("1.2", "auto"),
            c("SEND\ndes"[:cut]),
            c("SEND\ndestination:<q>\ncontent-length:4\n\nabcd\0"[cut:]),
            s("MESSAGE", body="abcd"),
        )
        for cut in (1, 4, 5, 8)
    ),
    case(
        "a 1.0 UNSUBSCRIBE by destination",
        "tolerance UNSUBSCRIBE",
        up("1.0"),
        c("SUBSCRIBE\ndestination:<q>\nreceipt:1\n\n\0UNSUBSCRIBE\ndestination:<q>\nreceipt:2\n\n\0"),
        receipt("1"),
        receipt("2"),
        put("x"),
        left("x"),
    ),
    case(
        "a 1.0 client that gave an id gets it back as subscription",
        "tolerance SUBSCRIBE",
        up("1.0"),
        c("SUBSCRIBE\nid:mine\ndestination:<q>\nreceipt:1\n\n\0"),
        receipt("1"),
        put("x"),
        s("MESSAGE", {"subscription": "mine"}, "x"),
        c("UNSUBSCRIBE\nid:mine\nreceipt:2\n\n\0"),
        receipt("2"),
    ),
    *(
        case(
            f"a number that does not parse is refused by name: {header}",
            "tolerance numbers",
            up("1.2"),
            c(f"{command}\n{rest}{header}\nreceipt:r\n\n\0"),
            error({"receipt-id": "r"}),
        )
        for command, rest, header in (
            ("SUBSCRIBE", "id:1\ndestination:<q>\n", "prefetch:many"),
            ("SUBSCRIBE", "id:1\ndestination:<q>\n", "prefetch-count:-2x"),
            ("SUBSCRIBE", "id:1\ndestination:<q>\n", "activemq.prefetchSize:1_0"),
            ("SUBSCRIBE", "id:1\ndestination:<q>\n", "consumer-window-size:big"),
        )
    ),
    case(
        "prefetch:0 is refused",
        "features SUBSCRIBE",
        up("1.2"),
        c("SUBSCRIBE\nid:1\ndestination:<q>\nack:client\nprefetch:0\nreceipt:r\n\n\0"),
        error({"receipt-id": "r"}),
    ),
    case(
        "persistent that is neither true nor false is refused",
        "tolerance numbers",
        up("1.2"),
        c("SEND\ndestination:<q>\npersistent:perhaps\nreceipt:r\n\nx\0"),
        error({"receipt-id": "r"}),
    ),
    case(
        "a DISCONNECT without a receipt is no error",
        "tolerance DISCONNECT",
        up("1.2"),
        c("SEND\ndestination:<q>\nreceipt:1\n\nx\0DISCONNECT\n\n\0"),
        receipt("1"),
        closed(),
        left("x"),
    ),
    case(
        "a receipt is flushed before the close of DISCONNECT",
        "tolerance DISCONNECT",
        up("1.2"),
        c(
            "".join(f"SEND\ndestination:<q>\nreceipt:{n}\n\n{n}\0" for n in range(50))
            + "DISCONNECT\nreceipt:bye\n\n\0"
        ),
        *(receipt(str(n)) for n in range(50)),
        receipt("bye"),
        closed(),
    ),
    case(
        "a socket that just closes is no error for the others",
        "tolerance DISCONNECT",
        up("1.2"),
        c("SEND\ndestination:<q>\nreceipt:1\n\nx\0"),
        receipt("1"),
        c("SEND\ndestin"),
        hang_up(),
        left("x"),
    ),
]


def acked_by(name: str, version: str, frame: str) -> Case:
    """One message is delivered, this frame acknowledges it, and it never comes again."""
    return case(
        name,
        "tolerance ACK",
        *subscribed(version),
        put("x"),
        s("MESSAGE", {"message-id": Save("mid"), **({"ack": Save("ack")} if version == "1.2" else {})}, "x"),
        c(frame),
        receipt("a"),
        leave(),
        left(),
    )


ACKS = [
    acked_by("1.2 by id", "1.2", "ACK\nid:<ack>\nreceipt:a\n\n\0"),
    acked_by("1.2 by ack, as some libraries copy it", "1.2", "ACK\nack:<ack>\nreceipt:a\n\n\0"),
    acked_by("1.2 by an id that is a message-id (stomp-php, Ruby)", "1.2", "ACK\nid:<mid>\nreceipt:a\n\n\0"),
    acked_by("1.2 by message-id (PECL stomp)", "1.2", "ACK\nmessage-id:<mid>\nreceipt:a\n\n\0"),
    acked_by(
        "1.2 by message-id and subscription (stompit)",
        "1.2",
        "ACK\nsubscription:1\nmessage-id:<mid>\nreceipt:a\n\n\0",
    ),
    acked_by(
        "1.2 by id, message-id and subscription (Spring)",
        "1.2",
        "ACK\nsubscription:1\nmessage-id:<mid>\nid:<ack>\nreceipt:a\n\n\0",
    ),
    acked_by("1.1 by message-id alone", "1.1", "ACK\nmessage-id:<mid>\nreceipt:a\n\n\0"),
    acked_by("1.1 by id", "1.1", "ACK\nid:<mid>\nsubscription:1\nreceipt:a\n\n\0"),
    acked_by("1.0 by message-id", "1.0", "ACK\nmessage-id:<mid>\nreceipt:a\n\n\0"),
    acked_by(
        "1.0 by message-id and subscription", "1.0", "ACK\nmessage-id:<mid>\nsubscription:1\nreceipt:a\n\n\0"
    ),
    case(
        "NACK by message-id and subscription in 1.2",
        "tolerance ACK",
        *subscribed("1.2"),
        put("x"),
        s("MESSAGE", {"message-id": Save("mid")}, "x"),
        c("NACK\nsubscription:1\nmessage-id:<mid>\n\n\0"),
        s("MESSAGE", {"message-id": "<mid>", "redelivered": "true"}, "x"),
    ),
    case(
        "an ACK by message-id after a redelivery means the delivery that is here",
        "tolerance ACK",
        *subscribed("1.2"),
        put("x"),
        s("MESSAGE", {"message-id": Save("mid")}, "x"),
        c("NACK\nid:<mid>\n\n\0"),
        s("MESSAGE", {"message-id": "<mid>", "redelivered": "true"}, "x"),
        c("ACK\nid:<mid>\nreceipt:a\n\n\0"),
        receipt("a"),
        leave(),
        left(),
    ),
    case(
        "an ACK by message-id that could mean two deliveries is refused",
        "tolerance ACK",
        up("1.2"),
        c("SUBSCRIBE\nid:1\ndestination:<t>\nack:client-individual\nreceipt:1\n\n\0"),
        c("SUBSCRIBE\nid:2\ndestination:<t>\nack:client-individual\nreceipt:2\n\n\0"),
        receipt("1"),
        receipt("2"),
        put("x", to="<t>"),
        s("MESSAGE", {"message-id": Save("mid")}, "x"),
        s("MESSAGE", {"message-id": "<mid>"}, "x"),
        c("ACK\nmessage-id:<mid>\nsubscription:2\nreceipt:3\n\n\0"),
        receipt("3"),
    ),
    case(
        "an ACK for an auto subscription is ignored",
        "features ACK",
        *subscribed("1.2", "auto"),
        put("x"),
        s("MESSAGE", {"message-id": Save("mid"), "ack": NONE}, "x"),
        c("ACK\nid:<mid>\nsubscription:1\nmessage-id:<mid>\nreceipt:a\n\n\0"),
        receipt("a"),
        c("ACK\nid:<mid>\nreceipt:b\n\n\0"),
        receipt("b"),
    ),
    case(
        "an ACK behind its UNSUBSCRIBE still settles",
        "features ACK",
        *subscribed("1.2"),
        put("x"),
        s("MESSAGE", {"ack": Save("ack")}, "x"),
        c("UNSUBSCRIBE\nid:1\nreceipt:u\n\n\0ACK\nid:<ack>\nreceipt:a\n\n\0"),
        receipt("u"),
        receipt("a"),
        leave(),
        left(),
    ),
]

_words = itertools.count(1)
ALL = [*HANDSHAKES, *FRAMES, *ACKS]


@pytest.mark.parametrize("case", ALL, ids=[f"{case.clause} - {case.name}" for case in ALL])
def test_a_real_client_is_understood(case: Case, broker: BrokerProcess) -> None:
    case.run(broker.address, f"tolerance-{next(_words)}")
