"""The event log: one line an event, whatever is in it, and never a flood."""

from __future__ import annotations

import io
import json

import pytest

from broker.config import Log
from broker.server.logs import LINES_PER_SECOND, EventLog

HOSTILE = [
    "two\nlines",
    "\r\x1b[2Jcleared",
    "\u202egnp.exe",
    "\u2028\x85\x0b",
    "nul\0",
    "\x7f",
    "\ud800",
    'quote" and \\ backslash',
    "key=value other=value",
    "",
    "\U0001f600" * 500,
]


class ManualClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return 1_700_000_000_123


def make(form: str, level: str = "info") -> tuple[EventLog, io.StringIO, ManualClock]:
    clock, stream = ManualClock(), io.StringIO()
    return EventLog(clock, Log(format=form, level=level), stream), stream, clock


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().removesuffix("\n").split("\n")


def test_a_plain_line_has_time_level_event_text_and_fields() -> None:
    log, stream, _ = make("plain")
    log.event("info", "listening", "ready", address="127.0.0.1:1", count=3, text="a b")
    assert lines(stream) == [
        '2023-11-14T22:13:20.123Z info    listening: ready address=127.0.0.1:1 count=3 text="a b"'
    ]


def test_a_json_line_is_one_object_and_fields_cannot_replace_its_own() -> None:
    log, stream, _ = make("json")
    log.event("error", "storage", "failed", time="never", level=5, ok=None, ratio=0.5)
    (line,) = lines(stream)
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "error",
        "event": "storage",
        "text": "failed",
        "time_": "never",
        "level_": 5,
        "ok": None,
        "ratio": 0.5,
    }


def test_auto_is_plain() -> None:
    log, stream, _ = make("auto")
    log.event("info", "x", "y")
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize("form", ["plain", "json"])
@pytest.mark.parametrize("value", HOSTILE)
def test_nothing_from_a_peer_leaves_its_line_or_the_printable_ascii(form: str, value: str) -> None:
    log, stream, _ = make(form)
    log.event("warning", "refused", value, field=value)
    assert len(lines(stream)) == 1
    line = lines(stream)[0]
    assert line.isascii() and line.isprintable()
    if form == "json":
        assert json.loads(line)["text"][:200] == value[:200]


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_long_field_is_cut(form: str) -> None:
    log, stream, _ = make(form)
    log.event("info", "x", "y", field="z" * 10_000)
    assert "z" * 253 + "..." in stream.getvalue()
    assert "z" * 254 not in stream.getvalue()


@pytest.mark.parametrize("least, written", [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_events_below_the_level_are_left_out(least: str, written: int) -> None:
    log, stream, _ = make("plain", least)
    for level in ("debug", "info", "warning", "error"):
        log.event(level, "x", "y")
    assert len(lines(stream)) == written


def test_one_cause_writes_ten_lines_a_second_and_says_what_it_left_out() -> None:
    log, stream, clock = make("plain")
    for _ in range(1000):
        log.event("info", "refused", "no")
    log.event("info", "other", "is not held back")
    assert len(lines(stream)) == LINES_PER_SECOND + 1
    clock.now += 1.0
    log.event("info", "refused", "again")
    assert "of=refused suppressed=990" in lines(stream)[-2]
    assert lines(stream)[-1].endswith("refused: again")


def test_flush_says_what_was_left_out_once_and_lets_no_more_through() -> None:
    log, stream, clock = make("json")
    for _ in range(15):
        log.event("info", "refused", "no")
    log.flush()
    log.flush()
    log.event("info", "refused", "no")
    assert len(lines(stream)) == LINES_PER_SECOND + 1
    assert json.loads(lines(stream)[-1])["suppressed"] == 5
    clock.now += 1.0
    log.event("info", "refused", "no")
    assert len(lines(stream)) == LINES_PER_SECOND + 3  # the one that flush had not seen, and the new one


def test_a_reader_that_went_away_does_not_stop_the_broker() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    EventLog(ManualClock(), Log(), Gone()).event("info", "x", "y")
    closed = io.StringIO()
    closed.close()
    EventLog(ManualClock(), Log(), closed).event("info", "x", "y")
