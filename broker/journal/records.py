"""Records, bytes <-> values, pure. docs/journal-format.md has the same, byte by byte.

An encoder gives a payload as a list of buffers, so that big bodies go to the disk without being copied;
decoders take a buffer and the payload's place in it, so that a body is cut out of what was read exactly
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from broker.errors import DataDamaged, FormatNotKnown

HEADER: Final = Struct("<IIIHHQQ")  # length, crc, crc of the record before, type, flags, lsn, synced lsn
HEADER_BYTES: Final = 32
RUN_MAX: Final = 64  # messages in one record: what one flipped bit can cost
COPY_MAX: Final = (
    4096  # bytes; a larger body is a buffer of its own, a smaller one is cheaper copied than gathered
)


class RecordType(IntEnum):
    """Never 0, so that zeroed space is never a record. Numbers are for ever."""

    MESSAGES = 1
    ACKED = 2
    RETURNED = 3
    DELIVERED = 4
    MOVED = 5
    TRANSACTION = 6
    TRIM = 7
    EPOCH = 8
    SEAL = 9
    WITNESS = 10


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


@dataclass(frozen=True, slots=True)
class Acked:
    """Messages of `queue` that are gone for good. seqs: ranges (first, last), both included."""

    queue: bytes
    seqs: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Returned:
    """Messages that went back to their place: (first seq, last seq, deliveries, failures)."""

    queue: bytes
    entries: list[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The high-water mark of deliveries: no message of `queue` above `seq` was ever sent to a client."""

    queue: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class Moved:
    """Messages that left `source` for `target`, without their bodies: (first seq, last seq, deliveries,
    failures).
    """

    source: bytes
    target: bytes
    entries: list[tuple[int, int, int, int]]
    note: bytes


Value = Messages | Acked | Returned | Delivered | Moved


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
    if options or flags & ~_FLAG_OWNS:
        raise FormatNotKnown(
            f"a MESSAGES record has {options} bytes of options and flags {flags:#x}, which are not known"
        )
    if not 1 <= count <= RUN_MAX:
        raise DataDamaged(f"a MESSAGES record holds {count} messages, 1 to {RUN_MAX} are possible")
    at = start + _FIXED.size
    sizes = _U32S[count].unpack_from(data, at)
    at += 4 * count
    own_sizes: tuple[int, ...] = ()
    if flags & _FLAG_OWNS:
        own_sizes = _U32S[count].unpack_from(data, at)
        at += 4 * count
    if at + dest_size + names_size + head_size + sum(own_sizes) + sum(sizes) != end:
        raise DataDamaged("the sizes in a MESSAGES record do not add up")
    destination = data[at : (at := at + dest_size)]
    queues: tuple[bytes, ...] = ()
    if names_size:
        queues = _decode_names(data, at, at + names_size)
        at += names_size
    shared = data[at : (at := at + head_size)]
    owns = [data[at : (at := at + size)] for size in own_sizes] if own_sizes else None
    bodies = [data[at : (at := at + size)] for size in sizes]
    return Messages(destination, queues, shared, stamp_ms, first_seq, owns, bodies)


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


# -------------------------------------------------------------------------- ACKED, RETURNED, DELIVERED, MOVED

_ACKED: Final = Struct("<HHI")  # size of the queue's name, kind, count
_ONE_RANGE: Final = Struct("<HHIQQ")
_KIND_SINGLE: Final = 0  # count x u64
_KIND_RANGES: Final = 1  # count x (first u64, last u64)
_ENTRY: Final = Struct("<QQII")
_RETURNED: Final = Struct("<HHI")  # size of the queue's name, 0, count
_DELIVERED: Final = Struct("<QH")
_MOVED: Final = Struct("<HHII")  # sizes of source and target, size of the note, count
_RANGES_FROM: Final = 256  # from so many seqs on it pays to look for ranges among them


def acked_payload(queue: bytes, seqs: Sequence[int]) -> list[bytes]:
    """`seqs` in any order. The name lies behind the numbers, which keeps those aligned."""
    count = len(seqs)
    first = seqs[0]
    if count == 1 or (seqs[-1] - first == count - 1 and list(seqs) == list(range(first, first + count))):
        return [_ONE_RANGE.pack(len(queue), _KIND_RANGES, 1, first, seqs[-1]) + queue]
    if count >= _RANGES_FROM:
        ranges = _ranges(seqs)
        if 2 * len(ranges) <= count:
            numbers = [number for pair in ranges for number in pair]
            packed = Struct(f"<{len(numbers)}Q").pack(*numbers)
            return [_ACKED.pack(len(queue), _KIND_RANGES, len(ranges)) + packed + queue]
    return [_ACKED.pack(len(queue), _KIND_SINGLE, count) + Struct(f"<{count}Q").pack(*seqs) + queue]


def _ranges(seqs: Sequence[int]) -> list[tuple[int, int]]:
    ranges = []
    first = last = seqs[0]
    for seq in seqs[1:]:
        if seq != last + 1:
            ranges.append((first, last))
            first = seq
        last = seq
    ranges.append((first, last))
    return ranges


def decode_acked(data: bytes, start: int, end: int) -> Acked:
    name_size, kind, count = _ACKED.unpack_from(data, start)
    at = start + _ACKED.size
    if kind == _KIND_RANGES:
        numbers = Struct(f"<{2 * count}Q").unpack_from(data, at)
        at += 16 * count
        seqs = list(zip(numbers[::2], numbers[1::2], strict=True))
    elif kind == _KIND_SINGLE:
        seqs = [(seq, seq) for seq in Struct(f"<{count}Q").unpack_from(data, at)]
        at += 8 * count
    else:
        raise FormatNotKnown(f"an ACKED record is of kind {kind}, which is not known")
    if at + name_size != end:
        raise DataDamaged("the sizes in an ACKED record do not add up")
    return Acked(data[at:end], seqs)


def returned_payload(queue: bytes, entries: Sequence[tuple[int, int, int, int]]) -> list[bytes]:
    """entries: (first seq, last seq, deliveries, failures)."""
    head = _RETURNED.pack(len(queue), 0, len(entries))
    return [_join([head, *[_ENTRY.pack(*entry) for entry in entries], queue])]


def decode_returned(data: bytes, start: int, end: int) -> Returned:
    name_size, kind, count = _RETURNED.unpack_from(data, start)
    if kind:
        raise FormatNotKnown(f"a RETURNED record is of kind {kind}, which is not known")
    at = start + _RETURNED.size + count * _ENTRY.size
    if at + name_size != end:
        raise DataDamaged("the sizes in a RETURNED record do not add up")
    return Returned(data[at:end], _entries(data, start + _RETURNED.size, count))


def _entries(data: bytes, at: int, count: int) -> list[tuple[int, int, int, int]]:
    return [(a, b, c, d) for a, b, c, d in _ENTRY.iter_unpack(data[at : at + count * _ENTRY.size])]


def delivered_payload(queue: bytes, seq: int) -> list[bytes]:
    return [_DELIVERED.pack(seq, len(queue)) + queue]


def decode_delivered(data: bytes, start: int, end: int) -> Delivered:
    seq, name_size = _DELIVERED.unpack_from(data, start)
    at = start + _DELIVERED.size
    if at + name_size != end:
        raise DataDamaged("the sizes in a DELIVERED record do not add up")
    return Delivered(data[at:end], seq)


def moved_payload(
    source: bytes, target: bytes, entries: Sequence[tuple[int, int, int, int]], note: bytes
) -> list[bytes]:
    """entries: (first seq, last seq, deliveries, failures); `note` means nothing to the journal."""
    head = _MOVED.pack(len(source), len(target), len(note), len(entries))
    return [_join([head, *[_ENTRY.pack(*entry) for entry in entries], source, target, note])]


def decode_moved(data: bytes, start: int, end: int) -> Moved:
    source_size, target_size, note_size, count = _MOVED.unpack_from(data, start)
    at = start + _MOVED.size
    entries = _entries(data, at, count)
    at += count * _ENTRY.size
    if at + source_size + target_size + note_size != end:
        raise DataDamaged("the sizes in a MOVED record do not add up")
    source = data[at : (at := at + source_size)]
    target = data[at : (at := at + target_size)]
    return Moved(source, target, entries, data[at:end])


# ------------------------------------------------------------------------------------------------ TRANSACTION

_PART: Final = Struct("<HHI")  # type, 0, size
_COUNT: Final = Struct("<II")  # parts, 0


def transaction_payload(parts: Sequence[tuple[RecordType, list[bytes]]]) -> list[bytes]:
    """All of a COMMIT as one record, so that it is there wholly or not at all."""
    buffers = [_COUNT.pack(len(parts), 0)]
    for kind, payload in parts:
        buffers.append(_PART.pack(kind, 0, sum(map(len, payload))))
        buffers += payload
    small: list[bytes] = []
    merged: list[bytes] = []
    for buffer in buffers:
        if len(buffer) > COPY_MAX:
            if small:
                merged.append(_join(small))
                small = []
            merged.append(buffer)
        else:
            small.append(buffer)
    if small:
        merged.append(_join(small))
    return merged


def decode_transaction(data: bytes, start: int, end: int) -> list[tuple[RecordType, Value]]:
    count, reserved = _COUNT.unpack_from(data, start)
    if reserved:
        raise FormatNotKnown(f"a TRANSACTION record has flags {reserved:#x}, which are not known")
    at = start + _COUNT.size
    found: list[tuple[RecordType, Value]] = []
    for _ in range(count):
        kind, flags, size = _PART.unpack_from(data, at)
        at += _PART.size
        decode = DECODERS.get(kind)
        if decode is None or flags:
            raise FormatNotKnown(
                f"a part of a TRANSACTION has type {kind} and flags {flags:#x}, which are not known"
            )
        if at + size > end:
            raise DataDamaged("the sizes in a TRANSACTION record do not add up")
        found.append((TYPES[kind], decode(data, at, at + size)))
        at += size
    if at != end:
        raise DataDamaged("the sizes in a TRANSACTION record do not add up")
    return found


# What a record of each type that the core wrote is read with.
DECODERS: Final[dict[int, Callable[[bytes, int, int], Value]]] = {
    RecordType.MESSAGES: decode_messages,
    RecordType.ACKED: decode_acked,
    RecordType.RETURNED: decode_returned,
    RecordType.DELIVERED: decode_delivered,
    RecordType.MOVED: decode_moved,
}
STATE_TYPES: Final = frozenset((RecordType.TRIM, RecordType.EPOCH, RecordType.WITNESS))


TYPES: Final = {int(kind): kind for kind in RecordType}  # quicker than RecordType(...)


def decode(kind: int, data: bytes, start: int, end: int) -> list[tuple[RecordType, Value]]:
    """What the record says to the core: [(type, value), ...]; a TRANSACTION gives its parts, the journal's
    own none.

    Raises FormatNotKnown for what a newer stompd may have written, DataDamaged where the parts do not add
    up.
    """
    try:
        if (decoder := DECODERS.get(kind)) is not None:
            return [(TYPES[kind], decoder(data, start, end))]
        if kind == RecordType.TRANSACTION:
            return decode_transaction(data, start, end)
    except StructError as error:
        raise DataDamaged(f"a record of type {kind} is too short for what it says ({error})") from error
    if kind in STATE_TYPES or kind == RecordType.SEAL:
        return []
    raise FormatNotKnown(f"a record has type {kind}, which this version does not know")
