"""Which checkpoint a start may stand on, if any. The log is the truth: in any doubt, none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final
from zlib import crc32

from broker.errors import CheckpointDoubted, DataDamaged
from broker.journal.checkpoint import (
    Basis,
    Part,
    anchor_of,
    list_checkpoints,
    read_parts,
    verify_checkpoint,
)
from broker.journal.folder import CHECKPOINTS_NAME, LOG_NAME, QUARANTINE_NAME
from broker.journal.records import HEADER, HEADER_BYTES, RecordType
from broker.journal.segment import SEGMENT_HEADER_BYTES, SegmentHeader, segment_name
from broker.journal.state import SEAL_BYTES, decode_seal
from broker.journal.writer import join_path
from broker.system import Disk

QUARANTINE_MAX: Final = 8  # files kept there


class Shortcuts:
    """The checkpoints of a data folder.

    doubts: what was wrong with those that are not used, one text each.
    """

    def __init__(self, disk: Disk, data_dir: str, log_id: bytes) -> None:
        self._disk = disk
        self._data_dir = data_dir
        self._dir = join_path(data_dir, CHECKPOINTS_NAME)
        self._log_id = log_id
        self.doubts: list[str] = []
        self._put_aside: list[str] = []  # names of files for the quarantine
        self._names: list[str] | None = None  # not yet looked at, newest first
        self._sound: tuple[str, Basis] | None = None

    def newest(self) -> Basis | None:
        """Of the newest file that is sound in itself and not doubted so far. Raises FormatNotKnown, OSError."""
        if self._names is None:
            self._names = list_checkpoints(self._disk, self._data_dir)
            if self._names:  # what a kill left in the cache only must not be built on
                self._disk.sync_dir(self._dir)
        while self._sound is None and self._names:
            name = self._names.pop(0)
            try:
                self._sound = name, verify_checkpoint(self._disk, self._path(name), self._log_id)
            except CheckpointDoubted as error:
                self.doubts.append(str(error))
                self._put_aside.append(name)
            except OSError as error:  # perhaps readable next time, so it stays where it is
                self.doubts.append(f"{self._path(name)}: {error}")
        return self._sound[1] if self._sound else None

    def doubt(self, text: str) -> None:
        """The newest is not to be used; it goes to the quarantine when the start is over."""
        if self._sound is not None:
            name, self._sound = self._sound[0], None
            self._put_aside.append(name)
            self.doubts.append(f"{self._path(name)}: {text}")

    def choose(self, headers: dict[int, SegmentHeader]) -> Basis | None:
        """The newest one that fits the log; headers: those of all segments that are needed. Raises as `newest`.

        None also where replay would begin at the first segment anyway.
        """
        while (basis := self.newest()) is not None:
            if basis.segment <= min(headers):
                return None
            try:
                text = self._misfit(basis, headers)
            except OSError as error:
                text = f"the segments before {basis.segment} could not be looked at: {error}"
            if text is None:
                return basis
            self.doubt(text)
        return None

    def parts(self) -> Iterator[Part]:
        """Of the newest. Raises CheckpointDoubted where it is not any more what it was."""
        if self._sound is None:
            raise RuntimeError("no checkpoint was chosen")
        path = self._path(self._sound[0])
        try:
            yield from read_parts(self._disk, path, self._log_id)
        except (CheckpointDoubted, OSError) as error:
            self.doubt(str(error))
            raise CheckpointDoubted(str(error)) from error

    def put_aside(self) -> None:
        """Moves doubted files to the quarantine. Best effort, nothing is synced: they would be doubted again."""
        folder = join_path(self._data_dir, QUARANTINE_NAME)
        with suppress(OSError):
            if self._put_aside:
                with suppress(FileExistsError):
                    self._disk.make_dir(folder)
            while self._put_aside:
                name = self._put_aside.pop()
                self._disk.rename(self._path(name), join_path(folder, name))
                for old in self._disk.list_dir(folder)[:-QUARANTINE_MAX]:
                    self._disk.unlink(join_path(folder, old))

    def _path(self, name: str) -> str:
        return join_path(self._dir, name)

    # --------------------------------------------------------------------------------- does it fit the log?

    def _misfit(self, basis: Basis, headers: dict[int, SegmentHeader]) -> str | None:
        """What does not fit, or None. Header and SEAL of the segments that are not replayed are looked at here.

        Should they be damaged, the text is a doubt only: the start then reads them wholly and says exactly what
        is wrong with them.
        """
        low, anchor = min(headers), headers.get(basis.segment)
        if anchor is None or anchor_of(anchor.pack()) != basis.anchor:
            return f"it was made with another segment {basis.segment}"
        if basis.low > low:
            return f"the log begins at segment {low}, it said {basis.low} before"
        if not basis.segments or basis.segments[0][0] > low:
            return f"it tells nothing of segment {low}, which is needed"
        empty = {number for number, first_lsn, last_lsn, _ in basis.segments if last_lsn < first_lsn}
        for number, first_lsn, last_lsn, end in basis.segments:
            if number < low:
                continue
            header, following = headers[number], headers[number + 1]
            if (header.first_lsn, following.prev_last_lsn) != (first_lsn, last_lsn):
                return (
                    f"segment {number} has lsn {header.first_lsn} to {following.prev_last_lsn}, "
                    f"it says {first_lsn} to {last_lsn}"
                )
            text = self._unsealed(header, following, end)
            # Before an empty one nothing need be sealed: the start that made that one was cut short.
            if text is not None and number + 1 not in empty:
                return f"segment {number}: {text}"
        return None

    def _unsealed(self, header: SegmentHeader, following: SegmentHeader, end: int) -> str | None:
        """What is wrong at the end of a segment, or None."""
        record = self._read(header.number, SEAL_BYTES, end - SEAL_BYTES)
        if len(record) != SEAL_BYTES or end - SEAL_BYTES < SEGMENT_HEADER_BYTES:
            record = self._read(header.number, HEADER_BYTES, end - HEADER_BYTES)
            if len(record) != HEADER_BYTES or end < SEGMENT_HEADER_BYTES:
                return f"the file ends before offset {end}, where its last record ends"
        elif self._is_seal(record, header, following):
            return None
        # One that was the last when a broker stopped has no SEAL: the next one begins with an EPOCH.
        opening = self._read(following.number, HEADER_BYTES, SEGMENT_HEADER_BYTES)
        if len(opening) == HEADER_BYTES and HEADER.unpack(opening)[3] == RecordType.EPOCH:
            return None
        return f"no SEAL that fits ends at offset {end}"

    def _is_seal(self, record: bytes, header: SegmentHeader, following: SegmentHeader) -> bool:
        length, crc, before, kind, flags, lsn, synced = HEADER.unpack_from(record)
        blank = HEADER.pack(length, 0, before, kind, flags, lsn, synced)
        if crc32(record[HEADER_BYTES:], crc32(blank, crc32(self._log_id))) != crc or kind != RecordType.SEAL:
            return False
        try:
            seal = decode_seal(record, HEADER_BYTES, HEADER_BYTES + length)
        except DataDamaged:
            return False
        named = (following.prev_last_lsn, following.prev_crc)
        return (lsn, crc) == named and seal.count == lsn - header.first_lsn

    def _read(self, number: int, size: int, offset: int) -> bytes:
        path = join_path(join_path(self._data_dir, LOG_NAME), segment_name(number))
        handle = self._disk.open(path)
        try:
            return self._disk.read(handle, size, max(0, offset))
        finally:
            self._disk.close(handle)
