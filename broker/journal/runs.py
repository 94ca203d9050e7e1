"""Runs of messages, bytes <-> values, pure: the records MESSAGES and CARRIED (docs/journal-format.md).

An encoder gives a payload as a list of buffers, so that big bodies go to the disk without being copied;
`decode_*` cut the bodies out of what was read exactly once, `skim_*` check as much and leave them where they
are: a start needs their sizes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from broker.errors import DataDamaged, FormatNotKnown

RUN_MAX: Final = 64  # messages in one record: what one flipped bit can cost
COPY_MAX: Final = (
    4096  # bytes; a larger body is a buffer of its own, a smaller one is cheaper copied than gathered
)


class Messages(
    NamedTuple
):  # one for each record of a backlog: a frozen dataclass takes twice as long to make
    """A run of messages that share `head`; the message at index i has the seq `first_seq + i`.

    queues: names of the queues that got it; () = the one called `destination`. stamp_ms: Unix time of
    acceptance.
    """

    destination: bytes
    queues: tuple[bytes, ...]
    head: bytes
    stamp_ms: int
    first_seq: int
    owns: list[bytes] | None
    bodies: list[bytes]


class Run(NamedTuple):
    """What a skim tells of MESSAGES. sizes: bytes of each message, its body and its own lines."""

    destination: bytes
    queues: tuple[bytes, ...]
    first_seq: int
    sizes: tuple[int, ...]


class Carried(NamedTuple):
    """Messages of `queue` as they are now, from an old record that is about to go; 1 to 64.

    entries: (seq, deliveries, failures) of each. note: what MOVED said of them, b"" where nothing did.
    Whatever was known of these (queue, seq) before is replaced.
    """

    queue: bytes
    destination: bytes
    head: bytes
    stamp_ms: int
    note: bytes
    entries: list[tuple[int, int, int]]
    owns: list[bytes] | None
    bodies: list[bytes]


class CarriedRun(NamedTuple):
    """What a skim tells of CARRIED. sizes: bytes of each message, its body and its own lines."""

    queue: bytes
    note: bytes
    entries: list[tuple[int, int, int]]
    sizes: tuple[int, ...]


# --------------------------------------------------------------------------------------------------- MESSAGES

_FIXED: Final = Struct("<QQIIHHHH")  # first seq, stamp, head, queues, count, destination, options, flags
_fixed = _FIXED.pack
_FIXED_ONE: Final = Struct("<QQIIHHHHI")  # the same and the first body's size
_fixed_one = _FIXED_ONE.pack
_one = _FIXED_ONE.unpack_from
_ONE_SIZE: Final = _FIXED_ONE.size
_U16: Final = Struct("<H")
_U64: Final = Struct("<Q")
_U32S: Final = [Struct(f"<{n}I") for n in range(RUN_MAX + 1)]
_sizes = [s.pack for s in _U32S]
_FLAG_OWNS: Final = 1
_join = b"".join


def messages_payload(
    destination: bytes,
    queues: Sequence[bytes],
    head: bytes,
    stamp_ms: int,
    first_seq: int,
    owns: list[bytes] | None,
    bodies: list[bytes],
) -> list[bytes]:
    """One run of 1 to 64 messages. Raises ValueError for another count, struct.error where a size does not
    fit.
    """
    if len(bodies) == 1 and owns is None and not queues:  # the path of every message that comes alone
        body = bodies[0]
        fixed = _fixed_one(first_seq, stamp_ms, len(head), 0, 1, len(destination), 0, 0, len(body))
        if len(body) <= COPY_MAX:
            return [_join((fixed, destination, head, body))]
        return [_join((fixed, destination, head)), body]
    count = len(bodies)
    if not 1 <= count <= RUN_MAX or (owns is not None and len(owns) != count):
        raise ValueError(
            f"a run has 1 to {RUN_MAX} messages, got {count} bodies and owns for {owns and len(owns)}"
        )
    names = _join([_U16.pack(len(name)) + name for name in queues]) if queues else b""
    sizes = list(map(len, bodies))
    if owns is None:
        parts = [
            _fixed(first_seq, stamp_ms, len(head), len(names), count, len(destination), 0, 0),
            _sizes[count](*sizes),
            destination,
            names,
            head,
        ]
    else:
        parts = [
            _fixed(first_seq, stamp_ms, len(head), len(names), count, len(destination), 0, _FLAG_OWNS),
            _sizes[count](*sizes),
            _sizes[count](*map(len, owns)),
            destination,
            names,
            head,
            *owns,
        ]
    if max(sizes) <= COPY_MAX:
        parts += bodies
        return [_join(parts)]
    return [_join(parts), *bodies]


def decode_messages(data: bytes, start: int, end: int) -> Messages:
    (first_seq, stamp_ms, head_size, names_size, count, dest_size, options, flags, size) = _one(data, start)
    if count == 1 and not (names_size or options or flags):  # one that came alone, as in messages_payload
        at = start + _ONE_SIZE
        head = at + dest_size
        body = head + head_size
        if body + size != end:
            raise DataDamaged("the sizes in a MESSAGES record do not add up")
        return Messages(data[at:head], (), data[head:body], stamp_ms, first_seq, None, [data[body:end]])
    at, sizes, own_sizes = _sizes_of_messages(data, start, end)
    destination = data[at : (at := at + dest_size)]
    queues: tuple[bytes, ...] = ()
    if names_size:
        queues = _decode_names(data, at, at + names_size)
        at += names_size
    shared = data[at : (at := at + head_size)]
    owns = [data[at : (at := at + size)] for size in own_sizes] if own_sizes else None
    bodies = [data[at : (at := at + size)] for size in sizes]
    return Messages(destination, queues, shared, stamp_ms, first_seq, owns, bodies)


def skim_messages(data: bytes, start: int, end: int) -> Run:
    """The same checks as `decode_messages`."""
    (first_seq, _, head_size, names_size, count, dest_size, options, flags, size) = _one(data, start)
    if count == 1 and not (names_size or options or flags):
        at = start + _ONE_SIZE
        if at + dest_size + head_size + size != end:
            raise DataDamaged("the sizes in a MESSAGES record do not add up")
        return Run(data[at : at + dest_size], (), first_seq, (size,))
    at, sizes, own_sizes = _sizes_of_messages(data, start, end)
    destination = data[at : (at := at + dest_size)]
    queues = _decode_names(data, at, at + names_size) if names_size else ()
    if own_sizes:
        sizes = tuple(map(int.__add__, sizes, own_sizes))
    return Run(destination, queues, first_seq, sizes)


def _sizes_of_messages(data: bytes, start: int, end: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where the destination begins, the sizes of the bodies and of the own lines (() for none)."""
    (_, _, head_size, names_size, count, dest_size, options, flags) = _FIXED.unpack_from(data, start)
    if options or flags & ~_FLAG_OWNS:
        raise FormatNotKnown(
            f"a MESSAGES record has {options} bytes of options and flags {flags:#x}, which are not known"
        )
    at, sizes, own_sizes = _numbers(data, start + _FIXED.size, count, flags, "MESSAGES")
    if at + dest_size + names_size + head_size + sum(own_sizes) + sum(sizes) != end:
        raise DataDamaged("the sizes in a MESSAGES record do not add up")
    return at, sizes, own_sizes


def _numbers(
    data: bytes, at: int, count: int, flags: int, name: str
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The sizes of bodies and own lines that begin at `at`, and where they end."""
    if not 1 <= count <= RUN_MAX:
        raise DataDamaged(f"a {name} record holds {count} messages, 1 to {RUN_MAX} are possible")
    sizes = _U32S[count].unpack_from(data, at)
    at += 4 * count
    if not flags & _FLAG_OWNS:
        return at, sizes, ()
    return at + 4 * count, sizes, _U32S[count].unpack_from(data, at)


def _decode_names(data: bytes, at: int, end: int) -> tuple[bytes, ...]:
    names = []
    while at < end:
        (size,) = _U16.unpack_from(data, at)
        at += 2
        names.append(data[at : at + size])
        at += size
    if at != end:
        raise DataDamaged("the queue names in a MESSAGES record do not add up")
    return tuple(names)


# ---------------------------------------------------------------------------------------------------- CARRIED

# stamp, sizes of head and note, count, sizes of queue and destination, flags
_CARRIED: Final = Struct("<QIIHHHH")
_STATE: Final = Struct("<QII")  # seq, deliveries, failures


def carried_payload(
    queue: bytes,
    destination: bytes,
    head: bytes,
    stamp_ms: int,
    note: bytes,
    entries: Sequence[tuple[int, int, int]],
    owns: list[bytes] | None,
    bodies: list[bytes],
) -> list[bytes]:
    """1 to 64 messages. Raises ValueError for another count, struct.error where a size does not fit."""
    count = len(bodies)
    if not 1 <= count <= RUN_MAX or len(entries) != count or (owns is not None and len(owns) != count):
        raise ValueError(
            f"{count} bodies, {len(entries)} entries and owns for {owns and len(owns)}: "
            f"1 to {RUN_MAX} are possible, as many of each"
        )
    flags = 0 if owns is None else _FLAG_OWNS
    sizes = list(map(len, bodies))
    parts = [
        _CARRIED.pack(stamp_ms, len(head), len(note), count, len(queue), len(destination), flags),
        *[_STATE.pack(*entry) for entry in entries],
        _sizes[count](*sizes),
    ]
    if owns is not None:
        parts.append(_sizes[count](*map(len, owns)))
    parts += (queue, destination, head, note)
    if owns is not None:
        parts += owns
    if max(sizes) <= COPY_MAX:
        parts += bodies
        return [_join(parts)]
    return [_join(parts), *bodies]


def decode_carried(data: bytes, start: int, end: int) -> Carried:
    at, entries, sizes, own_sizes = _carried_numbers(data, start, end)
    stamp_ms, head_size, note_size, _, queue_size, dest_size, _ = _CARRIED.unpack_from(data, start)
    queue = data[at : (at := at + queue_size)]
    destination = data[at : (at := at + dest_size)]
    head = data[at : (at := at + head_size)]
    note = data[at : (at := at + note_size)]
    owns = [data[at : (at := at + size)] for size in own_sizes] if own_sizes else None
    bodies = [data[at : (at := at + size)] for size in sizes]
    return Carried(queue, destination, head, stamp_ms, note, entries, owns, bodies)


def skim_carried(data: bytes, start: int, end: int) -> CarriedRun:
    """The same checks as `decode_carried`."""
    at, entries, sizes, own_sizes = _carried_numbers(data, start, end)
    _, head_size, note_size, _, queue_size, dest_size, _ = _CARRIED.unpack_from(data, start)
    behind = at + queue_size + dest_size + head_size
    if own_sizes:
        sizes = tuple(map(int.__add__, sizes, own_sizes))
    return CarriedRun(data[at : at + queue_size], data[behind : behind + note_size], entries, sizes)


def _carried_numbers(
    data: bytes, start: int, end: int
) -> tuple[int, list[tuple[int, int, int]], tuple[int, ...], tuple[int, ...]]:
    """Where the queue's name begins, the entries, the sizes of bodies and own lines (() for none)."""
    _, head_size, note_size, count, queue_size, dest_size, flags = _CARRIED.unpack_from(data, start)
    if flags & ~_FLAG_OWNS:
        raise FormatNotKnown(f"a CARRIED record has flags {flags:#x}, which are not known")
    at = start + _CARRIED.size
    behind = at + count * _STATE.size
    place, sizes, own_sizes = _numbers(data, behind, count, flags, "CARRIED")
    texts = queue_size + dest_size + head_size + note_size
    if place + texts + sum(own_sizes) + sum(sizes) != end:
        raise DataDamaged("the sizes in a CARRIED record do not add up")
    entries = [(seq, deliveries, failures) for seq, deliveries, failures in _STATE.iter_unpack(data[at:behind])]
    return place, entries, sizes, own_sizes
