"""How the daemon ends when something of ours is broken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from broker.config import Settings
from broker.errors import Exit, StorageFailed
from broker.server.daemon import Daemon


class Served:
    """A hub with one connection, which goes when it is refused or, as after its last words, by itself."""

    def __init__(self, *, goes: bool) -> None:
        self.refused = 0
        self.looks = 0
        self.goes = goes
        self.reported: list[BaseException] = []

    @property
    def connections(self) -> dict[str, Any]:
        self.looks += 1
        gone = self.refused or (self.goes and self.looks > 3)
        return {} if gone else {"session": SimpleNamespace(refuse=self._refuse)}

    def _refuse(self) -> None:
        self.refused += 1

    def report(self, error: BaseException) -> None:
        self.reported.append(error)


async def test_after_a_bug_nobody_is_served_any_more() -> None:
    hub = Served(goes=False)
    error = RuntimeError("a bug")
    assert await Daemon(Settings())._end_failed(hub, error) == Exit.BUG  # type: ignore[arg-type]
    assert hub.refused == 1 and hub.reported == [error]


async def test_after_a_storage_failure_clients_may_still_read_the_error() -> None:
    hub = Served(goes=True)
    assert await Daemon(Settings())._end_failed(hub, StorageFailed("disk")) == Exit.STORAGE_FAILED  # type: ignore[arg-type]
    assert hub.refused == 0 and hub.reported == []
