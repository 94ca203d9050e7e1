"""Cases about connecting, negotiation, heart-beats and the end of a connection."""

from __future__ import annotations

import re

from tests.live.scene import (
    ANY,
    NONE,
    Case,
    Save,
    Scene,
    Step,
    c,
    case,
    closed,
    error,
    hang_up,
    left,
    put,
    receipt,
    s,
    tcp,
    up,
)
from tests.live.table_frames import SUB, VERSIONS, ids
from tests.support.wire import Wire, WireError

PLAIN = re.compile("[^:\n\r]+")


def connected(version: str) -> dict[str, str | re.Pattern[str] | Save | None]:
    return {"version": version, "session": PLAIN, "server": PLAIN, "heart-beat": re.compile("[0-9]+,[0-9]+")}


def beat(at_most: float, who: str = "a") -> Step:
    """The broker sends two EOLs and nothing else, each within `at_most` seconds."""

    def step(scene: Scene) -> None:
        wire = scene.wire(who)
        wire.socket.settimeout(at_most)
        data = b""
        while len(data) < 2:
            got = wire.socket.recv(16)
            if not got or got.strip(b"\n"):
                raise WireError(f"expected EOLs, got {got!r}")
            data += got

    return step


def rapid(count: int) -> Step:
    """Connect and leave that many times; each is served."""

    def step(scene: Scene) -> None:
        for number in range(count):
            with Wire(scene.address) as wire:
                wire.connect("1.2")
                if number % 2:
                    wire.call("DISCONNECT")

    return step


CASES: list[Case] = []

for v in VERSIONS:
    CASES += [
        case(
            f"{v}: DISCONNECT with a receipt is answered, then the broker closes",
            f"{v} DISCONNECT",
            up(v),
            c("DISCONNECT\nreceipt:bye\n\n\0"),
            receipt("bye"),
            closed(),
        ),
        case(
            f"{v}: DISCONNECT without a receipt closes without a word",
            f"{v} DISCONNECT",
            up(v),
            c("DISCONNECT\n\n\0"),
            closed(),
        ),
        case(
            f"{v}: the receipt of DISCONNECT comes after those of the frames before it",
            f"{v} DISCONNECT",
            up(v),
            c("SEND\ndestination:<q>\nreceipt:1\n\nx\0SEND\ndestination:<q>\nreceipt:2\n\ny\0"),
            c("DISCONNECT\nreceipt:3\n\n\0"),
            receipt("1"),
            receipt("2"),
            receipt("3"),
            closed(),
            left("x", "y"),
        ),
        case(
            f"{v}: CONNECTED says which version is spoken",
            f"{v} CONNECTED Frame",
            tcp(),
            c(f"CONNECT\naccept-version:{v}\nhost:x\n\n\0"),
            s("CONNECTED", connected(v)),
            musts="0-connected" if v == "1.0" else ids(v, "version", "server", "accept-version", "host"),
        ),
        case(
            f"{v}: a second CONNECT is refused",
            f"{v} CONNECT",
            up(v),
            c("CONNECT\naccept-version:1.2\nhost:x\n\n\0"),
            error(),
        ),
        case(
            f"{v}: SEND right behind CONNECT, in one segment",
            f"{v} CONNECT",
            tcp(),
            c(f"CONNECT\naccept-version:{v}\nhost:x\n\n\0SEND\ndestination:<q>\nreceipt:1\n\nx\0"),
            s("CONNECTED", {"version": v}, version=v),
            receipt("1"),
            left("x"),
        ),
    ]

for v in ("1.1", "1.2"):
    CASES += [
        case(
            f"{v}: frames behind DISCONNECT are not carried out",
            f"{v} DISCONNECT",
            up(v),
            c("DISCONNECT\nreceipt:bye\n\n\0SEND\ndestination:<q>\n\nlate\0"),
            receipt("bye"),
            closed(),
            left(),
            musts=ids(v, "disconnect-last"),
        ),
        case(
            f"{v}: a host that nobody knows, or none, is accepted",
            f"{v} CONNECT Frame",
            tcp(),
            c(f"CONNECT\naccept-version:{v}\nhost:no.such.host.example\n\n\0"),
            s("CONNECTED", {"version": v}),
            tcp("b"),
            c(f"CONNECT\naccept-version:{v}\n\n\0", who="b"),
            s("CONNECTED", {"version": v}, who="b"),
            musts=ids(v, "host"),
        ),
        case(
            f"{v}: without a heart-beat header there are none",
            f"{v} Heart-beating",
            tcp(),
            c(f"CONNECT\naccept-version:{v}\nhost:x\n\n\0"),
            s("CONNECTED", {"heart-beat": ANY}, version=v),
            lambda scene: expect_silence(scene.wire("a"), 2.3),
            c("BEGIN\ntransaction:t\nreceipt:1\n\n\0"),
            receipt("1"),
            musts=ids(v, "hb-missing"),
        ),
        case(
            f"{v}: the broker sends an EOL where it has nothing to say, as often as agreed",
            f"{v} Heart-beating",
            tcp(),
            c(f"CONNECT\naccept-version:{v}\nhost:x\nheart-beat:0,300\n\n\0"),
            s("CONNECTED", {"heart-beat": re.compile("[1-9][0-9]*,[0-9]+")}),
            beat(5),
            musts=ids(v, "hb-send", "hb-eol"),
        ),
        *(
            case(
                f"{v}: the heart-beat {value!r} is refused",
                f"{v} Heart-beating",
                tcp(),
                c(f"CONNECT\naccept-version:{v}\nhost:x\nheart-beat:{value}\n\n\0"),
                error(),
                musts=ids(v, "hb-two"),
            )
            for value in ("1000", "a,b", "-1,0", "1,2,3", "10.5,0", "")
        ),
        *(
            case(
                f"{v}: accept-version {offered!r} gives {chosen}",
                f"{v} Protocol Negotiation",
                tcp(),
                c(f"CONNECT\naccept-version:{offered}\nhost:x\n\n\0"),
                s("CONNECTED", {"version": chosen}),
                musts=ids(v, "highest", "accept-version"),
            )
            for offered, chosen in (
                (("1.0,1.1", "1.1"), ("1.1,1.0", "1.1"), ("1.0,1.1,2.0", "1.1"))
                if v == "1.1"
                else (("1.0,1.1,1.2", "1.2"), ("1.2,1.1,1.0", "1.2"), ("1.2,9.9", "1.2"), ("1.0,1.2", "1.2"))
            )
        ),
    ]

CASES += [
    case(
        "1.0: CONNECT with no header at all speaks 1.0",
        "1.0 CONNECT",
        tcp(),
        c("CONNECT\n\n\0"),
        s("CONNECTED", connected("1.0")),
        musts="0-connected",
    ),
    case(
        "1.0: CONNECT with login and passcode only speaks 1.0",
        "1.0 CONNECT",
        tcp(),
        c("CONNECT\nlogin: me\npasscode: secret\n\n\0"),
        s("CONNECTED", connected("1.0")),
        musts="0-connected",
    ),
    case(
        "1.1: without accept-version the client speaks 1.0",
        "1.1 Protocol Negotiation",
        tcp(),
        c("CONNECT\nhost:x\n\n\0"),
        s("CONNECTED", {"version": "1.0"}),
        musts="1-accept-version",
    ),
    case(
        "1.2: without accept-version the client speaks 1.0",
        "1.2 Protocol Negotiation",
        tcp(),
        c("STOMP\nhost:x\n\n\0"),
        s("CONNECTED", {"version": "1.0"}),
        musts="2-accept-version",
    ),
    *(
        case(
            f"{v}: no version in common ({offered}) is an ERROR that lists ours, and the close",
            f"{v} Protocol Negotiation",
            tcp(),
            c(f"CONNECT\naccept-version:{offered}\nhost:x\n\n\0"),
            error({"version": re.compile(r"1\.0,1\.1,1\.2|1\.2,1\.1,1\.0")}),
            musts=must,
        )
        for v, offered, must in (
            ("1.1", "2.0", "1-nocommon"),
            ("1.2", "2.1,3.0", "2-nocommon"),
            ("1.2", "12", ""),
        )
    ),
    case(
        "1.1: STOMP is handled as CONNECT",
        "1.1 CONNECT or STOMP Frame",
        tcp(),
        c("STOMP\naccept-version:1.1\nhost:x\n\n\0"),
        s("CONNECTED", connected("1.1")),
    ),
    case(
        "1.2: STOMP is handled as CONNECT",
        "1.2 CONNECT or STOMP Frame",
        tcp(),
        c("STOMP\naccept-version:1.2\nhost:x\nlogin:a\npasscode:b\n\n\0"),
        s("CONNECTED", connected("1.2"), version="1.2"),
        c(SUB),
        receipt("sub"),
        put("x"),
        s("MESSAGE", body="x"),
        musts="2-stomp 2-version 2-server",
    ),
    case(
        "1.2: a backslash in CONNECT is no escape",
        "1.2 Value Encoding",
        tcp(),
        c("CONNECT\naccept-version:1.2\nhost:x\nlogin:domain\\tom\npasscode:a\\\n\n\0"),
        s("CONNECTED", {"version": "1.2"}),
        musts="2-connect-raw",
    ),
    case(
        "1.2: CONNECTED holds no escapes and no colons",
        "1.2 Value Encoding",
        tcp(),
        c("CONNECT\naccept-version:1.2\nhost:x\n\n\0"),
        s(
            "CONNECTED",
            {"session": re.compile("[0-9a-z-]+"), "server": re.compile("[^:\\\\]+"), "passcode": NONE},
        ),
        musts="2-connect-raw 2-server",
    ),
    case(
        "1.2: two connections have two sessions",
        "1.2 CONNECTED Frame",
        tcp(),
        c("CONNECT\naccept-version:1.2\nhost:x\n\n\0"),
        s("CONNECTED", {"session": Save("one")}),
        tcp("b"),
        c("CONNECT\naccept-version:1.2\nhost:x\n\n\0", who="b"),
        s("CONNECTED", {"session": Save("two")}, who="b"),
        lambda scene: expect_different(scene, "one", "two"),
    ),
    case(
        "1.2: EOLs before CONNECT are skipped",
        "1.2 Frames",
        tcp(),
        c("\n\r\n\nCONNECT\naccept-version:1.2\nhost:x\n\n\0"),
        s("CONNECTED", {"version": "1.2"}),
    ),
    case(
        "1.2: rapid connecting and leaving is served",
        "1.2 Connection Lingering",
        rapid(60),
        up("1.2"),
        c("BEGIN\ntransaction:t\nreceipt:1\n\n\0"),
        receipt("1"),
        musts="2-linger",
    ),
    case(
        "1.2: a socket that just closes keeps what it sent",
        "1.2 DISCONNECT",
        up("1.2"),
        c("SEND\ndestination:<q>\nreceipt:1\n\nkept\0"),
        receipt("1"),
        hang_up(),
        left("kept"),
    ),
]


def expect_silence(wire: Wire, seconds: float) -> None:
    """Not one byte, heart-beats included, for that long."""
    wire.socket.settimeout(seconds)
    try:
        data = wire.socket.recv(64)
    except TimeoutError:
        return
    raise WireError(f"expected silence, got {data!r}")


def expect_different(scene: Scene, one: str, two: str) -> None:
    if scene.saved[one] == scene.saved[two]:
        raise WireError(f"both are {scene.saved[one]!r}")
