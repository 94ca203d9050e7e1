"""Topics: who is subscribed to what, and who gets a message. A topic without subscribers is nowhere."""

from __future__ import annotations

from typing import Final

from broker.core.destination import matches
from broker.core.subscription import Subscription

_REMEMBERED_TOPICS: Final = 4096  # names whose receivers are kept worked out; a stranger may make up any number


class Topics:
    def __init__(self) -> None:
        self._exact: dict[str, list[Subscription]] = {}
        self._patterns: dict[str, list[Subscription]] = {}
        self._receivers: dict[str, list[Subscription]] = {}

    def add(self, subscription: Subscription) -> None:
        self._table(subscription.pattern).setdefault(subscription.pattern, []).append(subscription)
        self._receivers.clear()

    def remove(self, subscription: Subscription) -> None:
        table = self._table(subscription.pattern)
        listed = table[subscription.pattern]
        listed.remove(subscription)
        if not listed:
            del table[subscription.pattern]
        self._receivers.clear()

    def receivers(self, name: str) -> list[Subscription]:
        """Every subscription that a message to this topic goes to, in the order of their SUBSCRIBEs per pattern."""
        found = self._receivers.get(name)
        if found is None:
            words = tuple(name.split("."))
            found = list(self._exact.get(name, ()))
            for pattern, subscriptions in self._patterns.items():
                if matches(tuple(pattern.split(".")), words):
                    found += subscriptions
            if len(self._receivers) >= _REMEMBERED_TOPICS:
                self._receivers.clear()
            self._receivers[name] = found
        return found

    def _table(self, pattern: str) -> dict[str, list[Subscription]]:
        wild = any(word in ("*", "#", ">") for word in pattern.split("."))
        return self._patterns if wild else self._exact
