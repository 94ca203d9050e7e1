"""One line per event on stderr: plain for people, JSON for machines; no peer can forge or flood it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TextIO

from ..config import Log
from ..system import Clock

LEVELS: Final = {"debug": 0, "info": 1, "warning": 2, "error": 3}
FIELD_CHARS_MAX: Final = 256  # of a field's value: it may come from a peer
TEXT_CHARS_MAX: Final = 1024  # of the text: ours, but it may quote
LINES_PER_SECOND: Final = 10  # of one event name; the rest is counted


@dataclass(slots=True)
class _Window:
    """One second of one event name."""

    began: float
    written: int = 0
    suppressed: int = 0


class EventLog:
    """Writes events. Owns the counts of what it left out; event names are ours, so there are few.

    A reader that went away does not stop the broker: what cannot be written is dropped.
    """

    def __init__(self, clock: Clock, settings: Log, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._stream = sys.stderr if stream is None else stream
        self._json = settings.format == "json"
        self._least = LEVELS[settings.level]
        self._windows: dict[str, _Window] = {}

    def event(self, level: str, name: str, text: str, /, **fields: object) -> None:
        """One line, unless `level` (a key of LEVELS) is below the configured one or `name` came too often.

        Never give it a passcode, a body, or a header that a user chose.
        """
        if LEVELS[level] < self._least:
            return
        now = self._clock.monotonic()
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = _Window(now)
        elif now - window.began >= 1.0:
            self._report(name, window)
            self._windows[name] = window = _Window(now)
        if window.written < LINES_PER_SECOND:
            window.written += 1
            self._write(level, name, text, fields)
        else:
            window.suppressed += 1

    def flush(self) -> None:
        """Say what was left out so far; call it now and then and at the end."""
        for name, window in self._windows.items():
            self._report(name, window)
            window.suppressed = 0  # the window itself goes on, so that a flush lets no more lines through

    def _report(self, name: str, window: _Window) -> None:
        if window.suppressed:
            fields = {"of": name, "suppressed": window.suppressed}
            self._write("warning", "suppressed", f"{window.suppressed} more lines of {name} left out", fields)

    def _write(self, level: str, name: str, text: str, fields: dict[str, object]) -> None:
        stamp = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        line = (_json_line if self._json else _plain_line)(
            stamp.replace("+00:00", "Z"), level, name, text, fields
        )
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass


def _json_line(stamp: str, level: str, name: str, text: str, fields: dict[str, object]) -> str:
    line: dict[str, object] = {
        "time": stamp,
        "level": level,
        "event": name,
        "text": _cut(text, TEXT_CHARS_MAX),
    }
    for key, value in fields.items():
        # A field never takes the place of what every line has.
        line[f"{key}_" if key in line else key] = (
            value
            if isinstance(value, (bool, int, float)) or value is None
            else _cut(str(value), FIELD_CHARS_MAX)
        )
    return json.dumps(line, ensure_ascii=True, allow_nan=True).replace("\x7f", "\\u007f")


def _plain_line(stamp: str, level: str, name: str, text: str, fields: dict[str, object]) -> str:
    parts = [stamp, level.ljust(7), f"{name}:", escape(_cut(text, TEXT_CHARS_MAX))]
    for key, value in fields.items():
        shown = escape(_cut(str(value), FIELD_CHARS_MAX))
        if not shown or " " in shown or '"' in shown or "=" in shown:
            shown = '"' + shown.replace('"', '\\"') + '"'
        parts.append(f"{key}={shown}")
    return " ".join(parts)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def escape(text: str) -> str:
    """Printable ASCII but the backslash stays; all else (controls, ANSI, bidi) becomes an escape."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return text.encode("unicode_escape").decode("ascii")
