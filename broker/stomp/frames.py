"""What the parser hands out: frames, runs of SENDs and runs of ACKs.

The unit between layers is the run: consecutive frames of one connection that differ only in what need not be
looked at one by one. A single frame is a run of one, so there is one code path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Version(IntEnum):
    V1_0 = 10
    V1_1 = 11
    V1_2 = 12

    def __str__(self) -> str:
        return f"1.{self.value - 10}"


@dataclass(slots=True)
class Frame:
    """Any frame that is no run. `headers`: unescaped, the first of repeated ones counts. `body`: mostly b"".

    `receipt` is the value of the receipt header as it is to be written into a RECEIPT of this connection
    (escaped for its version), or None.
    """

    command: str
    headers: dict[str, str]
    body: bytes = b""
    receipt: bytes | None = None


class Block:
    """A header block that SENDs share: what is worked out from it is worked out once and kept in `memo`.

    headers: unescaped, first wins; without `receipt`, `content-length` and what varies within the run.
    lines:   the same as (name, value) pairs in the order of the frame, repeated ones included.
    memo:    for the owner of the parser; the parser never looks at it.
    """

    __slots__ = ("headers", "lines", "memo")

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.lines = lines
        self.headers: dict[str, str] = {}
        for name, value in lines:
            self.headers.setdefault(name, value)
        self.memo: Any = None


class SendRun:
    """Consecutive SENDs of one header block.

    receipts: one for each message, ready to be written into a RECEIPT of this connection; or None where the
              frames asked for none. Never mixed.
    owns:     for each message its own header lines, `b"name:value\\n"` escaped as STOMP 1.2 does, whichever
              version the sender speaks; None where the messages have no headers of their own.
    bodies:   one for each message.
    """

    __slots__ = ("block", "bodies", "owns", "receipts")

    def __init__(
        self, block: Block, receipts: list[bytes] | None, owns: list[bytes] | None, bodies: list[bytes]
    ) -> None:
        self.block = block
        self.receipts = receipts
        self.owns = owns
        self.bodies = bodies


@dataclass(slots=True)
class AckRun:
    """Consecutive ACKs that differ in the id only, without `receipt` and `transaction`.

    ids:     unescaped, from the header `id`, else `ack`, else `message-id` (only one of them was there).
    headers: what all of them share (e.g. `subscription`), unescaped.
    """

    ids: list[bytes]
    headers: dict[str, str] = field(default_factory=dict)
