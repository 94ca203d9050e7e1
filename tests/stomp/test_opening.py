"""The first bytes of a connection, and CONNECT itself."""

from __future__ import annotations

import pytest

from broker.errors import BadFrame, BadHeader, HeaderTooLong, NotAllowedNow, NotStomp, ProtocolError
from broker.stomp import Frame, Parser, SendRun, Version, WireLimits
from tests.stomp.frames import LIMITS, fed, flat


@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
@pytest.mark.parametrize("eol", ["\n", "\r\n"])
@pytest.mark.parametrize("before", ["", "\n", "\r\n\n", "\n" * 16])
def test_connect_and_stomp_open_a_connection_with_either_line_end(
    command: str, eol: str, before: str
) -> None:
    wire = f"{before}{command}{eol}host:x{eol}passcode:a:b\\c{eol}{eol}\0".encode()
    for parts in ([wire], [wire[at : at + 1] for at in range(len(wire))]):
        assert fed(Parser(LIMITS), parts) == [Frame(command, {"host": "x", "passcode": "a:b\\c"})]


def test_a_connect_needs_no_header() -> None:
    assert Parser(LIMITS).feed(b"CONNECT\n\n\0") == [Frame("CONNECT", {})]


def test_a_connect_is_not_unescaped_and_its_receipt_stays_as_it_is() -> None:
    (frame,) = Parser(LIMITS).feed(b"CONNECT\naccept-version:1.2\npasscode: a\\n\\t\nreceipt:1:2\n\n\0")
    assert isinstance(frame, Frame)
    assert frame.headers["passcode"] == " a\\n\\t"
    assert frame.receipt == b"1:2"


@pytest.mark.parametrize("accepted", ["", "accept-version:1.0\n", "accept-version : 1.0\n"])
def test_a_client_of_1_0_may_put_spaces_around_the_colon_of_connect(accepted: str) -> None:
    (frame,) = Parser(LIMITS).feed(f"CONNECT\n{accepted}login : me \n\n\0".encode())
    assert isinstance(frame, Frame)
    assert frame.headers["login"] == "me"


@pytest.mark.parametrize(
    ("first", "error", "hint"),
    [
        (b"GET / HTTP/1.1\r\n", NotStomp, "http"),
        (b"POST /x HTTP/1.1\r\n", NotStomp, "http"),
        (b"PUT /", NotStomp, "http"),
        (b"HEAD /", NotStomp, "http"),
        (b"DELETE /", NotStomp, "http"),
        (b"OPTIONS *", NotStomp, "http"),
        (b"PATCH /", NotStomp, "http"),
        (b"TRACE /", NotStomp, "http"),
        (b"CONNECT example.org:443 HTTP/1.1\r\n", NotStomp, "http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", NotStomp, "http"),
        (b"\x16\x03\x01\x02\x00\x01", NotStomp, "tls"),
        (b"hello", NotStomp, ""),
        (b"connect\n\n\0", NotStomp, ""),
        (b"CONNECTX\n", NotStomp, ""),
        (b"CONNECT\rX", NotStomp, ""),
        (b"STOMPED\n", NotStomp, ""),
        (b"SENDFOO\n", NotStomp, ""),
        (b"\0", NotStomp, ""),
        (b" CONNECT\n", NotStomp, ""),
        (b"\n" * 17, NotStomp, ""),
        (b"\r\n" * 17, NotStomp, ""),
        (b"\rCONNECT\n", BadFrame, None),
        *(
            (name + b"\n\n\0", NotAllowedNow, None)
            for name in (
                b"SEND", b"SUBSCRIBE", b"UNSUBSCRIBE", b"ACK", b"NACK", b"BEGIN", b"COMMIT", b"ABORT",
                b"DISCONNECT", b"CONNECTED", b"MESSAGE", b"RECEIPT", b"ERROR",
            )
        ),
    ],
)  # fmt: skip
def test_what_begins_with_neither_connect_nor_stomp_is_refused(
    first: bytes, error: type[ProtocolError], hint: str | None
) -> None:
    for parts in ([first], [first[at : at + 1] for at in range(len(first))]):
        parser = Parser(LIMITS)
        (item,) = fed(parser, parts)
        assert type(item) is error
        assert getattr(item, "hint", None) == hint
        assert parser.held == 0


@pytest.mark.parametrize("wire", [b"X", b"STX", b"CONX", b"HX", b"\x16", b"\x80", b"GETX"])
def test_a_stranger_is_refused_at_the_first_byte_that_begins_no_known_word(wire: bytes) -> None:
    parser = Parser(LIMITS)
    assert parser.feed(wire[:-1]) == []
    (item,) = parser.feed(wire[-1:])
    assert isinstance(item, NotStomp)


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        (b"CONNECT\ncontent-length:1\n\nx\0", BadFrame),
        (b"CONNECT\n\nx\0", BadFrame),
        (b"CONNECT\n\n\n\n\n\0", BadFrame),
        (b"CONNECT\nno colon\n\n\0", BadHeader),
        (b"CONNECT\n:v\n\n\0", BadHeader),
        (b"CONNECT\nhost:a\rb\n\n\0", BadHeader),
        (b"CONNECT\nhost:a\0\n\n\0", BadHeader),
        (b"CONNECT\nhost:\xff\n\n\0", BadHeader),
        (b"CONNECT\nreceipt:1\nreceipt:2\n\n\0", BadHeader),
        (b"CONNECT\ncontent-length:x\n\n\0", BadHeader),
    ],
)
def test_a_connect_has_sound_headers_and_no_body(wire: bytes, error: type[ProtocolError]) -> None:
    for parts in ([wire], [wire[at : at + 1] for at in range(len(wire))]):
        items = fed(Parser(LIMITS), parts)
        assert [type(item) for item in items] == [error]


@pytest.mark.parametrize("size", [-1, 0, 1])
@pytest.mark.parametrize("eol", [b"\n", b"\r\n"])
def test_a_connect_frame_may_have_preauth_frame_bytes_and_not_one_more(size: int, eol: bytes) -> None:
    limits = WireLimits(preauth_frame=100)
    head = b"CONNECT" + eol + b"login:"
    wire = head + b"x" * (100 + size - len(head) - 2 * len(eol) - 1) + eol + eol + b"\0"
    assert len(wire) == 100 + size
    for parts in ([wire], [wire[at : at + 1] for at in range(len(wire))]):
        (item,) = fed(Parser(limits), parts)
        assert isinstance(item, HeaderTooLong if size > 0 else Frame)


def test_a_connect_that_does_not_end_is_refused_as_soon_as_it_is_too_long() -> None:
    parser = Parser(WireLimits(preauth_frame=100))
    parser.feed(b"CONNECT\n")
    held = 0
    while not (items := parser.feed(b"a:b\n")):
        held = max(held, parser.held)
        assert held <= 100
    assert isinstance(items[0], HeaderTooLong)


def test_what_follows_connect_waits_for_the_version() -> None:
    parser = Parser(LIMITS)
    (frame,) = parser.feed(b"CONNECT\naccept-version:1.1\n\n\0\nSEND\nx:a\\cb\n\nhi\0SEND\n")
    assert isinstance(frame, Frame)
    assert parser.held == len(b"\nSEND\nx:a\\cb\n\nhi\0SEND\n")
    assert not parser.mid_frame
    assert parser.feed(b"x:c\n") == []
    parser.version = Version.V1_1
    (run,) = parser.resume()
    assert isinstance(run, SendRun)
    assert run.block.headers == {"x": "a:b"}
    assert parser.mid_frame
    assert flat(parser.feed(b"\nho\0")) == [("SEND", (("x", "c"),), b"ho", None)]


@pytest.mark.parametrize("command", [b"CONNECT", b"STOMP"])
def test_a_second_connect_is_not_allowed(command: bytes) -> None:
    parser = Parser(LIMITS)
    parser.feed(b"CONNECT\n\n\0" + command + b"\n\n\0")
    (item,) = parser.resume()
    assert isinstance(item, NotAllowedNow)
