"""Records, bytes <-> values, pure. docs/journal-format.md has the same, byte by byte.

An encoder gives a payload as a list of buffers; decoders take a buffer and the payload's place in it. Runs
of messages are in `runs.py`; whoever needs records finds all of them here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from struct import error as StructError
from typing import Final

from broker.errors import DataDamaged, FormatNotKnown
from broker.journal.runs import (
    COPY_MAX,
    RUN_MAX,
    Carried,
    CarriedRun,
    Messages,
    Run,
    carried_payload,
    decode_carried,
    decode_messages,
    messages_payload,
    skim_carried,
    skim_messages,
)

__all__ = [
    "COPY_MAX", "DECODERS", "HEADER", "HEADER_BYTES", "RUN_MAX", "SKIMMERS", "STATE_TYPES", "TYPES", "Acked",
    "Carried", "CarriedRun", "Delivered", "Lost", "Messages", "Moved", "RecordType", "Returned", "Run",
    "Value", "acked_payload", "carried_payload", "decode", "delivered_payload", "lost_payload",
    "messages_payload", "moved_payload", "returned_payload", "skim", "transaction_payload",
]  # fmt: skip

HEADER: Final = Struct("<IIIHHQQ")  # length, crc, crc of the record before, type, flags, lsn, synced lsn
HEADER_BYTES: Final = 32


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
    CARRIED = 11
    LOST = 12


@dataclass(frozen=True, slots=True)
class Acked:
    """Messages of `queue` that are gone for good. seqs: ranges (first, last), both included."""

    queue: bytes
    seqs: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages of `queue` that an operator gave up. seqs: ranges (first, last), both included."""

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


# Run and CarriedRun come from a skim only, in the place of Messages and Carried.
Value = Messages | Acked | Returned | Delivered | Moved | Carried | Lost | Run | CarriedRun
Decoder = Callable[[bytes, int, int], Value]


# -------------------------------------------------------------------- ACKED, LOST, RETURNED, DELIVERED, MOVED

_join = b"".join

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
    return Acked(*_decode_ranges(data, start, end, "ACKED"))


def lost_payload(queue: bytes, seqs: Sequence[int]) -> list[bytes]:
    """Like ACKED, byte for byte; only the type says who gave the messages up."""
    return acked_payload(queue, seqs)


def decode_lost(data: bytes, start: int, end: int) -> Lost:
    return Lost(*_decode_ranges(data, start, end, "LOST"))


def _decode_ranges(data: bytes, start: int, end: int, type: str) -> tuple[bytes, list[tuple[int, int]]]:
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
        raise FormatNotKnown(f"a record of type {type} is of kind {kind}, which is not known")
    if at + name_size != end:
        raise DataDamaged(f"the sizes in a record of type {type} do not add up")
    return data[at:end], seqs


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


def decode_transaction(
    data: bytes, start: int, end: int, decoders: dict[int, Decoder]
) -> list[tuple[RecordType, Value]]:
    count, reserved = _COUNT.unpack_from(data, start)
    if reserved:
        raise FormatNotKnown(f"a TRANSACTION record has flags {reserved:#x}, which are not known")
    at = start + _COUNT.size
    found: list[tuple[RecordType, Value]] = []
    for _ in range(count):
        kind, flags, size = _PART.unpack_from(data, at)
        at += _PART.size
        decoder = decoders.get(kind)
        if decoder is None or flags:
            raise FormatNotKnown(
                f"a part of a TRANSACTION has type {kind} and flags {flags:#x}, which are not known"
            )
        if at + size > end:
            raise DataDamaged("the sizes in a TRANSACTION record do not add up")
        found.append((TYPES[kind], decoder(data, at, at + size)))
        at += size
    if at != end:
        raise DataDamaged("the sizes in a TRANSACTION record do not add up")
    return found


# What a record of each type that the core wrote is read with.
DECODERS: Final[dict[int, Decoder]] = {
    RecordType.MESSAGES: decode_messages,
    RecordType.ACKED: decode_acked,
    RecordType.RETURNED: decode_returned,
    RecordType.DELIVERED: decode_delivered,
    RecordType.MOVED: decode_moved,
    RecordType.CARRIED: decode_carried,
    RecordType.LOST: decode_lost,
}
SKIMMERS: Final[dict[int, Decoder]] = {
    **DECODERS,
    RecordType.MESSAGES: skim_messages,
    RecordType.CARRIED: skim_carried,
}
STATE_TYPES: Final = frozenset((RecordType.TRIM, RecordType.EPOCH, RecordType.WITNESS))


TYPES: Final = {int(kind): kind for kind in RecordType}  # quicker than RecordType(...)


def decode(
    kind: int, data: bytes, start: int, end: int, decoders: dict[int, Decoder] = DECODERS
) -> list[tuple[RecordType, Value]]:
    """What the record says to the core: [(type, value), ...]; a TRANSACTION gives its parts, the journal's
    own none.

    Raises FormatNotKnown for what a newer stompd may have written, DataDamaged where the parts do not add
    up.
    """
    try:
        if (decoder := decoders.get(kind)) is not None:
            return [(TYPES[kind], decoder(data, start, end))]
        if kind == RecordType.TRANSACTION:
            return decode_transaction(data, start, end, decoders)
    except StructError as error:
        raise DataDamaged(f"a record of type {kind} is too short for what it says ({error})") from error
    if kind in STATE_TYPES or kind == RecordType.SEAL:
        return []
    raise FormatNotKnown(f"a record has type {kind}, which this version does not know")


def skim(kind: int, data: bytes, start: int, end: int) -> list[tuple[RecordType, Value]]:
    """Like `decode`, but MESSAGES gives a Run and CARRIED a CarriedRun: no body is cut out."""
    return decode(kind, data, start, end, SKIMMERS)
