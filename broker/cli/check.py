"""stompd check: validate the configuration and show what it comes to."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from ..config import Address, Settings, keys, toml
from ..errors import Exit
from .options import add_settings, load_settings

NAME = "check"
HELP = "validate the configuration and show what it comes to"
EPILOG = """\
Takes the options of `serve` and reads the same variables. What it prints is a file that `--config`
takes, with where each value came from behind it. Exit code 78 where the configuration is refused.

examples:
  stompd check --config /etc/stompd.toml
  STOMPD_MEMORY__LIMIT=256MiB stompd check
  stompd check --json | jq '."limits.body"'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object: key -> value, origin")


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args)
    if args.json:
        print(
            json.dumps(
                {name: {"value": value, "origin": origin} for name, value, origin in _plain(settings)},
                indent=2,
            )
        )
    else:
        print("\n".join(_lines(settings)))
    return int(Exit.OK)


def _plain(settings: Settings) -> Iterator[tuple[str, object, str]]:
    """Sizes in bytes, times in seconds or milliseconds as docs/configuration.md says, addresses as texts."""
    for key in keys():
        value = settings.get(key.name)
        if isinstance(value, tuple):
            value = [str(address) for address in value if isinstance(address, Address)]
        yield key.name, value, settings.origins.get(key.name, "default")


def _lines(settings: Settings) -> Iterator[str]:
    section = ""
    for key in keys():
        here, _, name = key.name.rpartition(".")
        if here != section:
            section = here
            yield f"\n[{section}]"
        written = f"{name} = {toml(key.kind, settings.get(key.name))}"
        yield f"{written:<44}  # {settings.origins.get(key.name, 'default')}"
