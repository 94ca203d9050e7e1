"""stompd serve: run the broker."""

from __future__ import annotations

import argparse

from .options import add_settings, load_settings

NAME = "serve"
HELP = "run the broker (the default command)"
EPILOG = """\
With no options it listens on 127.0.0.1 and ::1, ports 61613 (STOMP) and 15674 (HTTP), with its data
in ./stompd-data. Ctrl-C or SIGTERM stops it cleanly.

Flags beat variables (STOMPD_DATA_DIR, STOMPD_STORAGE__FSYNC for fsync in [storage]) beat the file.

examples:
  stompd
  stompd serve --config /etc/stompd.toml
  stompd serve --data-dir /var/lib/stompd --listen 127.0.0.1:61613 --listen [::1]:61613
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args)
    # Here and not above: the other commands need not wait for the whole broker to be read.
    from ..server import run as run_server

    return run_server(settings)
