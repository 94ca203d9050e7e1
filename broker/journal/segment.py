"""One file of the log: its name, its header, what the journal remembers of it; and META, the file beside
the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct
from typing import Final
from zlib import crc32

from broker.errors import DataDamaged, FormatNotKnown

FORMAT_VERSION: Final = 1
SEGMENT_HEADER_BYTES: Final = 512
META_BYTES: Final = 64

_SEGMENT_MAGIC: Final = b"STOMPDSG"
_META_MAGIC: Final = b"STOMPDMT"
# magic, version, 0, log id, number, first lsn, previous number, previous last lsn, previous crc, 0, size,
# low, wall ms
_SEGMENT: Final = Struct("<8sII16sQQQQIIQQQ")
_META: Final = Struct("<8sII16sQ")  # magic, version, 0, log id, wall ms
_CRC: Final = Struct("<I")
_NAME: Final = re.compile(r"([0-9]{20})\.seg")
_OFFSET_BITS: Final = 32  # a segment is far smaller than 4 GiB
_OFFSET_MASK: Final = (1 << _OFFSET_BITS) - 1


def place_of(number: int, offset: int) -> int:
    """Where a record lies: the number of its segment and the offset (bytes) of its header in one int.

    0 is no place: segments are numbered from 1.
    """
    return number << _OFFSET_BITS | offset


def number_of(place: int) -> int:
    return place >> _OFFSET_BITS


def offset_of(place: int) -> int:
    return place & _OFFSET_MASK


def segment_name(number: int) -> str:
    return f"{number:020d}.seg"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name, None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first 512 bytes of a segment. It also says where the segment before it ends."""

    log_id: bytes
    number: int
    first_lsn: int
    prev_number: int  # 0 for the first segment
    prev_last_lsn: int
    prev_crc: int  # crc field of the record `prev_last_lsn`, 0 where there is none
    size: int  # bytes that were allocated, this header included; a shorter file has lost its end
    low: int  # the oldest segment that was needed when this one was made
    created_ms: int

    def pack(self) -> bytes:
        fields = _SEGMENT.pack(
            _SEGMENT_MAGIC,
            FORMAT_VERSION,
            0,
            self.log_id,
            self.number,
            self.first_lsn,
            self.prev_number,
            self.prev_last_lsn,
            self.prev_crc,
            0,
            self.size,
            self.low,
            self.created_ms,
        )
        return sealed(fields, SEGMENT_HEADER_BYTES)

    @classmethod
    def unpack(cls, data: bytes, path: str) -> SegmentHeader:
        """Raises DataDamaged, or FormatNotKnown for a sound header of another version."""
        version = check_sealed(data, SEGMENT_HEADER_BYTES, _SEGMENT_MAGIC, path, "segment header")
        if version != FORMAT_VERSION:
            raise FormatNotKnown(
                f"{path}: log format {version}, this version of stompd reads {FORMAT_VERSION}"
            )
        fields = _SEGMENT.unpack_from(data)
        return cls(*fields[3:9], *fields[10:])


@dataclass(frozen=True, slots=True)
class Meta:
    """Which log this data folder holds. Written once, last of all files of the first start."""

    log_id: bytes
    created_ms: int

    def pack(self) -> bytes:
        return sealed(_META.pack(_META_MAGIC, FORMAT_VERSION, 0, self.log_id, self.created_ms), META_BYTES)

    @classmethod
    def unpack(cls, data: bytes, path: str) -> Meta:
        """Raises DataDamaged, or FormatNotKnown for a sound META of another version."""
        version = check_sealed(data, META_BYTES, _META_MAGIC, path, "META")
        if version != FORMAT_VERSION:
            raise FormatNotKnown(
                f"{path}: data format {version}, this version of stompd reads {FORMAT_VERSION}"
            )
        _, _, _, log_id, created_ms = _META.unpack_from(data)
        return cls(log_id, created_ms)


def sealed(fields: bytes, size: int) -> bytes:
    """`fields`, zeros up to `size`, and in the last four bytes the CRC-32 of all before them."""
    block = fields.ljust(size - 4, b"\0")
    return block + _CRC.pack(crc32(block))


def check_sealed(data: bytes, size: int, magic: bytes, path: str, what: str) -> int:
    """The version. The CRC comes first: a flipped bit in the version is damage, not a newer stompd."""
    if len(data) != size:
        raise DataDamaged(f"{path}: the {what} has {len(data)} bytes instead of {size}")
    (said,) = _CRC.unpack_from(data, size - 4)
    found = crc32(data[: size - 4])
    if said != found:
        raise DataDamaged(
            f"{path}: offset 0: the {what} is damaged (crc {said:#010x} expected, {found:#010x} found)"
        )
    if data[:8] != magic:
        raise DataDamaged(f"{path}: offset 0: not the {what} of a stompd log (it begins with {data[:8]!r})")
    return int.from_bytes(data[8:12], "little")


class Segment:
    """A segment as the journal and the core share it.

    live, live_bytes: how many messages whose record lies here are still wanted, and what they hold (own lines and
    bodies). readers: reads of it that are under way. The core counts these; the journal only reads them.
    last_lsn and end (bytes) are those of the last record so far.
    """

    __slots__ = ("end", "first_lsn", "last_lsn", "live", "live_bytes", "number", "path", "readers", "size")

    def __init__(self, number: int, first_lsn: int, path: str, size: int) -> None:
        self.number = number
        self.first_lsn = first_lsn
        self.path = path
        self.size = size
        self.live = 0
        self.live_bytes = 0
        self.readers = 0
        self.last_lsn = first_lsn - 1
        self.end = SEGMENT_HEADER_BYTES

    def __repr__(self) -> str:
        return f"<Segment {self.number} lsn {self.first_lsn}-{self.last_lsn} live {self.live}>"
