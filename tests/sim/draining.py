"""The last consumers: they take everything that is left, in order, and acknowledge it."""

from __future__ import annotations

from tests.sim.line import Line
from tests.sim.shell import Broken, Stuck
from tests.support.wire import frame

ROUNDS = 400
QUIET = 3  # rounds without a message, then there are no more
MODE = "client-individual"


def drain(line: Line, destination: str, *, prefetch: int) -> None:
    """All that waits in one queue. Raises Stuck where it has no end."""
    shell = line.shell
    line.say(frame("CONNECT", {"accept-version": "1.2", "host": "sim"}), None)
    headers = {"destination": destination, "id": "s", "ack": MODE, "prefetch": str(prefetch)}
    line.say(frame("SUBSCRIBE", headers), lambda line: line.subscribe("s", destination, MODE, prefetch, ""))
    quiet = 0
    for _ in range(ROUNDS):
        line.arrive(1 << 20)
        shell.settle()
        frames = [got for got in line.take(10_000) if got.command == "MESSAGE"]
        quiet = 0 if frames else quiet + 1
        if quiet == QUIET:
            break
        if quiet:
            shell.advance(1.0)  # what could not be read for a moment is tried again
        for got in frames:
            _acknowledge(line, got["ack"], line.delivery(got, line.view).message)
    else:
        raise Stuck(f"{destination} is not drained after {ROUNDS} rounds")
    line.say(frame("DISCONNECT", {"receipt": "bye"}), lambda line: line.goodbye("bye"))
    line.arrive(1 << 20)
    shell.settle()
    if not line.closed:
        raise Broken(f"{line.name} is still there after its DISCONNECT")


def _acknowledge(line: Line, id: str, message: str) -> None:
    line.say(frame("ACK", {"id": id}), lambda line: line.settle("ACK", "s", message, "", "", True))
