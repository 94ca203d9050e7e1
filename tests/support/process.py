"""A real broker process for tests: start it, wait until it serves, stop it, kill it, start it again."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 20.0  # a start on a busy machine with two cores; it takes well under one second when idle
STOP_SECONDS = 20.0


class BrokerFailed(Exception):
    """The process ended, or did not serve in time. The text holds what it wrote to stderr."""


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """The environment of a child that imports this tree, without variables that configure the broker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STOMPD_")}
    kept["PYTHONPATH"] = str(ROOT)
    return kept


def _limit_files(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


class BrokerProcess:
    """One data folder and the broker on it. The ports stay the same over restarts.

    `sections`: TOML by section, e.g. {"limits": {"body": '"64KiB"'}}; values are written as they are.
    `prefix`: put in front of the command, e.g. strace. `open_files`: its RLIMIT_NOFILE.
    """

    def __init__(
        self,
        folder: Path,
        sections: Mapping[str, Mapping[str, str]] | None = None,
        *,
        prefix: Sequence[str] = (),
        open_files: int | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.http_port = free_port()
        self.data_dir = folder / "data"
        self.config = folder / "stompd.toml"
        self.log = folder / "stderr.log"
        self.prefix = list(prefix)
        self._limit = None if open_files is None else partial(_limit_files, open_files)
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(sections or {})

    def configure(self, sections: Mapping[str, Mapping[str, str]]) -> None:
        """Write the configuration anew; it counts from the next start."""
        merged: dict[str, dict[str, str]] = {
            "stomp": {"listen": f'["127.0.0.1:{self.port}"]'},
            "http": {"listen": f'["127.0.0.1:{self.http_port}"]'},
            "storage": {"segment_size": '"1MiB"'},
        }
        for name, keys in sections.items():
            merged.setdefault(name, {}).update(keys)
        lines = [f'data_dir = "{self.data_dir}"']
        for name, keys in merged.items():
            lines.append(f"\n[{name}]")
            lines.extend(f"{key} = {value}" for key, value in keys.items())
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"stomp://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The broker itself, behind whatever `prefix` puts in front of it."""
        pid = self._running().pid
        if not self.prefix:
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            raise BrokerFailed(f"{self.prefix[0]} has started nothing")
        return int(children[0])

    def command(self) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "broker", "serve", "--config", str(self.config)]

    def start(self, *, wait: bool = True) -> BrokerProcess:
        """Start the process; with `wait`, return when its STOMP port takes connections."""
        if self._process is not None:
            raise BrokerFailed("it runs already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._limit,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(self.address, timeout=1).close()
                return
            except OSError:
                pass
            code = self._running().poll()
            if code is not None:
                self._process = None
                raise BrokerFailed(f"exit code {code} before it served:\n{self.stderr()[-4000:]}")
            if time.monotonic() > deadline:
                raise BrokerFailed(f"not ready after {seconds} s:\n{self.stderr()[-4000:]}")
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code, once the process has ended by itself or by a signal sent before."""
        process = self._running()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BrokerFailed(f"still runs after {seconds} s:\n{self.stderr()[-4000:]}") from None
        self._process = None
        return code

    def stop(self) -> None:
        """A clean stop: SIGTERM and exit code 0."""
        self.signal(signal.SIGTERM)
        if (code := self.wait()) != 0:
            raise BrokerFailed(f"exit code {code} after SIGTERM:\n{self.stderr()[-4000:]}")

    def kill(self) -> None:
        """kill -9, as a crash of the process; what the kernel holds stays."""
        self.signal(signal.SIGKILL)
        self.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def crash(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        """End whatever runs, with what `prefix` started; for the end of a test, never an error."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stderr(self) -> str:
        """Everything that it wrote since the first start in this folder."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def rss(self) -> int:
        """Resident bytes of the process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise BrokerFailed("no VmRSS in /proc")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise BrokerFailed("it does not run")
        return self._process


def run_command(
    *arguments: str, cwd: Path, stdin: bytes = b"", seconds: float = 30.0
) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m broker ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "broker", *arguments],
        cwd=cwd,
        env=environment(),
        input=stdin,
        capture_output=True,
        timeout=seconds,
    )
