"""The table of every setting: its unit, default, bounds and reason, as frozen dataclasses.

The loader, `stompd check` and the test of docs/configuration.md read it by `keys()`; nothing about a setting
is written down twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from .units import GIB, KIB, MIB, Address, format_size, format_time


class Kind(Enum):
    """What a value is. The text says how it is written."""

    TEXT = "a text"
    FLAG = "true or false"
    CHOICE = "one of a few words"
    COUNT = "a whole number"
    SIZE = 'a size such as "64MiB" (KiB, MiB, GiB, KB, MB, GB), or a number of bytes'
    SECONDS = 'a time such as "500ms", "10s", "5m", "1h"'  # kept as a float, in seconds
    MILLIS = 'a time such as "500ms", "10s", "5m"'  # kept as an int, in milliseconds
    ADDRESSES = 'a list of addresses such as ["127.0.0.1:61613", "[::1]:61613"]'


def setting(
    kind: Kind, default: object, why: str, low: float = 0, high: float = 0, choices: tuple[str, ...] = ()
) -> Any:
    """A field of the table. `low` and `high` (both included) are in the unit in which the value is kept."""
    return field(
        default=default, metadata={"kind": kind, "why": why, "low": low, "high": high, "choices": choices}
    )


def _both(port: int) -> tuple[Address, ...]:
    return (Address("127.0.0.1", port), Address("::1", port))


@dataclass(frozen=True, slots=True)
class Stomp:
    listen: tuple[Address, ...] = setting(
        Kind.ADDRESSES, _both(61613), "where STOMP clients connect, in clear text"
    )


@dataclass(frozen=True, slots=True)
class Http:
    listen: tuple[Address, ...] = setting(
        Kind.ADDRESSES,
        _both(15674),
        "where health is asked for over HTTP (/livez, /readyz); an empty list: nowhere",
    )


@dataclass(frozen=True, slots=True)
class Storage:
    fsync: str = setting(
        Kind.CHOICE,
        "always",
        "when a record is flushed to the medium: `always` before its receipt (a receipt is an fsync); "
        "`interval` and `never` give receipts for what a power cut may lose",
        choices=("always", "interval", "never"),
    )
    interval: float = setting(
        Kind.SECONDS, 0.1, 'how often records are flushed with fsync = "interval"', low=0.01, high=10.0
    )
    segment_size: int = setting(
        Kind.SIZE,
        64 * MIB,
        "size of one file of the log; space comes back a file at a time",
        low=MIB,
        high=GIB,
    )
    checkpoint: int = setting(
        Kind.SIZE,
        64 * MIB,
        "a checkpoint is written after so many bytes of log, or after 30 s with a good part of them: what is newer "
        "is read again by a start",
        low=MIB,
        high=64 * GIB,
    )
    compaction_rate: int = setting(
        Kind.SIZE,
        16 * MIB,
        "bytes a second that may be copied forward to free old segments, beside a third of what else is written",
        low=64 * KIB,
        high=64 * GIB,
    )
    scrub_rate: int = setting(
        Kind.SIZE,
        MIB,
        "bytes a second of the log that are read again and verified in the background; 0: none",
        low=0,
        high=GIB,
    )
    min_free: int = setting(
        Kind.SIZE,
        0,
        "with less room than this on the disk producers wait, until it is half as much again; two segments at "
        "least; 0: 5 % of the disk or 1 GiB, whichever is more, but at most a quarter of it",
        low=0,
        high=1024 * GIB,
    )


@dataclass(frozen=True, slots=True)
class Memory:
    limit: int = setting(
        Kind.SIZE,
        96 * MIB,
        "messages in memory, positions of those on disk (32 bytes each), unfinished frames, the queue for the disk, "
        "transactions and unsent output together; over it producers wait",
        low=16 * MIB,
        high=1024 * GIB,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    connections: int = setting(Kind.COUNT, 10_000, "STOMP connections at once", 1, 1_000_000)
    connections_per_address: int = setting(
        Kind.COUNT, 512, "of these from one address (loopback is not counted)", 1, 1_000_000
    )
    unauthenticated: int = setting(
        Kind.COUNT, 256, "connections that have not logged in yet; when full, the oldest goes", 1, 100_000
    )
    unauthenticated_per_address: int = setting(Kind.COUNT, 128, "of these from one address", 1, 100_000)
    login_deadline: float = setting(
        Kind.SECONDS, 10.0, "from accept to a complete login; a stranger holds a slot no longer", 0.1, 300.0
    )
    frame_deadline: float = setting(
        Kind.SECONDS, 30.0, "for a frame that has begun to be complete (bodies: or 1 KiB/s)", 0.1, 3600.0
    )
    preauth_frame: int = setting(
        Kind.SIZE, 8 * KIB, "the CONNECT frame in all: a stranger gets what one CONNECT needs", 512, 64 * KIB
    )
    header_line: int = setting(Kind.SIZE, 8 * KIB, "one header line", 256, MIB)
    headers: int = setting(Kind.COUNT, 64, "header lines in a frame", 8, 1000)
    header_block: int = setting(Kind.SIZE, 32 * KIB, "all header lines of a frame", KIB, 4 * MIB)
    body: int = setting(Kind.SIZE, 4 * MIB, "the body of a message", KIB, 64 * MIB)
    subscriptions: int = setting(Kind.COUNT, 100, "subscriptions of one connection", 1, 10_000)
    prefetch: int = setting(
        Kind.COUNT,
        10_000,
        "the most unacknowledged messages a subscription may ask for; more is lowered to it",
        1,
        1_000_000,
    )
    default_prefetch: int = setting(
        Kind.COUNT, 256, "unacknowledged messages of a subscription that does not say", 1, 1_000_000
    )
    transactions: int = setting(Kind.COUNT, 16, "open transactions of one connection", 1, 1000)
    transaction_actions: int = setting(
        Kind.COUNT, 1024, "SEND, ACK and NACK frames in one transaction", 1, 100_000
    )
    transaction_bytes: int = setting(
        Kind.SIZE, 16 * MIB, "bytes in all open transactions of a connection", 64 * KIB, GIB
    )
    queues: int = setting(Kind.COUNT, 10_000, "queues there may be", 1, 1_000_000)
    destination_name: int = setting(Kind.SIZE, 255, "the name of a destination, in UTF-8", 16, 1024)
    hold: float = setting(
        Kind.SECONDS, 30.0, "how long a producer is held back before its SEND is refused", 0.0, 600.0
    )
    output: int = setting(
        Kind.SIZE,
        256 * KIB,
        "unsent bytes of a connection at which it is handed no more messages",
        16 * KIB,
        64 * MIB,
    )
    heart_beat_send: int = setting(
        Kind.MILLIS, 1000, "the heart-beats that we offer to send; 0s: none", 0, 3_600_000
    )
    heart_beat_receive: int = setting(
        Kind.MILLIS, 10_000, "the heart-beats that we ask clients for; 0s: none", 0, 3_600_000
    )
    http_connections: int = setting(Kind.COUNT, 64, "HTTP connections at once", 1, 10_000)


@dataclass(frozen=True, slots=True)
class Access:
    anonymous: bool = setting(
        Kind.FLAG, False, "anyone who reaches a listener off loopback may use the broker without a password"
    )
    i_accept_plaintext: bool = setting(
        Kind.FLAG, False, "messages and passwords may cross the network unencrypted (off loopback)"
    )


@dataclass(frozen=True, slots=True)
class Log:
    format: str = setting(
        Kind.CHOICE,
        "auto",
        "`plain` lines for people or `json`, one object a line, for machines; `auto` is plain",
        choices=("auto", "plain", "json"),
    )
    level: str = setting(
        Kind.CHOICE,
        "info",
        "the least important events that are written",
        choices=("debug", "info", "warning", "error"),
    )


@dataclass(frozen=True, slots=True)
class Shutdown:
    drain: float = setting(
        Kind.SECONDS,
        10.0,
        "how long a stop waits for what is in flight before it closes connections",
        0.0,
        600.0,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. `origins`: where the value of a key (by its full name) came from; the rest are defaults."""

    data_dir: str = setting(Kind.TEXT, "./stompd-data", "the folder of the log; one broker at a time")
    stomp: Stomp = Stomp()
    http: Http = Http()
    storage: Storage = Storage()
    memory: Memory = Memory()
    limits: Limits = Limits()
    access: Access = Access()
    log: Log = Log()
    shutdown: Shutdown = Shutdown()
    origins: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    def get(self, name: str) -> Any:
        """The value of a key by its full name, e.g. "limits.body". AttributeError where there is none."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table. `low` and `high` are in the unit in which the value is kept."""

    name: str
    kind: Kind
    default: Any
    why: str
    low: float
    high: float
    choices: tuple[str, ...]

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "STOMPD_" + self.name.upper().replace(".", "__")

    @property
    def allowed(self) -> str:
        """What may be written, in words."""
        if self.kind is Kind.CHOICE:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        if self.high:
            return f"{self.kind.value}, from {show(self.kind, self.low)} to {show(self.kind, self.high)}"
        return str(self.kind.value)


# Pairs that must be in order: the first may be at most the second, divided by the number. A default that
# would be over is lowered by itself, so that one who lowers the second key need not know of the first;
# a value that somebody wrote is refused.
NEIGHBOURS: Final = (
    ("limits.connections_per_address", "limits.connections", 1),
    ("limits.unauthenticated", "limits.connections", 1),
    ("limits.unauthenticated_per_address", "limits.unauthenticated", 1),
    ("limits.header_line", "limits.header_block", 1),
    ("limits.default_prefetch", "limits.prefetch", 1),
    ("limits.body", "memory.limit", 4),  # one message must not be able to stop all others
    ("limits.transaction_bytes", "memory.limit", 2),
)


def keys() -> Iterator[Key]:
    """Every key, in the order of the file."""
    for top in fields(Settings):
        if "kind" in top.metadata:
            yield Key(name=top.name, default=top.default, **top.metadata)
        elif top.default is not MISSING:
            for entry in fields(top.default):
                yield Key(name=f"{top.name}.{entry.name}", default=entry.default, **entry.metadata)


def show(kind: Kind, value: Any) -> str:
    """A value for people: sizes and times without quotes."""
    if kind is Kind.SIZE:
        return format_size(int(value))
    if kind is Kind.SECONDS:
        return format_time(round(value * 1000))
    if kind is Kind.MILLIS:
        return format_time(int(value))
    if kind is Kind.FLAG:
        return "true" if value else "false"
    if kind is Kind.ADDRESSES:
        return "[" + ", ".join(f'"{address}"' for address in value) + "]"
    # What JSON escapes, TOML reads.
    return (
        json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if isinstance(value, str)
        else str(value)
    )


def toml(kind: Kind, value: Any) -> str:
    """A value as it is written in the file."""
    text = show(kind, value)
    return f'"{text}"' if kind in (Kind.SIZE, Kind.SECONDS, Kind.MILLIS) else text
