"""The daemon: opens the doors in order, recovers, serves, and stops in good order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable

from broker import __version__
from broker.admin import Phase
from broker.budget import Budget
from broker.config import Address, Settings
from broker.core import Broker, Replay, replayed
from broker.errors import AddressInUse, ConfigError, Exit, StompdError, StorageFailed
from broker.journal import Journal, Log, Writer, open_log
from broker.server.connection import Connection
from broker.server.doorkeeper import Doorkeeper
from broker.server.http import HttpConnection
from broker.server.hub import Hub
from broker.server.logs import EventLog
from broker.system import SystemClock, SystemDisk, SystemRng

FILES_SPARE = 128  # descriptors kept for the log, HTTP and whatever the interpreter needs
GRACE = 2.0  # s; how long a stop waits for consumers to acknowledge what they have
GC_THRESHOLD = 50_000  # allocations between collections: messages come by the thousand and hold no circles
POLL = 0.01  # s; how often a stop looks whether it is done
LAST_WORDS = 2.0  # s; how long clients have to take the ERROR after a storage failure


class Daemon:
    """One run of the broker, from the lock to the last sync."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.events = EventLog(self.clock, settings.log)
        self.phase = Phase.RECOVERING
        self._stop = asyncio.Event()
        self._stop_at_once = False
        self._failure: BaseException | None = None
        self._servers: list[asyncio.Server] = []
        self._hub: Hub | None = None

    async def run(self) -> int:
        """Returns the exit code. Raises StompdError where the start is refused."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        gc.set_threshold(GC_THRESHOLD)
        settings = self.settings
        open_http: set[HttpConnection] = set()
        log: Log | None = None
        try:
            log = open_log(SystemDisk(), settings.data_dir, settings.storage, self.clock, SystemRng())
            http = await self._listen(
                settings.http.listen,
                lambda: HttpConnection(lambda: self._health, open_http, settings.limits.http_connections),
                "http.listen",
            )
            began = self.clock.monotonic()
            budget = Budget(settings.memory.limit)
            replay, journal, writer = await loop.run_in_executor(None, self._recover, log, budget)
            count = replay.message_count
            hub = self._make_hub(log, budget, replay, journal, writer)
            most = min(settings.limits.connections, _file_limit() - FILES_SPARE)
            doorkeeper = Doorkeeper(settings.limits, max(most, 1), self.events)
            took = self.clock.monotonic() - began
            stomp = await self._listen(settings.stomp.listen, lambda: Connection(hub, doorkeeper), "stomp.listen")
            self._announce(log, count, stomp, http, took)
            gc.freeze()  # what is there now stays: the collector need not look at it again
            self.phase = Phase.READY
            hub.wake()
            await self._stop.wait()
            return await self._end(hub)
        finally:
            for server in self._servers:
                server.close()
            if log is not None:
                log.close()

    def _recover(self, log: Log, budget: Budget) -> tuple[Replay, Journal, Writer]:
        told = self.clock.monotonic()

        def tell(records: int, messages: int) -> None:
            nonlocal told
            if self.clock.monotonic() - told >= 1.0:
                told = self.clock.monotonic()
                self.events.event("info", "recovering", f"{records:,} records read, {messages:,} messages so far")

        replay = replayed(log, budget.account("positions on disk"), tell)
        journal, writer = log.start()
        return replay, journal, writer

    @property
    def _health(self) -> Phase:
        if self.phase is Phase.READY and self._hub is not None and self._hub.budget.alarm:
            return Phase.ALARM
        return self.phase

    def _make_hub(self, log: Log, budget: Budget, replay: Replay, journal: Journal, writer: Writer) -> Hub:
        checkpoints, scrub, reader = log.checkpoint_file(), log.scrub(), log.reader()
        broker = Broker(self.settings, self.clock, journal, budget, self.events, checkpoints, scrub, log.ballast)
        replay.finish(broker, clean=log.summary.clean)
        hub = Hub(self.settings, self.clock, SystemRng(), self.events, broker, writer, reader, self._failed)
        self._hub = hub
        return hub

    async def _listen(
        self, addresses: tuple[Address, ...], factory: Callable[[], asyncio.BaseProtocol], key: str
    ) -> list[str]:
        """Open listeners; returns their addresses as they are. Raises AddressInUse, ConfigError."""
        loop = asyncio.get_running_loop()
        found: list[str] = []
        default = len(addresses) > 1 and key not in self.settings.origins
        for address in addresses:
            try:
                server = await loop.create_server(factory, address.host, address.port, backlog=1024)
            except OSError as error:
                if default and address.host == "::1" and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue  # a machine without IPv6; nobody asked for it by name
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUse(f"{key}: {address} is in use by another process") from error
                raise ConfigError(f"{key}: cannot listen on {address}: {os.strerror(error.errno or 0)}") from error
            self._servers.append(server)
            for sock in server.sockets:
                host, port = sock.getsockname()[:2]
                found.append(str(Address(host, port)))
        return found

    def _announce(self, log: Log, count: int, stomp: list[str], http: list[str], took: float) -> None:
        events, summary = self.events, log.summary
        queues = len(self._hub.broker.queues) if self._hub else 0
        how = "after a clean stop" if summary.clean else "after a stop that was not clean"
        events.event(
            "info",
            "recovered",
            f"{_count(count, 'message')} in {_count(queues, 'queue')} from {summary.bytes:,} bytes of log "
            f"in {took:.2f} s, {how}",
            data=os.path.abspath(self.settings.data_dir),
        )
        for doubt in log.doubts:
            events.event("warning", "checkpoint", f"a checkpoint was not used, the log was read instead: {doubt}")
        if summary.torn_bytes:
            events.event(
                "warning",
                "torn-tail",
                f"{summary.torn_bytes:,} bytes at the end of the log were never receipted and are left out",
            )
        if self.settings.storage.fsync != "always":
            events.event(
                "warning", "fsync", f'storage.fsync is "{self.settings.storage.fsync}": receipts leave before the sync'
            )
        events.event(
            "info",
            "listening",
            f"stompd {__version__} is ready: STOMP on {', '.join(stomp)}; health on {', '.join(http) or 'no address'}",
            pid=os.getpid(),
        )

    # --- the end ----------------------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        if self._stop.is_set():
            self._stop_at_once = True
        else:
            self.events.event("info", "stopping", f"{signal.Signals(number).name} received", pid=os.getpid())
        self._stop.set()
        if self._hub is None:
            # Still recovering: nothing was changed yet, nobody is connected.
            self.events.event("info", "stopped", "stopped before the recovery was done")
            os._exit(Exit.OK)

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """What asyncio could not give to anybody, e.g. an accept without a free descriptor: it must not be silent."""
        error = context.get("exception")
        self.events.event("error", "loop", str(context.get("message")), error=repr(error) if error else "")

    def _failed(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self.phase = Phase.FAILED
            self._stop.set()

    async def _end(self, hub: Hub) -> int:
        for server in self._servers:
            server.close()
        if self._failure is None:
            self.phase = Phase.DRAINING
            await self._drain(hub)
        if self._failure is not None:
            return await self._end_failed(hub, self._failure)
        hub.stop_storage()
        counted = hub.broker.counters
        self.events.event(
            "info", "stopped", "everything is synced", **{name: getattr(counted, name) for name in counted.__slots__}
        )
        self.events.flush()
        return Exit.OK

    async def _drain(self, hub: Hub) -> None:
        """Let consumers acknowledge what they have, answer what was asked, return the rest, sync."""
        deadline = self.clock.monotonic() + self.settings.shutdown.drain
        broker = hub.broker
        broker.draining = True
        await self._until(lambda: broker.in_flight == 0, min(deadline, self.clock.monotonic() + GRACE))
        hub.close_all()
        await self._until(lambda: not hub.connections, deadline)
        for connection in list(hub.connections.values()):
            connection.refuse()
        # Not cut short either: what they write as they end belongs before the last record.
        await self._gone(hub, 1.0)
        if self._failure is None:
            broker.stop()
            hub.wake()
            # Not cut short by a second signal: this is one sync.
            while not hub.idle and self._failure is None:
                if self._hurried or self.clock.monotonic() >= deadline:
                    hub.give_up()
                await asyncio.sleep(POLL)

    @property
    def _hurried(self) -> bool:
        return self._stop_at_once or self._failure is not None

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        while not (done() or self._hurried) and self.clock.monotonic() < deadline:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL)

    async def _gone(self, hub: Hub, seconds: float) -> None:
        deadline = self.clock.monotonic() + seconds
        while hub.connections and self.clock.monotonic() < deadline:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL)

    async def _end_failed(self, hub: Hub, failure: BaseException) -> int:
        what = str(failure) if isinstance(failure, StompdError) else f"an error of ours, {type(failure).__name__}"
        self.events.event("error", "failed", f"the broker stops: {what}")
        if not isinstance(failure, StorageFailed):
            hub.report(failure)
            for connection in list(hub.connections.values()):
                connection.refuse()  # the state that they would be answered from cannot be trusted
        await self._gone(hub, LAST_WORDS)
        self.events.flush()
        return failure.exit_code if isinstance(failure, StompdError) else Exit.BUG


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _file_limit() -> int:
    """How many files this process may open; the soft limit is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def run(settings: Settings) -> int:
    """Run the broker until it is told to stop; returns the exit code. Raises StompdError where the start is refused."""
    if sys.platform == "win32":
        raise ConfigError("stompd runs on Linux and macOS: Windows has no flush that a receipt could promise")
    os.umask(0o077)

    async def main() -> int:
        return await Daemon(settings).run()

    code = asyncio.run(main())
    if code in (Exit.STORAGE_FAILED, Exit.BUG):
        # A thread may hang in a call to a dying disk; it must not keep the process.
        os._exit(code)
    return code
