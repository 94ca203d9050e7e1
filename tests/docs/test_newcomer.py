"""A newcomer's minute: lines of the README and the first pages, copied into a shell, do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Page
from tests.support.process import environment, free_port

SECONDS = 20.0
README = Page("README.md")
START = Page("docs/getting-started.md")


def lines(page: Page, heading: str, kind: str = "sh") -> list[str]:
    """What a reader would copy: the blocks of a section, in their order."""
    return [block.text for block in page.blocks(heading) if block.kind == kind]


class Newcomer:
    """A fresh copy of the tree, a shell in it, and a broker that the README's first command starts.

    `python3` is the Python of this test run. The ports are not the default ones, which somebody may use.
    """

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "stompd"
        self.tree.mkdir()
        shutil.copytree(ROOT / "broker", self.tree / "broker", ignore=shutil.ignore_patterns("__pycache__"))
        programs = folder / "bin"
        programs.mkdir()
        python = programs / "python3"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        self.port, self.http_port = free_port(), free_port()
        self._environment = {
            **environment(),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "STOMPD_STOMP__LISTEN": f"127.0.0.1:{self.port}",
            "STOMPD_HTTP__LISTEN": f"127.0.0.1:{self.http_port}",
            "STOMPD_URL": f"stomp://127.0.0.1:{self.port}",
        }
        del self._environment["PYTHONPATH"]  # a newcomer has none: the copy has to do
        self._log = folder / "log"
        self._broker: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Type the README's first command, and wait until it says that it is ready."""
        command = lines(README, "Two commands")[0]
        before = self.log().count("listening:")
        with self._log.open("ab") as log:
            self._broker = subprocess.Popen(
                ["sh", "-c", f"exec {command}"], cwd=self.tree, env=self._environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + SECONDS
        while self.log().count("listening:") == before:
            assert self._broker.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def interrupt(self) -> None:
        """Ctrl-C in the broker's terminal."""
        assert self._broker is not None
        self._broker.send_signal(signal.SIGINT)
        assert self._broker.wait(SECONDS) == 0, self.log()
        self._broker = None

    def pull_the_plug(self) -> None:
        """kill -9."""
        if self._broker is not None and self._broker.poll() is None:
            self._broker.kill()
            self._broker.wait()
        self._broker = None

    def here(self, text: str) -> str:
        return text.replace("61613", str(self.port)).replace("15674", str(self.http_port))

    def type(self, command: str) -> bytes:
        """Copy lines into a second terminal; returns what they print to stdout."""
        done = subprocess.run(
            ["sh", "-e", "-c", self.here(command)],
            cwd=self.tree, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr.decode())
        return done.stdout

    def python(self, text: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", self.here(text)],
            cwd=self.tree, env=self._environment, capture_output=True, timeout=SECONDS, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    one = Newcomer(tmp_path_factory.mktemp("newcomer"))
    try:
        one.start()
        yield one
    finally:
        one.pull_the_plug()


def test_a_message_that_was_left_is_there_after_a_restart(newcomer: Newcomer) -> None:
    first, second = lines(README, "The first minute")
    assert newcomer.type(first) == b"first message\n"
    newcomer.interrupt()
    newcomer.start()
    assert newcomer.type(f"{second.strip()} --json").count(b'"redelivered"') == 0
    assert re.search(r"recovered: 1 messages? in 1 queues?", newcomer.log()), newcomer.log()
    # Once more, as it stands on the page.
    newcomer.type(first.splitlines()[1])
    assert newcomer.type(second) == b"second message\n"


def test_the_python_of_the_readme_sends_and_receives(newcomer: Newcomer) -> None:
    if importlib.util.find_spec("stomp") is None:
        pytest.skip("stomp.py is not installed")
    (program,) = lines(README, "From Python", "python")
    said = newcomer.python(program).splitlines()
    assert "receipt sent-1" in said
    assert "received hello from Python" in said
    # It was acknowledged: nothing is left.
    assert newcomer.type("python3 -m broker receive /queue/greetings --timeout 200ms") == b""


@pytest.mark.skipif(shutil.which("nc") is None, reason="netcat is not installed")
def test_the_netcat_lines_of_the_readme_send_and_receive(newcomer: Newcomer) -> None:
    send, receive = lines(README, "From a shell")
    answers = newcomer.type(send)
    assert [frame.split(b"\n")[0] for frame in answers.replace(b"\n\n\0\n", b"\0").split(b"\0") if frame] == [
        b"CONNECTED", b"RECEIPT", b"RECEIPT",
    ]  # fmt: skip
    answers = newcomer.type(receive)
    assert b"\n\nfrom a shell\0" in answers
    assert b"RECEIPT\nreceipt-id:3\n" in answers


def test_the_queue_of_getting_started_holds_its_thousand(newcomer: Newcomer) -> None:
    fill, rest = lines(START, "A queue")
    assert newcomer.type(fill) == b"1\n2\n3\n"
    newcomer.pull_the_plug()
    newcomer.start()
    assert newcomer.type(rest).split() == [b"997"]


def test_the_other_lines_of_getting_started_are_taken(newcomer: Newcomer) -> None:
    newcomer.type(lines(START, "A topic")[1])
    for command in lines(START, "From your program"):
        newcomer.type(f"{command.strip()} --timeout 100ms")
    assert b"data_dir" in newcomer.type(lines(START, "Settings")[0])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_health_line_of_operations_says_ok(newcomer: Newcomer) -> None:
    (command,) = lines(Page("docs/operations.md"), "Health")
    assert newcomer.type(command) == b"ok\n"
