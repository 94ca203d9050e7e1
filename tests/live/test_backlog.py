"""A backlog larger than memory in a real process: its size, its order, a kill -9 in the middle of taking it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.support.process import BrokerProcess
from tests.support.wire import take_frame

COUNT = 60_000
BODY = 1024
RSS_MAX = 120 << 20  # with memory.limit = 16 MiB; an idle broker takes some 25 MiB
WINDOW = 1000


def body(number: int) -> bytes:
    return b"%d " % number + bytes(BODY - 1 - len(str(number)))


class Peer:
    """A client that is fast enough to fill and to empty a large backlog, and strict in what it takes."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.socket = socket.create_connection(broker.address, timeout=20)
        self.data = b""
        self.say(b"CONNECT\naccept-version:1.2\nhost:/\n\n\0")
        self.expect("CONNECTED")

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> tuple[str, dict[str, str], bytes]:
        at = 0
        while True:
            got, at = take_frame(self.data, "1.2", at)
            if got is not None:
                self.data = self.data[at:]
                return got.command, got.headers, got.body
            more = self.socket.recv(1 << 16)
            assert more, self.broker.stderr()[-2000:]
            self.data = self.data[at:] + more
            at = 0

    def expect(self, command: str) -> dict[str, str]:
        found, headers, text = self.frame()
        assert found == command, (found, headers, text[:200])
        return headers

    def close(self) -> None:
        self.socket.close()


def fill(broker: BrokerProcess) -> int:
    """All messages, with a receipt every thousand. The most resident bytes that were seen."""
    peer = Peer(broker)
    most = 0
    for start in range(0, COUNT, WINDOW):
        frames = [
            b"SEND\ndestination:/queue/deep\ncontent-length:%d\n%b\n%b\0"
            % (BODY, b"receipt:r\n" if n == start + WINDOW - 1 else b"", body(n))
            for n in range(start, start + WINDOW)
        ]
        peer.say(b"".join(frames))
        peer.expect("RECEIPT")
        most = max(most, broker.rss())
    peer.close()
    return most


def take(broker: BrokerProcess, first: int, count: int) -> int:
    """Takes messages in order from `first` on, until `count` are acknowledged for good. The most resident bytes."""
    peer = Peer(broker)
    peer.say(b"SUBSCRIBE\ndestination:/queue/deep\nid:s\nack:client\nprefetch:%d\n\n\0" % (2 * WINDOW))
    number, receipts, most = first, 0, 0
    while receipts < count // WINDOW:
        command, headers, text = peer.frame()
        if command == "RECEIPT":
            receipts += 1
            most = max(most, broker.rss())
            continue
        assert command == "MESSAGE", (command, headers, text[:200])
        assert text == body(number), f"{text[:10]!r} instead of {number}"
        number += 1
        if (number - first) % WINDOW == 0 and number - first <= count:
            peer.say(b"ACK\nid:%b\nreceipt:r\n\n\0" % headers["ack"].encode())
    peer.close()
    return most


def events(broker: BrokerProcess) -> list[dict[str, object]]:
    return [json.loads(line) for line in broker.stderr().splitlines() if line.startswith("{")]


def test_a_backlog_of_four_times_the_memory_is_bounded_in_order_and_survives_a_kill(tmp_path: Path) -> None:
    sections = {
        "memory": {"limit": '"16MiB"'},
        "storage": {"segment_size": '"4MiB"', "checkpoint": '"8MiB"'},
        "log": {"format": '"json"'},
    }
    broker = BrokerProcess(tmp_path, sections).start()
    try:
        assert fill(broker) < RSS_MAX
        assert list((broker.data_dir / "ckpt").glob("*.ck"))
        broker.crash()
        assert broker.rss() < RSS_MAX
        assert take(broker, 0, 20_000) < RSS_MAX
        broker.crash()  # while it hands out, with what was acknowledged partly on disk
        assert take(broker, 20_000, 20_000) < RSS_MAX
        broker.restart()
        assert take(broker, 40_000, 20_000) < RSS_MAX
        assert not [event for event in events(broker) if event.get("level") in ("error", "critical")]
        peer = Peer(broker)
        peer.say(b"SUBSCRIBE\ndestination:/queue/deep\nid:s\n\n\0DISCONNECT\nreceipt:bye\n\n\0")
        assert peer.expect("RECEIPT")["receipt-id"] == "bye"  # nothing is left
        peer.close()
        broker.stop()
    finally:
        broker.close()
