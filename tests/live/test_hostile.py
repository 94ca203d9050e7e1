"""Hostile and broken input at the STOMP port (reliability.md, 4.2, lines 1-8 and 12)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

import pytest

from tests.support.process import BrokerProcess
from tests.support.wire import PATIENCE, Wire, WireError, take_frame

Dial = Callable[..., Wire]
CONNECT = b"CONNECT\naccept-version:1.2\nhost:x\n\n\0"


def alive(dial: Dial, name: str) -> None:
    """The broker still serves others."""
    wire = dial()
    wire.publish(f"/queue/{name}.alive", "x")
    wire.subscribe(f"/queue/{name}.alive")
    assert wire.bodies(1) == ["x"]


# 1. The first bytes


@pytest.mark.parametrize(
    "verb",
    [
        "GET / HTTP/1.1",
        "POST / HTTP/1.1",
        "PUT /x HTTP/1.1",
        "HEAD / HTTP/1.0",
        "OPTIONS * HTTP/1.1",
        "DELETE / HTTP/1.1",
    ],
)
def test_an_http_request_gets_400_and_the_close(dial: Dial, name: str, verb: str) -> None:
    wire = dial(None)
    wire.send(f"{verb}\r\nHost: localhost:61613\r\nContent-Length: 100\r\n\r\n".encode())
    answer = wire.rest()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"connection: close" in answer.lower()
    assert b"STOMP" not in answer.split(b"\r\n", 1)[0]
    alive(dial, name)


def test_an_http_request_is_refused_at_its_first_bytes(dial: Dial) -> None:
    wire = dial(None)
    wire.send(b"POST ")
    assert wire.rest().startswith(b"HTTP/1.1 400")


def test_the_preface_of_http2_gets_400(dial: Dial) -> None:
    wire = dial(None)
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert wire.rest().startswith(b"HTTP/1.1 400")


def test_a_web_page_cannot_queue_a_message(dial: Dial, name: str) -> None:
    wire = dial(None)
    smuggled = CONNECT + f"SEND\ndestination:/queue/{name}\n\nfrom a browser\0".encode()
    wire.send(
        b"POST / HTTP/1.1\r\nHost: localhost:61613\r\nContent-Type: text/plain\r\n"
        + f"Content-Length: {len(smuggled) + 1}\r\n\r\n".encode()
        + b"\0"
        + smuggled
    )
    assert b"CONNECTED" not in wire.rest()
    reader = dial()
    reader.publish(f"/queue/{name}", "marker")
    reader.subscribe(f"/queue/{name}")
    assert reader.bodies(1) == ["marker"]


def test_a_tls_hello_is_closed_without_an_answer(dial: Dial) -> None:
    wire = dial(None)
    wire.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 200)
    assert b"HTTP" not in wire.rest()


@pytest.mark.parametrize(
    "junk",
    [
        b"\0",
        b"X",
        b"connect\n",
        b"CONNECTX\n\n\0",
        b"STOMPS\n\n\0",
        b" CONNECT\n",
        b"\xff\xfe",
        b"CO\0",
        b"\n" * 40 + b"C",
    ],
)
def test_first_bytes_that_begin_no_connect_are_closed(dial: Dial, junk: bytes) -> None:
    wire = dial(None)
    wire.send(junk)
    answer = wire.rest()
    assert b"CONNECTED" not in answer
    assert len(answer) < 300


def test_sixteen_eols_before_connect_are_taken(dial: Dial) -> None:
    wire = dial(None)
    wire.send(b"\n" * 16 + CONNECT)
    wire.expect("CONNECTED")


@pytest.mark.parametrize(
    "command",
    ["SEND", "SUBSCRIBE", "UNSUBSCRIBE", "ACK", "NACK", "BEGIN", "COMMIT", "ABORT", "DISCONNECT"],
)
def test_a_known_command_before_connect_is_an_error(dial: Dial, name: str, command: str) -> None:
    wire = dial(None)
    wire.send(f"{command}\ndestination:/queue/{name}\nid:1\ntransaction:t\n\n\0".encode())
    wire.expect_error()


def test_what_follows_a_fatal_error_is_dropped(dial: Dial, name: str) -> None:
    wire = dial(None)
    wire.send(
        b"SEND\ndestination:/queue/x\n\n\0" + CONNECT + f"SEND\ndestination:/queue/{name}\n\nno\0".encode()
    )
    assert b"CONNECTED" not in wire.rest()
    reader = dial()
    reader.publish(f"/queue/{name}", "marker")
    reader.subscribe(f"/queue/{name}")
    assert reader.bodies(1) == ["marker"]


def test_a_peer_that_goes_on_sending_after_its_error_is_cut_off(dial: Dial) -> None:
    wire = dial()
    wire.send(b"NONSENSE\n\n\0")
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < deadline:
            wire.socket.settimeout(1)
            try:
                wire.socket.sendall(b"x" * 65536)
            except TimeoutError:
                continue
    assert time.monotonic() < deadline


# 2. Commands (the table of protocol cases has the rest)


@pytest.mark.parametrize(
    "command",
    [
        "CONNECT",
        "STOMP",
        "CONNECTED",
        "MESSAGE",
        "RECEIPT",
        "ERROR",
        "send",
        "Send",
        "SENDFOO",
        "SEN",
        "S",
        "ACKNOWLEDGE",
        "",
    ],
)
def test_a_command_that_is_none_is_refused(dial: Dial, name: str, command: str) -> None:
    wire = dial()
    wire.send(f"{command or '/'}\ndestination:/queue/{name}\nid:1\n\n\0".encode())
    wire.expect_error()


def test_a_command_without_end_is_refused_early(dial: Dial) -> None:
    wire = dial()
    wire.send(b"SEND" * 5000)
    wire.expect_error()


# 3. content-length


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "+5",
        "1_000",
        " 5",
        "5 ",
        "\u0665",
        "0x10",
        "",
        "2147483648",
        "9223372036854775808",
        "1" * 5000,
        "5.0",
        "1e3",
        "5\u00a0",
    ],
    ids=lambda value: value[:12] or "empty",
)
@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_a_content_length_that_is_none_is_refused(dial: Dial, name: str, version: str, value: str) -> None:
    wire = dial(version)
    wire.send(f"SEND\ndestination:/queue/{name}\ncontent-length:{value}\n\nhello\0".encode())
    wire.expect_error()


def test_two_content_lengths_that_differ_are_refused(dial: Dial, name: str) -> None:
    wire = dial()
    wire.send(f"SEND\ndestination:/queue/{name}\ncontent-length:5\ncontent-length:6\n\nhello\0\0".encode())
    wire.expect_error()


def test_a_missing_nul_is_refused(dial: Dial, name: str) -> None:
    wire = dial()
    wire.send(f"SEND\ndestination:/queue/{name}\ncontent-length:5\n\nhello\nSEND\n\n\0".encode())
    wire.expect_error()


def test_a_content_length_over_the_limit_is_refused_before_the_body_is_sent(dial: Dial, name: str) -> None:
    wire = dial()
    wire.send(f"SEND\ndestination:/queue/{name}\ncontent-length:4194305\n\n".encode())
    wire.expect_error()


# 4. Escapes and octets in headers


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("1.1", b"x:\\t"),
        ("1.1", b"x:\\r"),
        ("1.1", b"x:a\\"),
        ("1.2", b"x:\\t"),
        ("1.2", b"x:a\\"),
        ("1.2", b"x:a\\\\\\"),
        ("1.2", b"\\x:a"),
        ("1.2", b"x:a\rb"),
        ("1.2", b"x\ry:a"),
        ("1.2", b"x:\0"),
        ("1.0", b"x:\0"),
        ("1.0", b"x:\xc3\x28"),
        ("1.1", b"x:\xed\xa0\x80"),
        ("1.2", b"x:\xc0\xaf"),
        ("1.2", b"\xff:x"),
        ("1.2", b":x"),
        ("1.2", b"nocolon"),
    ],
)
def test_a_header_that_cannot_be_read_is_refused(dial: Dial, name: str, version: str, line: bytes) -> None:
    wire = dial(version)
    wire.send(f"SEND\ndestination:/queue/{name}\n".encode() + line + b"\n\nx\0")
    wire.expect_error()


def test_escapes_are_decoded_once(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}")
    wire.send(f"SEND\ndestination:/queue/{name}\nx:\\\\n\\\\c\\\\\\\\\n\ny\0".encode())
    assert wire.expect("MESSAGE")["x"] == "\\n\\c\\\\"


# 5. Header injection is in test_messages.py and, for generated headers, here


@pytest.mark.parametrize("reader", ["1.0", "1.1", "1.2"])
def test_no_header_can_forge_a_frame(dial: Dial, name: str, reader: str) -> None:
    nasty = [
        "a\n\nbody\0MESSAGE\nx:y",
        "\n",
        "\r\n\r\n\0",
        ":",
        "\\n",
        "\\",
        "a\r\nforged:1",
        "\r",
        "\ndestination:/queue/z",
    ]
    consumer, producer = dial(reader), dial("1.2")
    consumer.subscribe(f"/queue/{name}")
    for number, text in enumerate(nasty):
        text = text.replace("\0", "")
        producer.call("SEND", {"destination": f"/queue/{name}", f"v{number}": text, f"n{text}": "x"}, b"body")
        got = consumer.expect("MESSAGE")
        assert got.body == b"body"
        assert got["destination"] == f"/queue/{name}"
        assert not {"forged", "x"} & set(got.headers)
        if reader == "1.2":
            assert got[f"v{number}"] == text
            assert got[f"n{text}"] == "x"
        elif f"v{number}" in got.headers:
            assert got[f"v{number}"] == text


# 6. Names that only the broker may say: test_messages.py


# 7. What an ERROR tells


def test_before_login_an_error_echoes_nothing(dial: Dial) -> None:
    wire = dial(None)
    wire.send(
        b"CONNECT\naccept-version:9.9\nhost:canary-host\nlogin:canary-login\npasscode:canary-secret\n\n\0"
    )
    got = wire.expect("ERROR")
    assert b"canary" not in got.body
    assert "canary" not in str(got.headers)


def test_before_login_a_bad_frame_echoes_nothing(dial: Dial) -> None:
    wire = dial(None)
    wire.send(b"CONNECT\ncanary-without-colon\n\n\0")
    assert b"canary" not in wire.rest()


def test_an_error_quotes_little_and_never_a_stack(dial: Dial) -> None:
    wire = dial()
    wire.tell("SUBSCRIBE", {"id": "1", "destination": "/nowhere/" + "x" * 200, "receipt": "r" * 200})
    got = wire.expect_error()
    text = got.body.decode() + got["message"]
    assert "Traceback" not in text
    assert ".py" not in text
    assert "x" * 65 not in text
    assert len(got.body.rstrip()) <= 256
    assert got["receipt-id"] == "r" * 200


def test_an_error_holds_no_version(dial: Dial) -> None:
    wire = dial()
    wire.tell("COMMIT", {"transaction": "none"})
    got = wire.expect_error()
    assert "stompd/" not in got.body.decode() + str(got.headers)


def test_connected_names_a_server_without_a_version(dial: Dial) -> None:
    wire = dial(None)
    assert "/" not in wire.connect()["server"]


def test_a_text_of_the_peer_in_an_error_is_escaped(dial: Dial) -> None:
    wire = dial()
    wire.tell("COMMIT", {"transaction": "a\nforged:1\x1b[31m\u202e"})
    got = wire.expect_error()
    assert "forged" not in got.headers
    assert b"\x1b" not in got.body
    assert "\x1b" not in got["message"]


# 8. ACK and NACK of what is not ours


@pytest.mark.parametrize("command", ["ACK", "NACK"])
def test_the_delivery_of_another_connection_cannot_be_settled(dial: Dial, name: str, command: str) -> None:
    victim, thief = dial(), dial()
    victim.subscribe(f"/queue/{name}", ack="client-individual")
    thief.subscribe(f"/queue/{name}.other", ack="client-individual")
    victim.publish(f"/queue/{name}", "mine")
    got = victim.expect("MESSAGE")
    thief.tell(command, {"id": got["ack"], "receipt": "r"})
    assert thief.expect_error()["receipt-id"] == "r"
    victim.ack(got)


@pytest.mark.parametrize("command", ["ACK", "NACK"])
def test_a_settled_delivery_cannot_be_settled_again(dial: Dial, name: str, command: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}", ack="client-individual")
    wire.publish(f"/queue/{name}", "x")
    got = wire.expect("MESSAGE")
    wire.ack(got)
    wire.tell(command, {"id": got["ack"], "receipt": "r"})
    assert wire.expect_error()["receipt-id"] == "r"


def test_an_older_delivery_of_the_same_message_cannot_be_settled(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}", ack="client-individual")
    wire.publish(f"/queue/{name}", "x")
    wire.ack(wire.expect("MESSAGE"), "NACK")
    second = wire.expect("MESSAGE")
    wire.ack(second, "NACK")
    third = wire.expect("MESSAGE")
    assert third["ack"] != second["ack"]
    wire.tell("ACK", {"id": second["ack"], "receipt": "r"})
    assert wire.expect_error()["receipt-id"] == "r"


def test_a_delivery_from_before_a_restart_cannot_be_settled(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/epoch", ack="client-individual")
        wire.publish("/queue/epoch", "x")
        old = wire.expect("MESSAGE")
    broker.crash()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.tell("ACK", {"id": old["ack"], "receipt": "r"})
        assert wire.expect_error()["receipt-id"] == "r"
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/epoch", ack="client-individual")
        assert wire.bodies(1) == ["x"]


# 12. Half-open peers, resets, ends in the middle


def test_a_reset_in_the_middle_of_a_frame_harms_nobody(dial: Dial, name: str) -> None:
    wire = dial()
    wire.send(f"SEND\ndestination:/queue/{name}\ncontent-length:1000\n\nhalf".encode())
    wire.reset()
    alive(dial, name)
    reader = dial()
    reader.publish(f"/queue/{name}", "marker")
    reader.subscribe(f"/queue/{name}")
    assert reader.bodies(1) == ["marker"]


def test_an_end_behind_sends_keeps_all_that_is_logged(dial: Dial, name: str) -> None:
    wire = dial()
    for number in range(100):
        wire.tell("SEND", {"destination": f"/queue/{name}", "receipt": str(number)}, str(number).encode())
    wire.socket.shutdown(socket.SHUT_WR)
    receipts = [number for number in range(100) if receipted(wire)]
    reader = dial()
    reader.subscribe(f"/queue/{name}")
    assert reader.bodies(len(receipts)) == [str(number) for number in receipts]


def receipted(wire: Wire) -> bool:
    try:
        return wire.frame().command == "RECEIPT"
    except WireError:
        return False


def test_a_reset_while_receipts_are_pending_loses_no_whole_frame_that_was_logged(
    dial: Dial, name: str
) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}", "0")
    for number in range(1, 50):
        wire.tell("SEND", {"destination": f"/queue/{name}", "receipt": str(number)}, str(number).encode())
    wire.receipt("25")
    wire.reset()
    reader = dial()
    reader.subscribe(f"/queue/{name}")
    assert reader.bodies(26) == [str(number) for number in range(26)]


def test_messages_of_a_peer_that_vanished_return(dial: Dial, name: str) -> None:
    gone, other = dial(), dial()
    gone.subscribe(f"/queue/{name}", ack="client-individual")
    gone.publish(f"/queue/{name}", "x")
    gone.expect("MESSAGE")
    other.subscribe(f"/queue/{name}", ack="client-individual")
    gone.reset()
    assert other.expect("MESSAGE")["redelivered"] == "true"


def test_a_peer_that_misses_its_heart_beats_is_cut_and_its_messages_return(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker({"limits": {"heart_beat_receive": '"100ms"', "heart_beat_send": '"100ms"'}}).start()
    silent, other = Wire(broker.address), Wire(broker.address)
    with silent, other:
        assert silent.connect("1.2", {"heart-beat": "100,0"})["heart-beat"].endswith(",100")
        silent.subscribe("/queue/hb", ack="client-individual")
        silent.publish("/queue/hb", "x")
        silent.expect("MESSAGE")
        other.connect()
        other.subscribe("/queue/hb", ack="client-individual")
        assert other.expect("MESSAGE")["redelivered"] == "true"
        silent.rest()


def test_any_byte_is_a_heart_beat(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker({"limits": {"heart_beat_receive": '"200ms"'}}).start()
    with Wire(broker.address) as wire:
        wire.connect("1.2", {"heart-beat": "200,0"})
        for byte in b"\n" * 20 + b"SEND\ndestination:/queue/drip\nreceipt:1\n\nslow\0":
            wire.send(bytes([byte]))
            time.sleep(0.02)  # not a wait for a result: this is the pace of the client under test
        wire.receipt("1")


def test_a_client_without_heart_beats_may_be_idle(own_broker: Callable[..., BrokerProcess]) -> None:
    broker = own_broker({"limits": {"heart_beat_receive": '"50ms"', "frame_deadline": '"300ms"'}}).start()
    with Wire(broker.address) as wire:
        wire.connect()
        assert wire.idle(1.0)
        wire.call("BEGIN", {"transaction": "t"})


# Left over from all of the above


def test_the_wire_parser_of_these_tests_is_strict() -> None:
    for bad in (
        b"FOO\n\n\0",
        b"MESSAGE\nx\n\n\0",
        b"MESSAGE\nx:\\t\n\n\0",
        b"MESSAGE\n:x\n\n\0",
        b"RECEIPT\n\nx\0",
    ):
        with pytest.raises(WireError):
            take_frame(bad, "1.2")
