"""A frame whose headers are there and whose body is still on its way."""

from __future__ import annotations

from typing import Final

from broker.errors import ProtocolError
from broker.stomp.frames import AckRun, Block, Frame, SendRun

Item = SendRun | AckRun | Frame | ProtocolError  # what the parser hands out

RUN_MESSAGES: Final = 256  # messages in a SendRun at most
FRAGMENT: Final = 4096  # a smaller piece of a body is copied together with its neighbours


def emit_sends(
    out: list[Item], block: Block, receipts: list[bytes] | None, owns: list[bytes] | None, bodies: list[bytes]
) -> None:
    """Append to the run before where it is of the same kind and has room, else as a new run."""
    last = out[-1] if out else None
    if (
        type(last) is SendRun
        and last.block is block
        and (last.receipts is None) is (receipts is None)
        and (last.owns is None) is (owns is None)
        and len(last.bodies) + len(bodies) <= RUN_MESSAGES
    ):
        last.bodies += bodies
        if last.receipts is not None and receipts is not None:
            last.receipts += receipts
        if last.owns is not None and owns is not None:
            last.owns += owns
        return
    out.append(SendRun(block, receipts, owns, bodies))


class Half:
    """What is known of the frame: a SEND's block, receipt and own lines, or any other frame itself.

    size:       bytes of the body, -1 where it ends at the first NUL.
    head_bytes: what came before the body, with command and empty line.
    drop:       the body is not kept (a 1.0 SUBSCRIBE's, which means nothing).
    got:        bytes of the body so far.
    """

    __slots__ = ("block", "drop", "frame", "got", "head_bytes", "own", "parts", "receipt", "size")

    def __init__(
        self,
        size: int,
        head_bytes: int,
        *,
        frame: Frame | None = None,
        block: Block | None = None,
        receipt: bytes | None = None,
        own: bytes | None = None,
        drop: bool = False,
    ) -> None:
        self.size = size
        self.head_bytes = head_bytes
        self.frame = frame
        self.block = block
        self.receipt = receipt
        self.own = own
        self.drop = drop
        self.got = 0
        self.parts: list[bytes | bytearray] = []

    def keep(self, piece: bytes) -> None:
        """Large pieces are kept as they are, small ones gathered: no byte is copied for each later piece."""
        self.got += len(piece)
        if self.drop:
            return
        if len(piece) >= FRAGMENT:
            self.parts.append(piece)
        elif self.parts and type(last := self.parts[-1]) is bytearray:
            last += piece
        else:
            self.parts.append(bytearray(piece))

    def finish(self, last: bytes, out: list[Item]) -> None:
        """Hand out the frame; `last` is the rest of its body."""
        body = last
        if self.parts:
            self.parts.append(last)
            body = b"".join(self.parts)
        if self.block is not None:
            receipts = None if self.receipt is None else [self.receipt]
            owns = None if self.own is None else [self.own]
            emit_sends(out, self.block, receipts, owns, [body])
        elif self.frame is not None:
            if not self.drop:
                self.frame.body = body
            out.append(self.frame)
