"""stompd log: look into a data folder, save what can be saved, give up what cannot."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Final

from ..errors import DataDamaged, Exit, UsageError
from ..system import SystemClock, SystemDisk, SystemRng
from .options import load_settings
from .progress import Progress

if TYPE_CHECKING:
    from ..config import Settings
    from ..journal.audit import Hole
    from ..journal.rehearsal import Rehearsal

NAME = "log"
HELP = "look into a data folder: verify, dump, salvage, forget"
EPILOG = """\
All of them need the broker stopped, or a copy of its folder (`stompd backup`).

  verify   reads every record of every segment and checkpoint, lists all damage, and says what a start
           would say. Changes nothing; works on a read-only copy.
  dump     prints every record as a line of JSON, behind damage too. Changes nothing.
  salvage  writes every message that can still be verified into a fresh folder, DIR, and what is missing
           into DIR/missing.jsonl. Changes nothing in the source.
  forget   gives up messages of a queue for ever, by their numbers (seq). For a message that cannot be read
           and holds its queue up.

exit codes: 0 nothing is damaged or missing, 65 something is, 75 a broker runs on the folder, 78 a newer
version wrote it.

examples:
  stompd log verify --data-dir /var/lib/stompd
  stompd log verify --json | jq .damages
  stompd log dump --queue /queue/orders --bodies | jq -c .
  stompd log dump --from 120000 | grep RETURNED
  stompd log salvage --data-dir /var/lib/stompd --out /var/lib/stompd-salvaged
  stompd log forget /queue/orders 4711
  stompd log forget /queue/orders 4711-4730 --yes
"""

# Which options go with which action; --data-dir and --config go with all.
OPTIONS: Final[dict[str, frozenset[str]]] = {
    "verify": frozenset({"json"}),
    "dump": frozenset({"queue", "from", "bodies"}),
    "salvage": frozenset({"out", "json"}),
    "forget": frozenset({"yes"}),
}
_SHOWN_MAX: Final = 20  # messages named before they are given up
_SEQS: Final = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=OPTIONS, help="what to do, see below")
    parser.add_argument("words", nargs="*", metavar="QUEUE SEQ", help="forget: the queue, and a number or FIRST-LAST")
    parser.add_argument("--config", metavar="FILE", help="the configuration that names the data folder (data_dir)")
    parser.add_argument("--data-dir", metavar="DIR", help="the data folder (data_dir; ./stompd-data)")
    parser.add_argument("--json", action="store_true", help="verify, salvage: one JSON object")
    parser.add_argument("--queue", metavar="NAME", help="dump: only what has to do with this queue")
    parser.add_argument("--from", metavar="LSN", dest="from_", help="dump: only records from this LSN on")
    parser.add_argument("--bodies", action="store_true", help="dump: with headers and bodies, text or base64")
    parser.add_argument("--out", metavar="DIR", help="salvage: the fresh folder, new or empty")
    parser.add_argument("--yes", action="store_true", help="forget: do not ask")
    parser.set_defaults(listen=None, http=None)


def run(args: argparse.Namespace) -> int:
    _refuse_strangers(args)
    settings = load_settings(args)
    os.umask(0o077)
    if args.action == "verify":
        return _verify(args, settings)
    if args.action == "dump":
        return _dump(args, settings)
    if args.action == "salvage":
        return _salvage(args, settings)
    return _forget(args, settings)


def _refuse_strangers(args: argparse.Namespace) -> None:
    given = {
        name
        for name in ("json", "queue", "from", "bodies", "out", "yes")
        if getattr(args, "from_" if name == "from" else name) not in (None, False)
    }
    for name in sorted(given - OPTIONS[args.action]):
        raise UsageError(f"--{name} does not go with `stompd log {args.action}`")
    if args.action == "forget":
        if len(args.words) != 2:
            raise UsageError("stompd log forget QUEUE SEQ: expected the queue and a number, or FIRST-LAST")
    elif args.words:
        raise UsageError(f"stompd log {args.action} takes no {args.words[0]!r}")
    if args.action == "salvage" and not args.out:
        raise UsageError("stompd log salvage needs --out DIR, the fresh folder")


# verify


def _verify(args: argparse.Namespace, settings: Settings) -> int:
    # Here and not above: the other commands need not wait for the journal to be read.
    from ..journal.audit import Audit, Hole
    from ..journal.describe import hole_row, text_of
    from ..journal.rehearsal import Outcome, rehearse, stranded

    disk, data_dir = SystemDisk(), settings.data_dir
    audit = Audit(disk, data_dir)
    holes, records = list(audit.holes), 0
    try:
        start = rehearse(disk, data_dir, settings.storage, SystemClock(), SystemRng())
        progress = Progress("bytes read", audit.size, quiet=args.json)
        try:
            for item in audit.items(progress.update):
                if isinstance(item, Hole):
                    holes.append(item)
                else:
                    records += 1
        finally:
            progress.clear()
        held = []
        if holes and start.outcome in (Outcome.CLEAN, Outcome.TORN):
            held = stranded(disk, data_dir, settings.storage, SystemClock(), SystemRng(), holes)
    finally:
        audit.close()
    if args.json:
        report = {
            "data_dir": data_dir, "start": start.outcome.value, "text": start.text, "records": records,
            "torn_bytes": start.summary.torn_bytes, "doubts": start.doubts, "damages": list(map(hole_row, holes)),
            "stranded": [{"queue": text_of(one.queue), "first": one.first, "last": one.last} for one in held],
        }  # fmt: skip
        print(json.dumps(report))
    else:
        for hole in holes:
            print(_hole_text(hole))
        for one in held:
            seqs = f"{one.first}" if one.first == one.last else f"{one.first}-{one.last}"
            print(f"waiting there, and holding the queue up: {text_of(one.queue)} {seqs}")
        for doubt in start.doubts:
            print(f"a start would not use this checkpoint: {doubt}")
        print(f"{records:,} records are sound, {len(holes):,} damages were found")
        print(f"a start: {_start_text(start)}")
    if start.outcome is Outcome.NEWER:
        return int(Exit.CONFIG_REFUSED)
    return int(Exit.DAMAGED if holes or start.outcome is Outcome.REFUSED else Exit.OK)


def _start_text(start: Rehearsal) -> str:
    if start.text:
        return f"would be refused: {start.text}"
    if start.outcome.value == "fresh":
        return "would make a new log, there is none"
    if start.outcome.value == "torn":
        return f"would go on; {start.summary.torn_bytes:,} bytes at the end were never receipted and would be left out"
    return "would go on"


def _hole_text(hole: Hole) -> str:
    if not hole.loses_records:
        lsns = "no record is missing by that"
    elif hole.first_lsn == hole.last_lsn:
        lsns = f"lsn {hole.first_lsn}"
    else:
        lsns = f"lsn {_or_unknown(hole.first_lsn)} to {_or_unknown(hole.last_lsn)}"
    named = ", ".join(name.decode("utf-8", "backslashreplace") for name in hole.queues)
    # Some texts begin with the place already, as they come from where it was found.
    text = hole.text.removeprefix(f"{hole.path}: ")
    return f"{hole.path}: offset {hole.offset}: {text} ({lsns}; queues named there: {named or 'none'})"


def _or_unknown(lsn: int | None) -> str:
    return "not known" if lsn is None else str(lsn)


# dump


def _dump(args: argparse.Namespace, settings: Settings) -> int:
    from ..journal.audit import Audit, Hole
    from ..journal.describe import describe, hole_row

    first = _lsn(args.from_)
    queue = args.queue.encode() if args.queue is not None else None
    audit = Audit(SystemDisk(), settings.data_dir)
    damaged = False
    try:
        for hole in audit.holes:
            damaged = True
            print(json.dumps(hole_row(hole)))
        for item in audit.items():
            if isinstance(item, Hole):
                damaged = True
                print(json.dumps(hole_row(item)))
                continue
            piece, sound = item
            if sound.lsn < first:
                continue
            place = {"lsn": sound.lsn, "file": piece.path, "offset": sound.offset}
            try:
                row = describe(sound, bodies=args.bodies, queue=queue)
            except DataDamaged as error:  # sound, and yet not what a record may say
                damaged = True
                row = {"type": "damage", "text": str(error)}
            if row is not None:
                print(json.dumps(place | row))
    finally:
        audit.close()
    return int(Exit.DAMAGED if damaged else Exit.OK)


def _lsn(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise UsageError(f"--from {text!r}: expected the number of a record (LSN)")
    return int(text)


# salvage


def _salvage(args: argparse.Namespace, settings: Settings) -> int:
    from ..journal.describe import hole_row
    from ..journal.salvage import MISSING_NAME, Salvage, missing_row

    source, target = os.path.realpath(settings.data_dir), os.path.realpath(args.out)
    if os.path.commonpath([source, target]) == source:
        raise UsageError(f"--out {args.out} lies in the data folder itself; salvage does not touch the source")
    progress = _Stages(quiet=args.json)
    try:
        done = Salvage(
            SystemDisk(), settings.data_dir, args.out, settings.storage, SystemClock(), SystemRng(), told=progress.told
        ).run()
    finally:
        progress.clear()
    missing = os.path.join(args.out, MISSING_NAME)
    if args.json:
        report = {
            "data_dir": settings.data_dir, "target": args.out, "messages": done.messages, "queues": done.queues,
            "unsure": done.unsure, "damages": list(map(hole_row, done.holes)),
            "missing": list(map(missing_row, done.missing)),
        }  # fmt: skip
        print(json.dumps(report))
    else:
        print(f"{args.out}: {done.messages:,} messages in {done.queues:,} queues, from {done.records:,} sound records")
        if done.whole:
            print("nothing is missing")
        else:
            print(
                f"{len(done.holes):,} damages, {len(done.missing):,} messages known to be missing: {missing} lists them"
            )
        if done.unsure:
            print(
                "acknowledgements may be among what is gone: messages may be back that were acknowledged, "
                "and all are flagged as redelivered"
            )
    return int(Exit.OK if done.whole else Exit.DAMAGED)


class _Stages:
    """A line of progress for each stage of a long work."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._stage = ""
        self._progress: Progress | None = None

    def told(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage or self._progress is None:
            self.clear()
            self._stage, self._progress = stage, Progress(stage, total, quiet=self._quiet)
        self._progress.update(done)

    def clear(self) -> None:
        if self._progress is not None:
            self._progress.clear()


# forget


def _forget(args: argparse.Namespace, settings: Settings) -> int:
    from ..journal.forget import Forget

    queue, text = args.words
    match = _SEQS.fullmatch(text)
    if not match or not 0 < int(match[1]) <= int(match[2] or match[1]):
        raise UsageError(f"{text!r}: expected the number (seq) of a message, or FIRST-LAST")
    seqs = int(match[1]), int(match[2] or match[1])
    forget = Forget(SystemDisk(), settings.data_dir, settings.storage, SystemClock(), SystemRng(), queue, seqs)
    try:
        name = forget.queue.decode("utf-8", "backslashreplace")
        for count, doomed in enumerate(forget.find()):
            if count == _SHOWN_MAX:
                print(f"... and {len(forget.seqs) - count:,} more")
                break
            print(f"{name}, message {doomed.seq}: {_indented(doomed.text)}")
        if not args.yes and not _agreed(f"Give up {_messages(len(forget.seqs))} of {name} for ever?"):
            print("nothing was changed")
            return int(Exit.USAGE)
        forget.commit()
    finally:
        forget.close()
    print(f"{_messages(len(forget.seqs))} of {name} given up")
    return int(Exit.OK)


def _indented(text: str) -> str:
    """Headers as they lie in the log, one a line; what could fool a terminal is escaped."""
    lines = [line.encode("unicode_escape").decode() for line in text.split("\n")]
    return lines[0] if len(lines) == 1 else "\n  " + "\n  ".join(lines)


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"


def _agreed(question: str) -> bool:
    """Raises UsageError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; --yes does it without asking")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
