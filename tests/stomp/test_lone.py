"""SENDs that come one by one, each in a piece of its own: the short way gives what the general path gives."""

from __future__ import annotations

import pytest

from broker.stomp import Version, WireLimits
from tests.stomp.frames import VERSIONS, fed, flat, opened

LIMITS = WireLimits(header_line=64, headers=8, header_block=256, body=64)


def send(receipt: bytes, own: bytes = b"o", size: bytes = b"5", body: bytes = b"hello\0") -> bytes:
    return b"SEND\ndestination:/queue/a\nreceipt:%b\nown:%b\ncontent-length:%b\n\n%b" % (receipt, own, size, body)


# What comes behind frames that it looks like, in one piece.
ODD = {
    "as they were": send(b"7"),
    "a raw colon": send(b"a:b", b"c:d"),
    "an escape": send(b"a\\cb", b"\\n"),
    "an undefined escape": send(b"a\\tb"),
    "an undefined escape in an own header": send(b"1", b"\\"),
    "a CR": send(b"a\rb"),
    "a NUL in a value": send(b"a\0b"),
    "not UTF-8": send(b"1", b"\xff"),
    "spaces": send(b" 1 ", b" o "),
    "empty values": send(b"", b""),
    "a value over the limit": send(b"r" * 65),
    "a value at the limit": send(b"r" * (64 - len("receipt:"))),
    "no NUL behind the body": send(b"1", body=b"hello!"),
    "a NUL in the body": send(b"1", body=b"he\0lo\0"),
    "another size": send(b"1", size=b"3", body=b"abc\0"),
    "a size that is no number": send(b"1", size=b"+5"),
    "a size over the limit": send(b"1", size=b"65", body=b"x" * 65 + b"\0"),
    "a body that is cut": send(b"1", body=b"he"),
    "headers that are cut": send(b"1")[:40],
    "no body yet": send(b"1", body=b""),
    "an EOL behind it": send(b"1") + b"\n",
    "an EOL in front of it": b"\n" + send(b"1"),
    "a second frame": send(b"1") + send(b"2"),
    "another command": b"ACK\nid:1\n\n\0",
}


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("name", ODD)
def test_a_frame_in_a_piece_of_its_own_is_what_the_general_path_says(name: str, version: Version) -> None:
    before = [send(b"1"), send(b"2", b"p"), send(b"3", b"q"), send(b"4", b"r")]
    parts = [*before, ODD[name], send(b"8", b"s"), send(b"9")]
    quick, slow = opened(version, LIMITS), opened(version, LIMITS, fast=False)
    assert flat(fed(quick, parts)) == flat(fed(slow, parts))
    assert quick.held == slow.held and quick.mid_frame == slow.mid_frame
