"""The same bytes give the same frames: however they are cut, and whether the fast path is on or off."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.stomp import Parser, Role, SendRun, Version, WireLimits
from tests.stomp.frames import LIMITS, STEERING, VERSIONS, Flat, fed, flat, opened, pieces
from tests.stomp.streams import Stream

GOLDEN = (
    b"SEND\ndestination:/queue/a\nreceipt:1\ncontent-length:5\n\nhe\0lo\0\n"
    b"SEND\ndestination:/queue/a\nreceipt:2\ncontent-length:5\n\nhe\0lo\0\n"
    b"SEND\ndestination:/queue/a\nreceipt:3\ncontent-length:5\n\nhe\0lo\0\n"
    b"SEND\r\ndestination:/queue/a\r\nx:a\\cb\\\\\r\n\r\nopen body\0\r\n\r\n"
    b"SEND\ndestination:/queue/b\nx:1\n\nopen\0SEND\ndestination:/queue/b\nx:2\n\nopen\0"
    b"SEND\ndestination:/queue/b\nx:3\n\nopen\0SEND\ndestination:/queue/b\nx:4:5\n\n\0"
    b"SUBSCRIBE\nid:0\ndestination:/queue/a\nack:client\n\n\n\0\n\n"
    b"ACK\nid:1\n\n\0ACK\nid:2\n\n\0ACK\nid:3\n\n\0ACK\nid:4\nreceipt:9\n\n\0"
    b"ACK\nsubscription:0\nid:5\n\n\0ACK\nsubscription:0\nid:6\n\n\0NACK\nid:7\n\n\0"
    b"BEGIN\ntransaction:t\n\n\0SEND\ntransaction:t\n\nx\0COMMIT\ntransaction:t\n\n\0DISCONNECT\nreceipt:z\n\n\0"
)
# Up to here the stream holds CR LF; the rest is read in every version.
PLAIN = GOLDEN.replace(b"\r\n", b"\n").replace(b"x:a\\cb\\\\\n", b"x:ab\n")


def run(stream: Stream, parts: list[bytes], *, fast: bool) -> tuple[list[Flat], int, bool]:
    parser = opened(stream.version, stream.limits, fast=fast)
    return flat(fed(parser, parts)), parser.held, parser.mid_frame


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_frames_do_not_depend_on_where_tcp_cuts_them(version: Version) -> None:
    wire = GOLDEN if version is Version.V1_2 else PLAIN
    whole = flat(opened(version).feed(wire))
    assert len(whole) == 20 and isinstance(whole[-1], tuple)
    for cut in range(len(wire) + 1):
        assert flat(fed(opened(version), [wire[:cut], wire[cut:]])) == whole, cut
    for size in (1, 2, 3, 7, 64):
        parts = [wire[at : at + size] for at in range(0, len(wire), size)]
        assert flat(fed(opened(version), parts)) == whole, size


def test_the_handshake_does_not_depend_on_the_cut_either() -> None:
    wire = b"\r\n\nSTOMP\r\naccept-version:1.2\r\nlogin:a:b\r\n\r\n\0\n" + GOLDEN
    for cut in range(len(wire) + 1):
        parser = Parser(LIMITS, steering=STEERING)
        items = fed(parser, [wire[:cut], wire[cut:]])
        assert len(items) == 1, cut
        parser.version = Version.V1_2
        assert len(flat(parser.resume())) == 20, cut


@pytest.mark.parametrize("start", range(0, 360, 60))
def test_the_fast_path_and_any_cut_give_what_the_general_path_gives(start: int) -> None:
    """Streams 0 to 359; a failure names the seed."""
    for seed in range(start, start + 60):
        stream = Stream(seed, wrong=0.0 if seed % 3 else 0.002)
        wire = stream.wire
        general = run(stream, [wire], fast=False)
        assert run(stream, [wire], fast=True) == general, seed
        assert run(stream, pieces(wire, stream.cuts()), fast=True) == general, seed
        if seed % 12 == 0:
            assert run(stream, [wire[at : at + 1] for at in range(len(wire))], fast=True) == general, seed


def test_the_streams_reach_the_fast_path_and_the_refusals() -> None:
    """Otherwise the test above would show nothing."""
    longest, refused, own = 0, 0, 0
    for seed in range(120):
        stream = Stream(seed, wrong=0.0 if seed % 3 else 0.002)
        items = opened(stream.version, stream.limits).feed(stream.wire)
        sends = [item for item in items if isinstance(item, SendRun)]
        longest = max([longest, *(len(item.bodies) for item in sends)])
        own += sum(len(item.owns) for item in sends if item.owns)
        refused += any(isinstance(item, ProtocolError) for item in items)
    assert longest > 20
    assert own > 2000
    assert 20 < refused < 100


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(data=st.data())
def test_random_cuts_of_the_golden_stream_change_nothing(data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(GOLDEN)), max_size=20))
    assert flat(fed(opened(), pieces(GOLDEN, cuts))) == flat(opened().feed(GOLDEN))


TOKENS = st.sampled_from(
    [b"SEND", b"ACK", b"CONNECT", b"MESSAGE", b"\n", b"\r\n", b"\n\n", b"\0", b":", b"a:b\n",
     b"content-length:3\n", b"receipt:1\n", b"id:1\n", b"\\", b"\\c", b"\xff",
     b"x" * 50, b"\r", b"SEND\n\nhi\0", b"ACK\nid:1\n\n\0"]
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=400, database=None)
@given(
    parts=st.lists(st.one_of(TOKENS, st.binary(max_size=20)), max_size=40),
    version=st.sampled_from(VERSIONS),
    role=st.sampled_from(Role),
    greeted=st.booleans(),
)
def test_no_bytes_make_the_parser_raise(
    parts: list[bytes], version: Version, role: Role, greeted: bool
) -> None:
    """flat() also holds that an error is the last item, and that every run is well formed."""
    limits = WireLimits(preauth_frame=60, header_line=30, headers=4, header_block=80, body=60)
    outcomes = []
    for feeds in (parts, [b"".join(parts)], [bytes([octet]) for octet in b"".join(parts)]):
        parser = Parser(limits, role=role)
        if greeted and role is Role.SERVER:
            parser.feed(b"CONNECT\n\n\0")
            parser.version = version
            parser.resume()
        items = fed(parser, feeds)
        assert parser.held <= 400
        if not parser._paused:
            outcomes.append((flat(items), parser.held))
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_mutated_streams_end_in_a_protocol_error_or_in_frames(start: int) -> None:
    """Seeds 0 to 599; a failure names the seed."""
    for seed in range(start, start + 100):
        random = Random(seed)
        wire = bytearray(GOLDEN)
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(wire))
            match random.randrange(4):
                case 0:
                    wire[at] ^= 1 << random.randrange(8)
                case 1:
                    del wire[at : at + random.randrange(1, 20)]
                case 2:
                    wire[at:at] = random.randbytes(random.randrange(1, 8))
                case _:
                    wire[at:at] = wire[: random.randrange(1, 60)]
        mutant = bytes(wire)
        version = random.choice(VERSIONS)
        general = flat(opened(version, fast=False).feed(mutant))
        assert flat(opened(version).feed(mutant)) == general, seed
        cuts = [random.randrange(len(mutant) + 1) for _ in range(5)]
        assert flat(fed(opened(version), pieces(mutant, cuts))) == general, seed
