"""Each limit at its edge, whole and byte by byte, and that it acts before the bytes are collected."""

from __future__ import annotations

import dataclasses

import pytest

from broker.errors import BadHeader, BodyTooLong, HeaderTooLong, ProtocolError
from broker.stomp import Parser, WireLimits
from tests.stomp.frames import VERSIONS, fed, flat, opened

SMALL = WireLimits(header_line=40, headers=5, header_block=100, body=50)


def fill(size: int, eol: bytes) -> bytes:
    """Header lines of `size` bytes in all."""
    lines = b""
    while size - len(lines) > 40:
        lines += b"k%d:" % len(lines) + b"v" * 16 + eol
    return lines + b"z:" + b"v" * (size - len(lines) - 2 - len(eol)) + eol


def of_line(size: int, eol: bytes) -> bytes:
    return b"SEND" + eol + b"a:" + b"x" * (size - 2) + eol + eol + b"\0"


def of_block(size: int, eol: bytes) -> bytes:
    return b"SEND" + eol + fill(size, eol) + eol + b"\0"


def of_headers(count: int, eol: bytes) -> bytes:
    return b"SEND" + eol + b"".join(b"h%d:%s" % (i, eol) for i in range(count)) + eol + b"\0"


def of_length(size: int, eol: bytes) -> bytes:
    return b"SEND" + eol + b"content-length:%d" % size + eol + eol + b"x" * size + b"\0"


def of_open_body(size: int, eol: bytes) -> bytes:
    return b"SEND" + eol + eol + b"x" * size + b"\0"


EDGES = {
    "header_line": (of_line, 40, HeaderTooLong),
    "header_block": (of_block, 100, HeaderTooLong),
    "headers": (of_headers, 5, HeaderTooLong),
    "body by content-length": (of_length, 50, BodyTooLong),
    "body up to NUL": (of_open_body, 50, BodyTooLong),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("eol", [b"\n", b"\r\n"], ids=["LF", "CR LF"])
def test_a_limit_allows_what_it_says_and_not_one_more(edge: str, eol: bytes) -> None:
    make, limit, error = EDGES[edge]
    for size, expected in ((limit - 1, None), (limit, None), (limit + 1, error)):
        wire = make(size, eol)
        for step in (len(wire), 1, 3):
            items = fed(opened(limits=SMALL), [wire[at : at + step] for at in range(0, len(wire), step)])
            assert len(items) == 1
            assert (type(items[0]) is expected) if expected else not isinstance(items[0], ProtocolError), size


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("learn", [2, 3, 10])
def test_the_fast_path_has_the_same_limits(edge: str, learn: int) -> None:
    make, limit, error = EDGES[edge]
    for size, expected in ((limit - 1, None), (limit, None), (limit + 1, error)):
        # The frames before have the same form, so the last one fits a shape that was learnt.
        before = [make(limit - 2 + number % 2, b"\n") for number in range(learn)]
        items = flat(fed(opened(limits=SMALL), [*before, make(size, b"\n")]))
        assert len(items) == learn + 1
        assert (items[-1] is error) if expected else isinstance(items[-1], tuple)


@pytest.mark.parametrize(
    ("endless", "limit", "error"),
    [
        (b"x", 64, HeaderTooLong),
        (b"a:b\n", 120, HeaderTooLong),
        (b"a:\n", 40, HeaderTooLong),
        (b"\r", 64, HeaderTooLong),
    ],
)
def test_headers_without_end_are_refused_before_more_is_held(
    endless: bytes, limit: int, error: type[ProtocolError]
) -> None:
    parser = opened(limits=SMALL)
    assert parser.feed(b"SEND\na") == []
    for _ in range(200):
        items = parser.feed(endless)
        if items:
            break
        assert parser.held <= limit
    assert [type(item) for item in items] == [error]
    assert parser.held == 0


def test_a_body_over_the_limit_is_refused_before_more_is_held() -> None:
    parser = opened(limits=SMALL)
    parser.feed(b"SEND\n\n")
    for count in range(50):
        assert parser.feed(b"x") == []
        assert parser.held == 6 + count + 1
    assert [type(item) for item in parser.feed(b"x")] == [BodyTooLong]


def test_an_ignored_body_is_not_held_but_bounded() -> None:
    parser = opened(VERSIONS[0], SMALL)
    parser.feed(b"SUBSCRIBE\n\n" + b"x" * 50)
    assert [type(item) for item in parser.feed(b"x")] == [BodyTooLong]


def test_a_nul_among_headers_is_refused_without_waiting_for_their_end() -> None:
    parser = opened()
    assert [type(item) for item in parser.feed(b"SUBSCRIBE\ndestination:/queue/a\0")] == [BadHeader]


@pytest.mark.parametrize(
    "tail", [b"\0", b"x:y\n\0", b"x" * 40 + b"\0", b"x" * 41 + b"\0", b"\n\0", b"a\n\n\0"]
)
def test_which_of_two_faults_is_named_does_not_depend_on_the_cut(tail: bytes) -> None:
    wire = b"SEND\na:b\n" + tail
    whole = [type(item) for item in opened(limits=SMALL).feed(wire)]
    bytewise = fed(opened(limits=SMALL), [wire[at : at + 1] for at in range(len(wire))])
    assert [type(item) for item in bytewise] == whole


def test_limits_of_one_are_legal() -> None:
    limits = WireLimits(preauth_frame=10, header_line=1, headers=1, header_block=2, body=1)
    parser = Parser(limits)
    assert len(parser.feed(b"CONNECT\n\n\0")) == 1
    parser.resume()
    assert len(flat(parser.feed(b"SEND\n\nx\0" * 5))) == 5


def test_what_a_sender_makes_the_parser_remember_is_bounded() -> None:
    parser = opened()
    for number in range(3000):
        names = "".join(f"n{number}-{at}:{'v' * 100}\n" for at in range(4))
        parser.feed(f"SEND\ndestination:/queue/{number}\n{names}\nx\0".encode() * (1 + number % 3))
        parser.feed(f"ACK\nsubscription:{number}\nid:1\n\n\0".encode() * 2)
    memory, acks = parser._memory, parser._acks
    assert memory is not None and acks is not None
    assert len(memory._blocks) <= 256 and len(memory._families) <= 32 and len(memory._shapes) <= 16
    assert len(acks._shapes) <= 8
    assert all(len(key) <= 512 for key in memory._blocks)
    for size in range(2000):
        parser.feed(b"SEND\ndestination:/q\ncontent-length:%d\n\n%s\0" % (size, b"x" * size))
    assert all(len(shape._sizes) <= 1024 for shape in memory._shapes)


def test_the_same_block_comes_back_for_the_same_lines() -> None:
    parser = opened()
    blocks = set()
    for number in range(300):
        (run,) = parser.feed(f"SEND\ndestination:/queue/{number % 3}\nreceipt:{number}\n\nx\0".encode())
        blocks.add(id(getattr(run, "block", None)))
    assert len(blocks) == 3


def test_limits_are_a_value() -> None:
    assert dataclasses.asdict(WireLimits()) == {
        "preauth_frame": 8192, "header_line": 8192, "headers": 64, "header_block": 32768, "body": 4 << 20,
    }  # fmt: skip


@pytest.mark.parametrize("size", [99, 100, 101])
def test_a_block_limit_below_the_line_limit_holds_for_a_single_line(size: int) -> None:
    (item,) = opened(limits=WireLimits(header_line=1000, header_block=100)).feed(of_line(size - 1, b"\n"))
    assert isinstance(item, HeaderTooLong) is (size > 100)
