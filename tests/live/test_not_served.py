"""What this version does not serve, and would do harm if it were ignored, is refused by name (docs/protocol.md)."""

from __future__ import annotations

import itertools

import pytest

from tests.live.scene import Case, Scene, Step, c, case, left, put, receipt, s, up
from tests.support.process import BrokerProcess
from tests.support.wire import WireError

VERSIONS = ("1.0", "1.1", "1.2")
SCHEDULES = (
    "delay:5000",
    "delay:-1",
    "deliver-at:1900000000000",
    "cron:0 * * * *",
    "x-delay:5000",
    "AMQ_SCHEDULED_DELAY:5000",
    "AMQ_SCHEDULED_TIME:1900000000000",
    "AMQ_SCHEDULED_CRON:0 * * * *",
    "AMQ_SCHEDULED_PERIOD:1000",
    "AMQ_SCHEDULED_REPEAT:9",
    "_AMQ_SCHED_DELIVERY:1900000000000",
)
SELECTING = (
    "selector:colour = 'red'",
    "browser:true",
    "browser:TRUE",
    "exclusive:true",
    "activemq.exclusive:true",
    "no-local:true",
    "activemq.noLocal:true",
)
DURABLE = ("durable:true", "persistent:true", "activemq.subscriptionName:me")


def refused(header: str) -> Step:
    """The ERROR of that class, for the frame with the receipt "r", whose body names the header; then the close."""

    def step(scene: Scene) -> None:
        got = scene.wire("a").expect_error()
        if (got["message"], got.get("receipt-id")) != ("bad header", "r"):
            raise WireError(f"not the ERROR for {header!r}: {got}")
        if not got.body.startswith(f"{header.partition(':')[0]} is not served by this version".encode()):
            raise WireError(f"the ERROR does not name {header!r}: {got.body!r}")

    return step


def send(header: str, to: str = "<q>") -> Step:
    return c(f"SEND\ndestination:{to}\n{header}\nreceipt:r\n\nx\0")


def subscribe(header: str, to: str = "<q>", mode: str = "auto") -> Step:
    return c(f"SUBSCRIBE\nid:1\ndestination:{to}\nack:{mode}\n{header}\nreceipt:r\n\n\0")


def empty(header: str) -> str:
    """The same header with the value that asks for nothing."""
    name = header.partition(":")[0]
    if header in SCHEDULES:
        return f"{name}:0"
    return f"{name}:" if name in ("selector", "activemq.subscriptionName") else f"{name}:false"


CASES = [
    *(
        case(f"{version}: SEND with {header} is refused and not delivered", "SEND", up(version), send(header),
             refused(header), left())
        for header in SCHEDULES
        for version in VERSIONS
    ),
    *(
        case(f"SEND to a topic with {header} is refused", "SEND", up(), send(header, "<t>"), refused(header))
        for header in SCHEDULES
    ),
    *(
        case(f"SEND in a transaction with {header} is refused", "SEND", up(), c("BEGIN\ntransaction:t\n\n\0"),
             send(f"{header}\ntransaction:t"), refused(header), left())
        for header in ("delay:5000", "AMQ_SCHEDULED_DELAY:5000")
    ),
    case(
        "what came before a refused SEND in the same segment counts, and what comes behind it does not",
        "SEND",
        up(),
        c("SEND\ndestination:<q>\n\nbefore\0"
          "SEND\ndestination:<q>\ndelay:1\nreceipt:r\n\nx\0"
          "SEND\ndestination:<q>\n\nbehind\0"),
        refused("delay:1"),
        left("before"),
    ),
    *(
        case(f"SEND with {empty(header)} asks for nothing", "SEND", up(), send(empty(header)), receipt("r"), left("x"))
        for header in SCHEDULES
    ),
    *(
        case(f"{version}: SUBSCRIBE with {header} is refused and takes nothing", "SUBSCRIBE", put("kept"), up(version),
             subscribe(header), refused(header), left("kept"))
        for header in SELECTING
        for version in VERSIONS
    ),
    *(
        case(f"SUBSCRIBE to a topic with {header} is refused", "SUBSCRIBE", up(), subscribe(header, "<t>"),
             refused(header))
        for header in SELECTING
    ),
    *(
        case(f"{version}: SUBSCRIBE to a {kind} with {header} is refused", "SUBSCRIBE", up(version),
             subscribe(header, to, "client"), refused(header))
        for header in DURABLE
        for kind, to in (("topic", "<t>"), ("pattern", "<t>.*"))
        for version in VERSIONS
    ),
    *(
        case(f"SUBSCRIBE to a queue with {header} is served: it is durable anyway", "SUBSCRIBE", put("kept"), up(),
             subscribe(header), receipt("r"), s("MESSAGE", {"subscription": "1"}, "kept"))
        for header in DURABLE
    ),
    *(
        case(f"SUBSCRIBE with {empty(header)} asks for nothing", "SUBSCRIBE", up(), subscribe(empty(header), "<t>"),
             receipt("r"), put("x", to="<t>"), s("MESSAGE", {"subscription": "1"}, "x"))
        for header in (*SELECTING, *DURABLE)
    ),
]  # fmt: skip

_words = itertools.count(1)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_is_not_served_is_refused_and_what_asks_for_nothing_is_not(case: Case, broker: BrokerProcess) -> None:
    case.run(broker.address, f"not-served-{next(_words)}")
