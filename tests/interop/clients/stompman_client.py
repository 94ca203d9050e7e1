"""Python with asyncio, stompman."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import stompman
from lines import broker, letters, show

BROKER = broker()
RECEIPT_SECONDS = 60.0


def client() -> Any:
    server = stompman.ConnectionParameters(
        host="127.0.0.1",
        port=BROKER.port,
        login=BROKER.login,
        passcode=BROKER.passcode,
        connect_headers={"host": BROKER.host} if BROKER.host else {},
    )
    return stompman.Client([server])


async def send() -> None:
    async with client() as connection:
        for letter in letters():
            await connection.send(
                letter.body, letter.destination, headers=letter.headers, receipt_timeout=RECEIPT_SECONDS
            )


async def receive(queue: str, count: int) -> None:
    left = count
    done = asyncio.Event()

    async def on_message(frame: Any) -> None:
        nonlocal left
        show(frame.headers, frame.body)
        await frame.ack()
        left -= 1
        if not left:
            done.set()

    async with client() as connection:
        subscription = await connection.subscribe_with_manual_ack(queue, on_message, ack="client-individual")
        await done.wait()
        await subscription.unsubscribe()


if __name__ == "__main__":
    asyncio.run(send() if sys.argv[1] == "send" else receive(sys.argv[2], int(sys.argv[3])))
