"""What is shown over HTTP. In this version: health."""

from broker.admin.health import Phase, answer

__all__ = ["Phase", "answer"]
