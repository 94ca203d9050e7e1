"""Who may come in, as far as numbers go: connections in all, per address, and not yet logged in."""

from __future__ import annotations

import ipaddress
from typing import Protocol

from broker.config import Limits
from broker.server.logs import EventLog


class Caller(Protocol):
    """A connection, as far as the doorkeeper is concerned."""

    address: str

    def refuse(self) -> None:
        """Close at once and without a word."""


class Doorkeeper:
    """Counts connections. `most` is limits.connections, or less where the process may open fewer files."""

    def __init__(self, limits: Limits, most: int, events: EventLog) -> None:
        self._limits = limits
        self._most = most
        self._events = events
        self._all: dict[Caller, None] = {}
        self._by_address: dict[str, int] = {}
        self._strangers: dict[str, dict[Caller, None]] = {}  # by address, oldest first
        self._stranger_count = 0

    @property
    def count(self) -> int:
        return len(self._all)

    def came(self, connection: Caller) -> None:
        """Count it, or refuse it, or send away an older stranger in its favour."""
        address = connection.address
        self._all[connection] = None
        self._by_address[address] = self._by_address.get(address, 0) + 1
        self._strangers.setdefault(address, {})[connection] = None
        self._stranger_count += 1
        limits = self._limits
        if len(self._all) > self._most:
            self._refuse(connection, f"{self._most} connections are open, no more are allowed")
        elif self._by_address[address] > limits.connections_per_address and not _is_loopback(address):
            self._refuse(connection, f"{limits.connections_per_address} connections from one address are open")
        elif len(self._strangers[address]) > limits.unauthenticated_per_address:
            self._refuse(next(iter(self._strangers[address])), "too many from one address have not logged in")
        elif self._stranger_count > limits.unauthenticated:
            fullest = max(self._strangers.values(), key=len)
            self._refuse(next(iter(fullest)), "too many connections have not logged in")

    def logged_in(self, connection: Caller) -> None:
        strangers = self._strangers.get(connection.address)
        if strangers is not None and connection in strangers:
            del strangers[connection]
            self._stranger_count -= 1
            if not strangers:
                del self._strangers[connection.address]

    def went(self, connection: Caller) -> None:
        if connection not in self._all:
            return
        self.logged_in(connection)
        del self._all[connection]
        address = connection.address
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _refuse(self, connection: Caller, why: str) -> None:
        self._events.event("warning", "connection-refused", why, peer=connection.address)
        self.went(connection)
        connection.refuse()


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
