"""The storage thread: the one thread that writes the log. The loop hands it batches and hears back once per batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue

from broker.journal import Batch, Writer

Done = Callable[[Batch, OSError | None], None]


class StorageThread:
    """Runs batches in order. A bug in the writer is reported as loudly as an error of the disk."""

    def __init__(
        self, writer: Writer, loop: asyncio.AbstractEventLoop, done: Done, crashed: Callable[[BaseException], None]
    ) -> None:
        self._writer = writer
        self._loop = loop
        self._done = done
        self._crashed = crashed
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        self._batches.put(batch)

    def stop(self) -> None:
        """Finish what was put in, then end."""
        self._batches.put(None)
        self._thread.join()
        self._writer.close()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                self._writer.run(batch)
            except OSError as error:
                self._tell(self._done, batch, error)
            except BaseException as error:
                self._tell(self._crashed, error)
                return
            else:
                self._tell(self._done, batch, None)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            # The loop is closed: the process is ending after an error, there is nobody left to tell.
            return
