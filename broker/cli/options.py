"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from typing import Final

from ..client import DEFAULT_URL, Target
from ..config import Settings, load
from ..config.units import parse_time
from ..errors import UsageError

COUNT_MAX: Final = 10**9


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--config, --data-dir, --listen, --http."""
    parser.add_argument("--config", metavar="FILE", help="a TOML file; docs/configuration.md has every key")
    parser.add_argument("--data-dir", metavar="DIR", help="the folder of the log (data_dir; ./stompd-data)")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        help="where STOMP clients connect (stomp.listen); again for one more; port 0: any free one",
    )
    parser.add_argument(
        "--http",
        metavar="HOST:PORT",
        action="append",
        help="where health is asked for over HTTP (http.listen)",
    )


def load_settings(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that file, variables and the flags of `add_settings` make together. Raises ConfigError."""
    flags: dict[str, object] = {
        "data_dir": args.data_dir,
        "stomp.listen": args.listen,
        "http.listen": args.http,
    }
    return load(args.config, environ, flags)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """--url."""
    parser.add_argument(
        "--url",
        metavar="URL",
        help=f"the broker: stomp://[user[:password]@]host[:port] (or STOMPD_URL; {DEFAULT_URL})",
    )


def target(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Target:
    """Where to connect: --url, else STOMPD_URL, else this machine. Raises UsageError."""
    return Target.parse(args.url or environ.get("STOMPD_URL") or DEFAULT_URL)


def add_header(parser: argparse.ArgumentParser, frame: str) -> None:
    """--header NAME:VALUE, repeatable."""
    parser.add_argument(
        "--header",
        metavar="NAME:VALUE",
        action="append",
        default=[],
        type=_header,
        help=f"a header of the {frame}; again for one more",
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME:VALUE")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r}: headers are UTF-8") from None
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: no NUL in a header")
    return name, value


def count(text: str) -> int:
    """An argparse type: 1 to COUNT_MAX."""
    if re.fullmatch(r"[0-9]{1,10}", text) and 1 <= int(text) <= COUNT_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to {COUNT_MAX}")


def seconds(text: str) -> float:
    """An argparse type: "500ms", "10s", "5m", or a number of seconds."""
    try:
        return parse_time(text if text[-1:].isalpha() else f"{text}s") / 1000
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: expected a time such as "500ms", "10s", "5m"') from None


def destination(text: str) -> str:
    """An argparse type: what a broker could take as a destination."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("expected a destination such as /queue/orders")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r}: destinations are UTF-8") from None
    return text


def refuse_together(args: argparse.Namespace, *names: str) -> None:
    """UsageError where more than one of these options was given."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} do not go together")
