"""What must hold inside the broker, beside what its clients see."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from broker.budget import Budget
from broker.core import Replay, replayed
from broker.core.entries import unpack_counts
from broker.core.message import SETTLED
from broker.core.positions import Positions
from broker.core.queue import Queue
from broker.journal import open_log
from broker.journal.audit import Audit, Hole
from tests.sim.shell import Broken, Chance, Shell
from tests.support.simdisk import SimDisk


def check_at_rest(shell: Shell) -> None:
    """All jobs are done: nothing waits for the disk, and each segment counts what the queues hold in it."""
    journal = shell.journal
    if any(shell.lanes.values()):
        return  # the writer waits for room on the disk
    if journal.queued or journal.durable != journal.lsn:
        raise Broken(f"at rest, and {journal.queued} bytes wait for the disk, lsn {journal.lsn} of {journal.durable}")
    held: Counter[int] = Counter()
    for queue in shell.broker.queues.values():
        if queue.pending or queue.loading is not None:
            raise Broken(f"at rest, and {queue.pending} messages of {queue.name} are not visible, or are being read")
        _check_queue(queue)
        held += _held(queue)
    live = {segment.number: segment.live for segment in journal.segments if segment.live}
    if live != dict(held):
        raise Broken(f"the segments count {live} live messages, the queues hold {dict(held)}")
    readers = {segment.number: segment.readers for segment in journal.segments if segment.readers}
    if readers:
        raise Broken(f"nothing is being read, and segments count readers: {readers}")


def _check_queue(queue: Queue) -> None:
    """Positions ascend, their sums are right, and nothing is there twice."""
    seen: Counter[int] = Counter()
    for positions in (queue.stored, queue.counted):
        count = size = 0
        last = -1
        for seq, _, a, b in positions:
            if seq <= last:
                raise Broken(f"{queue.name}: {seq} stands behind {last}")
            last = positions.last_of(seq, a)
            seen.update(_seqs(positions, seq, a))
            one, weight = positions.weigh(a, b)
            count, size = count + one, size + weight
        if (count, size) != (positions.count, positions.size):
            raise Broken(f"{queue.name}: {count} messages of {size} bytes, it says {positions.count}, {positions.size}")
    seen.update(message.seq for message in queue.in_memory() if message.deliveries != SETTLED)
    if twice := [seq for seq, times in seen.items() if times > 1]:
        raise Broken(f"{queue.name} has messages {twice} twice")


def _seqs(positions: Positions, seq: int, a: int) -> list[int]:
    if positions.last_of(0, 2):  # Runs: `a` is a mask
        return [seq + bit for bit in range(a.bit_length()) if a >> bit & 1]
    return [seq]


def _shares(positions: Positions) -> dict[int, list[int]]:
    held: dict[int, list[int]] = {}
    positions.share(held)
    return held


def _held(queue: Queue) -> Counter[int]:
    """How many messages, and notes that lie elsewhere, a queue wants of each segment."""
    held: Counter[int] = Counter()
    for positions in (queue.stored, queue.counted):
        for number, (count, _) in _shares(positions).items():
            held[number] += count
        for number in positions.note_numbers():
            held[number] += 1
    for message in queue.in_memory():
        if message.place and message.deliveries != SETTLED:
            held[message.place >> 32] += 1
            note = message.envelope.note
            if note and note != message.place:
                held[note >> 32] += 1
    del held[0]  # in memory only
    return held


def check_empty(shell: Shell) -> None:
    """Every message is gone and every connection is."""
    for queue in shell.broker.queues.values():
        if queue.in_flight or queue.pending or queue.marked or queue.waiting or queue.kept:
            raise Broken(
                f"{queue.name} is empty, and counts {queue.waiting} waiting, {queue.in_flight} in flight, "
                f"{queue.pending} pending, {queue.marked} settled late, {len(queue.kept)} in memory only"
            )
    live = {segment.number: segment.live for segment in shell.journal.segments if segment.live}
    if live:
        raise Broken(f"all queues are empty, and segments count live messages: {live}")
    used = {account.name: account.used for account in shell.budget.accounts.values() if account.used}
    if used or shell.budget.used:
        raise Broken(f"all is gone, and the budget says {used}, {shell.budget.used} in all")


# --- a start with and without a checkpoint ----------------------------------------------------------------------------


@dataclass
class Found:
    """What a replay found of a queue, message by message."""

    fresh: dict[int, int] = field(default_factory=dict)  # seq: place
    counted: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)  # place, note, deliveries, failures
    flagged: set[int] = field(default_factory=set)  # those that stand below the mark


def check_start(disk: SimDisk, shell: Shell, random: Random) -> None:
    """On a copy of what is on the medium: with a checkpoint the queues are those that the whole log has."""
    copy = disk.copy(random)
    short, checkpoint = _find(copy, shell, use=True)
    if checkpoint:
        whole, _ = _find(copy, shell, use=False)
        for name in short.keys() | whole.keys():
            with_it, without = short.get(name, Found()), whole.get(name, Found())
            same = (with_it.fresh, with_it.counted) == (without.fresh, without.counted)
            # The log may remember the mark of a queue that was forgotten since: that flags too much, never too little.
            flags = with_it.flagged <= without.flagged if shell.idle else with_it.flagged == without.flagged
            if not same or not flags:
                raise Broken(f"{name!r}: with a checkpoint {with_it}, without {without}")
        shell.counts["checkpoints compared"] += 1
    if random.random() < 0.3 and "data/META" in copy.files("data"):
        _verify(copy)
        shell.counts["verified"] += 1


def _verify(disk: SimDisk) -> None:
    """`stompd log verify` finds nothing."""
    audit = Audit(disk, "data")
    holes = [*audit.holes, *(item for item in audit.items() if isinstance(item, Hole))]
    audit.close()
    if holes:
        raise Broken(f"nothing was damaged, and `log verify` says {holes[:2]}")


def _find(disk: SimDisk, shell: Shell, *, use: bool) -> tuple[dict[bytes, Found], bool]:
    log = open_log(disk, "data", shell.settings.storage, shell.clock, Chance(Random(0)))
    account = Budget(0).account("positions on disk")
    if use:
        replay = replayed(log, account)
        if log.doubts:
            raise Broken(f"nothing was damaged, and a checkpoint is not used: {log.doubts}")
    else:
        replay = Replay(account)
        for item in log.replay(False, skim=True):
            replay.apply(item)
    found = {}
    for name, queue in replay._queues.items():
        one = Found()
        for seq, place, mask, _ in queue.fresh:
            one.fresh.update((each, place) for each in _seqs(queue.fresh, seq, mask))
        for seq, place, note, counts in queue.counted:
            deliveries, failures, _ = unpack_counts(counts)
            one.counted[seq] = (place, note, deliveries, failures)
        one.flagged = {seq for seq in one.fresh if seq <= queue.mark}
        if one.fresh or one.counted:
            found[name] = one
    log.close()
    return found, log.checkpoint is not None
