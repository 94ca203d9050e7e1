"""What a frame is: commands, header lines, line ends, bodies and what is between frames."""

from __future__ import annotations

import pytest

from broker.errors import BadEscape, BadFrame, BadHeader, BodyTooLong, ProtocolError
from broker.stomp import AckRun, Frame, Parser, Role, SendRun, Version
from tests.stomp.frames import (
    LIMITS,
    VERSIONS,
    client,
    fed,
    flat,
    one_error,
    one_frame,
    one_send,
    opened,
    parsed,
)

V1_0, V1_1, V1_2 = VERSIONS


@pytest.mark.parametrize(
    "command", ["SUBSCRIBE", "UNSUBSCRIBE", "NACK", "BEGIN", "COMMIT", "ABORT", "DISCONNECT", "ACK"]
)
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_every_client_command_is_a_frame(command: str, version: Version) -> None:
    frame = one_frame(f"{command}\nx:1\nreceipt:r\n\n\0".encode(), version)
    assert frame == Frame(command, {"x": "1", "receipt": "r"}, b"", b"r")


@pytest.mark.parametrize(
    "command",
    [b"MESSAGE", b"RECEIPT", b"ERROR", b"CONNECTED", b"send", b"Send", b"SENDFOO", b"SEN", b"", b" SEND",
     b"SEND ", b"UNSUBSCRIBED", b"X" * 100, b"S\0END", b"\xff"],
)  # fmt: skip
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_any_other_command_is_refused(command: bytes, version: Version) -> None:
    wire = command + b"\na:b\n\n\0"
    if not command:
        wire = b"\0\n\n\0"
    error = one_error(wire, version)
    assert type(error) is BadFrame
    (bytewise,) = fed(opened(version), [wire[at : at + 1] for at in range(len(wire))])
    assert type(bytewise) is BadFrame


def test_a_refusal_names_what_came_shortened_and_in_ascii() -> None:
    assert "'SENDFOO'" in str(one_error(b"SENDFOO\n\n\0"))
    assert "MESSAGE" in str(one_error(b"MESSAGE\n\n\0"))
    text = str(one_error(b"SEND\n" + "é\x1b".encode() * 500 + b"\n\n\0"))
    assert text.isascii() and "\x1b" not in text and len(text) < 600


def test_after_an_error_everything_is_discarded() -> None:
    parser = opened()
    good = b"BEGIN\ntransaction:1\n\n\0"
    items = parser.feed(good + b"BAD\n\n\0" + good)
    assert flat(items) == [("BEGIN", (("transaction", "1"),), b"", None), BadFrame]
    assert parser.feed(good) == []
    assert parser.resume() == []
    assert (parser.held, parser.wanted, parser.mid_frame) == (0, 0, False)


@pytest.mark.parametrize(
    ("line", "pairs"),
    [
        ("a:b", {V1_0: ("a", "b"), V1_1: ("a", "b"), V1_2: ("a", "b")}),
        ("a:", {V1_0: ("a", ""), V1_1: ("a", ""), V1_2: ("a", "")}),
        ("a:b:c:", {V1_0: ("a", "b:c:"), V1_1: ("a", "b:c:"), V1_2: ("a", "b:c:")}),
        (" a : b ", {V1_0: ("a", "b"), V1_1: (" a ", " b "), V1_2: (" a ", " b ")}),
        ("a:\tb", {V1_0: ("a", "\tb"), V1_1: ("a", "\tb"), V1_2: ("a", "\tb")}),
        ("é:ü", {V1_0: ("é", "ü"), V1_1: ("é", "ü"), V1_2: ("é", "ü")}),
        ("a:x\\cy", {V1_0: ("a", "x\\cy"), V1_1: ("a", "x:y"), V1_2: ("a", "x:y")}),
        ("a:x\\ny", {V1_0: ("a", "x\\ny"), V1_1: ("a", "x\ny"), V1_2: ("a", "x\ny")}),
        ("a:x\\\\y", {V1_0: ("a", "x\\\\y"), V1_1: ("a", "x\\y"), V1_2: ("a", "x\\y")}),
        ("a:x\\\\ny", {V1_0: ("a", "x\\\\ny"), V1_1: ("a", "x\\ny"), V1_2: ("a", "x\\ny")}),
        ("a:x\\ry", {V1_0: ("a", "x\\ry"), V1_1: BadEscape, V1_2: ("a", "x\ry")}),
        ("a\\cb:x", {V1_0: ("a\\cb", "x"), V1_1: ("a:b", "x"), V1_2: ("a:b", "x")}),
        ("a:x\\ty", {V1_0: ("a", "x\\ty"), V1_1: BadEscape, V1_2: BadEscape}),
        ("a:x\\", {V1_0: ("a", "x\\"), V1_1: BadEscape, V1_2: BadEscape}),
        ("a\\:x", {V1_0: ("a\\", "x"), V1_1: BadEscape, V1_2: BadEscape}),
        ("a:x\\C", {V1_0: ("a", "x\\C"), V1_1: BadEscape, V1_2: BadEscape}),
        ("a:b\r", {V1_0: ("a", "b\r"), V1_1: ("a", "b\r"), V1_2: ("a", "b")}),
        ("a:b\r\r", {V1_0: ("a", "b\r\r"), V1_1: ("a", "b\r\r"), V1_2: BadHeader}),
        ("a:b\rc", {V1_0: ("a", "b\rc"), V1_1: ("a", "b\rc"), V1_2: BadHeader}),
        ("a:b\x0b\x85\u2028c", dict.fromkeys(VERSIONS, ("a", "b\x0b\x85\u2028c"))),
        ("nocolon", dict.fromkeys(VERSIONS, BadHeader)),
        (":value", dict.fromkeys(VERSIONS, BadHeader)),
        (" :value", {V1_0: BadHeader, V1_1: (" ", "value"), V1_2: (" ", "value")}),
        ("a:\0", dict.fromkeys(VERSIONS, BadHeader)),
        ("\0a:b", dict.fromkeys(VERSIONS, BadHeader)),
    ],
)
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_a_header_line_means_what_its_version_says(
    line: str, pairs: dict[Version, tuple[str, str] | type[ProtocolError]], version: Version
) -> None:
    expected = pairs[version]
    for command in (b"BEGIN", b"SEND"):
        wire = command + b"\nfirst:1\n" + line.encode() + b"\n\n\0"
        (item,) = parsed(wire, version)
        if isinstance(expected, tuple):
            headers = item.block.headers if isinstance(item, SendRun) else getattr(item, "headers", None)
            assert headers == {"first": "1", expected[0]: expected[1]}
        else:
            assert type(item) is expected


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"a\xf5"])
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_headers_that_are_not_utf_8_are_refused(raw: bytes, version: Version) -> None:
    assert type(one_error(b"BEGIN\nx:" + raw + b"\n\n\0", version)) is BadHeader
    assert type(one_error(b"SEND\n" + raw + b":x\n\n\0", version)) is BadHeader


def test_cr_lf_ends_lines_everywhere_in_1_2() -> None:
    wire = b"SEND\r\na:b\r\ncontent-length:2\r\n\r\nhi\0\r\n\r\nBEGIN\r\ntransaction:1\r\n\r\n\r\n\0"
    assert flat(parsed(wire)) == [
        ("SEND", (("a", "b"),), b"hi", None),
        ("BEGIN", (("transaction", "1"),), b"", None),
    ]
    mixed = b"SEND\r\na:b\nc:d\r\n\nhi\0SEND\nx:1\n\r\nho\0"
    assert flat(parsed(mixed)) == [
        ("SEND", (("a", "b"), ("c", "d")), b"hi", None),
        ("SEND", (("x", "1"),), b"ho", None),
    ]


@pytest.mark.parametrize("version", [V1_0, V1_1], ids=str)
@pytest.mark.parametrize("wire", [b"BEGIN\r\n\n\0", b"BEGIN\nx:y\n\r\n\n\0"])
def test_before_1_2_a_cr_is_no_line_end(version: Version, wire: bytes) -> None:
    assert isinstance(one_error(wire, version), BadFrame | BadHeader)


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_eols_between_frames_mean_nothing(version: Version) -> None:
    parser = opened(version)
    assert parser.feed(b"\n\r\n\n" * 50) == []
    assert not parser.mid_frame
    assert len(flat(parser.feed(b"\n\nBEGIN\n\n\0\n\r\nABORT\n\n\0\n"))) == 2
    assert parser.held == 0


def test_a_cr_alone_between_frames_is_refused() -> None:
    assert type(one_error(b"\rBEGIN\n\n\0")) is BadFrame
    parser = opened()
    assert parser.feed(b"\n\r") == []
    assert parser.feed(b"\n") == []
    assert parser.feed(b"\r") == []
    assert [type(item) for item in parser.feed(b"\r\n")] == [BadFrame]


@pytest.mark.parametrize("body", [b"", b"x", b"\0", b"a\0b", b"\n", b"\0" * 10, bytes(range(256))])
def test_a_body_with_content_length_may_hold_anything(body: bytes) -> None:
    run = one_send(b"SEND\ncontent-length:%d\n\n%s\0" % (len(body), body))
    assert run.bodies == [body]


def test_a_body_without_content_length_ends_at_the_first_nul() -> None:
    assert flat(parsed(b"SEND\na:b\n\n\nx\n\0BEGIN\n\n\0")) == [
        ("SEND", (("a", "b"),), b"\nx\n", None),
        ("BEGIN", (), b"", None),
    ]


@pytest.mark.parametrize(
    "value",
    ["-1", "+5", "1_000", " 5", "5 ", "\u0665", "0x10", "", "5" * 11, "9" * 5000, "5.0", "²", "1e3", "5\t"],
)
@pytest.mark.parametrize("command", ["SEND", "SUBSCRIBE", "ACK"])
def test_a_content_length_that_is_no_plain_number_is_refused(value: str, command: str) -> None:
    assert type(one_error(f"{command}\ncontent-length:{value}\n\nhello\0".encode())) is BadHeader


@pytest.mark.parametrize("value", [str(2**31), str(2**32), "9999999999", str(LIMITS.body + 1)])
def test_a_content_length_over_the_limit_is_refused_before_the_body(value: str) -> None:
    assert type(one_error(f"SEND\ncontent-length:{value}\n\n".encode())) is BodyTooLong


@pytest.mark.parametrize("tail", [b"x\0", b"\n\0", b"BEGIN\n\n\0"])
def test_a_body_must_end_with_nul_where_content_length_says(tail: bytes) -> None:
    wire = b"SEND\ncontent-length:2\n\nhi" + tail
    assert type(one_error(wire)) is BadFrame
    (bytewise,) = fed(opened(), [wire[at : at + 1] for at in range(len(wire))])
    assert type(bytewise) is BadFrame


@pytest.mark.parametrize("name", ["content-length", "receipt", "destination"])
@pytest.mark.parametrize("command", ["SEND", "SUBSCRIBE"])
def test_some_headers_may_not_be_repeated_with_another_value(name: str, command: str) -> None:
    same = f"{command}\n{name}:0\n{name}:0\n\n\0".encode()
    other = f"{command}\n{name}:0\n{name}:1\n\n\0".encode()
    assert not isinstance(parsed(same)[0], ProtocolError)
    assert type(one_error(other)) is BadHeader


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_the_first_of_repeated_headers_counts(version: Version) -> None:
    assert one_frame(b"NACK\nx:1\nx:2\n\n\0", version).headers == {"x": "1"}
    run = one_send(b"SEND\nx:1\nx:2\ny:3\n\n\0", version)
    assert run.block.headers == {"x": "1", "y": "3"}
    assert run.block.lines == [("x", "1"), ("x", "2"), ("y", "3")]


@pytest.mark.parametrize("command", ["SUBSCRIBE", "NACK", "DISCONNECT"])
@pytest.mark.parametrize("pad", ["", "\n", "\n\n", "\r\n", "\r\n\r\n", "\n\r\n"])
@pytest.mark.parametrize("length", ["", "content-length:0\n", "content-length:5\n"])
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_an_empty_line_or_two_is_no_body(command: str, pad: str, length: str, version: Version) -> None:
    wire = f"{command}\nid:1\n{length}\n{pad}\0".encode()
    assert one_frame(wire, version).command == command
    (bytewise,) = fed(opened(version), [wire[at : at + 1] for at in range(len(wire))])
    assert isinstance(bytewise, Frame)


@pytest.mark.parametrize("body", [b"x", b"\n\n\n", b"\r", b"\rx", b"\n\n\r\n", b"\nx"])
@pytest.mark.parametrize("command", [b"NACK", b"ACK", b"SUBSCRIBE", b"DISCONNECT"])
def test_a_body_where_none_may_be_is_refused(body: bytes, command: bytes) -> None:
    wire = command + b"\nid:1\ncontent-length:%d\n\n%s\0" % (len(body), body)
    assert type(one_error(wire)) is BadFrame
    (bytewise,) = fed(opened(), [wire[at : at + 1] for at in range(len(wire))])
    assert type(bytewise) is BadFrame


def test_a_body_where_none_may_be_is_refused_at_its_first_byte() -> None:
    parser = opened()
    assert parser.feed(b"NACK\nid:123456789\n") == parser.feed(b"\n") == parser.feed(b"\n") == []
    assert [type(item) for item in parser.feed(b"x")] == [BadFrame]


def test_a_subscribe_of_1_0_may_have_a_body_that_is_ignored() -> None:
    wire = b"SUBSCRIBE\ndestination:/queue/a\n\n" + b"x" * 5000 + b"\0BEGIN\n\n\0"
    expected = [("SUBSCRIBE", (("destination", "/queue/a"),), b"", None), ("BEGIN", (), b"", None)]
    assert flat(parsed(wire, V1_0)) == expected
    assert flat(fed(opened(V1_0), [wire[:100], wire[100:200], wire[200:]])) == expected


@pytest.mark.parametrize(
    ("raw", "receipts"),
    [
        ("7", {V1_0: b"7", V1_1: b"7", V1_2: b"7"}),
        ("a:b", {V1_0: b"a:b", V1_1: b"a\\cb", V1_2: b"a\\cb"}),
        ("a\\cb", {V1_0: b"a\\cb", V1_1: b"a\\cb", V1_2: b"a\\cb"}),
        ("a\\\\b", {V1_0: b"a\\\\b", V1_1: b"a\\\\b", V1_2: b"a\\\\b"}),
        ("é", dict.fromkeys(VERSIONS, "é".encode())),
        (" x ", {V1_0: b"x", V1_1: b" x ", V1_2: b" x "}),
        ("", dict.fromkeys(VERSIONS, b"")),
    ],
)
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_a_receipt_is_ready_to_be_written_in_the_version_of_the_connection(
    raw: str, receipts: dict[Version, bytes], version: Version
) -> None:
    assert one_frame(f"NACK\nreceipt:{raw}\n\n\0".encode(), version).receipt == receipts[version]
    # Three times: the general path learns from the first two, the fast path takes the third.
    items = parsed(f"SEND\nreceipt:{raw}\n\n\0".encode() * 3, version)
    found = [one for item in items if isinstance(item, SendRun) for one in item.receipts or ()]
    assert found == [receipts[version]] * 3


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("id:7\n", ("7", {})),
        ("ack:7\n", ("7", {})),
        ("message-id:7\nsubscription:s\n", ("7", {"subscription": "s"})),
        ("subscription:s\nid:7\n", ("7", {"subscription": "s"})),
        ("id:a\\cb\n", ("a:b", {})),
        ("id:7\nid:8\n", ("7", {})),
        ("id:7\nmessage-id:8\n", None),
        ("id:7\nreceipt:1\n", None),
        ("id:7\ntransaction:1\n", None),
        ("subscription:s\n", None),
        ("", None),
    ],
)
def test_an_ack_with_one_id_and_nothing_to_answer_is_a_run(
    lines: str, found: tuple[str, dict[str, str]] | None
) -> None:
    (item,) = parsed(f"ACK\n{lines}\n\0".encode())
    if found is None:
        assert isinstance(item, Frame)
    else:
        assert item == AckRun([found[0].encode()], found[1])


def test_the_parser_says_what_it_holds_and_wants() -> None:
    parser = opened()
    head = b"SEND\ncontent-length:100\n\n"
    parser.feed(head[:10])
    assert (parser.held, parser.wanted, parser.mid_frame) == (10, 10, True)
    parser.feed(head[10:] + b"x" * 40)
    assert (parser.held, parser.wanted, parser.mid_frame) == (len(head) + 40, len(head) + 101, True)
    parser.feed(b"x" * 60)
    assert (parser.held, parser.wanted, parser.mid_frame) == (len(head) + 100, len(head) + 101, True)
    assert len(parser.feed(b"\0")) == 1
    assert (parser.held, parser.wanted, parser.mid_frame) == (0, 0, False)


def test_an_open_body_counts_as_held_and_wants_no_more_than_that() -> None:
    parser = opened()
    parser.feed(b"SEND\n\n" + b"x" * 40)
    assert (parser.held, parser.wanted) == (46, 46)


@pytest.mark.parametrize("command", ["MESSAGE", "ERROR", "RECEIPT", "CONNECTED"])
def test_a_client_reads_what_a_server_sends(command: str) -> None:
    wire = f"{command}\nx:1\ncontent-length:3\n\na\0b\0\n".encode()
    assert client().feed(wire) == [Frame(command, {"x": "1", "content-length": "3"}, b"a\0b")]
    assert fed(client(), [wire[at : at + 1] for at in range(len(wire))]) == client().feed(wire)


@pytest.mark.parametrize("command", ["SEND", "CONNECT", "ACK", "message", "HELLO"])
def test_a_client_takes_no_command_of_clients(command: str) -> None:
    (item,) = client().feed(f"{command}\n\n\0".encode())
    assert type(item) is BadFrame


def test_a_client_learns_the_version_from_connected_which_is_not_unescaped() -> None:
    parser = Parser(LIMITS, role=Role.CLIENT)
    items = parser.feed(b"CONNECTED\r\nversion:1.1\r\nx: a\\nb\r\n\r\n\0MESSAGE\nx:a\\nb\n\n\0")
    assert items == [
        Frame("CONNECTED", {"version": "1.1", "x": " a\\nb"}),
        Frame("MESSAGE", {"x": "a\nb"}),
    ]
    assert parser.version is V1_1


def test_a_client_takes_an_error_in_place_of_connected() -> None:
    parser = Parser(LIMITS, role=Role.CLIENT)
    assert parser.feed(b"ERROR\nmessage:no\n\nbye\0") == [Frame("ERROR", {"message": "no"}, b"bye")]
