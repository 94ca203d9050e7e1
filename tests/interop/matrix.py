"""Every client sends to every client through one broker, and each checks what it got.

Each receiver has a queue of its own. Each sender runs once and puts its letters on all of those queues; then
each receiver runs once, prints what it got and acknowledges it. At the end nothing may be left on any queue.
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.interop.catalogue import Client

CLIENT_SECONDS_MAX: Final = 60.0
LOGIN: Final = {"STOMP_LOGIN": "guest", "STOMP_PASSCODE": "guest"}

BODIES: Final[Sequence[Callable[[str], bytes]]] = (
    lambda mark: mark.encode(),
    lambda mark: f"{mark}: grüße, 日本語, 🎉".encode(),
    lambda mark: f"{mark}\nname:value\n\n\\c MESSAGE\r\nend\n".encode(),
    lambda mark: mark.encode() + b"\0" + bytes(range(256)) + b"\0\n\0",
    lambda mark: mark.encode() + b"x" * 70_000,  # larger than one read of any client
)
HEADERS: Final[Mapping[str, str]] = {
    "plain": "two words",
    "utf8": "größe ✓ 日本",
    "colon": "http://a:1/b::c",
    # Not `C:\new`: ruby-stomp and stompjs undo one kind of escape after the other and make a newline of it.
    "escapes": "two\nlines and C:\\dir",
}


@dataclass(slots=True)
class Outcome:
    """What went wrong, by sender and by receiver; `""` in the place of a peer means with all of them."""

    failures: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    received: dict[str, int] = field(default_factory=dict)  # messages by receiver

    def of(self, client: Client) -> list[str]:
        """All that this client had a part in, one line each."""
        return [
            f"{sender or 'any'} -> {receiver or 'any'}: {text}"
            for (sender, receiver), texts in self.failures.items()
            if client.name in (sender, receiver)
            for text in texts
        ]


def queue_of(receiver: Client) -> str:
    return f"/queue/interop.{receiver.name}"


def _kinds(sender: Client, receiver: Client) -> frozenset[str]:
    """The header kinds of which both ends are capable."""
    return sender.kinds & receiver.kinds - receiver.misreads


def _letters(sender: Client, receivers: Iterable[Client]) -> str:
    lines = []
    for receiver in receivers:
        for number, body in enumerate(BODIES):
            headers = {f"x-{kind}": HEADERS[kind] for kind in _kinds(sender, receiver)}
            headers |= {"x-from": sender.name, "x-number": str(number)}
            raw = base64.b64encode(body(f"{sender.name} {number}")).decode()
            lines.append(json.dumps({"destination": queue_of(receiver), "headers": headers, "body": raw}))
    return "\n".join(lines) + "\n"


def _run(client: Client, arguments: Sequence[str], stdin: str, port: int, prefix: Path) -> tuple[str, str]:
    """Its output, and what went wrong with it (empty if nothing did)."""
    environment = LOGIN | client.environment(prefix) | {"STOMP_PORT": str(port)}
    try:
        done = subprocess.run(
            [*client.command, *arguments],
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        got = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return got, f"{arguments[0]} did not end within {CLIENT_SECONDS_MAX:.0f} s"
    if done.returncode:
        return done.stdout, f"{arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}"
    return done.stdout, ""


def run(clients: Sequence[Client], port: int, prefix: Path, jobs: int = 2) -> Outcome:
    """Run the whole matrix over the broker on 127.0.0.1:`port`; `jobs` clients at a time."""
    outcome = Outcome()

    def send(client: Client) -> str:
        return _run(client, ["send"], _letters(client, clients), port, prefix)[1]

    def receive(client: Client) -> tuple[str, str]:
        expected = len(senders) * len(BODIES)
        return _run(client, ["receive", queue_of(client), str(expected)], "", port, prefix)

    with ThreadPoolExecutor(jobs) as pool:
        results = list(zip(clients, pool.map(send, clients), strict=True))
        for client, failure in results:
            if failure:
                outcome.failures[client.name, ""].append(failure)
        senders = [client for client, failure in results if not failure]
        for client, (output, failure) in zip(clients, pool.map(receive, clients), strict=True):
            if failure:
                outcome.failures["", client.name].append(failure)
            outcome.received[client.name] = _check(client, senders, output, outcome)
    for client in clients:
        if found := left_over(queue_of(client), port):
            outcome.failures["", client.name].append(f"left on its queue at the end: {found!r}")
    return outcome


def _check(receiver: Client, senders: Sequence[Client], output: str, outcome: Outcome) -> int:
    """Compare what one receiver printed with what all senders sent; the number of messages it got."""
    by_sender: dict[str, list[dict[str, Any]]] = defaultdict(list)
    # A client that was ended may leave half a line behind; what it lacks is reported by its sender.
    entries = [json.loads(line) for line in output.split("\n") if line.endswith("}")]
    for entry in entries:
        by_sender[entry["headers"].get("x-from", "?")].append(entry)
    ids = [entry["headers"].get("message-id") for entry in entries]
    if len(set(ids)) != len(ids) or None in ids:
        outcome.failures["", receiver.name].append("a message-id is missing or came twice")
    for sender in senders:
        got = by_sender.pop(sender.name, [])
        outcome.failures[sender.name, receiver.name] += _compare(sender, receiver, got)
    for name in by_sender:
        outcome.failures[name, receiver.name].append("sent nothing, yet something came from it")
    return len(entries)


def _compare(sender: Client, receiver: Client, got: Sequence[Mapping[str, Any]]) -> list[str]:
    numbers = [entry["headers"].get("x-number") for entry in got]
    if numbers != (expected := [str(number) for number in range(len(BODIES))]):
        return [f"expected messages {expected} in this order, got {numbers}"]
    faults = []
    for number, entry in enumerate(got):
        headers, body = entry["headers"], base64.b64decode(entry["body"])
        if body != (wanted := BODIES[number](f"{sender.name} {number}")):
            faults.append(f"body {number}: expected {wanted[:80]!r}, got {body[:80]!r} ({len(body)} bytes)")
        for kind in sorted(_kinds(sender, receiver)):
            if (value := headers.get(f"x-{kind}")) != HEADERS[kind]:
                faults.append(f"header {kind} of {number}: expected {HEADERS[kind]!r}, got {value!r}")
        if headers.get("redelivered", "false") != "false":
            faults.append(f"message {number} is called redelivered at its first delivery")
        if headers.get("destination") != queue_of(receiver):
            faults.append(f"destination of {number}: {headers.get('destination')!r}")
    return faults


def put(queue: str, mark: bytes, port: int) -> None:
    """Send one message with the header `x-from:MARK`, and wait for its receipt."""
    with connected(port) as peer:
        peer.sendall(b"SEND\ndestination:%b\nx-from:%b\nreceipt:put\n\nlast\0" % (queue.encode(), mark))
        read_until(peer, b"receipt-id:put")


def left_over(queue: str, port: int) -> bytes:
    """The head of what waits first in that queue, b"" if nothing does; the queue is empty then.

    A last message is put behind whatever is there: what comes before it was left. So nothing has to wait.
    """
    last = b"nobody"
    put(queue, last, port)
    with connected(port) as peer:
        peer.sendall(b"SUBSCRIBE\nid:0\ndestination:%b\nack:auto\n\n\0" % queue.encode())
        got = read_until(peer, b"x-from:" + last)
        head = got[got.index(b"MESSAGE") :].partition(b"\n\n")[0]
        return b"" if last in head else head[:300]


def connected(port: int) -> socket.socket:
    """A socket on which CONNECT was said; CONNECTED is still to be read."""
    peer = socket.create_connection(("127.0.0.1", port), CLIENT_SECONDS_MAX)
    peer.sendall(b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0")
    return peer


def read_to_end(peer: socket.socket) -> bytes:
    """All that comes until the broker closes."""
    got = bytearray()
    while data := peer.recv(65536):
        got += data
    return bytes(got)


def read_until(peer: socket.socket, end: bytes) -> bytes:
    """All that comes, up to a chunk with `end`. Raises ConnectionError if the broker closes before that."""
    got = bytearray()
    while end not in got:
        if not (data := peer.recv(65536)):
            raise ConnectionError(f"expected {end!r}, got {bytes(got[-200:])!r} and the end of the stream")
        got += data
    return bytes(got)
