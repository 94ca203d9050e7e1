#!/usr/bin/env python3
"""What an idle connection costs: memory of the broker before and after 2,000 that are subscribed.

python3 tools/idle.py                    this broker: with one queue for all, and with a queue for each
python3 tools/idle.py --peer rabbitmq    RabbitMQ's STOMP plugin
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from contenders import Contender, RabbitMQ, Stompd, Yardstick

SECONDS_MAX = 60.0
LIMITS = "[limits]\nconnections_per_address = 9000\n"  # they all come from 127.0.0.1


def resident_bytes(pid: int) -> int:
    """Resident memory of that process."""
    for line in Path(f"/proc/{pid}/status").read_text().split("\n"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"/proc/{pid}/status has no VmRSS")


def settled_bytes(pid: int) -> int:
    """Resident memory once it no longer grows: three times the same, a fifth of a second apart."""
    seen = [resident_bytes(pid)]
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline and (len(seen) < 3 or max(seen[-3:]) - min(seen[-3:]) > 64 * 1024):
        time.sleep(0.2)
        seen.append(resident_bytes(pid))
    return seen[-1]


def subscribed(contender: Contender, queue: str) -> socket.socket:
    """A connection that is logged in and whose SUBSCRIBE was receipted."""
    login, passcode = contender.login or ("guest", "guest")
    peer = socket.create_connection(("127.0.0.1", contender.port), SECONDS_MAX)
    peer.sendall(
        f"CONNECT\naccept-version:1.2\nhost:/\nlogin:{login}\npasscode:{passcode}\nheart-beat:0,0\n\n\0"
        f"SUBSCRIBE\nid:0\ndestination:{queue}\nack:client-individual\nreceipt:in\n\n\0".encode()
    )
    got = b""
    while b"receipt-id:in" not in got:
        if not (data := peer.recv(4096)):
            raise ConnectionError(f"wanted the receipt of SUBSCRIBE, got {got!r} and the end of the stream")
        got += data
    return peer


def measure(contender: Contender, count: int, own_queues: bool) -> tuple[int, int]:
    """Memory before and after `count` connections, in bytes. Some come and go first, to warm caches."""
    with contender:
        for peer in [subscribed(contender, "/queue/warm") for _ in range(20)]:
            peer.close()
        before = settled_bytes(contender.pid)
        suffixes = [f".{number}" if own_queues else "" for number in range(count)]
        peers = [subscribed(contender, f"/queue/idle{suffix}") for suffix in suffixes]
        after = settled_bytes(contender.pid)
        for peer in peers:
            peer.close()
    return before, after


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="connections (default: 2,000)")
    parser.add_argument("--peer", choices=("rabbitmq", "yardstick"), help="another broker instead of ours")
    parser.add_argument("--most", type=float, metavar="KIB", help="fail above this many KiB a connection")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the broker inherits it
    makers: dict[str | None, Callable[[], Contender]] = {
        None: lambda: Stompd(extra=LIMITS),
        "rabbitmq": RabbitMQ,
        "yardstick": Yardstick,
    }
    good = True
    print("| broker | connections | subscribed to | before | after | a connection |")
    print("|---|---:|---|---:|---:|---:|")
    for own_queues in (False, True):
        contender = makers[options.peer]()
        before, after = measure(contender, options.count, own_queues)
        each = (after - before) / options.count / 1024
        where = "a queue each" if own_queues else "one queue"
        print(
            f"| {contender.name} | {options.count:,} | {where} | {before / 2**20:.1f} MiB "
            f"| {after / 2**20:.1f} MiB | {each:.1f} KiB |"
        )
        good = good and (options.most is None or each <= options.most)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
