"""What a broker is, sans-IO: destinations, queues, topics, subscriptions, delivery, redelivery, dead letters."""

from broker.core.broker import Broker, Rejects, Sends
from broker.core.counters import Counters, Events
from broker.core.destination import Destination, Kind
from broker.core.intake import DROPPED
from broker.core.jobs import Job, Timer, Write
from broker.core.message import Envelope, Message
from broker.core.queue import Queue
from broker.core.replay import Replay
from broker.core.route import Route
from broker.core.subscription import AckMode, Broadcast, Outlet, Subscription

__all__ = [
    "DROPPED", "AckMode", "Broadcast", "Broker", "Counters", "Destination", "Envelope", "Events", "Job", "Kind",
    "Message", "Outlet", "Queue", "Rejects", "Replay", "Route", "Sends", "Subscription", "Timer", "Write",
]  # fmt: skip
