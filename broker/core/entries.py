"""Entries: what a queue knows of messages that are on disk only, 32 bytes each.

An entry is four u64. The same words lie in checkpoints (docs/journal-format.md):

- of `Runs`, never delivered: (seq, place, mask, bytes): the messages seq + i for each bit i of the mask, all in the
  record at `place`; bytes: what their own lines and bodies take together.
- of `Singles`, delivered before or dead letters: (seq, place, note, counts): one message; note: the place of the record
  that says why it is a dead letter, 0 for none; counts: deliveries, failures and size, see `pack_counts`.

`place` 0: the message is in memory only, and `Queue.kept` has it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from broker.core.message import Message

Entry = tuple[int, int, int, int]

WORDS: Final = 4
ENTRY_BYTES: Final = 32
DELIVERIES_MAX: Final = 0xFFFF
FAILURES_MAX: Final = 0xFF
_place = attrgetter("place")
_size = attrgetter("size")


class Removed(NamedTuple):
    """Messages taken out of an entry: where their records were, how many, and their bytes."""

    place: int
    note: int
    messages: int
    size: int


def pack_counts(deliveries: int, failures: int, size: int) -> int:
    """Both counts stop at what fits; nothing depends on more."""
    return min(deliveries, DELIVERIES_MAX) | min(failures, FAILURES_MAX) << 16 | size << 32


def unpack_counts(counts: int) -> tuple[int, int, int]:
    """(deliveries, failures, size)."""
    return counts & DELIVERIES_MAX, counts >> 16 & FAILURES_MAX, counts >> 32


def packed(entries: Iterable[Entry]) -> bytes:
    """Entries as `Positions.load` takes them."""
    words = array("Q", [word for entry in entries for word in entry])
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def runs_of(messages: Iterable[tuple[int, int, int]]) -> list[Entry]:
    """Entries for messages given as (seq, place, size), ascending: neighbours in one record share an entry."""
    entries: list[Entry] = []
    first = after = place = mask = total = 0
    for seq, where, size in messages:
        if seq == after and where == place and where and seq - first < 64:
            mask |= 1 << (seq - first)
            total += size
        else:
            if mask:
                entries.append((first, place, mask, total))
            first, place, mask, total = seq, where, 1, size
        after = seq + 1
    if mask:
        entries.append((first, place, mask, total))
    return entries


def entries_of(messages: Iterable[Message]) -> list[Entry]:
    """The same for messages in memory. Quick: there may be 100,000 of them."""
    entries: list[Entry] = []
    for place, group in groupby(messages, _place):
        run = list(group)
        first, count = run[0].seq, len(run)
        if place and count <= 64 and run[-1].seq - first == count - 1:
            entries.append((first, place, (1 << count) - 1, sum(map(_size, run))))
        else:
            entries += runs_of([(message.seq, place, message.size) for message in run])
    return entries


def untangled(entries: Iterable[Entry]) -> list[Entry]:
    """The same messages of runs in entries that do not reach across each other: a run that others lie in is cut."""
    messages: list[tuple[int, int, int]] = []
    for seq, place, mask, size in entries:
        count = mask.bit_count()
        for bit in range(mask.bit_length()):
            if mask >> bit & 1:
                share = size // count
                size -= share
                count -= 1
                messages.append((seq + bit, place, share))
    return runs_of(sorted(messages))
