"""From the words of a command line to a command and its exit code."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn, Protocol

from .. import __version__
from ..errors import Exit, StompdError, UsageError
from . import backup, check, log, receive, send, serve

SIGNALLED: Final = 128  # + the number of the signal, as shells have it


class Command(Protocol):
    """What the module of a command offers."""

    NAME: str
    HELP: str
    EPILOG: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: Final[dict[str, Command]] = {module.NAME: module for module in (serve, check, send, receive, backup, log)}
DEFAULT: Final = serve.NAME

OVERVIEW = """\
A durable STOMP broker in one process: a receipt is an fsync.

commands (each has --help with examples):
{commands}

exit codes: 0 fine, 64 usage, 65 damaged data, 69 address in use or broker not reachable,
  70 a bug, 74 storage failed, 75 data folder in use, 78 configuration refused, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """argparse ends with 2 on a wrong line; here that is a UsageError like any other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n`{self.prog} --help` shows how it is used")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Only `--help` and `--version` end the process from inside."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except StompdError as error:
        _say(f"stompd: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt as interrupt:
        # A command that takes other signals the same way says which it was.
        return SIGNALLED + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        # Who read our output has seen enough. The interpreter would complain when it flushes stdout.
        _forget_stdout()
        return int(Exit.OK)
    except OSError as error:
        _say(f"stompd: {error}")
        _forget_stdout()
        return int(Exit.STORAGE_FAILED)


def _run(words: list[str]) -> int:
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words = [DEFAULT, *words]
    name = words[0]
    if not name.startswith("-") and name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean `stompd {near[0]}`?" if near else f"there are: {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}; {hint}")
    if name.startswith("-"):
        _overview().parse_args(words)  # --help or --version, and whatever else is wrong
    command = COMMANDS[name]
    # Intermixed: the body may stand behind the options. (argparse cannot do that under a parser of commands.)
    return command.run(_parser_of(command).parse_intermixed_args(words[1:]))


def _overview() -> _Parser:
    lines = "\n".join(f"  {name:<10} {command.HELP}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog="stompd",
        usage="stompd [COMMAND] [OPTIONS]     (no command: serve)",
        description=OVERVIEW.format(commands=lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stompd {__version__}")
    return parser


def _parser_of(command: Command) -> _Parser:
    parser = _Parser(
        prog=f"stompd {command.NAME}",
        description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return parser


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _forget_stdout() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        pass
    finally:
        os.close(nowhere)
