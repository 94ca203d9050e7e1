"""What a broker is, sans-IO: destinations, queues, topics, subscriptions, delivery, redelivery, dead letters."""

from broker.core.broker import Broker, Rejects, Sends
from broker.core.counters import Counters, Events
from broker.core.destination import Destination, Kind
from broker.core.intake import DROPPED
from broker.core.jobs import Job, Keep, Read, Timer, Write
from broker.core.message import Envelope, Message
from broker.core.queue import Queue
from broker.core.replay import Replay, replayed
from broker.core.route import Route
from broker.core.subscription import AckMode, Broadcast, Outlet, Subscription

__all__ = [
    "DROPPED", "AckMode", "Broadcast", "Broker", "Counters", "Destination", "Envelope", "Events", "Job", "Keep",
    "Kind", "Message", "Outlet", "Queue", "Read", "Rejects", "Replay", "Route", "Sends", "Subscription", "Timer",
    "Write", "replayed",
]  # fmt: skip
