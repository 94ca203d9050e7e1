"""Python, stomp.py."""

from __future__ import annotations

import sys
import threading
from typing import Any

import stomp
from lines import broker, letters, show
from stomp.utils import Frame

CONNECTIONS = {"1.0": stomp.Connection10, "1.1": stomp.Connection11, "1.2": stomp.Connection12}
BROKER = broker()


class Listener(stomp.ConnectionListener):  # type: ignore[misc]
    """Counts receipts; shows and acknowledges messages until `wanted` have come."""

    def __init__(self, connection: Any, wanted: int) -> None:
        self.connection = connection
        self.wanted = wanted
        self.done = threading.Event()
        self.failure = ""
        if not wanted:
            self.done.set()

    def on_receipt(self, frame: Frame) -> None:
        if frame.headers["receipt-id"].startswith("send-"):
            self._count()

    def on_message(self, frame: Frame) -> None:
        show(frame.headers, frame.body)
        if BROKER.version == "1.2":
            self.connection.ack(frame.headers["ack"])
        elif BROKER.version == "1.1":
            self.connection.ack(frame.headers["message-id"], frame.headers["subscription"])
        else:
            self.connection.ack(frame.headers["message-id"])
        self._count()

    def on_error(self, frame: Frame) -> None:
        self._fail(f"ERROR {frame.headers} {frame.body!r}")

    def on_disconnected(self) -> None:
        if not self.done.is_set():
            self._fail("the broker closed the connection")

    def _count(self) -> None:
        self.wanted -= 1
        if not self.wanted:
            self.done.set()

    def _fail(self, text: str) -> None:
        self.failure = text
        self.done.set()


def connect(wanted: int) -> tuple[Any, Listener]:
    named = {"vhost": BROKER.host} if BROKER.host and BROKER.version != "1.0" else {}
    connection = CONNECTIONS[BROKER.version]([("127.0.0.1", BROKER.port)], auto_decode=False, **named)
    listener = Listener(connection, wanted)
    connection.set_listener("", listener)
    connection.connect(BROKER.login, BROKER.passcode, wait=True)
    return connection, listener


def finish(connection: Any, listener: Listener) -> None:
    listener.done.wait()
    if listener.failure:
        sys.exit(listener.failure)
    connection.disconnect()


def send() -> None:
    batch = list(letters())
    connection, listener = connect(len(batch))
    for number, letter in enumerate(batch):
        connection.send(letter.destination, letter.body, headers=letter.headers, receipt=f"send-{number}")
    finish(connection, listener)


def receive(queue: str, count: int) -> None:
    connection, listener = connect(count)
    connection.subscribe(queue, id="inbox", ack="client-individual")
    finish(connection, listener)


if __name__ == "__main__":
    send() if sys.argv[1] == "send" else receive(sys.argv[2], int(sys.argv[3]))
