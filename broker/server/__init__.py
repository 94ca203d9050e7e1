"""The asyncio shell: listeners, connections, the storage thread, health over HTTP, signals."""

from broker.server.daemon import run

__all__ = ["run"]
