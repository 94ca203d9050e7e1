"""Reads the records of one segment, one chunk at a time, and gathers the evidence where they end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from broker.errors import DataDamaged, FormatNotKnown
from broker.journal.records import HEADER, HEADER_BYTES, RecordType, decode
from broker.journal.segment import SEGMENT_HEADER_BYTES
from broker.journal.state import decode_seal
from broker.journal.verdict import Later, Rest
from broker.system import Disk, Handle

CHUNK_BYTES: Final = 1024 * 1024  # read-ahead; a larger record is read as a whole
_DIGEST_BYTES: Final = 16
_QUEUES_NAMED_MAX: Final = 8
# What may be spent on checking bytes that look like records behind a bad one. More than this is no
# accident, and to refuse the start is always safe.
_SEARCH_BYTES_MAX: Final = 16 * 1024 * 1024 * 1024


class Scan:
    """The sound records of a segment from its start: each with its crc, the next LSN and the right chain.

    lsn, crc, offset: of the last sound record, and where the next one would begin. sealed: whether it was a
    SEAL.
    """

    def __init__(
        self,
        disk: Disk,
        handle: Handle,
        path: str,
        seed: int,
        first_lsn: int,
        prev_crc: int,
        stop_lsn: int | None,
    ) -> None:
        """stop_lsn: the LSN of the last record, where it is known."""
        self._disk = disk
        self._handle = handle
        self.path = path
        self._seed = seed
        self._first_lsn = first_lsn
        self._stop_lsn = stop_lsn
        self.size = disk.size(handle)
        self.lsn = first_lsn - 1
        self.crc = prev_crc
        self.offset = SEGMENT_HEADER_BYTES
        self.sealed = False
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._heads: list[bytes] = []
        self._whole = True

    def resume(self, offset: int, lsn: int, prev_crc: int) -> None:
        """Goes on at `offset`, where a record with this LSN and chain begins: what was skipped is not vouched
        for.
        """
        self.offset, self.lsn, self.crc = offset, lsn - 1, prev_crc
        self.sealed = self._whole = False

    def records(self) -> Iterator[tuple[int, bytes, int, int, int]]:
        """(type, data, start of the payload in data, its end, lsn). Ends at the first that is not sound, or
        at stop_lsn.

        Raises FormatNotKnown for a sound record with flags, DataDamaged for a SEAL that does not fit its
        segment.
        """
        unpack, pack, seed, heads = HEADER.unpack_from, HEADER.pack, self._seed, self._heads
        data, view, base, at = b"", memoryview(b""), self.offset, 0
        while not self.sealed and self.lsn != self._stop_lsn:
            if at + HEADER_BYTES > len(data):
                data, base, at = self._read(base + at, CHUNK_BYTES), base + at, 0
                view = memoryview(data)
                if len(data) < HEADER_BYTES:
                    return
            length, crc, before, kind, flags, lsn, synced = unpack(data, at)
            if lsn != self.lsn + 1 or before != self.crc or kind == 0:
                return
            start = at + HEADER_BYTES
            padded = start + ((length + 7) & -8)
            if padded > len(data):
                if base + padded > self.size:
                    return
                data, base, at = self._read(base + at, max(CHUNK_BYTES, padded - at)), base + at, 0
                view = memoryview(data)
                start, padded = HEADER_BYTES, HEADER_BYTES + ((length + 7) & -8)
            if (
                crc32(view[start:padded], crc32(pack(length, 0, before, kind, flags, lsn, synced), seed))
                != crc
            ):
                return
            if flags:
                raise FormatNotKnown(
                    f"{self.path}: offset {base + at}: a record has flags {flags:#x}, not known here"
                )
            if kind == RecordType.SEAL:
                self._check_seal(data, start, start + length, base + at)
                self.sealed = True
            heads.append(data[at:start])
            self.lsn, self.crc, self.offset = lsn, crc, base + padded
            yield kind, data, start, start + length, lsn
            at = padded

    def _read(self, offset: int, size: int) -> bytes:
        self._digest.update(b"".join(self._heads))
        self._heads.clear()
        return self._disk.read(self._handle, size, offset)

    def _check_seal(self, data: bytes, start: int, end: int, offset: int) -> None:
        seal = decode_seal(data, start, end)
        self._digest.update(b"".join(self._heads))
        self._heads.clear()
        fits = (self.lsn, self.crc) == (seal.last_lsn, seal.last_crc)
        count = self.lsn + 1 - self._first_lsn
        if self._whole:
            fits = fits and (count, self._digest.digest()) == (seal.count, seal.digest)
        if not fits:
            raise DataDamaged(
                f"{self.path}: offset {offset}: the SEAL does not fit the {count} records before it"
            )


@dataclass(slots=True)
class Beyond:
    """What lies behind the last sound record, x being the LSN that should follow it."""

    later: Later
    rest: Rest
    cut_bytes: int  # up to the last byte that is not zero
    first_lsn: int | None  # of the first sound record found, with an LSN of x or higher
    queues: list[bytes]  # named by what could be read there, a few


def look_beyond(disk: Disk, handle: Handle, offset: int, size: int, seed: int, lsn: int) -> Beyond:
    """Looks at every place where a record could begin, from `offset` on, for one of LSN `lsn` or higher.

    It does not follow lengths: what is damaged must not be able to hide what lies behind it.
    """
    found = Beyond(Later.NONE, Rest.ZEROS, 0, None, [])
    search = Search(disk, handle, size, seed, lsn, lsn + (size - offset) // HEADER_BYTES)
    for base in range(offset, size, CHUNK_BYTES):
        data = disk.read(handle, CHUNK_BYTES + HEADER_BYTES, base)
        filled = len(data[:CHUNK_BYTES].rstrip(b"\0"))
        if not filled:
            continue
        found.rest = Rest.OTHER
        found.cut_bytes = base + filled - offset
        for _, fields, payload in search.chunk(data, base):
            found.first_lsn = min(fields[5], found.first_lsn or fields[5])
            _note_queues(found.queues, fields[3], payload, fields[0])
            if fields[6] >= lsn:
                found.later = Later.PROVEN
                return found
            found.later = Later.UNPROVEN
        if search.exhausted:
            found.later = Later.PROVEN
            return found
    return found


class Search:
    """Looks for sound records with an LSN from `lowest` to `highest` at every place where one could begin.

    exhausted: gave up, because too many bytes look like records.
    """

    def __init__(self, disk: Disk, handle: Handle, size: int, seed: int, lowest: int, highest: int) -> None:
        self._disk = disk
        self._handle = handle
        self._size = size
        self._seed = seed
        self._lowest = lowest
        self._highest = highest
        self._spent = 0

    @property
    def exhausted(self) -> bool:
        return self._spent > _SEARCH_BYTES_MAX

    def from_offset(self, offset: int) -> Iterator[tuple[int, tuple[int, ...], bytes]]:
        """(offset, header, payload) of all that are sound, in order; `offset` is a multiple of 8."""
        for base in range(offset, self._size, CHUNK_BYTES):
            data = self._disk.read(self._handle, CHUNK_BYTES + HEADER_BYTES, base)
            if data.count(0) < len(data):
                yield from self.chunk(data, base)
            if self.exhausted:
                return

    def chunk(self, data: bytes, base: int) -> Iterator[tuple[int, tuple[int, ...], bytes]]:
        """Those whose header lies in `data`, which was read from `base` on."""
        for at, fields in _candidates(data, self._lowest, self._highest):
            padded = (fields[0] + 7) & -8
            if base + at + HEADER_BYTES + padded > self._size:
                continue
            self._spent += padded
            payload = self._disk.read(self._handle, padded, base + at + HEADER_BYTES)
            if _sound(fields, payload, self._seed):
                yield base + at, fields, payload
            elif self.exhausted:
                return


def _candidates(data: bytes, lowest: int, highest: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(place, header) of all that could be a header, in order; `data` begins where a record may begin."""
    view = memoryview(data)
    hits: list[tuple[int, tuple[int, ...]]] = []
    for phase in range(0, HEADER_BYTES, 8):
        whole = (len(data) - phase) // HEADER_BYTES * HEADER_BYTES
        if whole <= 0:
            continue
        for index, fields in enumerate(HEADER.iter_unpack(view[phase : phase + whole])):
            if lowest <= fields[5] <= highest and fields[6] < fields[5] and fields[3]:
                hits.append((phase + index * HEADER_BYTES, fields))
    hits.sort()
    return iter(hits)


def _sound(fields: tuple[int, ...], payload: bytes, seed: int) -> bool:
    length, crc, before, kind, flags, lsn, synced = fields
    return crc32(payload, crc32(HEADER.pack(length, 0, before, kind, flags, lsn, synced), seed)) == crc


def _note_queues(queues: list[bytes], kind: int, payload: bytes, length: int) -> None:
    """Adds the names that a record bears, for the text about damage. Never raises: it is only a hint."""
    try:
        values = decode(kind, payload, 0, length)
    except (DataDamaged, FormatNotKnown):
        return
    for _, value in values:
        for field in ("destination", "queue", "source"):
            name = getattr(value, field, None)
            if name is not None and name not in queues and len(queues) < _QUEUES_NAMED_MAX:
                queues.append(name)


def queues_at(disk: Disk, handle: Handle, offset: int) -> list[bytes]:
    """Names in the damaged record at `offset`, as far as its parts still make sense; for the text only."""
    head = disk.read(handle, HEADER_BYTES, offset)
    queues: list[bytes] = []
    if len(head) == HEADER_BYTES:
        length, _, _, kind, _, _, _ = HEADER.unpack(head)
        if length <= CHUNK_BYTES:
            _note_queues(queues, kind, disk.read(handle, length, offset + HEADER_BYTES), length)
    return queues
