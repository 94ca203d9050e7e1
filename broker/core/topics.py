"""Topics: who is subscribed to what, and who gets a message. A topic without subscribers is nowhere."""

from __future__ import annotations

from typing import Final

from broker.budget import Budget
from broker.core.counters import Counters, Events
from broker.core.destination import matches
from broker.core.message import Message
from broker.core.subscription import AckMode, Broadcast, Subscription

TOPIC_BACKLOG: Final = 1 << 20  # bytes kept for a slow subscriber, beside one message of any size
_OVERHEAD: Final = 256  # bytes that a kept message costs beside its body, roughly
_REMEMBERED_MAX: Final = 1 << 17  # receivers kept worked out, for all topic names together: anyone may make up names
_NAME_COST: Final = 32  # receivers that a name itself counts for


class Topics:
    """Owns the topic subscriptions, and what is kept for those that are slow for a moment."""

    def __init__(self, budget: Budget, counters: Counters, events: Events) -> None:
        self._budget = budget
        self._account = budget.account("slow topic subscribers")
        self._counters = counters
        self._events = events
        self._exact: dict[str, list[Subscription]] = {}
        self._patterns: dict[str, list[Subscription]] = {}
        self._receivers: dict[str, list[Subscription]] = {}
        self._remembered = 0  # how much of _REMEMBERED_MAX they take
        self._slow: dict[Subscription, None] = {}

    def add(self, subscription: Subscription) -> None:
        self._table(subscription.pattern).setdefault(subscription.pattern, []).append(subscription)
        self._forget_receivers()

    def remove(self, subscription: Subscription) -> None:
        """It gets nothing more, and what was kept for it is gone."""
        table = self._table(subscription.pattern)
        listed = table[subscription.pattern]
        listed.remove(subscription)
        if not listed:
            del table[subscription.pattern]
        self._forget_receivers()
        self._slow.pop(subscription, None)
        self._account.book(-subscription.backlog_bytes)
        subscription.backlog.clear()
        subscription.backlog_bytes = 0

    def publish(self, topic: str, messages: list[Message]) -> None:
        """To every subscriber that is there: at once where it is ready, else to its backlog. Nobody waits."""
        receivers = self.receivers(topic)
        if not receivers:
            return
        broadcast = Broadcast(messages)
        for subscription in receivers:
            if subscription.ack is AckMode.AUTO and subscription.outlet.room > 0 and not subscription.backlog:
                subscription.outlet.broadcast(subscription, broadcast)
            else:
                self._keep(subscription, messages)

    def serve_slow(self) -> None:
        """Hand out of the backlogs what their subscribers can take now."""
        for subscription in list(self._slow):
            backlog = subscription.backlog
            while backlog and subscription.able:
                batch = [backlog.popleft() for _ in range(min(64, subscription.credit, len(backlog)))]
                taken = subscription.outlet.deliver(subscription, batch)
                backlog.extendleft(reversed(batch[taken:]))
                subscription.credit -= taken
                size = sum(len(message.body) + _OVERHEAD for message in batch[:taken])
                subscription.backlog_bytes -= size
                self._account.book(-size)
            if not backlog:
                del self._slow[subscription]

    def receivers(self, name: str) -> list[Subscription]:
        """Every subscription that a message to this topic goes to, in the order of their SUBSCRIBEs per pattern."""
        found = self._receivers.get(name)
        if found is None:
            words = tuple(name.split("."))
            found = list(self._exact.get(name, ()))
            for pattern, subscriptions in self._patterns.items():
                if matches(tuple(pattern.split(".")), words):
                    found += subscriptions
            if self._remembered >= _REMEMBERED_MAX:
                self._forget_receivers()
            self._remembered += len(found) + _NAME_COST
            self._receivers[name] = found
        return found

    def _forget_receivers(self) -> None:
        self._receivers.clear()
        self._remembered = 0

    def _keep(self, subscription: Subscription, messages: list[Message]) -> None:
        """For a subscriber that is not ready now; what does not fit is dropped and counted."""
        for message in messages:
            if subscription.backlog_bytes >= TOPIC_BACKLOG or self._budget.full:
                self._drop(subscription)
                continue
            size = len(message.body) + _OVERHEAD
            subscription.backlog.append(message)
            subscription.backlog_bytes += size
            self._account.book(size)
        self._slow[subscription] = None

    def _drop(self, subscription: Subscription) -> None:
        subscription.dropped += 1
        self._counters.dropped_slow += 1
        if subscription.dropped == 1:
            text = f"a subscriber of /topic/{subscription.pattern} is too slow, messages for it are dropped"
            self._events.event("warning", "slow-subscriber", text, subscription=subscription.id)

    def _table(self, pattern: str) -> dict[str, list[Subscription]]:
        wild = any(word in ("*", "#", ">") for word in pattern.split("."))
        return self._patterns if wild else self._exact
