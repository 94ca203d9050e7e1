"""stompd receive: take messages off a destination and print them."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

from ..client import Client, Message
from ..errors import Exit, StompdError, UsageError
from .options import add_connection, add_header, count, destination, refuse_together, seconds, target
from .progress import Progress

NAME = "receive"
HELP = "take messages off a queue, or listen to a topic, and print them"
EPILOG = """\
Prints each body and a line feed where it has none, and acknowledges what was printed. Without --count
and --follow it takes what is waiting and stops when nothing came for a second (--timeout says how long
otherwise). Messages that were received but not printed go back to the queue.

Exit code 1 where --timeout was over before --count messages came.

examples:
  stompd receive /queue/orders
  stompd receive /queue/orders --count 1 --timeout 30s
  stompd receive '/topic/news.#' --follow --json
  stompd receive /queue/orders --ack auto > everything.txt
"""

COUNT_UNBOUNDED: Final = 1 << 62
IDLE_SECONDS: Final = (
    1.0  # without --count and --follow: the queue counts as empty when nothing came for so long
)
PREFETCH: Final = 256
BATCH: Final = 256  # printed with one flush and acknowledged together, at most
TOO_FEW: Final = 1  # exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "destination", metavar="DEST", type=destination, help="such as /queue/orders or /topic/news.#"
    )
    parser.add_argument("--count", metavar="N", type=count, help="stop after so many messages")
    parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--timeout", metavar="TIME", type=seconds, help="stop when nothing came for so long")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line: headers, and body or body_base64"
    )
    parser.add_argument(
        "--ack",
        choices=("auto", "client", "client-individual"),
        default="client-individual",
        help="how to acknowledge; auto: the broker forgets a message when it hands it over (%(default)s)",
    )
    parser.add_argument(
        "--prefetch", metavar="N", type=count, help=f"unacknowledged messages at once ({PREFETCH})"
    )
    add_header(parser, "SUBSCRIBE")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    refuse_together(args, "count", "follow")
    if args.ack == "auto" and args.prefetch is not None:
        raise UsageError("--prefetch has no meaning with --ack auto")
    timeout = args.timeout
    if timeout is None and args.count is None and not args.follow:
        timeout = IDLE_SECONDS
    progress = Progress("received", args.count, quiet=sys.stdout.isatty())
    client = Client.connect(target(args))
    intake = _Intake(client, args, progress)
    try:
        with intake.signals:
            intake.take(timeout)
            client.disconnect()
    except (KeyboardInterrupt, OSError):
        # What was printed is settled also when Ctrl-C or a closed pipe ends it, if the broker still answers.
        with contextlib.suppress(StompdError):
            intake.settle(all_of_it=True)
            client.disconnect(timeout=2.0)
        raise
    finally:
        progress.clear()
        client.close()
    return TOO_FEW if args.count is not None and intake.printed < args.count else int(Exit.OK)


class _Signals:
    """Ctrl-C and SIGTERM end a wait at once, but let what is being printed be printed and noted.

    A second one does not wait: whoever reads our output may have stopped to.
    """

    def __init__(self) -> None:
        self._held = False
        self._came = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on) for number in (signal.SIGINT, signal.SIGTERM)
            }

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, number: int, _: object) -> None:
        if not self._held or self._came:
            raise KeyboardInterrupt(number)
        self._came = number

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came:
            raise KeyboardInterrupt(self._came)


class _Intake:
    """Owns which messages are printed but not yet acknowledged."""

    def __init__(self, client: Client, args: argparse.Namespace, progress: Progress) -> None:
        self._client = client
        self._args = args
        self._progress = progress
        self._prefetch = min(args.prefetch or PREFETCH, args.count or COUNT_UNBOUNDED)
        self.signals = _Signals()
        self._unsettled: list[Message] = []
        self._settled = 0
        self.printed = 0

    def take(self, timeout: float | None) -> None:
        """Receive, print, acknowledge, until there are enough or nothing came for `timeout` seconds."""
        subscription = self._client.subscribe(
            self._args.destination,
            ack=self._args.ack,
            prefetch=None if self._args.ack == "auto" else self._prefetch,
            headers=self._args.header,
        )
        while self._wanted():
            batch = self._batch(timeout)
            if not batch:
                break
            # An acknowledgement says "this is dealt with": it may leave only when the print did.
            with self.signals.held():
                sys.stdout.buffer.writelines(_line(message, as_json=self._args.json) for message in batch)
                sys.stdout.buffer.flush()
                self.printed += len(batch)
                self._unsettled += batch
            self.settle(all_of_it=not self._wanted())
            self._progress.update(self.printed)
        self.settle(all_of_it=True)
        # In one piece with the acknowledgements, so that the slots that they free get no more messages.
        self._client.unsubscribe(subscription)

    def _wanted(self) -> int:
        return BATCH if self._args.count is None else min(BATCH, self._args.count - self.printed)

    def _batch(self, timeout: float | None) -> list[Message]:
        """The next message, and those that came with it."""
        wanted = self._wanted()
        first = self._client.receive(timeout)
        if first is None:
            return []
        batch = [first]
        while len(batch) < wanted and (message := self._client.receive(0)) is not None:
            batch.append(message)
        return batch

    def settle(self, *, all_of_it: bool) -> None:
        """Acknowledge what was printed.

        With --count the last `prefetch` ones wait until all are printed: each acknowledgement lets the broker
        hand over one more, and what nobody asked for would go back marked as redelivered.
        """
        free = len(self._unsettled)
        if not all_of_it and self._args.count is not None:
            free = min(free, self._args.count - self._prefetch - self._settled)
        if free <= 0:
            return
        settled, self._unsettled = self._unsettled[:free], self._unsettled[free:]
        self._settled += free
        if self._args.ack == "client":
            self._client.ack(settled[-1])  # and with it all before it
        else:
            for message in settled:
                self._client.ack(message)


def _line(message: Message, *, as_json: bool) -> bytes:
    if not as_json:
        return message.body if message.body.endswith(b"\n") else message.body + b"\n"
    line: dict[str, object] = {"headers": message.headers}
    try:
        line["body"] = message.body.decode()
    except UnicodeDecodeError:
        line["body_base64"] = base64.b64encode(message.body).decode()
    return json.dumps(line).encode() + b"\n"
