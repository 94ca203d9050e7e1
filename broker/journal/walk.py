"""Reads all that is sound in a segment, in front of damage and behind it, and names what is not.

A start ends at the first damage, because nothing behind it may be served as if nothing had happened. Whoever
wants to know how much there is (the scrub, `stompd log`) walks on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from broker.errors import DataDamaged, FormatNotKnown
from broker.journal.records import HEADER, HEADER_BYTES
from broker.journal.scan import Scan, Search, queues_at
from broker.journal.segment import SEGMENT_HEADER_BYTES, SegmentHeader
from broker.system import Disk, Handle

_LSN_MAX: Final = (1 << 64) - 1


class Sound(NamedTuple):
    """A record whose CRC, LSN and chain are right; its payload is data[start:end], its header at `offset`."""

    kind: int
    data: bytes
    start: int
    end: int
    lsn: int
    offset: int


class Gap(NamedTuple):
    """Where records are damaged or missing: the bytes from `offset` to `end` of the file hold none that is sound.

    first_lsn, last_lsn: those that are gone, None where that is not known; last_lsn < first_lsn: none at all.
    queues: named by what can still be read there; a hint.
    """

    offset: int
    end: int
    first_lsn: int | None
    last_lsn: int | None
    queues: tuple[bytes, ...]
    text: str


class Walk:
    """One segment, or what comes from `offset` on: all sound records up to `stop_lsn`, and the gaps between them.

    lsn, crc, offset: of the last sound record, and where the next one would begin. sealed: it was a SEAL.
    """

    def __init__(
        self,
        disk: Disk,
        handle: Handle,
        path: str,
        seed: int,
        *,
        first_lsn: int | None,
        prev_crc: int | None,
        stop: tuple[int, int | None] | None,
        offset: int = SEGMENT_HEADER_BYTES,
    ) -> None:
        """first_lsn, prev_crc: of the record at `offset`, as the segment's header has them; None: not known. At any
        other offset than the first, first_lsn is only the lowest that is possible.

        stop: LSN of the last record, and its crc field where it is known; None where the log may end anywhere.
        """
        self._disk = disk
        self._handle = handle
        self._stop = stop
        self._first_lsn = first_lsn
        self._prev_crc = prev_crc
        lowest = first_lsn or 1
        self._scan = Scan(disk, handle, path, seed, lowest, prev_crc or 0, stop[0] if stop else None)
        self._scan.offset = offset
        if stop is not None:
            highest = stop[0]
        elif first_lsn is not None:
            highest = lowest + (self._scan.size - SEGMENT_HEADER_BYTES) // HEADER_BYTES
        else:
            highest = _LSN_MAX
        self._highest = highest
        self._seed = seed

    @property
    def lsn(self) -> int:
        return self._scan.lsn

    @property
    def crc(self) -> int:
        return self._scan.crc

    @property
    def offset(self) -> int:
        return self._scan.offset

    @property
    def sealed(self) -> bool:
        return self._scan.sealed

    @property
    def size(self) -> int:
        return self._scan.size

    def items(self) -> Iterator[Sound | Gap]:
        """In the order of the file. Raises OSError, and FormatNotKnown for a sound record with flags."""
        scan = self._scan
        if self._prev_crc is None:
            yield from self._find_first()
        while True:
            try:
                for kind, data, start, end, lsn in scan.records():
                    at = scan.offset - HEADER_BYTES - ((end - start + 7) & -8)
                    yield Sound(kind, data, start, end, lsn, at)
            except FormatNotKnown:
                raise
            except DataDamaged as error:  # a SEAL that is sound by itself and does not fit
                lsn = scan.lsn + 1
                yield Gap(scan.offset, scan.offset, lsn, lsn, (), str(error))
                return
            if scan.sealed or (self._stop is not None and scan.lsn == self._stop[0]):
                break
            gap = self._cross()
            if gap is None:
                break
            yield gap
        yield from self._check_end()

    def _find_first(self) -> Iterator[Gap]:
        """Where the chain into the first record is not known, it is the first sound one with a possible LSN."""
        scan, begin = self._scan, self._scan.offset
        hit = self._sound_at(begin, scan.lsn + 1) or self._search(scan.lsn + 1)
        if hit is None:
            return
        offset, (_, _, before, _, _, lsn, _) = hit
        exact = begin == SEGMENT_HEADER_BYTES and self._first_lsn is not None
        if offset > begin or (exact and lsn > scan.lsn + 1):
            first = self._first_lsn if exact or offset > begin else lsn
            yield self._gap(begin, offset, first, lsn - 1)
        scan.resume(offset, lsn, before)

    def _sound_at(self, offset: int, lowest: int) -> tuple[int, tuple[int, ...]] | None:
        """What looks like a record right here: the scan will say whether it is."""
        head = self._disk.read(self._handle, HEADER_BYTES, offset)
        if len(head) < HEADER_BYTES:
            return None
        fields = HEADER.unpack(head)
        search = Search(self._disk, self._handle, self._scan.size, self._seed, lowest, self._highest)
        return next(((at, found) for at, found, _ in search.chunk(head, offset)), None) if fields[3] else None

    def _search(self, lowest: int) -> tuple[int, tuple[int, ...]] | None:
        scan = self._scan
        search = Search(self._disk, self._handle, scan.size, self._seed, lowest, self._highest)
        return next(((at, fields) for at, fields, _ in search.from_offset(scan.offset)), None)

    def _cross(self) -> Gap | None:
        """The gap from here to the next sound record, where the scan goes on; None where nothing more was found."""
        scan = self._scan
        hit = self._search(scan.lsn + 1)
        if hit is None:
            return None
        begin, first = scan.offset, scan.lsn + 1
        offset, (_, _, before, _, _, lsn, _) = hit
        scan.resume(offset, lsn, before)
        if offset == begin and lsn == first:
            return Gap(
                begin, begin, first - 1, first, (),
                f"record {first} does not follow record {first - 1}: one of the two is not the one that was written",
            )  # fmt: skip
        return self._gap(begin, offset, first, lsn - 1)

    def _check_end(self) -> Iterator[Gap]:
        scan, stop = self._scan, self._stop
        if stop is None:
            return
        if scan.lsn < stop[0]:
            # Behind a SEAL nothing is looked for; elsewhere nothing was found up to the end of the file.
            end = scan.offset if scan.sealed else max(scan.offset, scan.size)
            yield self._gap(scan.offset, end, scan.lsn + 1, stop[0])
        elif stop[1] is not None and scan.crc != stop[1]:
            yield Gap(
                scan.offset, scan.offset, scan.lsn, scan.lsn, (),
                f"record {scan.lsn} is not the one that the next segment names as the last one here",
            )  # fmt: skip

    def _gap(self, begin: int, end: int, first: int | None, last: int) -> Gap:
        queues = tuple(queues_at(self._disk, self._handle, begin))
        if first is None:
            text = f"damaged or missing records, up to lsn {last}"
        elif last < first:
            text = f"{end - begin} bytes that are no record; none is missing"
        else:
            text = f"records {first} to {last} are damaged or missing" if last > first else f"record {first} is damaged"
        return Gap(begin, end, first, last, queues, text)


def read_header(disk: Disk, handle: Handle, path: str, log_id: bytes | None, number: int) -> SegmentHeader:
    """A segment's own header, that of this log and number. Raises DataDamaged, FormatNotKnown, OSError."""
    header = SegmentHeader.unpack(disk.read(handle, SEGMENT_HEADER_BYTES, 0), path)
    if log_id is not None and header.log_id != log_id:
        raise DataDamaged(
            f"{path}: offset 0: the header is one of log {header.log_id.hex()}; expected log {log_id.hex()}"
        )
    if header.number != number or header.first_lsn != header.prev_last_lsn + 1:
        raise DataDamaged(
            f"{path}: offset 0: the header is segment {header.number}'s, lsn {header.first_lsn} on, behind lsn "
            f"{header.prev_last_lsn}; expected segment {number}"
        )
    return header
