"""What must hold inside the broker at any moment: the books agree with what the queues really hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from broker.core.entries import ENTRY_BYTES
from broker.core.message import MESSAGE_COST, SETTLED, Message
from broker.core.positions import Runs
from broker.core.queue import Queue
from tests.core.world import World


def audit(world: World) -> None:
    """Compares segments and accounts with a count of every message. Not while a transaction is gathered."""
    broker = world.broker
    live: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    memory = entries = 0
    for queue in broker.queues.values():
        check_order(queue)
        for place, note, count, size in _on_disk(queue):
            live[place >> 32] += count
            sizes[place >> 32] += size
            if note and note != place:
                live[note >> 32] += 1
        entries += sum(1 for positions in (queue.stored, queue.counted) for _ in positions)
        memory += sum(message.size + MESSAGE_COST for message in queue.kept.values())
        if (loading := queue.loading) is not None:
            weigh = (queue.stored if loading.fresh else queue.counted).weigh
            for _, place, a, b in loading.entries:
                count, size = weigh(a, b)
                memory += (size + MESSAGE_COST * count) if place else 0
        flying = {id(m) for s in (*queue.subscriptions, *queue.leaving) for m in s.in_flight.values()}
        for message in queue.in_memory():
            memory += _cost(message, body=id(message) not in flying)
            _hold(message, live, sizes)
    for _, target, arrival in broker._ledger.waiting:
        if isinstance(target, str):
            continue
        if isinstance(arrival, tuple):
            live[arrival[1] >> 32] += arrival[2].bit_count()
            sizes[arrival[1] >> 32] += arrival[3]
            continue
        for message in arrival:
            memory += _cost(message, body=not message.deliveries)
            _hold(message, live, sizes)
    del live[0], sizes[0]
    segments = world.journal.segments
    assert {s.number: s.live for s in segments if s.live} == {n: count for n, count in live.items() if count}
    assert {s.number: s.live_bytes for s in segments if s.live_bytes} == {n: size for n, size in sizes.items() if size}
    accounts = world.budget.accounts
    assert accounts["messages"].used == memory
    assert accounts["positions on disk"].used == ENTRY_BYTES * entries
    assert world.budget.used == sum(account.used for account in accounts.values())


def _on_disk(queue: Queue) -> Iterator[tuple[int, int, int, int]]:
    """(place, note, messages, bytes) of each entry, those that are being read included."""
    for positions in (queue.stored, queue.counted):
        entries = list(positions)
        loading = queue.loading
        if loading is not None and loading.fresh is (positions is queue.stored):
            entries += [entry for entry in loading.entries if entry[0] not in loading.gone]
        for _, place, a, b in entries:
            count, size = positions.weigh(a, b)
            yield place, a if positions is queue.counted else 0, count, size


def _cost(message: Message, *, body: bool) -> int:
    if message.deliveries == SETTLED:
        return MESSAGE_COST
    return MESSAGE_COST + (message.size if body or not message.place else 0)


def _hold(message: Message, live: Counter[int], sizes: Counter[int]) -> None:
    if message.deliveries == SETTLED:
        return
    place, note = message.place, message.envelope.note
    live[place >> 32] += 1
    sizes[place >> 32] += message.size
    if note and note != place:
        live[note >> 32] += 1


def check_order(queue: Queue) -> None:
    """Nothing is there twice, and what was never delivered stands in the order of its seqs, from head to tail."""
    line = [message.seq for message in queue.ready]
    loading = queue.loading
    if loading is not None and loading.fresh:
        line += [seq for entry in loading.entries for seq in seqs_of(entry[0], entry[2])]
    last = -1
    for seq, _, mask, _ in queue.stored:
        assert seq > last, f"{queue.name}: entries reach across each other"
        last = queue.stored.last_of(seq, mask)
        line += seqs_of(seq, mask)
    line += [message.seq for message in queue.tail]
    assert line == sorted(set(line)), f"{queue.name} has lost its order"
    counted = [entry[0] for entry in queue.counted]
    assert counted == sorted(set(counted)), f"{queue.name} has lost the order of what was delivered before"
    if loading is not None and not loading.fresh:
        counted += [entry[0] for entry in loading.entries if entry[0] not in loading.gone]
    flying = [m.seq for s in (*queue.subscriptions, *queue.leaving) for m in s.in_flight.values()]
    every = [*line, *counted, *queue.again, *flying]
    assert len(every) == len(set(every)), f"{queue.name} has a message twice"


def seqs_of(seq: int, mask: int) -> list[int]:
    """The messages of an entry of `Runs`."""
    return [one for first, last in Runs.ranges(seq, mask) for one in range(first, last + 1)]
