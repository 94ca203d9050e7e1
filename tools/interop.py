#!/usr/bin/env python3
"""Clients of five languages send to and receive from each other through the broker.

    python3 tools/interop.py              install what is missing, run the whole matrix, print the table
    python3 tools/interop.py --no-install run with what is there, skipping the rest
    python3 tools/interop.py --peer rabbitmq   the same clients through RabbitMQ's STOMP plugin, to compare

Libraries of Python and JavaScript go into --prefix (INTEROP_DIR or ~/.cache/stompd-interop), those
of Ruby, Perl and PHP come from Debian and need root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools")]

from contenders import Contender, NoContender, RabbitMQ, Stompd  # noqa: E402

from tests.interop import matrix  # noqa: E402
from tests.interop.catalogue import CLIENTS, Client, default_prefix  # noqa: E402

INSTALL_SECONDS = 360.0  # for all installing; a mirror that does not answer must not hold up the tests


def run(command: list[str], note: str, deadline: float) -> None:
    """One installation step; a failure is told and not fatal: its clients are skipped then."""
    print(f"{note}: {' '.join(command)}", flush=True)
    if time.monotonic() > deadline:
        print("  skipped: installing has taken too long")
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        except OSError as error:
            print(f"  failed: {error}")
            return
        try:
            code = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()
            print("  failed: it took too long")
            return
        if code:
            output.seek(0)
            print(f"  failed ({code}): {output.read().decode(errors='replace')[-500:].strip()}")


def install(clients: Sequence[Client], prefix: Path) -> None:
    """Install the libraries of those clients that are missing."""
    missing = [client for client in clients if client.missing(prefix)]
    if not missing:
        return
    deadline = time.monotonic() + INSTALL_SECONDS
    try:
        prefix.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"nothing can be installed: {error}")
        return
    for requirement in dict.fromkeys(client.pip for client in missing if client.pip):
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        run([*pip, "--target", str(prefix / requirement), requirement], "Python", deadline)
    packages = list(dict.fromkeys(package for client in missing for package in client.apt))
    modules = list(dict.fromkeys(client.npm for client in missing if client.npm))
    if modules and shutil.which("npm") is None:
        packages += ["nodejs", "npm"]
    if packages:
        apt = ["apt-get"] if os.geteuid() == 0 else ["sudo", "-n", "apt-get"]
        run([*apt, "update", "-qq"], "Debian", deadline)
        run([*apt, "install", "-y", "-qq", "--no-install-recommends", *packages], "Debian", deadline)
    if modules and shutil.which("npm"):
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(prefix)]
        run([*npm, *modules], "JavaScript", deadline)


def report(clients: Sequence[Client], outcome: matrix.Outcome, seconds: float, limit: int) -> bool:
    """Print the table of senders (down) and receivers (across); whether all is well."""
    width = max(len(client.name) for client in clients)
    print(f"\n{'':{width}}  " + "".join(f"{number:>3}" for number in range(1, len(clients) + 1)))
    for number, sender in enumerate(clients, 1):
        cells = []
        for receiver in clients:
            pairs = ((sender.name, receiver.name), (sender.name, ""), ("", receiver.name))
            bad = any(outcome.failures.get(pair) for pair in pairs)
            cells.append("  X" if bad else "  .")
        print(f"{sender.name:{width}}  {''.join(cells)}  {number}")
    texts = [
        f"{sender or 'any'} -> {receiver or 'any'}: {text}"
        for (sender, receiver), found in outcome.failures.items()
        for text in found
    ]
    received = sum(outcome.received.values())
    for text in texts[:limit]:
        print(text)
    print(
        f"{len(clients)} clients, each to each: {received} messages delivered and acknowledged, "
        f"{len(texts)} faults, {seconds:.1f} s"
    )
    return not texts and received == len(clients) ** 2 * len(matrix.BODIES)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefix", type=Path, default=default_prefix(), help="where libraries are installed")
    parser.add_argument("--no-install", action="store_true", help="skip what is not installed")
    parser.add_argument("--install-only", action="store_true", help="install, and run nothing")
    parser.add_argument("--require-all", action="store_true", help="a client that cannot run is a failure")
    parser.add_argument("--peer", choices=("stompd", "rabbitmq"), default="stompd", help="the broker")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="clients named like this")
    parser.add_argument("--faults", type=int, default=60, help="faults to print at most (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="clients that run at a time (default: 2)")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    wanted = [c for c in CLIENTS if not options.only or any(text in c.name for text in options.only)]
    if not options.no_install:
        install(wanted, options.prefix)
    if options.install_only:
        return 0
    reasons = {client: client.missing(options.prefix) for client in wanted}
    clients = [client for client, reason in reasons.items() if reason is None]
    for client, reason in reasons.items():
        if reason:
            print(f"skipped {client.name}: {reason}")
    if not clients:
        print("no client is installed")
        return 1
    broker: Contender = Stompd()
    if options.peer == "rabbitmq":
        broker = RabbitMQ()
        os.environ["STOMP_VHOST"] = "/"  # it knows no other
    try:
        with broker:
            start = time.monotonic()
            outcome = matrix.run(clients, broker.port, options.prefix, options.jobs)
            good = report(clients, outcome, time.monotonic() - start, options.faults)
    except NoContender as error:
        print(error)
        return 1
    complete = len(clients) == len(wanted) or not options.require_all
    return 0 if good and complete else 1


if __name__ == "__main__":
    sys.exit(main())
