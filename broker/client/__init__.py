"""A small blocking STOMP 1.2 client for the commands."""

from .connection import Client, Message
from .target import DEFAULT_URL, Target

__all__ = ["DEFAULT_URL", "Client", "Message", "Target"]
