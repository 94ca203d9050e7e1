"""ERROR frames and what a peer may not smuggle in."""

from __future__ import annotations

import pytest

from tests.core.world import World, drain

LONG = "\x1b[31m" + "é" * 3000


@pytest.mark.parametrize(
    ("command", "headers"),
    [
        ("SUBSCRIBE", {"id": "1", "destination": "/nowhere/" + LONG}),
        ("SUBSCRIBE", {"id": "1", "destination": "/queue/a", "ack": LONG}),
        ("SEND", {"destination": "/queue/a", "persistent": LONG}),
        ("SEND", {"destination": "/queue/a", "priority": LONG}),
        ("SEND", {"destination": "/queue/a", "transaction": LONG}),
        ("UNSUBSCRIBE", {"id": LONG}),
        ("ACK", {"id": LONG}),
        ("NACK", {"id": LONG}),
        ("COMMIT", {"transaction": LONG}),
        (LONG, {}),
    ],
)
def test_an_error_is_short_and_its_values_are_escaped(command: str, headers: dict[str, str]) -> None:
    client = World().connect().send(command, headers)
    error = client.one("ERROR")
    assert len(error.body) <= 256
    assert error.body.isascii() and b"\x1b" not in error.body
    assert client.closed


@pytest.mark.parametrize(
    "wire", [b"SEND\ndestination:/queue/secret\n\nx\0", b"CONNECT\nsecret\n\n\0", b"ACK\nid:secret\n\n\0"]
)
def test_a_stranger_hears_a_fixed_text_and_nothing_of_what_it_said(wire: bytes) -> None:
    client = World().stranger().feed(wire)
    error = client.one("ERROR")
    assert b"secret" not in error.body and "secret" not in str(error.headers)
    assert client.closed


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_a_header_cannot_forge_a_line_or_a_frame_in_any_version(version: str) -> None:
    world = World()
    evil = "a\nb:c\n\n\0MESSAGE\n"[:6]
    reader = world.connect(version).subscribe("/queue/a", ack="auto")
    for _ in range(3):
        world.connect().publish("/queue/a", "body", x=evil, **{"y\nz": "1"})
    got = reader.take()
    assert [m.body for m in got] == [b"body"] * 3
    for message in got:
        assert message.get("b") is None and message.get("z") is None
        assert message.get("x") == (None if version == "1.0" else evil)


FORGED = {
    "message-id": "1", "subscription": "2", "ack": "3", "redelivered": "true", "delivery-count": "9",
    "dead-letter-reason": "x", "dead-letter-queue": "x", "dead-letter-time": "x", "dead-letter-other": "x",
    "browser": "end", "login": "x", "passcode": "x", "user-name": "x", "JMSXDeliveryCount": "3",
    "JMSRedelivered": "true", "JMSXUserID": "x", "receipt-id": "x", "transaction-id": "kept",
}  # fmt: skip


VARYING = ("dead-letter-other", "transaction-id")


@pytest.mark.parametrize("varies", [False, True])
def test_names_that_only_the_broker_may_say_are_taken_out(varies: bool) -> None:
    world = World()
    reader = world.connect().subscribe("/queue/a", ack="auto")
    producer = world.connect()
    for n in range(5):
        # What differs from frame to frame takes another way through the broker than what does not.
        own = {name: value + str(n) for name, value in FORGED.items() if name in VARYING and varies}
        headers = {**FORGED, **own}
        producer.send("SEND", {"destination": "/queue/a", **headers}, b"x")
    for message in reader.take():
        for name, value in FORGED.items():
            if name == "transaction-id":
                assert message[name].startswith("kept")
            else:
                assert not (message.get(name) or "").startswith(value) or name in ("message-id", "subscription")
        assert message["subscription"] == "s" and message["message-id"] != "1"


def test_every_message_in_flight_is_kept_when_a_frame_is_refused() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    client = world.connect().subscribe("/queue/a").send("ABORT", {"transaction": "none"})
    assert client.closed
    assert drain(world, "/queue/a")[0]["redelivered"] == "true"


def test_what_follows_an_error_is_thrown_away() -> None:
    world = World()
    client = world.connect()
    client.feed(b"NONSENSE\n\n\0SEND\ndestination:/queue/a\n\nx\0").feed(b"SEND\ndestination:/queue/a\n\nx\0")
    assert len(client.take("ERROR")) == 1
    assert drain(world, "/queue/a") == []


def test_receipts_of_earlier_frames_come_before_the_error() -> None:
    world = World(auto=False)
    client = world.connect().publish("/queue/a", "x", receipt="r")
    client.send("ABORT", {"transaction": "none", "receipt": "e"})
    world.turn()
    assert client.frames == []
    world.complete()
    world.turn()
    assert [f.command for f in client.frames] == ["RECEIPT", "ERROR"]
    assert client.frames[1]["receipt-id"] == "e"
