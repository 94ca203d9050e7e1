"""What the record of a run keeps of its headers, because the place of its messages in a queue depends on it."""

from __future__ import annotations

from typing import Final, NamedTuple

PRIORITY: Final = 4  # of a message that says nothing else; 0 to 9, higher ones go first


class Options(NamedTuple):
    """Of all messages of one run. Times are Unix milliseconds, 0 for none.

    arrived: the stamp of acceptance, where the record has none (the sender gave a `timestamp`) and a time depends on
    it. due: not visible before. wall: `due` follows the wall clock (`deliver-at`), else it was a delay. expires: not
    delivered from then on. each: the same for each queue of the record, where they differ. group, ends_group: the
    message group, and whether this message ends it. unique, dedup, schedule: keys, "" for none.
    """

    priority: int = PRIORITY
    arrived: int = 0
    due: int = 0
    wall: bool = False
    expires: int = 0
    each: tuple[int, ...] = ()
    group: str = ""
    ends_group: bool = False
    unique: str = ""
    dedup: str = ""
    schedule: str = ""
