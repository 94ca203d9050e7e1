"""Positions of messages on disk: whatever is done to them, they say what a dictionary of all messages says."""

from __future__ import annotations

import gc
import tracemalloc
from random import Random

import pytest

from broker.budget import Budget
from broker.core.entries import ENTRY_BYTES, Entry, pack_counts, packed, unpack_counts
from broker.core.positions import Positions, Runs, Singles


class Model:
    """(place, size) of each message, or (place, note, counts) where each has an entry of its own."""

    def __init__(self, random: Random, runs: bool) -> None:
        self.random = random
        self.runs = runs
        self.account = Budget(1 << 30).account("positions")
        self.positions: Positions = Runs(self.account) if runs else Singles(self.account)
        self.here: dict[int, tuple[int, ...]] = {}
        self.next = 1

    def entry(self, first: int, room: int) -> Entry:
        """A new entry that begins at `first` and needs no more than `room` seqs."""
        random = self.random
        place = random.randrange(1, 6) << 32 | random.randrange(512, 4096, 8)
        if not self.runs:
            return first, place, random.choice((0, 0, place, 7 << 32 | 512)), pack_counts(1, random.randrange(3), 100)
        span = min(room, random.choice((1, 1, 1, 2, 5, 64)))
        mask = random.getrandbits(span) | 1
        return first, place, mask, 10 * mask.bit_count()

    def remember(self, entry: Entry) -> None:
        seq, place, a, b = entry
        if self.runs:
            for bit in range(a.bit_length()):
                if a >> bit & 1:
                    self.here[seq + bit] = (place, 10)
        else:
            self.here[seq] = (place, a, b)

    def forget(self, entry: Entry) -> None:
        seq, _, a, _ = entry
        for bit in range(a.bit_length() if self.runs else 1):
            if not self.runs or a >> bit & 1:
                del self.here[seq + bit]

    # --- what may happen

    def append(self) -> None:
        for _ in range(self.random.choice((1, 5, 700))):
            entry = self.entry(self.next, 64)
            self.next = entry[0] + (entry[2].bit_length() if self.runs else 1) + self.random.randrange(3)
            self.positions.add(*entry)
            self.remember(entry)

    def insert(self) -> None:
        """Somewhere in the middle, where there is room between others."""
        if not self.here:
            return
        first = self.random.randrange(max(1, min(self.here) - 80), self.next)
        room = 0
        spans = self.spans()
        while room < 64 and first + room not in spans:
            room += 1
        if room:
            entry = self.entry(first, room)
            self.positions.add(*entry)
            self.remember(entry)
            self.next = max(self.next, first + 65)

    def spans(self) -> set[int]:
        """All seqs that entries span, those between their messages, too."""
        return {seq + bit for seq, _, a, _ in self.positions for bit in range(a.bit_length() if self.runs else 1)}

    def take(self) -> None:
        """From the front, and perhaps back again, whole or the rest of it, as reading back and spilling do."""
        taken = self.positions.take(self.random.choice((1, 100, 2048)), self.random.choice((1, 1 << 30)))
        for entry in taken:
            self.forget(entry)
        assert [entry[0] for entry in taken] == sorted(entry[0] for entry in taken)
        if taken and self.random.random() < 0.6:
            back = taken[self.random.randrange(len(taken)) :]
            self.positions.add_front(back)
            for entry in back:
                self.remember(entry)

    def discard(self) -> None:
        first = self.random.randrange(1, self.next + 1)
        last = first + self.random.choice((0, 0, 1, 30, 300))
        gone = {seq: self.here.pop(seq) for seq in list(self.here) if first <= seq <= last}
        removed = self.positions.discard(first, last)
        assert sum(one.messages for one in removed) == len(gone)
        assert sorted({one.place for one in removed}) == sorted({place for place, *_ in gone.values()})

    def replace(self) -> None:
        entries = list(self.positions)
        if entries:
            old = self.random.choice(entries)
            new = (old[0], 9 << 32 | self.random.randrange(512, 1 << 20, 8), *old[2:])
            assert self.positions.replace(old, new)
            self.remember(new)
            assert not self.positions.replace(old, new)

    def copy(self) -> None:
        """Through a checkpoint, in pieces."""
        other = type(self.positions)(self.account)
        for piece in self.positions.dump():
            other.load(piece)
        self.positions.clear()
        self.positions = other

    # --- what must hold

    def check(self) -> None:
        entries = list(self.positions)
        found = Model(self.random, self.runs)
        for entry in entries:
            found.remember(entry)
        assert found.here == self.here
        firsts = [entry[0] for entry in entries]
        assert firsts == sorted(set(firsts))
        assert self.positions.count == len(self.here)
        assert self.positions.size == sum(10 if self.runs else 100 for _ in self.here)
        assert bool(self.positions) == bool(self.here)
        assert self.account.used == ENTRY_BYTES * len(entries)
        if self.here:
            assert self.positions.first <= min(self.here)
        low, high = 2 << 32, 4 << 32
        near = self.positions.within(low, high, 1 << 60)
        wanted = [e for e in entries if low <= e[1] < high or (not self.runs and low <= e[2] < high)]
        assert near == wanted
        start = self.random.randrange(1, self.next + 1)
        found.here.clear()
        for entry in self.positions.slice(start, start + 90):
            found.remember(entry)
        assert found.here == {seq: what for seq, what in self.here.items() if start <= seq <= start + 90}


@pytest.mark.parametrize("runs", [True, False], ids=["runs", "singles"])
@pytest.mark.parametrize("seed", range(15))
def test_positions_are_what_a_dictionary_of_all_messages_says(seed: int, runs: bool) -> None:
    model = Model(Random(seed), runs)
    for step in range(60):
        model.random.choice(
            (model.append, model.append, model.insert, model.take, model.take, model.discard, model.replace, model.copy)
        )()
        if step % 3 == 2:
            model.check()


def test_what_was_taken_and_put_back_in_front_is_found_again() -> None:
    """The front of a queue goes to and fro between disk and memory."""
    positions = Runs(Budget(1 << 30).account("positions"))
    for seq in range(1, 400):
        positions.add(seq, 1 << 32 | 512, 1, 10)
    taken = positions.take(100, 1 << 30)
    positions.add_front(taken)
    assert positions.replace(taken[50], (51, 2 << 32 | 512, 1, 10))
    assert positions.discard(20, 20)


@pytest.mark.parametrize("seed", range(40))
def test_runs_that_others_lie_in_are_cut_and_lose_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when some of a run were copied forward: what is done to either later finds them, and they keep their order."""
    random = Random(seed)
    monkeypatch.setattr("broker.core.positions.BLOCK_WORDS", random.choice((4, 8, 16, 2048)))
    account = Budget(1 << 30).account("positions")
    runs = Runs(account)
    where: dict[int, tuple[int, int]] = {}  # place and size
    for first in range(1, 641, 64):
        runs.add(first, 1 << 32 | 8 * first, (1 << 64) - 1, 640)
        where.update((seq, (1 << 32 | 8 * first, 10)) for seq in range(first, first + 64))
    for turn in range(2, 60):
        place = turn << 32 | 512
        if random.random() < 0.4:  # settled
            first = random.randrange(1, 640)
            last = first + random.randrange(40)
            runs.discard(first, last)
            where = {seq: what for seq, what in where.items() if not first <= seq <= last}
        else:  # copied forward, some here and there
            first = random.randrange(1, 600)
            mask = random.getrandbits(64) & random.getrandbits(64) | 1
            chosen = [first + bit for bit in range(64) if mask >> bit & 1 and first + bit in where]
            if not chosen:
                continue
            mask = sum(1 << seq - chosen[0] for seq in chosen)
            entry = (chosen[0], place, mask, 10 * len(chosen))
            if random.random() < 0.5:
                for seq in chosen:
                    runs.discard(seq, seq)
                runs.add(*entry)
            else:
                runs.load(packed([entry]))
            where.update((seq, (place, 10)) for seq in chosen)
        entries = list(runs)
        found = {
            seq: (place, 10)
            for first, place, mask, size in entries
            for start, end in Runs.ranges(first, mask)
            for seq in range(start, end + 1)
        }
        assert found == where
        assert list(found) == sorted(found)
        for (seq, _, mask, size), after in zip(entries, [*entries[1:], (1 << 63, 0, 0, 0)], strict=True):
            assert size == 10 * mask.bit_count()
            assert runs.last_of(seq, mask) < after[0]
        assert (runs.count, runs.size) == (len(where), 10 * len(where))
        assert account.used == ENTRY_BYTES * len(entries) <= ENTRY_BYTES * max(len(where), 1)


@pytest.mark.parametrize("kind", [Runs, Singles])
def test_a_message_on_disk_takes_32_bytes_of_memory(kind: type[Positions]) -> None:
    account = Budget(1 << 30).account("positions")
    gc.collect()
    tracemalloc.start()
    positions = kind(account)
    for seq in range(1, 100_001):
        positions.add(seq, 1 << 32 | 8 * seq, 1 if kind is Runs else 0, 1024 if kind is Runs else 1024 << 32)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert (positions.count, positions.size) == (100_000, 1024 * 100_000)
    assert account.used == 3_200_000
    assert used < 3_400_000


def test_each_part_of_a_dump_has_whole_entries_and_half_an_entry_is_refused() -> None:
    positions = Singles(Budget(1 << 30).account("positions"))
    for seq in range(1, 3000):
        positions.add(seq, 1 << 32 | 512, 0, pack_counts(1, 2, 300))
    pieces = list(positions.dump())
    assert len(pieces) > 1
    assert all(len(piece) % ENTRY_BYTES == 0 for piece in pieces)
    assert b"".join(pieces)[:32] == bytes.fromhex("0100000000000000 0002000001000000 0000000000000000 010002002c010000")
    with pytest.raises(ValueError, match="half an entry"):
        positions.load(pieces[0][:-8])


def test_counts_stop_at_what_fits_and_sizes_do_not_suffer() -> None:
    assert unpack_counts(pack_counts(1 << 20, 1 << 10, 64 << 20)) == (0xFFFF, 0xFF, 64 << 20)


@pytest.mark.parametrize("seed", range(40))
def test_what_each_segment_holds_is_the_sum_of_the_entries_in_it(seed: int) -> None:
    rng = Random(seed)
    account = Budget(1 << 30).account("positions")
    runs, singles = Runs(account), Singles(account)
    expected: dict[int, list[int]] = {}
    seq, number = 1, 1
    for _ in range(rng.randrange(1, 3000)):
        number += rng.random() < 0.05
        if seed % 2 and rng.random() < 0.01:
            number = rng.randrange(1, number + 1)  # copied forward, or back: not in the order of the segments
        place, mask, size = number << 32 | rng.randrange(512, 1 << 20), rng.randrange(1, 16), rng.randrange(0, 5000)
        counts = pack_counts(1, 0, size)
        runs.add(seq, place, mask, size)
        singles.add(seq, place, 0, counts)
        held = expected.setdefault(number, [0, 0])
        held[0] += mask.bit_count() + 1
        held[1] += 2 * size
        assert runs.holds((seq, place, mask, size)) and singles.holds((seq, place, 0, counts))
        assert not runs.holds((seq, place, mask, size + 1)) and not runs.holds((seq + 1, place, mask, size))
        seq += 8
    found: dict[int, list[int]] = {}
    runs.share(found)
    singles.share(found)
    assert found == expected
