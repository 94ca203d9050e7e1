"""Messages that wait on disk: where each of them is, in order of seq, 32 bytes an entry.

What an entry says: broker/core/entries.py.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, repeat
from operator import le, lt
from typing import Final

from broker.budget import Account
from broker.core.entries import ENTRY_BYTES, WORDS, Entry, Removed, untangled

BLOCK_WORDS: Final = 512 * WORDS


class Positions:
    """Entries in ascending order of seq, in blocks. Booked on the account as they come and go.

    count, size: messages in it and their bytes. The ranges that entries span never overlap.
    """

    __slots__ = ("_account", "_blocks", "_firsts", "_next", "_start", "count", "size")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._blocks: list[array[int]] = []
        self._firsts: list[int] = []  # the first seq of each block, or a lower one
        self._start = 0  # the word in the first block where its entries begin
        self._next = 0  # a seq from here on goes behind all others
        self.count = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def all_before(self, seq: int) -> bool:
        """Whether nothing here has this seq or a later one."""
        return seq >= self._next

    # --- what the two kinds differ in

    @staticmethod
    def weigh(a: int, b: int) -> tuple[int, int]:
        """(messages, their bytes) of an entry with these last two words."""
        raise NotImplementedError

    @staticmethod
    def last_of(seq: int, a: int) -> int:
        """The last seq of an entry."""
        raise NotImplementedError

    @staticmethod
    def ranges(seq: int, a: int) -> Iterator[tuple[int, int]]:
        """The messages of an entry: (first seq, last seq) of those that are neighbours."""
        raise NotImplementedError

    def _cut(self, entry: Entry, first: int, last: int) -> tuple[Removed | None, Entry | None]:
        """Take the messages from `first` to `last` out of an entry: what went, and what is left."""
        raise NotImplementedError

    # --- in

    def add(self, seq: int, place: int, a: int, b: int) -> None:
        """None of its messages may be in here. Behind all others in constant time."""
        if seq < self._next and (crossing := self._crossing(seq, self.last_of(seq, a))):
            for first, _, mask, _ in crossing:
                self.discard(first, self.last_of(first, mask))
            for entry in untangled([*crossing, (seq, place, a, b)]):
                self.add(*entry)
            return
        count, size = self.weigh(a, b)
        self.count += count
        self.size += size
        self._account.book(ENTRY_BYTES)
        blocks = self._blocks
        if seq >= self._next or not blocks:
            if blocks and len(blocks[-1]) < BLOCK_WORDS:
                blocks[-1].extend((seq, place, a, b))
            else:
                blocks.append(array("Q", (seq, place, a, b)))
                self._firsts.append(seq)
            self._next = self.last_of(seq, a) + 1
            return
        at = max(bisect_right(self._firsts, seq) - 1, 0)
        block = blocks[at]
        start = 0 if at else self._start
        word = start + WORDS * bisect_right(block[start::WORDS], seq)
        block[word:word] = array("Q", (seq, place, a, b))
        self._firsts[at] = min(self._firsts[at], seq)
        self._next = max(self._next, self.last_of(seq, a) + 1)
        if len(block) > 2 * BLOCK_WORDS:
            self._split(at)

    def _crossing(self, first: int, last: int) -> list[Entry]:
        """The entries whose spans meet the seqs from `first` to `last`."""
        return []

    def _split(self, at: int) -> None:
        block = self._blocks[at]
        if at == 0 and self._start:
            del block[: self._start]
            self._start = 0
        half = len(block) // WORDS // 2 * WORDS
        self._blocks[at : at + 1] = [block[:half], block[half:]]
        self._firsts.insert(at + 1, block[half])

    def add_front(self, entries: list[Entry]) -> None:
        """Ascending, all of them before what is in here."""
        if not entries:
            return
        for _, _, a, b in entries:
            count, size = self.weigh(a, b)
            self.count += count
            self.size += size
        self._account.book(ENTRY_BYTES * len(entries))
        if self._start:
            del self._blocks[0][: self._start]
            self._start = 0
        if not self._blocks:
            self._next = self.last_of(entries[-1][0], entries[-1][2]) + 1
        else:  # it may still be that of an entry which comes back now
            self._firsts[0] = self._blocks[0][0]
        for at in range((len(entries) - 1) // 512 * 512, -1, -512):
            some = entries[at : at + 512]
            self._blocks.insert(0, array("Q", [word for entry in some for word in entry]))
            self._firsts.insert(0, some[0][0])

    def load(self, data: bytes) -> None:
        """Entries as `dump` gives them; what is in here of the same messages is replaced. Raises ValueError."""
        words = array("Q", data)
        if len(words) % WORDS:
            raise ValueError("half an entry")
        if sys.byteorder == "big":
            words.byteswap()
        seqs = words[::WORDS]
        if seqs and seqs[0] >= self._next and all(map(lt, seqs, seqs[1:])) and self._apart(words):
            for start in range(0, len(words), BLOCK_WORDS):
                block = words[start : start + BLOCK_WORDS]
                self._blocks.append(block)
                self._firsts.append(block[0])
            self._next = self.last_of(words[-WORDS], words[-2]) + 1
            self.count += self._count_of(words)
            self.size += self._size_of(words)
            self._account.book(ENTRY_BYTES * len(seqs))
            return
        for at in range(0, len(words), WORDS):
            seq, place, a, b = words[at : at + WORDS]
            for first, last in self.ranges(seq, a):
                self.discard(first, last)
            self.add(seq, place, a, b)

    def _apart(self, words: array[int]) -> bool:
        raise NotImplementedError

    def _count_of(self, words: array[int]) -> int:
        raise NotImplementedError

    def _size_of(self, words: array[int]) -> int:
        raise NotImplementedError

    # --- out

    @property
    def first(self) -> int:
        """The lowest seq, or one before it that is not waiting any more. Only where there is an entry."""
        return self._blocks[0][self._start]

    @property
    def first_place(self) -> int:
        """The place of the first entry. Only where there is one."""
        return self._blocks[0][self._start + 1]

    def take(self, count: int, size: int) -> list[Entry]:
        """Entries from the front, until they hold about that many messages or bytes; one at least."""
        taken: list[Entry] = []
        messages = total = 0
        while self._blocks and messages < count and total < size:
            block, start = self._blocks[0], self._start
            while start < len(block) and messages < count and total < size:
                seq, place, a, b = block[start : start + WORDS]
                one, weight = self.weigh(a, b)
                messages += one
                total += weight
                taken.append((seq, place, a, b))
                start += WORDS
            self._start = start
            if start == len(block):
                self._drop_block(0)
        self.count -= messages
        self.size -= total
        self._account.book(-ENTRY_BYTES * len(taken))
        return taken

    def clear(self) -> None:
        """Forget all entries."""
        self._account.book(-ENTRY_BYTES * sum(len(block) // WORDS for block in self._each_block()))
        self._blocks.clear()
        self._firsts.clear()
        self._start = self._next = self.count = self.size = 0

    def _drop_block(self, at: int) -> None:
        del self._blocks[at], self._firsts[at]
        if at == 0:
            self._start = 0
        if not self._blocks:
            self._next = 0

    def discard(self, first: int, last: int) -> list[Removed]:
        """Take out the messages from seq `first` to `last`, both included, as far as they are here."""
        found: list[Removed] = []
        at, word = self._seek(first)
        while at < len(self._blocks):
            block = self._blocks[at]
            if word >= len(block):
                at, word = at + 1, 0
                continue
            seq, place, a, b = block[word : word + WORDS]
            if seq > last:
                break
            removed, rest = self._cut((seq, place, a, b), first, last)
            if removed is not None:
                found.append(removed)
                self.count -= removed.messages
                self.size -= removed.size
            if rest is not None:
                block[word : word + WORDS] = array("Q", rest)
                word += WORDS
                continue
            self._account.book(-ENTRY_BYTES)
            if at == 0 and word == self._start:
                self._start = word = word + WORDS
            else:
                del block[word : word + WORDS]
                if word == 0 and block:  # or one that is added before it is looked for in this block, in vain
                    self._firsts[at] = block[0]
            if len(block) == (self._start if at == 0 else 0):
                self._drop_block(at)
                word = 0
        return found

    def _seek(self, seq: int) -> tuple[int, int]:
        """(block, word) of the last entry that begins at `seq` or before it; the first of all if none does."""
        blocks = self._blocks
        if not blocks or seq >= self._next:
            return len(blocks), 0
        block, start = blocks[0], self._start
        if len(block) > start + WORDS and block[start + WORDS] > seq:
            return 0, start  # the front, where messages go first
        at = max(bisect_right(self._firsts, seq) - 1, 0)
        block = blocks[at]
        start = 0 if at else self._start
        return at, start + WORDS * max(bisect_right(block[start::WORDS], seq) - 1, 0)

    # --- looking

    def __iter__(self) -> Iterator[Entry]:
        for block in self._each_block():
            for at in range(0, len(block), WORDS):
                seq, place, a, b = block[at : at + WORDS]
                yield seq, place, a, b

    def _each_block(self) -> Iterator[array[int]]:
        for at, block in enumerate(self._blocks):
            yield block[self._start :] if at == 0 and self._start else block

    def dump(self, *, placed: bool = False) -> Iterator[bytes]:
        """All entries, little-endian, in pieces of some KiB. placed: only those of messages that are on disk."""
        for block in self._each_block():
            if placed and not min(block[1::WORDS]):
                words = [block[at : at + WORDS] for at in range(0, len(block), WORDS) if block[at + 1]]
                block = array("Q", b"".join(map(array.tobytes, words)))
            if sys.byteorder == "big":
                block = block[:]
                block.byteswap()
            yield block.tobytes()

    def slice(self, first: int, last: int) -> Iterator[Entry]:
        """The messages from seq `first` to `last` as entries of their own. Not to be changed meanwhile."""
        at, word = self._seek(first)
        while at < len(self._blocks):
            block = self._blocks[at]
            if word >= len(block):
                at, word = at + 1, 0
                continue
            seq, place, a, b = block[word : word + WORDS]
            if seq > last:
                return
            removed, rest = self._cut((seq, place, a, b), first, last)
            if removed is not None:
                if rest is None:
                    yield seq, place, a, b
                else:
                    yield seq, place, a & ~rest[2], b - rest[3]
            word += WORDS

    def holds(self, entry: Entry) -> bool:
        """Whether exactly this entry is here."""
        at, word = self._seek(entry[0])
        return at < len(self._blocks) and tuple(self._blocks[at][word : word + WORDS]) == entry

    def share(self, into: dict[int, list[int]]) -> None:
        """Adds what they hold of each segment to `into`: by its number, [messages, bytes]."""
        for block in self._each_block():
            places = block[1::WORDS]
            number = places[0] >> 32
            if number == places[-1] >> 32 and number == min(places) >> 32 == max(places) >> 32:
                held = into.setdefault(number, [0, 0])
                held[0] += self._count_of(block)
                held[1] += self._size_of(block)
                continue
            if all(map(le, places, places[1:])):  # as they were sent: one look for each segment, not for each entry
                self._share_in_order(block, places, into)
                continue
            number = -1
            for place, count, size in zip(places, *self._weights(block), strict=True):
                if place >> 32 != number:
                    number = place >> 32
                    held = into.setdefault(number, [0, 0])
                held[0] += count
                held[1] += size

    def _share_in_order(self, block: array[int], places: array[int], into: dict[int, list[int]]) -> None:
        counts, sizes = (list(accumulate(each)) for each in self._weights(block))
        at = count = size = 0
        while at < len(places):
            number = places[at] >> 32
            at = bisect_left(places, (number + 1) << 32, at)
            held = into.setdefault(number, [0, 0])
            held[0] += counts[at - 1] - count
            held[1] += sizes[at - 1] - size
            count, size = counts[at - 1], sizes[at - 1]

    def _weights(self, block: array[int]) -> tuple[Iterable[int], Iterable[int]]:
        """Messages and bytes of each entry."""
        raise NotImplementedError

    def note_numbers(self) -> Iterator[int]:
        """The segment of each note that is not in the record of its message."""
        for block in self._each_block():
            if self._notes and max(block[2::WORDS]):
                for at in range(0, len(block), WORDS):
                    if block[at + 2] and block[at + 2] != block[at + 1]:
                        yield block[at + 2] >> 32

    def within(self, low: int, high: int, limit: int) -> list[Entry]:
        """Entries with a place, or a note, from `low` up to `high` (not included); some `limit` of them at most."""
        found: list[Entry] = []
        for block in self._each_block():
            if not self._touches(block, low, high):
                continue
            for at in range(0, len(block), WORDS):
                seq, place, a, b = block[at : at + WORDS]
                if low <= place < high or (self._notes and low <= a < high):
                    found.append((seq, place, a, b))
            if len(found) >= limit:
                break
        return found

    _notes = False

    def _touches(self, block: array[int], low: int, high: int) -> bool:
        places = block[1::WORDS]
        return min(places) < high and max(places) >= low

    def replace(self, old: Entry, new: Entry) -> bool:
        """Put another entry of the same messages in the place of one; returns whether it was still there."""
        at, word = self._seek(old[0])
        if at >= len(self._blocks):
            return False
        block = self._blocks[at]
        if tuple(block[word : word + WORDS]) != old:
            return False
        block[word : word + WORDS] = array("Q", new)
        return True


class Runs(Positions):
    """Messages that were never delivered, up to 64 in an entry."""

    __slots__ = ()

    @staticmethod
    def weigh(a: int, b: int) -> tuple[int, int]:
        return a.bit_count(), b

    @staticmethod
    def last_of(seq: int, a: int) -> int:
        return seq + a.bit_length() - 1

    @staticmethod
    def ranges(seq: int, a: int) -> Iterator[tuple[int, int]]:
        while a:
            low = (a & -a).bit_length() - 1
            a >>= low
            seq += low
            count = (~a & a + 1).bit_length() - 1
            yield seq, seq + count - 1
            a >>= count
            seq += count

    def _crossing(self, first: int, last: int) -> list[Entry]:
        found: list[Entry] = []
        at, word = self._seek(first)
        while at < len(self._blocks):
            block = self._blocks[at]
            if word >= len(block):
                at, word = at + 1, 0
                continue
            seq, place, mask, size = block[word : word + WORDS]
            if seq > last:
                break
            if seq + mask.bit_length() > first:
                found.append((seq, place, mask, size))
            word += WORDS
        return found

    def _cut(self, entry: Entry, first: int, last: int) -> tuple[Removed | None, Entry | None]:
        seq, place, mask, size = entry
        low = max(first - seq, 0)
        hit = mask >> low << low
        if last - seq < 63:
            hit &= (1 << (last - seq + 1)) - 1
        if not hit:
            return None, entry
        if hit == mask:
            return Removed(place, 0, mask.bit_count(), size), None
        count = hit.bit_count()
        part = size * count // mask.bit_count()
        return Removed(place, 0, count, part), (seq, place, mask & ~hit, size - part)

    def _apart(self, words: array[int]) -> bool:
        ends = map(int.__add__, words[::WORDS], map(int.bit_length, words[2::WORDS]))
        return all(map(int.__le__, ends, words[WORDS::WORDS])) and min(words[2::WORDS]) > 0

    def _weights(self, block: array[int]) -> tuple[Iterable[int], Iterable[int]]:
        return map(int.bit_count, block[2::WORDS]), block[3::WORDS]

    def _count_of(self, words: array[int]) -> int:
        return sum(map(int.bit_count, words[2::WORDS]))

    def _size_of(self, words: array[int]) -> int:
        return sum(words[3::WORDS])


class Singles(Positions):
    """Messages with counts of their own, one in an entry."""

    __slots__ = ()
    _notes = True

    @staticmethod
    def weigh(a: int, b: int) -> tuple[int, int]:
        return 1, b >> 32

    @staticmethod
    def last_of(seq: int, a: int) -> int:
        return seq

    @staticmethod
    def ranges(seq: int, a: int) -> Iterator[tuple[int, int]]:
        yield seq, seq

    def _cut(self, entry: Entry, first: int, last: int) -> tuple[Removed | None, Entry | None]:
        seq, place, note, counts = entry
        if first <= seq <= last:
            return Removed(place, note, 1, counts >> 32), None
        return None, entry

    def _touches(self, block: array[int], low: int, high: int) -> bool:
        notes = block[2::WORDS]
        return super()._touches(block, low, high) or (min(notes) < high and max(notes) >= low)

    def _apart(self, words: array[int]) -> bool:
        return True

    def _weights(self, block: array[int]) -> tuple[Iterable[int], Iterable[int]]:
        counts = block[3::WORDS]
        return repeat(1, len(counts)), [each >> 32 for each in counts]

    def _count_of(self, words: array[int]) -> int:
        return len(words) // WORDS

    def _size_of(self, words: array[int]) -> int:
        return sum(counts >> 32 for counts in words[3::WORDS])
