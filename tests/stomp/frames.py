"""What the tests of the wire share: a parser behind its handshake, and what came out in a form to compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from broker.errors import ProtocolError
from broker.stomp import AckRun, Frame, Parser, Role, SendRun, Version, WireLimits, unescape
from broker.stomp.half import Item

STEERING = frozenset(("destination", "transaction", "persistent"))
LIMITS = WireLimits()
VERSIONS = tuple(Version)

# Command, sorted headers, body and receipt of a message or frame, however it was grouped; or an error's type.
Flat = tuple[str, tuple[tuple[str, str], ...], bytes, bytes | None] | type[ProtocolError]


def opened(version: Version = Version.V1_2, limits: WireLimits = LIMITS, *, fast: bool = True) -> Parser:
    """A server's parser that has taken a CONNECT and was told the version."""
    parser = Parser(limits, steering=STEERING)
    parser._fast = fast
    (connect,) = parser.feed(b"CONNECT\n\n\0")
    if not isinstance(connect, Frame):
        raise connect if isinstance(connect, Exception) else AssertionError(connect)
    parser.version = version
    if parser.resume():
        raise AssertionError("nothing was fed behind CONNECT")
    return parser


def client(version: Version = Version.V1_2, limits: WireLimits = LIMITS) -> Parser:
    """A client's parser that has taken a CONNECTED."""
    parser = Parser(limits, role=Role.CLIENT)
    parser.feed(f"CONNECTED\nversion:{version}\n\n\0".encode())
    return parser


def pieces(wire: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = [0, *sorted(cuts), len(wire)]
    return [wire[start:end] for start, end in pairwise(places)]


def fed(parser: Parser, parts: Iterable[bytes]) -> list[Item]:
    return [item for part in parts for item in parser.feed(part)]


def own_lines(own: bytes) -> list[tuple[str, str]]:
    """Canonical lines as pairs; fails where they are not canonical."""
    assert own.endswith(b"\n")
    pairs = []
    for line in own.decode().split("\n")[:-1]:
        name, colon, value = line.partition(":")
        assert colon and ":" not in value and "\r" not in line, own
        pairs.append((unescape(name, Version.V1_2), unescape(value, Version.V1_2)))
    return pairs


def flat(items: Sequence[Item]) -> list[Flat]:
    """Every message and frame by itself, with the parser's promises about runs checked on the way."""
    found: list[Flat] = []
    for place, item in enumerate(items):
        if isinstance(item, SendRun):
            size = len(item.bodies)
            assert 1 <= size <= 256
            assert item.receipts is None or len(item.receipts) == size
            assert item.owns is None or len(item.owns) == size
            assert not {"receipt", "content-length"} & set(item.block.headers)
            for at, body in enumerate(item.bodies):
                pairs = list(item.block.lines)
                if item.owns is not None:
                    own = own_lines(item.owns[at])
                    assert not {name for name, _ in own} & (STEERING | set(item.block.headers))
                    pairs += own
                receipt = None if item.receipts is None else item.receipts[at]
                found.append(("SEND", tuple(sorted(pairs)), body, receipt))
        elif isinstance(item, AckRun):
            assert item.ids
            shared = sorted(item.headers.items())
            found += [("ACK", (*shared, ("id", one.decode())), b"", None) for one in item.ids]
        elif isinstance(item, Frame):
            found.append((item.command, tuple(sorted(item.headers.items())), item.body, item.receipt))
        else:
            assert place == len(items) - 1, "an error is the last item"
            found.append(type(item))
    return found


def parsed(wire: bytes, version: Version = Version.V1_2, limits: WireLimits = LIMITS) -> list[Item]:
    return opened(version, limits).feed(wire)


def one_frame(wire: bytes, version: Version = Version.V1_2, limits: WireLimits = LIMITS) -> Frame:
    (item,) = parsed(wire, version, limits)
    assert isinstance(item, Frame), item
    return item


def one_send(wire: bytes, version: Version = Version.V1_2, limits: WireLimits = LIMITS) -> SendRun:
    (item,) = parsed(wire, version, limits)
    assert isinstance(item, SendRun), item
    return item


def one_error(wire: bytes, version: Version = Version.V1_2, limits: WireLimits = LIMITS) -> ProtocolError:
    (item,) = parsed(wire, version, limits)
    assert isinstance(item, ProtocolError), item
    return item
