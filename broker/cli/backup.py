"""stompd backup: a copy of the data folder that starts, made while the broker runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict

from ..errors import Exit
from ..system import SystemDisk
from .options import load_settings
from .progress import Progress

NAME = "backup"
HELP = "copy the data folder, also while the broker runs"
EPILOG = """\
DIR must be new or empty. Everything receipted before the command began is in the copy, and the copy
starts: `stompd serve --data-dir DIR`. Files that do not change any more get a second name (a hard
link) where DIR is on the same file system, so that they take no time and no room; all others are
written anew. A copy for another machine, or against the death of this disk, must leave the disk:
let DIR be on another one, or copy it there afterwards.

The broker need not run, and is not told. Exit code 65 where the data is damaged: then DIR is no backup.

examples:
  stompd backup --data-dir /var/lib/stompd /mnt/elsewhere/stompd-monday
  stompd backup --config /etc/stompd.toml --copy /var/backups/stompd
  stompd backup --json backup1 | jq .last_lsn
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR", help="where the copy goes: a new or an empty folder")
    parser.add_argument("--config", metavar="FILE", help="the configuration that names the data folder (data_dir)")
    parser.add_argument("--data-dir", metavar="DIR", help="the folder to be copied (data_dir; ./stompd-data)")
    parser.add_argument("--copy", action="store_true", help="write every file anew, no hard links")
    parser.add_argument("--json", action="store_true", help="one JSON object about what was done")
    parser.set_defaults(listen=None, http=None)


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args)
    # Here and not above: the other commands need not wait for the journal to be read.
    from ..journal.backup import Backup

    os.umask(0o077)
    progress = Progress("bytes written", quiet=args.json)
    try:
        done = Backup(
            SystemDisk(), settings.data_dir, args.target, links=not args.copy, told=progress.update
        ).run()
    finally:
        progress.clear()
    if args.json:
        print(json.dumps({"data_dir": settings.data_dir, "target": args.target, **asdict(done)}))
    else:
        print(
            f"{args.target}: segments {done.first_segment} to {done.last_segment}, up to record {done.last_lsn:,}; "
            f"{done.linked} files linked, {done.copied} copied, {done.bytes:,} bytes written"
        )
        if done.linked:
            print(
                "Linked files lie on the same disk as the original: copy the folder elsewhere if it is to outlive it.",
                file=sys.stderr,
            )
    return int(Exit.OK)
