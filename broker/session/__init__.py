"""One connection's STOMP conversation, sans-IO: frames in, calls on the broker, frames out."""

from broker.session.session import Session
from broker.session.states import NEXT, State

__all__ = ["NEXT", "Session", "State"]
