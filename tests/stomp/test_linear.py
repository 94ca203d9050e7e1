"""No stream makes the work grow faster than its bytes. Work is counted, not timed."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from broker.stomp import Parser, WireLimits
from broker.stomp.half import Half
from tests.stomp.frames import fed, flat, opened


class Counted(bytes):
    """A buffer that adds up how many bytes are searched, compared or copied out of it."""

    work = 0

    def find(self, sub: object, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        stop = len(self) if end is None else min(end, len(self))
        found = super().find(sub, start, stop)  # type: ignore[arg-type]
        Counted.work += (stop if found < 0 else found) - start + 1
        return found

    def startswith(self, prefix: bytes, start: int = 0) -> bool:  # type: ignore[override]
        Counted.work += len(prefix)
        return super().startswith(prefix, start)

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        Counted.work += len(found) if isinstance(found, bytes) else 1
        return found

    def count(self, sub: object, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        Counted.work += (len(self) if end is None else end) - start
        return super().count(sub, start, len(self) if end is None else end)  # type: ignore[arg-type]


SEND = b"SEND\ndestination:/q\nreceipt:%d\ncontent-length:3\n\nabc\0"
OPEN = b"SEND\ndestination:/q\nx:%d\n\nabc\0"
ACK = b"ACK\nid:%d\n\n\0"
STREAMS = {
    "plain": [SEND],
    "no content-length": [OPEN],
    "acks": [ACK],
    "ack, send": [ACK, SEND],
    "two acks, send": [ACK, ACK, SEND],
    "two kinds of send in turn": [SEND, OPEN],
    "sends with a doubtful value in turn": [OPEN, b"SEND\ndestination:/q\nx:\\n%d\n\nabc\0"],
    "sends with a value that looks like another header": [OPEN, b"SEND\ndestination:/q\nx:%d\ny:1\n\nabc\0"],
    "acks with a doubtful id in turn": [ACK, b"ACK\nid:\\n%d\n\n\0"],
    "acks that begin alike": [ACK, b"ACK\nid:%d\nfoo:1\n\n\0"],
    "acks with and without a receipt": [ACK, b"ACK\nid:%d\nreceipt:1\n\n\0"],
    "every 1.2 value odd": [b"SEND\ndestination:/q\nx:\xc3\xa9%d\n\nabc\0"],
    "many queues": [b"SEND\ndestination:/q%d\n\nabc\0"],
    "line ends": [b"\n\r\n"],
    "line ends and frames": [b"\n\n\nNACK\nid:%d\n\n\0"],
    "long values": [b"SEND\ndestination:/q\nx:" + b"v" * 400 + b"%d\n\nabc\0"],
    "long ids": [b"ACK\nid:" + b"v" * 400 + b"%d\n\n\0"],
}


def work_of(kinds: list[bytes], frames: int) -> float:
    """Bytes looked at for each byte of the stream."""
    wire = Counted(b"".join(kind % i if b"%d" in kind else kind for i in range(frames) for kind in kinds))
    Counted.work = 0
    items = flat(opened().feed(wire))
    assert len(items) == (frames * len(kinds) if kinds != [b"\n\r\n"] else 0)
    return Counted.work / len(wire)


@pytest.mark.parametrize("name", STREAMS)
def test_the_work_for_a_byte_does_not_grow_with_the_stream(name: str) -> None:
    short, long = work_of(STREAMS[name], 300), work_of(STREAMS[name], 4800)
    assert long < 40
    assert long < 1.5 * short + 2


def calls_of(parts: list[bytes], parser: Parser) -> int:
    """Python calls inside the package that a stream takes."""
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_globals.get("__name__", "").startswith("broker.stomp")

    sys.setprofile(count)
    try:
        items = fed(parser, parts)
    finally:
        sys.setprofile(None)
    assert len(items) == 1
    return calls


@pytest.mark.parametrize("length", [b"", b"content-length:%d\n"], ids=["open", "content-length"])
def test_a_body_in_tiny_pieces_is_not_copied_again_for_each(
    length: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 100_000
    wire = b"SEND\n" + (length % size if length else b"") + b"\n" + b"x" * size + b"\0"
    parser = opened()
    copied = 0
    real = Half.keep

    def keep(half: Half, piece: bytes) -> None:
        nonlocal copied
        copied += len(piece)
        real(half, piece)

    monkeypatch.setattr(Half, "keep", keep)
    (run,) = fed(parser, [wire[at : at + 1] for at in range(len(wire))])
    assert getattr(run, "bodies", None) == [b"x" * size]
    assert copied <= size


def test_a_large_body_in_tiny_pieces_takes_no_more_objects_than_pieces_of_4_kib_would() -> None:
    parser = opened()
    parser.feed(b"SEND\n\n")
    for _ in range(20_000):
        parser.feed(b"xy")
    half = parser._half
    assert half is not None and half.got == 40_000
    assert len(half.parts) == 1


def test_headers_in_tiny_pieces_are_looked_at_once_a_line() -> None:
    def calls(width: int) -> int:
        wire = b"SEND\n" + b"".join(b"h%02d:%s\n" % (i, b"x" * width) for i in range(60)) + b"\n\0"
        return calls_of([wire[at : at + 1] for at in range(len(wire))], opened(limits=WireLimits()))

    narrow, wide = calls(100), calls(400)
    assert wide < 4.4 * narrow
