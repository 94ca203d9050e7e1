"""stompd send: put messages on a destination."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from ..client import Client
from ..errors import Exit, UsageError
from .options import add_connection, add_header, count, destination, refuse_together, target
from .progress import Progress

NAME = "send"
HELP = "send messages to a queue or topic"
EPILOG = """\
The body is the argument, a file, or what comes in on stdin. It waits until the broker has a receipt
for each message, which for a queue means that it is on the medium.

examples:
  stompd send /queue/orders 'hello'
  stompd send /queue/orders --file order.json --header content-type:application/json
  seq 1000 | stompd send /queue/numbers --lines
  stompd send /topic/news 'to all who listen now' --no-receipt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "destination", metavar="DEST", type=destination, help="such as /queue/orders or /topic/news"
    )
    parser.add_argument("body", metavar="BODY", nargs="?", help="the body; without it and --file: stdin")
    parser.add_argument("--file", metavar="FILE", help="take the body from a file ('-': stdin)")
    parser.add_argument("--lines", action="store_true", help="each line of stdin or the file is a message")
    parser.add_argument("--count", metavar="N", type=count, help="send the body so many times")
    add_header(parser, "SEND")
    parser.add_argument(
        "--no-receipt",
        action="store_true",
        help="ask for no receipts: what a crash of the broker loses is not noticed",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing when all went well")
    add_connection(parser)


def run(args: argparse.Namespace) -> int:
    refuse_together(args, "lines", "count")
    if args.body is not None and (args.file is not None or args.lines):
        raise UsageError("the body is given twice: as an argument, and by --file or --lines")
    bodies = _lines(args) if args.lines else _copies(_body(args), args.count or 1)
    total = None if args.lines else args.count or 1
    progress = Progress("sent", total, quiet=args.quiet)
    sent = 0
    client = Client.connect(target(args))
    try:
        for body in bodies:
            client.send(args.destination, body, args.header, receipt=not args.no_receipt)
            sent += 1
            progress.update(sent - client.unconfirmed)
        while not client.settle(0.25):
            progress.update(sent - client.unconfirmed)
        client.disconnect(receipt=not args.no_receipt)
    finally:
        progress.clear()
        client.close()
    if not args.quiet:
        proof = "no receipts asked for" if args.no_receipt else "all receipted"
        print(
            f"sent {sent:,} message{'s' if sent != 1 else ''} to {args.destination}, {proof}", file=sys.stderr
        )
    return int(Exit.OK)


def _copies(body: bytes, times: int) -> Iterator[bytes]:
    for _ in range(times):
        yield body


def _body(args: argparse.Namespace) -> bytes:
    if args.body is not None:
        return os.fsencode(args.body)  # the very bytes that were typed
    if args.file not in (None, "-"):
        try:
            with open(args.file, "rb") as file:
                return file.read()
        except OSError as error:
            raise UsageError(f"{args.file}: {error.strerror}") from None
    _invite()
    return sys.stdin.buffer.read()


def _lines(args: argparse.Namespace) -> Iterator[bytes]:
    """Lines end at LF; a CR before it goes with it."""
    if args.file not in (None, "-"):
        try:
            with open(args.file, "rb") as file:
                for line in file:
                    yield line.removesuffix(b"\n").removesuffix(b"\r")
        except OSError as error:
            raise UsageError(f"{args.file}: {error.strerror}") from None
    else:
        _invite()
        for line in sys.stdin.buffer:
            yield line.removesuffix(b"\n").removesuffix(b"\r")


def _invite() -> None:
    if sys.stdin.isatty():
        print("reading from the terminal; Ctrl-D ends", file=sys.stderr)
