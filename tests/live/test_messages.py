"""What a MESSAGE says, and what becomes of it (features.md, "SEND", "MESSAGE", "ACK, NACK, redelivery")."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.support.process import BrokerProcess
from tests.support.wire import Got, Wire

Dial = Callable[..., Wire]

OURS_ALONE = (
    "message-id",
    "subscription",
    "ack",
    "redelivered",
    "delivery-count",
    "dead-letter-reason",
    "dead-letter-queue",
    "dead-letter-time",
    "dead-letter-anything",
    "browser",
    "login",
    "passcode",
    "user-name",
    "JMSXDeliveryCount",
    "JMSRedelivered",
    "JMSXUserID",
    "receipt-id",
)


@pytest.mark.parametrize("header", OURS_ALONE)
def test_a_name_that_only_the_broker_may_say_is_taken_out(dial: Dial, name: str, header: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    wire.call("SEND", {"destination": f"/queue/{name}", header: "forged", "own": "kept"}, b"x")
    got = wire.expect("MESSAGE")
    assert got["own"] == "kept"
    assert "forged" not in got.headers.values()
    assert sum(line.startswith(header + ":") for line in got.lines) <= 1


def test_a_name_that_only_the_broker_may_say_cannot_hide_behind_an_escape(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    wire.send(
        f"SEND\ndestination:/queue/{name}\nx\\nredelivered:true\ny:1\\nmessage-id\\cforged\n\nx\0".encode()
    )
    got = wire.expect("MESSAGE")
    assert got.get("redelivered") is None
    assert got["x\nredelivered"] == "true"
    assert got["y"] == "1\nmessage-id:forged"


@pytest.mark.parametrize(
    "header",
    ["correlation-id", "type", "content-type", "JMSCorrelationID", "JMSType", "priority", "x-own", "Ünï"],
)
def test_a_header_is_carried_through(dial: Dial, name: str, header: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    wire.call("SEND", {"destination": f"/queue/{name}", header: "5"}, b"x")
    assert wire.expect("MESSAGE")[header] == "5"


def test_a_reply_to_that_is_no_temporary_queue_is_carried_through(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    wire.publish(f"/queue/{name}", "x", reply_to="/queue/answers")
    assert wire.expect("MESSAGE")["reply-to"] == "/queue/answers"


def test_a_message_is_stamped_with_its_arrival_in_unix_milliseconds(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    before = time.time_ns() // 1_000_000
    wire.publish(f"/queue/{name}", "x")
    assert before - 1 <= int(wire.expect("MESSAGE")["timestamp"]) <= time.time_ns() // 1_000_000 + 1


def test_a_time_stamp_of_the_sender_stays(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    wire.publish(f"/queue/{name}", "x", timestamp="17")
    got = wire.expect("MESSAGE")
    assert got["timestamp"] == "17"
    assert sum(line.startswith("timestamp:") for line in got.lines) == 1


def test_the_first_delivery_has_no_redelivered_and_an_ack_that_is_the_message_id(
    dial: Dial, name: str
) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}", ack="client-individual")
    wire.publish(f"/queue/{name}", "x")
    first = wire.expect("MESSAGE")
    assert first.get("redelivered") in (None, "false")
    assert first.get("delivery-count") is None
    assert first["ack"] == first["message-id"]
    wire.ack(first, "NACK")
    second = wire.expect("MESSAGE")
    assert second["message-id"] == first["message-id"]
    assert second["ack"].startswith(first["message-id"])
    assert second["ack"] != first["ack"]
    assert re.fullmatch("[0-9a-z-]+", second["ack"])


def test_a_lost_connection_counts_as_a_delivery(dial: Dial, name: str) -> None:
    first, second = dial(), dial()
    first.subscribe(f"/queue/{name}", ack="client-individual")
    first.publish(f"/queue/{name}", "x")
    first.expect("MESSAGE")
    second.subscribe(f"/queue/{name}", ack="client-individual")
    first.close()
    got = second.expect("MESSAGE")
    assert (got["redelivered"], got["delivery-count"]) == ("true", "2")


@pytest.mark.parametrize("how", ["unsubscribe", "disconnect", "close", "reset"])
def test_what_was_in_flight_returns_to_its_old_place(dial: Dial, name: str, how: str) -> None:
    first, second = dial(), dial()
    dial().publish(f"/queue/{name}", "1", "2", "3", "4")
    first.subscribe(f"/queue/{name}", ack="client-individual", prefetch="2")
    taken = first.messages(2)
    assert [got.body for got in taken] == [b"1", b"2"]
    if how == "unsubscribe":
        first.call("UNSUBSCRIBE", {"id": "s"})
    elif how == "disconnect":
        first.call("DISCONNECT")
        first.expect_closed()
    elif how == "close":
        first.close()
    else:
        first.reset()
    if how in ("close", "reset"):
        # Not before the broker has noticed: whoever gets 1 gets it second hand.
        redelivered = wait_for_return(second, name)
        assert redelivered == ["1", "2", "3", "4"]
        return
    second.subscribe(f"/queue/{name}")
    got = second.messages(4)
    assert [each.body for each in got] == [b"1", b"2", b"3", b"4"]
    assert [each.get("redelivered") for each in got] == ["true", "true", None, None]


def wait_for_return(wire: Wire, name: str) -> list[str]:
    """What the queue holds, in its order, once the broker has noticed that the other one is gone."""
    deadline = time.monotonic() + 10
    while True:
        wire.subscribe(f"/queue/{name}", ack="client-individual", name="probe", prefetch="1")
        got = wire.expect("MESSAGE")
        wire.call("UNSUBSCRIBE", {"id": "probe"})
        if got.body == b"1":
            break
        assert time.monotonic() < deadline
    wire.subscribe(f"/queue/{name}", name="rest")
    return wire.bodies(4)


def test_a_nack_returns_the_message_to_its_place(dial: Dial, name: str) -> None:
    wire = dial()
    dial().publish(f"/queue/{name}", "1", "2", "3", "4")
    wire.subscribe(f"/queue/{name}", ack="client-individual", prefetch="2")
    one, two = wire.messages(2)
    wire.ack(one, "NACK")
    assert wire.expect("MESSAGE").body == b"1"
    wire.ack(two)
    assert wire.expect("MESSAGE").body == b"3"


def nack_to_death(wire: Wire, name: str) -> Got:
    """NACK the message of the queue until it does not come back; the dead letter."""
    wire.subscribe(f"/queue/{name}", ack="client-individual", name="worker")
    wire.subscribe(f"/queue/DLQ.{name}", ack="client-individual", name="undertaker")
    for delivery in range(1, 11):
        got = wire.expect("MESSAGE")
        assert got["subscription"] == "worker"
        assert got.get("delivery-count") == (None if delivery == 1 else str(delivery))
        wire.tell("NACK", {"id": got["ack"]})
    return wire.expect("MESSAGE")


def test_after_ten_deliveries_a_message_is_a_dead_letter(dial: Dial, name: str) -> None:
    wire = dial()
    before = time.time_ns() // 1_000_000
    wire.publish(f"/queue/{name}", "poison", own="kept")
    dead = nack_to_death(wire, name)
    assert dead["subscription"] == "undertaker"
    assert dead.body == b"poison"
    assert dead["own"] == "kept"
    assert dead["destination"] == f"/queue/DLQ.{name}"
    assert dead["original-destination"] == f"/queue/{name}"
    assert dead["dead-letter-reason"] == "max-deliveries"
    assert dead["dead-letter-queue"] in (f"/queue/{name}", name)
    assert before <= int(dead["dead-letter-time"]) <= time.time_ns() // 1_000_000
    assert dead["redelivered"] == "true"
    wire.ack(dead)


def test_a_dead_letter_does_not_loop(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}", "poison")
    dead = nack_to_death(wire, name)
    for _ in range(12):
        wire.tell("NACK", {"id": dead["ack"]})
        dead = wire.expect("MESSAGE")
        assert dead["subscription"] == "undertaker"
        assert dead["dead-letter-reason"] == "max-deliveries"
    wire.ack(dead)


def test_what_the_nack_said_stands_in_the_dead_letter(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}", "poison")
    wire.subscribe(f"/queue/{name}", ack="client-individual", name="worker")
    for _ in range(10):
        wire.tell("NACK", {"id": wire.expect("MESSAGE")["ack"], "failure-reason": "disk: full\nreally"})
    wire.subscribe(f"/queue/DLQ.{name}", name="undertaker")
    assert wire.expect("MESSAGE").get("failure-reason") in (None, "disk: full\nreally")


def test_disconnecting_ten_times_makes_no_dead_letter(dial: Dial, name: str) -> None:
    dial().publish(f"/queue/{name}", "x")
    for _ in range(12):
        wire = dial()
        wire.subscribe(f"/queue/{name}", ack="client-individual")
        assert wire.expect("MESSAGE").body == b"x"
        wire.call("DISCONNECT")
        wire.expect_closed()


def test_a_cumulative_ack_stays_within_its_subscription(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}.a", ack="client", name="a")
    wire.subscribe(f"/queue/{name}.b", ack="client", name="b")
    wire.publish(f"/queue/{name}.a", "a1")
    wire.publish(f"/queue/{name}.b", "b1")
    wire.publish(f"/queue/{name}.b", "b2")
    got = {each.body.decode(): each for each in wire.messages(3)}
    wire.ack(got["b2"])
    wire.ack(got["a1"])
    wire.tell("ACK", {"id": got["b1"]["ack"], "receipt": "again"})
    assert wire.expect_error()["receipt-id"] == "again"


def test_messages_outlive_a_restart_unless_they_are_not_persistent(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        for persistent, header in (("a", {}), ("b", {"persistent": "true"}), ("c", {"JMSDeliveryMode": "2"})):
            wire.call("SEND", {"destination": "/queue/keep", **header}, persistent.encode())
        for header in (
            {"persistent": "false"},
            {"JMSDeliveryMode": "NON_PERSISTENT"},
            {"JMSDeliveryMode": "1"},
        ):
            wire.call("SEND", {"destination": "/queue/keep", **header}, b"lost")
        wire.call("SEND", {"destination": "/queue/keep"}, b"last")
    broker.crash()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/keep")
        assert wire.bodies(4) == ["a", "b", "c", "last"]


def test_messages_that_are_not_persistent_keep_their_order_among_the_others(dial: Dial, name: str) -> None:
    wire = dial()
    for number in range(30):
        persistent = "false" if number % 3 else "true"
        wire.tell("SEND", {"destination": f"/queue/{name}", "persistent": persistent}, str(number).encode())
    wire.subscribe(f"/queue/{name}")
    assert wire.bodies(30) == [str(number) for number in range(30)]


def test_a_transaction_of_sends_and_acks_is_one_step_for_those_who_look(dial: Dial, name: str) -> None:
    worker, looker = dial(), dial()
    looker.subscribe(f"/queue/{name}.out")
    worker.publish(f"/queue/{name}.in", "1", "2", "3")
    worker.subscribe(f"/queue/{name}.in", ack="client-individual")
    taken = worker.messages(3)
    worker.call("BEGIN", {"transaction": "t"})
    for got in taken:
        worker.call("ACK", {"id": got["ack"], "transaction": "t"})
        worker.call("SEND", {"destination": f"/queue/{name}.out", "transaction": "t"}, got.body)
    assert looker.idle(0.15)
    worker.call("COMMIT", {"transaction": "t"})
    assert looker.bodies(3) == ["1", "2", "3"]
    worker.call("DISCONNECT")
    worker.expect_closed()
    worker = dial()
    worker.publish(f"/queue/{name}.in", "marker")
    worker.subscribe(f"/queue/{name}.in")
    assert worker.bodies(1) == ["marker"]


def test_a_header_line_break_of_a_1_1_producer_forges_nothing_for_a_1_0_consumer(
    dial: Dial, name: str
) -> None:
    old, new = dial("1.0"), dial("1.1")
    old.subscribe(f"/queue/{name}")
    new.send(f"SEND\ndestination:/queue/{name}\nx:a\\nb\\c1\nk\\nl:2\nfine:c\\cd\n\nbody\0".encode())
    got = old.expect("MESSAGE")
    assert got.body == b"body"
    assert got["fine"] == "c:d"
    assert not any(line.startswith(("x:", "b:", "k", "l:")) for line in got.lines)


@pytest.mark.parametrize(
    ("sender", "reader"), [(a, b) for a in ("1.0", "1.1", "1.2") for b in ("1.0", "1.1", "1.2")]
)
def test_values_travel_between_the_versions(dial: Dial, name: str, sender: str, reader: str) -> None:
    producer, consumer = dial(sender), dial(reader)
    consumer.subscribe(f"/queue/{name}")
    producer.publish(f"/queue/{name}", b"\0\r\n\xff", path="C:\\new:folder", plain="a b")
    got = consumer.expect("MESSAGE")
    assert (got["path"], got["plain"], got.body) == ("C:\\new:folder", "a b", b"\0\r\n\xff")


def test_a_nack_that_wants_no_return_makes_a_dead_letter_at_once(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}", "poison")
    wire.subscribe(f"/queue/{name}", ack="client-individual", name="worker")
    got = wire.expect("MESSAGE")
    wire.call("NACK", {"id": got["ack"], "requeue": "false", "failure-reason": "disk: full"})
    wire.subscribe(f"/queue/DLQ.{name}", name="undertaker")
    dead = wire.expect("MESSAGE")
    assert dead["dead-letter-reason"] == "rejected"
    assert dead["failure-reason"] == "disk: full"
    assert dead["original-destination"] == f"/queue/{name}"


def test_acks_before_a_bad_one_in_one_segment_count(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}", "1", "2", "3")
    wire.subscribe(f"/queue/{name}", ack="client-individual")
    one, two, _ = wire.messages(3)
    ids = [one["ack"], two["ack"], one["message-id"] + "9", "never"]
    wire.send(b"".join(f"ACK\nid:{each}\n\n\0".encode() for each in ids))
    wire.expect_error()
    reader = dial()
    reader.publish(f"/queue/{name}", "marker")
    reader.subscribe(f"/queue/{name}")
    assert reader.bodies(2) == ["3", "marker"]


def test_sends_and_acks_taking_turns_in_one_segment_are_all_carried_out(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}.in", ack="client-individual")
    wire.publish(f"/queue/{name}.in", *(str(n) for n in range(100)))
    data = b""
    for got in wire.messages(100):
        data += f"ACK\nid:{got['ack']}\n\n\0".encode()
        data += (
            f"SEND\ndestination:/queue/{name}.out\nn:{got.body.decode()}\n\n".encode() + got.body + b"\0\n"
        )
    wire.send(data)
    wire.call("DISCONNECT")
    reader = dial()
    reader.publish(f"/queue/{name}.in", "marker")
    reader.subscribe(f"/queue/{name}.in", name="in")
    assert reader.bodies(1) == ["marker"]
    reader.subscribe(f"/queue/{name}.out", name="out")
    taken = reader.messages(100)
    assert [(got.body.decode(), got["n"]) for got in taken] == [(str(n), str(n)) for n in range(100)]


def test_a_cumulative_ack_passes_over_what_an_open_transaction_holds(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}", "1", "2", "3")
    wire.subscribe(f"/queue/{name}", ack="client")
    one, _, three = wire.messages(3)
    wire.call("BEGIN", {"transaction": "t"})
    wire.call("ACK", {"id": one["ack"], "transaction": "t"})
    wire.ack(three)
    wire.call("ABORT", {"transaction": "t"})
    wire.call("DISCONNECT")
    wire.expect_closed()
    reader = dial()
    reader.publish(f"/queue/{name}", "marker")
    reader.subscribe(f"/queue/{name}")
    assert reader.bodies(2) == ["1", "marker"]


def test_an_ack_in_a_transaction_frees_its_slot(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}", "1", "2")
    wire.subscribe(f"/queue/{name}", ack="client-individual", prefetch="1")
    wire.call("BEGIN", {"transaction": "t"})
    wire.call("ACK", {"id": wire.expect("MESSAGE")["ack"], "transaction": "t"})
    assert wire.expect("MESSAGE").body == b"2"


def test_a_body_of_exactly_four_mebibytes_arrives(dial: Dial, name: str) -> None:
    body = bytes(range(256)) * 16384
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    wire.publish(f"/queue/{name}", body)
    assert wire.expect("MESSAGE").body == body


def test_many_kinds_of_headers_on_one_connection_do_not_mix(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    for number in range(600):
        headers = {f"h{number % 7}": str(number), "kind": str(number % 3)}
        if number % 5 == 0:
            headers["persistent"] = "false"
        wire.tell("SEND", {"destination": f"/queue/{name}", **headers}, b"b" * (number % 4))
    for number in range(600):
        got = wire.expect("MESSAGE")
        own = {key: value for key, value in got.headers.items() if key.startswith(("h", "k", "p"))}
        assert own == {f"h{number % 7}": str(number), "kind": str(number % 3)} | (
            {"persistent": "false"} if number % 5 == 0 and "persistent" in got.headers else {}
        )
        assert got.body == b"b" * (number % 4)
