"""Python, stompest's blocking client."""

from __future__ import annotations

import sys
from typing import Any

from lines import broker, letters, show
from stompest.config import StompConfig
from stompest.sync import Stomp

BROKER = broker()


def connect() -> Any:
    uri = f"tcp://127.0.0.1:{BROKER.port}"
    client = Stomp(StompConfig(uri, BROKER.login, BROKER.passcode, version=BROKER.version))
    client.connect(versions=[BROKER.version], host=BROKER.host)
    return client


def frame_of(client: Any, command: str) -> Any:
    frame = client.receiveFrame()
    if frame.command != command:
        sys.exit(f"wanted {command}, got {frame}")
    return frame


def send() -> None:
    client = connect()
    batch = list(letters())
    for number, letter in enumerate(batch):
        headers = letter.headers | {"content-length": str(len(letter.body))}
        client.send(letter.destination, letter.body, headers, receipt=f"send-{number}")
    for _ in batch:
        client.receipt(frame_of(client, "RECEIPT"))
    client.disconnect(receipt="bye")
    frame_of(client, "RECEIPT")
    client.close()


def receive(queue: str, count: int) -> None:
    client = connect()
    headers = {"ack": "client-individual"} | ({} if BROKER.version == "1.0" else {"id": "inbox"})
    client.subscribe(queue, headers)
    for _ in range(count):
        frame = frame_of(client, "MESSAGE")
        show(frame.headers, frame.body)
        client.ack(frame)
    client.disconnect(receipt="bye")
    frame_of(client, "RECEIPT")
    client.close()


if __name__ == "__main__":
    send() if sys.argv[1] == "send" else receive(sys.argv[2], int(sys.argv[3]))
