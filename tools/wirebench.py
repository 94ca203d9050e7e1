"""What the parser and the encoder cost: microseconds a frame and MB/s, best of some rounds.

    python tools/wirebench.py [--only NAME] [--rounds N] [--general]

`--general` switches the fast path off, to see what a frame costs that looks like none before it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.stomp import AckRun, Parser, SendRun, Version, WireLimits, encode, lines_for

STEERING = frozenset(("destination", "transaction", "persistent"))
Maker = Callable[[int], bytes]


def send(size: int, vary: int = 0, queues: int = 1) -> Maker:
    """A SEND as stompload writes it."""

    def make(i: int) -> bytes:
        length = size - i * 7 % 64 if vary & 2 else size
        own = b"correlation-id:job-0-%d\n" % i if vary & 1 else b""
        head = b"SEND\ndestination:/queue/load.%d\npersistent:true\nreceipt:0.%d\n%s" % (i % queues, i, own)
        return head + b"content-length:%d\n\n%s\0" % (length, b"x" * length)

    return make


def ack(vary: int = 0) -> Maker:
    lead = b"ACK\nsubscription:s0\nid:" if vary else b"ACK\nid:"
    return lambda i: b"%s1a2b3c4d-%d\n\n\0" % (lead, 1000000 + i)


def two(first: Maker, second: Maker) -> Maker:
    return lambda i: (second if i % 2 else first)(i)


def python_client(i: int) -> bytes:
    """Much as stomp.py sends it: no receipt, an escape in a value, an EOL behind the NUL."""
    own = b"correlation-id:ID\\chost\\c%d" % i
    return b"SEND\ncontent-length:256\n%s\ndestination:/queue/load\n\n%s\0\n" % (own, b"x" * 256)


def at_random(queues: int) -> Maker:
    """The receipt first, so that all shapes begin alike."""
    random = Random(1)
    frame = b"SEND\nreceipt:%d\ndestination:/queue/%d\ncontent-length:256\n\n%s\0"
    return lambda i: frame % (i, random.randrange(queues), b"x" * 256)


def unlike(i: int) -> bytes:
    """Every header block another one, in what steers too."""
    return b"SEND\ndestination:/queue/q%d\nreceipt:%d\ncontent-length:256\n\n%s\0" % (i, i, b"x" * 256)


CASES: dict[str, tuple[Maker, int, int]] = {  # maker, frames, bytes fed at a time
    "send": (send(256), 40_000, 65536),
    "send, chunks of 256 KiB": (send(256), 40_000, 262144),
    "send --vary 1": (send(256, 1), 40_000, 65536),
    "send --vary 2": (send(256, 2), 40_000, 65536),
    "send --vary 3": (send(256, 3), 40_000, 65536),
    "send to 4 queues in turn": (send(256, 0, 4), 20_000, 65536),
    "send to 50 queues at random": (at_random(50), 20_000, 65536),
    "send, one a feed": (send(256), 20_000, 0),
    "send as stomp.py": (python_client, 20_000, 65536),
    "send, none like another": (unlike, 20_000, 65536),
    "send 16 KiB": (send(16384), 4_000, 65536),
    "send 16 KiB, chunks of 256 KiB": (send(16384), 4_000, 262144),
    "send 1 MiB": (send(1 << 20), 64, 262144),
    "ack": (ack(), 80_000, 65536),
    "ack --vary 4": (ack(4), 80_000, 65536),
    "ack, send in turn": (two(send(256), ack()), 20_000, 65536),
}


def pieces(maker: Maker, frames: int, chunk: int) -> list[bytes]:
    wire = [maker(i) for i in range(frames)]
    if not chunk:
        return wire
    joined = b"".join(wire)
    return [joined[at : at + chunk] for at in range(0, len(joined), chunk)]


def count(items: Iterator[object]) -> int:
    total = 0
    for item in items:
        if isinstance(item, SendRun):
            total += len(item.bodies)
        elif isinstance(item, AckRun):
            total += len(item.ids)
        elif isinstance(item, Exception):
            raise item
        else:
            total += 1
    return total


def parse(chunks: list[bytes], general: bool) -> tuple[float, int]:
    parser = Parser(WireLimits(), steering=STEERING)
    parser.feed(b"CONNECT\naccept-version:1.2\n\n\0")
    parser.version = Version.V1_2
    parser.resume()
    parser._fast = not general
    start = time.perf_counter()
    found = [parser.feed(chunk) for chunk in chunks]
    spent = time.perf_counter() - start
    return spent, count(item for items in found for item in items)


def show(name: str, spent: float, frames: int, size: int) -> None:
    print(f"{name:34}{spent / frames * 1e6:8.2f} us/frame {size / spent / 1e6:9.0f} MB/s")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--only", default="", help="cases whose name contains this")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--general", action="store_true", help="without the fast path")
    chosen = options.parse_args()
    for name, (maker, frames, chunk) in CASES.items():
        if chosen.only in name:
            chunks = pieces(maker, frames, chunk)
            results = [parse(chunks, chosen.general) for _ in range(chosen.rounds)]
            if any(found != frames for _, found in results):
                raise SystemExit(f"{name}: {results[0][1]} frames of {frames} came out")
            show(name, min(spent for spent, _ in results), frames, sum(map(len, chunks)))
    headers = [("destination", "/queue/load"), ("message-id", "1a2b-17"), ("ack", "1a2b-17")]
    own = b"correlation-id:job\\c17\ntype:order\n"
    encoders: dict[str, Callable[[], object]] = {
        "encode MESSAGE": lambda: encode(Version.V1_2, "MESSAGE", headers, b"x" * 256),
        "lines_for 1.1": lambda: lines_for(Version.V1_1, own),
        "lines_for 1.0": lambda: lines_for(Version.V1_0, own),
    }
    for name, call in encoders.items():
        if chosen.only in name:
            start = time.perf_counter()
            for _ in range(20_000):
                call()
            show(name, time.perf_counter() - start, 20_000, 20_000 * 256)


if __name__ == "__main__":
    main()
