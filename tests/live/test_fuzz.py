"""Random and mutated byte streams: the broker neither crashes nor keeps anything of them."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable

from tests.support.process import BrokerProcess
from tests.support.wire import Wire

STREAMS = 10_000
SEED = 20_240_117
CONNECT = b"CONNECT\naccept-version:1.2\nhost:x\n\n\0"
GOOD = [
    CONNECT,
    b"STOMP\naccept-version:1.0,1.1\nheart-beat:0,0\n\n\0",
    b"SEND\ndestination:/queue/fuzz\nreceipt:1\n\nhello\0",
    b"SEND\ndestination:/queue/fuzz\ncontent-length:5\npersistent:false\n\nh\0llo\0\n",
    b"SEND\ndestination:/topic/fuzz.a\ntransaction:t\nx:a\\nb\\c\\\\\n\n\0",
    b"SUBSCRIBE\nid:1\ndestination:/queue/fuzz\nack:client-individual\nprefetch:2\n\n\0",
    b"SUBSCRIBE\nid:2\ndestination:/topic/fuzz.#\n\n\0",
    b"SUBSCRIBE\nid:3\ndestination:/temp-queue/x\n\n\0",
    b"UNSUBSCRIBE\nid:1\n\n\0",
    b"BEGIN\ntransaction:t\n\n\0",
    b"COMMIT\ntransaction:t\nreceipt:c\n\n\0",
    b"ABORT\ntransaction:t\n\n\0",
    b"ACK\nid:1-1\n\n\0",
    b"NACK\nsubscription:1\nmessage-id:a-1\ntransaction:t\n\n\0",
    b"DISCONNECT\nreceipt:bye\n\n\0",
    b"\r\n\n",
]
PIECES = [
    b"\0",
    b"\n",
    b"\r\n",
    b":",
    b"\\",
    b"\\t",
    b"content-length:",
    b"content-length:-1\n",
    b"content-length:4294967296\n",
    b"\xff\xfe",
    b"SEND",
    b"receipt:1\n",
    b"destination:/queue/fuzz\n",
    b"A" * 300,
    b"\0" * 20,
]


def stream(rng: random.Random) -> bytes:
    """One stream: noise, or good frames, some of them mutated; most begin with a CONNECT."""
    if rng.random() < 0.15:
        return rng.randbytes(rng.randint(1, 400))
    frames = [CONNECT] if rng.random() < 0.85 else []
    frames += [
        mutate(rng, rng.choice(GOOD)) if rng.random() < 0.5 else rng.choice(GOOD)
        for _ in range(rng.randint(0, 6))
    ]
    return b"".join(frames) or b"\n"


def mutate(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(changed))
        kind = rng.randrange(4)
        if kind == 0:
            changed[at:at] = rng.choice(PIECES)
        elif kind == 1:
            del changed[at : at + rng.randint(1, 8)]
        elif kind == 2 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        else:
            start = rng.randint(0, len(changed))
            changed[at:at] = changed[start : start + rng.randint(1, 30)]
    return bytes(changed)


def play(broker: BrokerProcess, rng: random.Random, count: int) -> None:
    """Send that many streams, each on a connection of its own, 32 at a time, and hang up in various ways."""
    waiting: list[socket.socket] = []
    for _ in range(count):
        peer = socket.create_connection(broker.address, timeout=10)
        waiting.append(peer)
        with contextlib.suppress(OSError):
            peer.sendall(stream(rng))
        if len(waiting) == 32:
            for each in waiting:
                finish(rng, each)
            waiting.clear()
    for each in waiting:
        finish(rng, each)


def finish(rng: random.Random, peer: socket.socket) -> None:
    how = rng.randrange(3)
    with contextlib.suppress(OSError):
        if how == 0:
            peer.settimeout(0.001)
            peer.recv(4096)
        elif how == 1:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()


def baseline(broker: BrokerProcess, most: int) -> int:
    """Open files of the broker once they are at most that many, or after ten seconds."""
    deadline = time.monotonic() + 10
    while (found := broker.open_files()) > most and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_10_000_random_and_mutated_streams_leave_nothing_behind(
    own_broker: Callable[..., BrokerProcess],
) -> None:
    broker = own_broker({"log": {"level": '"error"'}}).start()
    rng = random.Random(SEED)
    play(broker, rng, STREAMS // 10)
    files = baseline(broker, 24)
    before = broker.rss()
    play(broker, rng, STREAMS - STREAMS // 10)
    assert broker.alive(), f"crashed under seed {SEED}:\n{broker.stderr()[-3000:]}"
    assert "Traceback" not in broker.stderr(), f"seed {SEED}:\n{broker.stderr()[-3000:]}"
    assert baseline(broker, files) <= files
    assert broker.rss() < before * 1.3 + 8 * 1024 * 1024, f"seed {SEED}"
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/after", "x")
        wire.subscribe("/queue/after")
        assert wire.bodies(1) == ["x"]
    broker.stop()
