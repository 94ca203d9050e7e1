"""How far a long command is, on the terminal it was started from."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

QUIET_SECONDS: Final = 1.0  # nothing is shown of what takes no longer
STEP_SECONDS: Final = 0.25


class Progress:
    """One line that is written over and over, on a terminal only."""

    def __init__(
        self, verb: str, total: int | None = None, *, stream: TextIO | None = None, quiet: bool = False
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._verb = verb
        self._total = total
        self._on = not quiet and self._stream.isatty()
        self._began = time.monotonic()
        self._next = self._began + QUIET_SECONDS
        self._shown = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def update(self, done: int) -> None:
        """`done` so far; cheap where nothing is to be shown."""
        if not self._on or (now := time.monotonic()) < self._next:
            return
        self._next = now + STEP_SECONDS
        of = f" of {self._total:,}" if self._total else ""
        self._stream.write(f"\r\x1b[K{done:,}{of} {self._verb}, {done / (now - self._began):,.0f}/s")
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = False
            self._stream.write("\r\x1b[K")
            self._stream.flush()
