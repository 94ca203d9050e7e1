"""Terms: what a SEND's headers ask of the broker, worked out once per header block (features.md, "SEND")."""

from __future__ import annotations

from dataclasses import dataclass

from broker.journal.options import PRIORITY


@dataclass(frozen=True, slots=True)
class Terms:
    """A Route has none where nothing is asked: that is the quick path.

    ttl: milliseconds to live once visible; 0: expire unless a consumer waits; -1: not said. expires: the same as an
    absolute Unix time in ms, 0 for never. delay: ms until it is visible. deliver_at: the same as an absolute Unix time
    in ms; beats `delay`. group, ends_group: the message group, and whether this one ends it. dedup, unique: keys.
    schedule: the id that names a delayed or repeating message. cancel: end the one named so, send nothing.
    cron, timezone: when it is sent again and again. period: ms between two sends, 0 for none. repeat: extra sends,
    -1 for ever.
    """

    priority: int = PRIORITY
    ttl: int = -1
    expires: int = 0
    delay: int = 0
    deliver_at: int = 0
    group: str = ""
    ends_group: bool = False
    dedup: str = ""
    unique: str = ""
    schedule: str = ""
    cancel: bool = False
    cron: str = ""
    timezone: str = ""
    period: int = 0
    repeat: int = 0

    @property
    def repeats(self) -> bool:
        """Whether it is a schedule, and not one message."""
        return bool(self.cron or self.period or self.repeat)
