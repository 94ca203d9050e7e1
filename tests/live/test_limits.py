"""Limits of frames and connections hold while reading, at the limit exactly (reliability.md, 4.1)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.process import BrokerProcess
from tests.support.wire import Wire, close_all, frame

SMALL = {
    "limits": {
        "header_line": '"256B"',
        "headers": "8",
        "header_block": '"1KiB"',
        "body": '"2KiB"',
        "preauth_frame": '"512B"',
        "subscriptions": "3",
        "transactions": "2",
        "transaction_actions": "5",
        "queues": "20",
        "login_deadline": '"400ms"',
        "frame_deadline": '"400ms"',
    }
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path_factory.mktemp("small"), SMALL)
    try:
        yield broker.start()
    finally:
        broker.close()


@pytest.fixture
def wire(small: BrokerProcess) -> Iterator[Wire]:
    with Wire(small.address) as wire:
        wire.connect()
        yield wire


def with_line(size: int) -> bytes:
    """A SEND whose longest header line has that many bytes without its LF."""
    return b"SEND\ndestination:/queue/a\nreceipt:r\n" + b"x:".ljust(size, b"y") + b"\n\nbody\0"


def with_headers(count: int) -> bytes:
    lines = b"".join(b"h%d:v\n" % number for number in range(count - 2))
    return b"SEND\ndestination:/queue/a\nreceipt:r\n" + lines + b"\nbody\0"


def with_body(size: int, *, length: bool) -> bytes:
    extra = b"content-length:%d\n" % size if length else b""
    return b"SEND\ndestination:/queue/a\nreceipt:r\n" + extra + b"\n" + b"b" * size + b"\0"


@pytest.mark.parametrize(
    "data",
    [
        with_line(255),
        with_line(256),
        with_headers(7),
        with_headers(8),
        with_body(2047, length=True),
        with_body(2048, length=True),
        with_body(2048, length=False),
    ],
    ids=["line-1", "line", "headers-1", "headers", "body-1", "body", "body without length"],
)
def test_up_to_its_limit_a_frame_is_taken(wire: Wire, data: bytes) -> None:
    wire.send(data)
    wire.receipt("r")


@pytest.mark.parametrize(
    "data",
    [with_line(257), with_headers(9), with_body(2049, length=True), with_body(2049, length=False)],
    ids=["line", "headers", "body", "body without length"],
)
def test_one_over_its_limit_a_frame_is_refused(wire: Wire, data: bytes) -> None:
    wire.send(data)
    wire.expect_error()


@pytest.mark.parametrize(
    "start",
    [
        b"SEND\ndestination:/queue/a\nx:",
        b"SEND\n",
        b"SEND\ndestination:/queue/a\n\n",
        b"SEND\ndestination:/queue/a\n" + b"x:y\n" * 6,
    ],
    ids=["line", "first line", "body", "block"],
)
def test_what_never_ends_is_refused_while_it_is_read(wire: Wire, start: bytes) -> None:
    wire.send(start)
    with contextlib.suppress(ConnectionError):
        wire.send(b"z" * 5000)
    wire.expect_error()


def test_the_whole_header_block_has_a_limit(small: BrokerProcess) -> None:
    with Wire(small.address) as wire:
        wire.connect()
        lines = b"".join(b"h%d:" % number + b"v" * 200 + b"\n" for number in range(6))
        wire.send(b"SEND\ndestination:/queue/a\n" + lines + b"\nx\0")
        wire.expect_error()


def test_a_connect_of_512_bytes_is_taken_and_a_longer_one_is_not(small: BrokerProcess) -> None:
    start = b"CONNECT\naccept-version:1.2\nhost:x\na:" + b"y" * 200 + b"\nb:" + b"y" * 100 + b"\nc:"
    for size, answer in ((512, b"CONNECTED"), (513, b"ERROR")):
        with Wire(small.address) as wire:
            wire.send(start + b"y" * (size - len(start) - 3) + b"\n\n\0")
            assert wire.frame().command.encode() == answer


def test_a_connect_with_a_body_is_refused(small: BrokerProcess) -> None:
    for data in (b"CONNECT\nhost:x\ncontent-length:4\n\nbody\0", b"CONNECT\nhost:x\n\nbody\0"):
        with Wire(small.address) as wire:
            wire.send(data)
            assert b"CONNECTED" not in wire.rest()


@pytest.mark.parametrize("said", [b"", b"CONN", b"CONNECT\nhost:x\n", b"\n\n"])
def test_a_stranger_that_does_not_log_in_is_cut_at_the_deadline(small: BrokerProcess, said: bytes) -> None:
    with Wire(small.address) as wire:
        wire.send(said)
        assert b"CONNECTED" not in wire.rest(5)


def test_a_stranger_that_drips_is_cut_at_the_same_deadline(small: BrokerProcess) -> None:
    with Wire(small.address) as wire:
        deadline = time.monotonic() + 5
        drops = (bytes([byte]) for byte in b"CONNECT\nhost:" + b"x" * 1000)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                wire.send(next(drops))
                time.sleep(0.05)  # the pace of the dripping client
        assert time.monotonic() < deadline


def test_a_frame_that_is_never_completed_is_cut_at_its_deadline(wire: Wire) -> None:
    wire.send(b"SEND\ndestination:/queue/a\nx:")
    wire.rest(5)


def test_after_login_there_is_no_deadline_for_being_idle(wire: Wire) -> None:
    assert wire.idle(1.0)
    wire.call("BEGIN", {"transaction": "t"})


def test_a_fourth_subscription_is_refused(wire: Wire) -> None:
    for number in range(3):
        wire.subscribe(f"/topic/limit.{number}", name=str(number))
    wire.call("UNSUBSCRIBE", {"id": "0"})
    wire.subscribe("/topic/limit.again", name="again")
    wire.tell("SUBSCRIBE", {"id": "more", "destination": "/topic/limit.more", "receipt": "r"})
    assert wire.expect_error()["receipt-id"] == "r"


def test_a_third_open_transaction_is_refused(wire: Wire) -> None:
    wire.call("BEGIN", {"transaction": "a"})
    wire.call("BEGIN", {"transaction": "b"})
    wire.call("ABORT", {"transaction": "a"})
    wire.call("BEGIN", {"transaction": "c"})
    wire.tell("BEGIN", {"transaction": "d", "receipt": "r"})
    assert wire.expect_error()["receipt-id"] == "r"


def test_the_actions_of_a_transaction_are_bounded(wire: Wire) -> None:
    wire.call("BEGIN", {"transaction": "a"})
    wire.call("BEGIN", {"transaction": "b"})
    for _ in range(5):
        wire.call("SEND", {"destination": "/queue/a", "transaction": "a"}, b"x")
    wire.tell("SEND", {"destination": "/queue/a", "transaction": "a", "receipt": "r"}, b"x")
    assert wire.expect_error()["receipt-id"] == "r"


def test_the_bytes_of_all_open_transactions_are_bounded(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker({"limits": {"transaction_bytes": '"64KiB"'}}).start()
    with Wire(broker.address) as wire:
        wire.connect()
        for transaction in ("a", "b"):
            wire.call("BEGIN", {"transaction": transaction})
        for transaction in "aabb":
            wire.call("SEND", {"destination": "/queue/a", "transaction": transaction}, b"x" * 15_000)
        wire.tell("SEND", {"destination": "/queue/a", "transaction": "b", "receipt": "r"}, b"x" * 15_000)
        assert wire.expect_error()["receipt-id"] == "r"


def test_queues_are_bounded(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker({"limits": {"queues": "20"}}).start()
    with Wire(broker.address) as wire:
        wire.connect()
        for number in range(20):
            wire.publish(f"/queue/limit.{number}", "x")
        wire.publish("/queue/limit.0", "one that is there")
        wire.tell("SEND", {"destination": "/queue/limit.20", "receipt": "r"}, b"x")
        assert wire.expect_error()["receipt-id"] == "r"


def test_connections_are_bounded_and_free_again_when_one_goes(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker({"limits": {"connections": "5", "unauthenticated": "5"}}).start()
    wires: list[Wire] = []
    try:
        deadline = time.monotonic() + 10
        while not served(broker):  # the connection that found out that it is ready may still be counted
            assert time.monotonic() < deadline
        for _ in range(5):
            wires.append(Wire(broker.address))
            wires[-1].connect()
        with Wire(broker.address) as late:
            with contextlib.suppress(ConnectionError):
                late.send(frame("CONNECT", {"accept-version": "1.2", "host": "x"}))
            assert b"CONNECTED" not in late.rest()
        wires.pop().close()
        deadline = time.monotonic() + 10
        while not served(broker):
            assert time.monotonic() < deadline
    finally:
        close_all(wires)


def served(broker: BrokerProcess) -> bool:
    with Wire(broker.address) as wire:
        try:
            wire.send(frame("CONNECT", {"accept-version": "1.2", "host": "x"}))
            return wire.frame().command == "CONNECTED"
        except (AssertionError, OSError):
            return False


def test_strangers_of_one_address_are_bounded_and_the_oldest_goes(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker({"limits": {"unauthenticated": "8", "unauthenticated_per_address": "4"}}).start()
    friend = Wire(broker.address)
    strangers: list[Wire] = []
    try:
        friend.connect()
        strangers = [Wire(broker.address) for _ in range(4)]
        with Wire(broker.address) as late:
            late.connect()
            late.call("BEGIN", {"transaction": "t"})
        strangers[0].rest(5)
        friend.call("BEGIN", {"transaction": "t"})
        strangers[3].connect()
    finally:
        close_all([friend, *strangers])


def test_a_storm_of_connections_leaves_nothing_behind(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
    before = broker.open_files()
    for _ in range(2):
        wires: list[Wire] = []
        try:
            for number in range(300):
                wires.append(Wire(broker.address))
                wires[-1].connect()
                wires[-1].tell(
                    "SUBSCRIBE", {"id": "1", "destination": f"/queue/storm.{number % 10}", "ack": "client"}
                )
        finally:
            close_all(wires)
        deadline = time.monotonic() + 10
        while broker.open_files() > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/storm.0", "x")
        wire.subscribe("/queue/storm.0")
        assert wire.bodies(1) == ["x"]


def test_a_header_of_24_mebibytes_costs_no_memory(broker: BrokerProcess) -> None:
    before = broker.rss()
    for start in (b"CONNECT\nx:", b"SEND\ndestination:/queue/big\nx:"):
        with Wire(broker.address) as wire:
            if start.startswith(b"SEND"):
                wire.connect()
            with contextlib.suppress(OSError):
                wire.send(start)
                for _ in range(24 * 16):
                    wire.send(b"y" * 65536)
            with contextlib.suppress(OSError):
                wire.rest()
    assert broker.rss() < before + 16 * 1024 * 1024


def test_many_half_bodies_stay_within_the_budget(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker(
        {"memory": {"limit": '"16MiB"'}, "limits": {"body": '"4MiB"', "hold": '"1s"'}}
    ).start()
    before = broker.rss()
    wires: list[Wire] = []
    try:
        for number in range(40):
            wire = Wire(broker.address)
            wires.append(wire)
            wire.connect()
            wire.socket.settimeout(0.2)
            with contextlib.suppress(OSError):
                head = f"SEND\ndestination:/queue/half.{number}\ncontent-length:4000000\n\n"
                wire.socket.sendall(head.encode() + b"z" * 3_000_000)
        assert broker.rss() < before + 64 * 1024 * 1024
        assert served(broker)
    finally:
        close_all(wires)


def test_a_topic_subscriber_that_reads_nothing_holds_nobody_back(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker().start()
    stuck, fast, producer = (
        Wire(broker.address, receive_buffer=4096),
        Wire(broker.address),
        Wire(broker.address),
    )
    with stuck, fast, producer:
        for each in (stuck, fast, producer):
            each.connect()
        stuck.subscribe("/topic/flood")
        fast.subscribe("/topic/flood")
        before = broker.rss()
        body = b"x" * 16384
        for batch in range(40):
            for _ in range(50):
                producer.tell("SEND", {"destination": "/topic/flood", "persistent": "false"}, body)
            producer.call("BEGIN", {"transaction": f"t{batch}"})
            producer.call("ABORT", {"transaction": f"t{batch}"})
            for _ in range(50):
                assert fast.expect("MESSAGE").body == body
        assert broker.rss() < before + 24 * 1024 * 1024


def test_a_queue_consumer_that_reads_nothing_costs_a_bounded_output(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker().start()
    stuck, other = Wire(broker.address, receive_buffer=4096), Wire(broker.address)
    with stuck, other:
        stuck.connect()
        other.connect()
        stuck.call(
            "SUBSCRIBE", {"id": "1", "destination": "/queue/stuck", "ack": "client", "prefetch": "10000"}
        )
        body = b"x" * 8192
        for _ in range(1000):
            other.tell("SEND", {"destination": "/queue/stuck"}, body)
        other.call("BEGIN", {"transaction": "t"})
        other.subscribe("/queue/stuck", ack="client")
        assert other.expect("MESSAGE").body == body


def test_a_peer_that_reads_no_receipts_is_cut_off(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker({"limits": {"body": '"64KiB"'}}).start()
    before = broker.rss()
    with Wire(broker.address, receive_buffer=4096) as stuck:
        stuck.connect()
        stuck.socket.settimeout(5)
        one = b"SEND\ndestination:/topic/x\nreceipt:" + b"r" * 8000 + b"\n\nhi\0"
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(100):
                stuck.socket.sendall(one * 100)
    assert broker.rss() < before + 16 * 1024 * 1024
    assert served(broker)


def test_subscribers_that_read_nothing_cannot_use_the_budget_up(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker({"memory": {"limit": '"16MiB"'}}).start()
    with Wire(broker.address, receive_buffer=4096) as stuck, Wire(broker.address) as producer:
        stuck.connect()
        producer.connect()
        for number in range(40):
            stuck.call("SUBSCRIBE", {"id": str(number), "destination": "/topic/flood"})
        began = time.monotonic()
        for number in range(80):
            producer.tell("SEND", {"destination": "/topic/flood", "receipt": str(number)}, b"x" * 16384)
            producer.expect("RECEIPT", 25)
        assert time.monotonic() - began < 25


def test_cut_off_bodies_leave_no_memory_behind(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker().start()
    before = broker.rss()
    for _ in range(30):
        with Wire(broker.address) as wire:
            wire.connect()
            wire.socket.sendall(b"SEND\ndestination:/topic/x\ncontent-length:4000000\n\n" + b"z" * 3_900_000)
    assert served(broker)
    assert broker.rss() < before + 40 * 1024 * 1024


def test_what_a_slow_auto_consumer_got_before_its_disconnect_does_not_come_back(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as producer, Wire(broker.address, receive_buffer=4096) as slow:
        producer.connect()
        slow.connect()
        for number in range(120):
            body = b"%03d" % number + b"x" * 60_000
            producer.call("SEND", {"destination": "/queue/q"}, body)
        slow.tell("SUBSCRIBE", {"id": "1", "destination": "/queue/q", "ack": "auto"})
        for _ in range(100):  # turns of the broker in which it hands out all that the socket takes
            producer.call("BEGIN", {"transaction": "t"})
            producer.call("ABORT", {"transaction": "t"})
        slow.tell("DISCONNECT", {"receipt": "bye"})
        producer.call("BEGIN", {"transaction": "t"})
        got = []
        while (found := slow.frame()).command == "MESSAGE":
            got.append(found.body[:3])
        assert found["receipt-id"] == "bye"
        assert 0 < len(got) < 120, "the socket took all at once, so this shows nothing"
        slow.close()
        producer.subscribe("/queue/q")
        rest = producer.messages(120 - len(got))
        assert [message.get("redelivered") for message in rest] == [None] * len(rest)
        assert [message.body[:3] for message in rest] == [b"%03d" % number for number in range(len(got), 120)]
        assert producer.idle(0.3)
