"""What the broker says of its own health: one word for each question, no more (reliability.md 4.3.6)."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus


class Phase(Enum):
    """Where the daemon is in its life."""

    RECOVERING = "recovering"
    READY = "ok"
    ALARM = "alarm"  # it serves consumers, and holds producers back: the disk is nearly full
    DRAINING = "draining"
    FAILED = "failed"


def answer(path: str, phase: Phase) -> tuple[HTTPStatus, str]:
    """The answer to GET `path`.

    /livez: whether the process is worth keeping. /readyz: whether clients should come. /healthz: whether all is well.
    """
    if path == "/livez":
        alive = phase is not Phase.FAILED
        return (HTTPStatus.OK, "ok") if alive else (HTTPStatus.SERVICE_UNAVAILABLE, phase.value)
    if path in ("/readyz", "/healthz"):
        status = HTTPStatus.OK if phase is Phase.READY else HTTPStatus.SERVICE_UNAVAILABLE
        return status, phase.value
    return HTTPStatus.NOT_FOUND, "not found; there are /livez, /readyz and /healthz"
