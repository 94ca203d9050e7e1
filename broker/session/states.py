"""The states of a conversation, as a table: what is not a row is an error. docs/architecture.md draws it from here."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    NEW = "new"  # nothing but CONNECT or STOMP may come
    OPEN = "open"  # connected
    CLOSING = "closing"  # the last frame is on its way; what still comes in is thrown away
    CLOSED = "closed"


NEXT: Final[dict[tuple[State, str], State]] = {
    (State.NEW, "CONNECT"): State.OPEN,
    (State.NEW, "STOMP"): State.OPEN,
    (State.OPEN, "SEND"): State.OPEN,
    (State.OPEN, "SUBSCRIBE"): State.OPEN,
    (State.OPEN, "UNSUBSCRIBE"): State.OPEN,
    (State.OPEN, "ACK"): State.OPEN,
    (State.OPEN, "NACK"): State.OPEN,
    (State.OPEN, "BEGIN"): State.OPEN,
    (State.OPEN, "COMMIT"): State.OPEN,
    (State.OPEN, "ABORT"): State.OPEN,
    (State.OPEN, "DISCONNECT"): State.CLOSING,
}
