"""Reads records back from their places, each verified: what a queue that does not fit into memory lives on.

Runs in a thread of its own. What a disk can do is a result here, never an exception: one bad record must not
take its neighbours with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple
from zlib import crc32

from broker.errors import PASSING, DataDamaged, StompdError
from broker.journal.records import HEADER, HEADER_BYTES, RecordType, Value, decode
from broker.journal.segment import (
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    number_of,
    offset_of,
    segment_name,
)
from broker.journal.writer import join_path
from broker.system import Disk, Handle

_SMALL_BYTES: Final = 4096  # the first look at a record that has no neighbours
_WINDOW_BYTES: Final = 1024 * 1024  # one read of neighbours; a larger record is read as a whole
_FILES_MAX: Final = 8  # kept open


class Record(NamedTuple):
    """A sound record. values as from `decode`; a TRANSACTION gives one for each of its parts."""

    place: int
    lsn: int
    values: list[tuple[RecordType, Value]]


class Damage(NamedTuple):
    """A record that is not sound or cannot be read. text: file, offset, what was expected and what came.

    passing: not the medium's fault (no file descriptor, no memory); the same read may succeed later.
    """

    place: int
    text: str
    passing: bool = False


class _File(NamedTuple):
    handle: Handle
    first_lsn: int | None  # None where the segment's own header cannot be read; its records have their CRC


class Reader:
    """The segments of one log, for reading at any place.

    Used by one thread: `read`, `forget` and `close` must not run at the same time.
    """

    def __init__(self, disk: Disk, log_dir: str, log_id: bytes, path_of: Callable[[int], str] | None = None) -> None:
        """path_of: where the segment with a number lies; in a sound log its name says it."""
        self._disk = disk
        self._path = path_of or (lambda number: join_path(log_dir, segment_name(number)))
        self._log_id = log_id
        self._seed = crc32(log_id)
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._usual = 0  # bytes of the record read last: how far apart neighbours are likely to lie
        # What was read last, from offset `_base` of segment `_number` on.
        self._number = 0
        self._base = 0
        self._data = b""

    def read(self, places: Sequence[int], limit: int = 0) -> list[Record | Damage]:
        """One result for each place, in the order asked. Cheapest where places ascend.

        limit: bytes of records, 0 for any; with more than that there are no results for the rest of the places. The
        first two always have one: a message may need two records. Never raises for what a disk can do. Holds up to
        1 MiB (or one record) besides the results.
        """
        results: list[Record | Damage] = []
        size = 0
        try:
            for index, place in enumerate(places):
                if limit and size >= limit and index > 1:
                    break
                try:
                    results.append(self._record(place, places, index))
                    size += self._usual
                except OSError as error:
                    results.append(self._unreadable(place, error))
                except StompdError as error:
                    results.append(Damage(place, self._text(place, str(error))))
        finally:
            self._number, self._data = 0, b""
        return results

    def forget(self, number: int) -> None:
        """Closes a segment's file, so that its space comes back when its name is gone."""
        file = self._files.pop(number, None)
        if file is not None:
            self._close(file)

    def close(self) -> None:
        while self._files:
            self._close(self._files.popitem()[1])

    # ------------------------------------------------------------------------------------------- one record

    def _record(self, place: int, places: Sequence[int], index: int) -> Record:
        """Raises OSError, or StompdError for a record that is not sound."""
        number, offset = number_of(place), offset_of(place)
        file = self._files.get(number) or self._open(number)
        at = offset - self._base
        if number != self._number or at < 0 or at + HEADER_BYTES > len(self._data):
            at = self._fill(file, number, offset, self._span(places, index))
        data = self._data
        if at + HEADER_BYTES > len(data):
            raise DataDamaged("the file ends before this record does")
        length, crc, before, kind, flags, lsn, synced = HEADER.unpack_from(data, at)
        start = at + HEADER_BYTES
        padded = start + ((length + 7) & -8)
        if padded > len(data):
            # Its length is not verified yet and may be anything: it must lie in the file before it is read.
            if offset + padded - at > self._disk.size(file.handle):
                raise DataDamaged(f"the record says that it has {length} bytes, and the file ends before")
            at = self._fill(file, number, offset, max(padded - at, self._span(places, index)))
            data, start, padded = self._data, at + HEADER_BYTES, at + HEADER_BYTES + ((length + 7) & -8)
            if padded > len(data):
                raise DataDamaged("the file ends before this record does")
        found = crc32(
            memoryview(data)[start:padded],
            crc32(HEADER.pack(length, 0, before, kind, flags, lsn, synced), self._seed),
        )
        if found != crc:
            raise DataDamaged(f"the record is damaged (crc {crc:#010x} expected, {found:#010x} found)")
        if flags:
            raise DataDamaged(f"the record has flags {flags:#x}, which are not known")
        self._check_lsn(lsn, file.first_lsn, offset)
        values = decode(kind, data, start, start + length)
        if not values:
            raise DataDamaged(f"expected a record with messages, found one of type {kind}")
        self._usual = padded - at
        return Record(place, lsn, values)

    @staticmethod
    def _check_lsn(lsn: int, first_lsn: int | None, offset: int) -> None:
        """A sound record may still lie in the wrong place: its LSN must be possible there."""
        lowest = first_lsn or 1
        highest = lowest + (offset - SEGMENT_HEADER_BYTES) // HEADER_BYTES if first_lsn else None
        if lsn < lowest or (highest is not None and lsn > highest):
            raise DataDamaged(
                f"the record has lsn {lsn}, possible here are {lowest} to {highest or 'any'}: it lies in "
                "the wrong place"
            )

    def _span(self, places: Sequence[int], index: int) -> int:
        """How many bytes to read for this place and those neighbours of it that come next."""
        near = 2 * self._usual + _SMALL_BYTES
        first = last = places[index]
        end = first + _WINDOW_BYTES - self._usual
        while (index := index + 1) < len(places) and last <= places[index] <= last + near:
            if places[index] > end:
                break
            last = places[index]
        if last == first:
            return _SMALL_BYTES
        return min(_WINDOW_BYTES, last - first + max(_SMALL_BYTES, self._usual))

    # ------------------------------------------------------------------------------------------------ files

    def _fill(self, file: _File, number: int, offset: int, size: int) -> int:
        """Reads from `offset` on; the place of `offset` in the buffer. Raises OSError."""
        self._number, self._data = 0, b""
        try:
            data = self._disk.read(file.handle, size, offset)
        except OSError:
            if size <= _SMALL_BYTES:
                raise
            data = self._read_alone(file, offset)  # a bad sector further on is none of this record's
        self._number, self._base, self._data = number, offset, data
        return 0

    def _read_alone(self, file: _File, offset: int) -> bytes:
        """The bytes of one record and no others. Raises OSError."""
        head = self._disk.read(file.handle, HEADER_BYTES, offset)
        if len(head) < HEADER_BYTES:
            return head
        size = HEADER_BYTES + ((HEADER.unpack(head)[0] + 7) & -8)
        if offset + size > self._disk.size(file.handle):
            return head
        return self._disk.read(file.handle, size, offset)

    def _open(self, number: int) -> _File:
        """Raises OSError, or DataDamaged where the file is sound and another log's or segment's."""
        path = self._path(number)
        handle = self._disk.open(path)
        try:
            file = _File(handle, self._first_lsn(handle, number, path))
        except BaseException:
            self._disk.close(handle)
            raise
        while len(self._files) >= _FILES_MAX:
            self._close(self._files.popitem(last=False)[1])
        self._files[number] = file
        return file

    def _first_lsn(self, handle: Handle, number: int, path: str) -> int | None:
        try:
            header = SegmentHeader.unpack(self._disk.read(handle, SEGMENT_HEADER_BYTES, 0), path)
        except (StompdError, OSError):
            return None  # a bad sector at the start does not spoil the records: each has its own CRC
        if header.log_id != self._log_id or header.number != number:
            raise DataDamaged(
                f"the file is segment {header.number} of log {header.log_id.hex()}; expected segment {number} of "
                f"log {self._log_id.hex()}"
            )
        return header.first_lsn

    def _close(self, file: _File) -> None:
        with suppress(OSError):  # it was only read from
            self._disk.close(file.handle)

    def _text(self, place: int, what: str) -> str:
        return f"{self._path(number_of(place))}: offset {offset_of(place)}: {what}"

    def _unreadable(self, place: int, error: OSError) -> Damage:
        what = f"cannot be read ({error.strerror or error})"
        return Damage(place, self._text(place, what), error.errno in PASSING)
