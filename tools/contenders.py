"""The brokers that tools measure or try clients on: on loopback, with fresh data, and stopped for certain.

`Stompd` is this tree, `Yardstick` is tools/yardstick.py, `RabbitMQ` is Debian's rabbitmq-server with its
STOMP plugin. Each is a context manager with `port` (of STOMP) and `pid` (of the process that does the work).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

REPOSITORY = Path(__file__).resolve().parent.parent
CONNECT = b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0"
START_SECONDS_MAX = 90.0  # Erlang takes 5-10 s on a quiet machine
STOP_SECONDS_MAX = 30.0
RABBITMQ_HOME = Path("/usr/lib/rabbitmq")


class NoContender(RuntimeError):
    """The broker is not installed, did not start in time, or died; the text says which."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def pinned(command: list[str], core: int | None) -> list[str]:
    """`command` on that core only; as it is where `core` is None."""
    return command if core is None else ["taskset", "-c", str(core), *command]


def speaks_stomp(port: int) -> bool:
    """Whether a CONNECT on that port is answered by CONNECTED within a second."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as peer:
        peer.sendall(CONNECT)
        return peer.recv(9) == b"CONNECTED"
    return False


class Contender:
    """One broker process. A subclass says how it starts; this class makes the folder, waits, cleans up."""

    name = ""
    login: tuple[str, str] | None = None

    def __init__(self, *, core: int | None = None, root: Path | None = None) -> None:
        """`core`: pin to it; `root`: where the data folder is made, the system's temporary folder if None."""
        self.core = core
        self.root = root
        self.port = free_port()
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self.folder = Path()

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def prepare(self) -> None:
        """Write what the process needs into `self.folder`."""

    def find_pid(self, pid: int) -> int:
        """The process whose memory and time count; the one that was started, if nothing else is known."""
        return pid

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.root))
        try:
            self.prepare()
            self._output = (self.folder / "output").open("wb")
            self._process = subprocess.Popen(
                pinned(self.command(), self.core),
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._wait_until_ready(self._process)
            self.pid = self.find_pid(self._process.pid)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def output(self) -> str:
        """The last lines that the process wrote."""
        return (self.folder / "output").read_text(errors="replace")[-2000:]

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not speaks_stomp(self.port):
            if process.poll() is not None:
                raise NoContender(f"{self.name} ended with {process.returncode}: {self.output()}")
            if time.monotonic() > deadline:
                raise NoContender(f"{self.name} did not start in {START_SECONDS_MAX:.0f} s: {self.output()}")
            time.sleep(0.05)

    def _stop(self) -> None:
        process = self._process
        if process is not None:
            # The group: RabbitMQ is a shell script around the virtual machine that does the work.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._output is not None:
            self._output.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Stompd(Contender):
    """This tree's broker, with its defaults but for what `extra` (TOML) says."""

    name = "stompd"

    def __init__(
        self,
        *,
        core: int | None = None,
        root: Path | None = None,
        extra: str = "",
        prefix: tuple[str, ...] = (),
        python_flags: tuple[str, ...] = (),
    ) -> None:
        """`prefix` and `python_flags` go before and after the interpreter, for a profiler."""
        super().__init__(core=core, root=root)
        self.extra = extra
        self.prefix = prefix
        self.python_flags = python_flags

    def prepare(self) -> None:
        (self.folder / "stompd.toml").write_text(
            f'data_dir = "{self.folder / "data"}"\n'
            f'[stomp]\nlisten = ["127.0.0.1:{self.port}"]\n'
            f'[http]\nlisten = ["127.0.0.1:{free_port()}"]\n{self.extra}'
        )

    def command(self) -> list[str]:
        serve = ["-m", "broker", "serve", "--config", str(self.folder / "stompd.toml")]
        return [*self.prefix, sys.executable, *self.python_flags, *serve]

    def environment(self) -> dict[str, str]:
        # Without the STOMPD_ variables of the caller, which would change its settings.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STOMPD_")}
        return kept | {"PYTHONPATH": str(REPOSITORY)}


class Before(Stompd):
    """The broker of another checkout, to compare this tree with."""

    name = "before"
    tree = REPOSITORY

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PYTHONPATH": str(self.tree)}


class Yardstick(Contender):
    """The least that a durable broker in plain Python can do."""

    name = "yardstick"

    def command(self) -> list[str]:
        script = REPOSITORY / "tools" / "yardstick.py"
        return [sys.executable, str(script), str(self.port), str(self.folder / "log")]


class RabbitMQ(Contender):
    """rabbitmq-server in the foreground, STOMP on loopback, everything it writes under `folder`.

    The Erlang port mapper is started here too, on a port of its own: the one that RabbitMQ would start by
    itself outlives it and listens on all addresses.
    """

    name = "rabbitmq"
    login = ("guest", "guest")

    def __init__(self, *, core: int | None = None, root: Path | None = None) -> None:
        super().__init__(core=core, root=root)
        self._mapper_port = free_port()
        self._mapper: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> bool:
        return (RABBITMQ_HOME / "bin" / "rabbitmq-server").exists() and shutil.which("epmd") is not None

    def prepare(self) -> None:
        if not self.installed():
            raise NoContender("rabbitmq-server is not installed: apt-get install rabbitmq-server")
        (self.folder / "enabled_plugins").write_text("[rabbitmq_stomp].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{free_port()}\n"
            f"stomp.listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            # So that neither memory nor a small disk holds its producers back: we want its best.
            "vm_memory_high_watermark.absolute = 8GB\n"
            "disk_free_limit.absolute = 100MB\n"
        )
        self._mapper = subprocess.Popen(
            ["epmd", "-port", str(self._mapper_port), "-address", "127.0.0.1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def command(self) -> list[str]:
        return [str(RABBITMQ_HOME / "bin" / "rabbitmq-server")]

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return os.environ | {
            "HOME": folder,  # the cookie lies there
            "RABBITMQ_NODENAME": f"contender-{self.port}@localhost",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def find_pid(self, pid: int) -> int:
        """The Erlang virtual machine: a child, or a child's child, of the script that was started."""
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                is_vm = folder.name.isdigit() and "beam" in (folder / "comm").read_text()
                if is_vm and os.getpgid(int(folder.name)) == pid:
                    return int(folder.name)
        return pid

    def _stop(self) -> None:
        super()._stop()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
