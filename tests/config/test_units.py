"""Sizes, times and addresses: what is written is read, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.units import Address, format_size, format_time, parse_size, parse_time

SIZES = {
    "0": 0,
    "1": 1,
    "1B": 1,
    "1KB": 1000,
    "1KiB": 1024,
    "64MiB": 64 << 20,
    "2GiB": 2 << 30,
    "3GB": 3 * 10**9,
}
NO_SIZES = [
    "",
    "MiB",
    "-1",
    "+1",
    "1_000",
    " 1",
    "1 ",
    "1 MiB",
    "1mib",
    "1.5MiB",
    "0x10",
    "\u0661",
    "1MiB\n",
    "1" * 13,
]
TIMES = {"0s": 0, "500ms": 500, "10s": 10_000, "1.5s": 1500, "5m": 300_000, "1h": 3_600_000, "0.001s": 1}
NO_TIMES = [
    "",
    "s",
    "10",
    "-1s",
    "+1s",
    "1_0s",
    " 1s",
    "1s\n",
    "1 s",
    "1d",
    "\u0661s",
    ".5s",
    "1.s",
    "1.2345s",
]


@pytest.mark.parametrize("text", SIZES)
def test_a_size_is_read(text: str) -> None:
    assert parse_size(text) == SIZES[text]


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize("text", TIMES)
def test_a_time_is_read(text: str) -> None:
    assert parse_time(text) == TIMES[text]


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


@given(st.integers(0, 10**11))
def test_what_is_shown_is_read_back(number: int) -> None:
    assert parse_size(format_size(number)) == number
    assert parse_time(format_time(number % 10**9)) == number % 10**9


@pytest.mark.parametrize(
    "text", ["127.0.0.1:0", "[::1]:65535", "localhost:1", "a-b.example:61613", "[fe80::1%eth0]:1"]
)
def test_an_address_is_read_and_shown_as_it_was_written(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x:",
        ":1",
        "*:1",
        "::1:1",
        "[::1]",
        "[x]:1",
        "[1:2]:1",
        "x:65536",
        "x:-1",
        "x:1\n",
        "x y:1",
        "x:1_0",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)
