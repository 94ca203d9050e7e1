"""The threads that may block: one writes the log, one reads from it, one does what is slow and nobody's hurry."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

J = TypeVar("J")


class Worker(Generic[J]):
    """Does jobs in order. `done(job, result, error)` is called on the loop, once for each.

    A bug in a job is reported as loudly as an error of the disk.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[J], object],
        loop: asyncio.AbstractEventLoop,
        done: Callable[[J, object, OSError | None], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._do = run
        self._loop = loop
        self._done = done
        self._crashed = crashed
        self._jobs: SimpleQueue[J | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: J) -> None:
        self._jobs.put(job)

    def stop(self, timeout: float | None = None) -> None:
        """Finish what was put in, then end. timeout: seconds after which it is left alone."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                result = self._do(job)
            except OSError as error:
                self._tell(self._done, job, None, error)
            except BaseException as error:
                self._tell(self._crashed, error)
                return
            else:
                self._tell(self._done, job, result, None)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            # The loop is closed: the process is ending after an error, there is nobody left to tell.
            return
