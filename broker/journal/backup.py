"""A copy of a data folder that starts, made while the broker runs and without its help: by reading alone.

Why that can work: whatever lies in the log before some record, with all its files, is a state that the log once had,
and a start from it comes to what a start at that moment would have come to. So the copy needs every segment from
`low` on, whole, and of the newest one the records up to some place. The order holds the rest:

1. Checkpoints first. One gets its name when the log is synced up to its end; the log is read later, so that it is
   never behind a checkpoint that lies beside it (a start takes that for lost records).
2. All segments but the newest. One that is not the newest is finished: before the next one got its name all of it
   was synced. At a later start the broker may at most cut off the unused room behind its end, and the header of the
   next segment names that end. So one file can serve both folders (a hard link).
3. The newest one, record by record as far as they are sound. It is read after the older ones were taken: where one
   of those went away before we came to it, the record that says so (TRIM) was synced before, so it lies here, or in
   a segment that is newer still. In that case, and only then, we look around again.
4. META last. Until then a file of that name says that the copy is not complete, and no start takes it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from broker.errors import DataDamaged, StorageFailed, UsageError
from broker.journal.checkpoint import list_checkpoints
from broker.journal.folder import CHECKPOINTS_NAME, LOG_NAME, META_NAME, UNFINISHED
from broker.journal.records import HEADER, HEADER_BYTES, STATE_TYPES
from broker.journal.scan import Scan, look_beyond
from broker.journal.segment import (
    META_BYTES,
    SEGMENT_HEADER_BYTES,
    Meta,
    SegmentHeader,
    segment_name,
    segment_number,
)
from broker.journal.state import decode_state
from broker.journal.verdict import Later
from broker.journal.writer import TMP_SUFFIX, join_path, write_all
from broker.system import Disk, Handle

LOOKS_MAX: Final = 100  # each look but the last means that a segment was removed while we were at it
CHUNK_BYTES: Final = 1024 * 1024
# Where a second name cannot be given: another file system, one without links, another user's file.
NO_LINK: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EACCES)


@dataclass(slots=True)
class Copied:
    """What a backup holds and how it came to it: files that were linked and written anew (META is not counted), the
    bytes that were written, how often it looked around.
    """

    first_segment: int = 0
    last_segment: int = 0
    last_lsn: int = 0
    checkpoints: int = 0
    linked: int = 0
    copied: int = 0
    bytes: int = 0
    looks: int = 0


@dataclass(slots=True)
class _Newest:
    """The newest segment as far as it could be read: the oldest segment that it needs, its last LSN."""

    low: int
    lsn: int


class Backup:
    """One backup of `data_dir` into `target`, an empty folder or none. Nothing of the source is ever written.

    links: False writes every file anew. told: called with the bytes written so far.
    """

    def __init__(
        self,
        disk: Disk,
        data_dir: str,
        target: str,
        *,
        links: bool = True,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._disk = disk
        self._source = data_dir
        self._target = target
        self._from = join_path(data_dir, LOG_NAME)
        self._to = join_path(target, LOG_NAME)
        self._links = links
        self._told = told
        self._have: set[int] = set()  # segments that are in the target, whole
        self._hole = (0, 0)  # a missing segment and the newest one beside it, as the look before found them
        self.done = Copied()

    def run(self) -> Copied:
        """Raises UsageError (no such data, the target is not empty), DataDamaged, FormatNotKnown, StorageFailed,
        OSError. What it leaves then is refused by every start.
        """
        meta = self._read_meta()
        self._open_target()
        self._take_checkpoints()
        newest = self._take_log(meta)
        for number in sorted(self._have):
            if number < newest.low:  # was removed from the source while we were at it
                self._have.discard(number)
                self._disk.unlink(join_path(self._to, segment_name(number)))
        self._disk.sync_dir(self._to)
        self._write(join_path(self._target, META_NAME), meta.pack())
        self._disk.sync_dir(self._target)
        self.done.first_segment, self.done.last_segment = min(self._have), max(self._have)
        self.done.last_lsn = newest.lsn
        return self.done

    # ------------------------------------------------------------------------------------------- both folders

    def _read_meta(self) -> Meta:
        path = join_path(self._source, META_NAME)
        try:
            handle = self._disk.open(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{self._source} holds no data of stompd: there is no {META_NAME} in it") from error
        try:
            return Meta.unpack(self._disk.read(handle, META_BYTES + 1, 0), path)
        finally:
            self._disk.close(handle)

    def _open_target(self) -> None:
        disk, target = self._disk, self._target
        try:
            disk.make_dir(target)
        except FileExistsError:
            if disk.list_dir(target):
                raise UsageError(f"{target} is not empty: a backup goes into an empty or a new folder") from None
        except FileNotFoundError as error:
            raise UsageError(f"{target} cannot be made: its parent folder is missing") from error
        parent = target.rstrip("/").rpartition("/")[0] or ("/" if target.startswith("/") else ".")
        self._write(join_path(target, META_NAME), UNFINISHED)
        disk.sync_dir(target)  # before there is anything that a start could take for a log
        disk.make_dir(self._to)
        disk.sync_dir(target)
        with contextlib.suppress(PermissionError):  # a parent that we may not read; the folder was there then
            disk.sync_dir(parent)

    def _write(self, path: str, data: bytes) -> None:
        """Never in place: the name changes from the old content to the new one."""
        handle = self._disk.create(path + TMP_SUFFIX)
        try:
            write_all(self._disk, handle, [data], 0)
            self._disk.sync_all(handle)
        finally:
            self._disk.close(handle)
        self._disk.rename(path + TMP_SUFFIX, path)

    def _take_checkpoints(self) -> None:
        names = list_checkpoints(self._disk, self._source)
        if not names:
            return
        source, target = join_path(self._source, CHECKPOINTS_NAME), join_path(self._target, CHECKPOINTS_NAME)
        self._disk.make_dir(target)
        for name in names:
            self.done.checkpoints += self._take(join_path(source, name), join_path(target, name))
        self._disk.sync_dir(target)
        self._disk.sync_dir(self._target)

    def _take(self, source: str, target: str) -> bool:
        """A finished file, by a link or by a copy; False where it has gone."""
        if self._links:
            try:
                self._disk.link(source, target)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
            else:
                self.done.linked += 1
                return True
        try:
            handle = self._disk.open(source)
        except FileNotFoundError:
            return False
        try:
            self._copy(handle, target)
        finally:
            self._disk.close(handle)
        self.done.copied += 1
        return True

    def _copy(self, source: Handle, target: str) -> None:
        """All bytes; room that was never written is not written here either."""
        disk = self._disk
        handle = disk.create(target)
        try:
            offset = 0
            while data := disk.read(source, CHUNK_BYTES, offset):
                if data.strip(b"\0"):
                    self._put(handle, [data], offset)
                offset += len(data)
            disk.truncate(handle, offset)
            disk.sync_all(handle)
        finally:
            disk.close(handle)

    def _put(self, handle: Handle, buffers: list[bytes], offset: int) -> int:
        size = write_all(self._disk, handle, buffers, offset)
        self.done.bytes += size
        self._told(self.done.bytes)
        return size

    # ------------------------------------------------------------------------------------------------ the log

    def _take_log(self, meta: Meta) -> _Newest:
        while self.done.looks < LOOKS_MAX:
            self.done.looks += 1
            names = self._disk.list_dir(self._from)
            numbers = sorted(number for name in names if (number := segment_number(name)) is not None)
            if not numbers:
                raise DataDamaged(f"{self._from} holds no segment, but {self._source} says that there is a log")
            last = numbers[-1]
            for number in numbers[:-1]:
                name = segment_name(number)
                if number not in self._have and self._take(join_path(self._from, name), join_path(self._to, name)):
                    self._have.add(number)
            newest = self._take_newest(last, meta)
            missing = [number for number in range(newest.low, last) if number not in self._have] if newest else []
            if newest and not missing:
                path = join_path(self._to, segment_name(last))
                self._disk.rename(path + TMP_SUFFIX, path)
                self._have.add(last)
                self.done.copied += 1
                return newest
            if newest:
                self._disk.unlink(join_path(self._to, segment_name(last)) + TMP_SUFFIX)
                self._see_whether_lost(missing, last)
        raise StorageFailed(
            f"{self._from}: segments were removed faster than they could be taken, {LOOKS_MAX} times; try again"
        )

    def _see_whether_lost(self, missing: list[int], last: int) -> None:
        """A segment may be missing because its TRIM lies in a newer segment, or because its name came up while the
        names were read: neither happens twice with the same newest segment. Then it is lost.
        """
        names = self._disk.list_dir(self._from)
        numbers = {number for name in names if (number := segment_number(name)) is not None}
        hole = (missing[0], last)
        if hole == self._hole and max(numbers, default=0) == last and missing[0] not in numbers:
            raise DataDamaged(
                f"{self._from}: segment {missing[0]} is missing, so this is no whole log. "
                '`stompd log verify` says more; see docs/operations.md, "Damaged data"'
            )
        self._hole = hole

    def _take_newest(self, number: int, meta: Meta) -> _Newest | None:
        """Writes its sound records under a `.tmp` name; None where it has gone."""
        disk, path = self._disk, join_path(self._from, segment_name(number))
        try:
            source = disk.open(path)
        except FileNotFoundError:
            return None
        try:
            first = disk.read(source, SEGMENT_HEADER_BYTES, 0)
            header = SegmentHeader.unpack(first, path)
            if header.log_id != meta.log_id or header.number != number:
                raise DataDamaged(f"{path}: offset 0: the header is that of another log or segment")
            target = disk.create(join_path(self._to, segment_name(number)) + TMP_SUFFIX)
            try:
                newest = self._copy_records(source, target, path, first)
                # As long as it was made, or a start would take it for one that has lost its end.
                disk.truncate(target, header.size)
                disk.sync_all(target)
            finally:
                disk.close(target)
        finally:
            disk.close(source)
        return newest

    def _copy_records(self, source: Handle, target: Handle, path: str, first: bytes) -> _Newest:
        """What is written was verified in the same buffer: the file may change while we read it."""
        header = SegmentHeader.unpack(first, path)
        seed = crc32(header.log_id)
        scan = Scan(self._disk, source, path, seed, header.first_lsn, header.prev_crc, None)
        low = header.low
        at, held, buffers = 0, SEGMENT_HEADER_BYTES, [first]
        for kind, data, start, end, _ in scan.records():
            if kind in STATE_TYPES:
                low = max(low, decode_state(data, start, end).low)
            record = data[start - HEADER_BYTES : end + (start - end) % 8]
            buffers.append(record)
            held += len(record)
            if held >= CHUNK_BYTES or len(buffers) == 1024:
                at += self._put(target, buffers, at)
                buffers, held = [], 0
        self._put(target, buffers, at)
        self._check_end(source, path, scan, seed)
        return _Newest(low, scan.lsn)

    def _check_end(self, handle: Handle, path: str, scan: Scan, seed: int) -> None:
        """The records may end here because the writer has not written more yet, or because they are damaged.

        While a broker writes, later ones may prove that this one was synced simply because it was in the meantime.
        Then it is sound now.
        """
        lsn = scan.lsn + 1
        beyond = look_beyond(self._disk, handle, scan.offset, scan.size, seed, lsn)
        if beyond.later is not Later.PROVEN:
            return
        head = self._disk.read(handle, HEADER_BYTES, scan.offset)
        if len(head) == HEADER_BYTES:
            length, crc, before, kind, flags, found, synced = HEADER.unpack(head)
            payload = self._disk.read(handle, (length + 7) & -8, scan.offset + HEADER_BYTES)
            blank = HEADER.pack(length, 0, before, kind, flags, found, synced)
            if (found, before) == (lsn, scan.crc) and crc32(payload, crc32(blank, seed)) == crc:
                return
        raise DataDamaged(
            f"{path}: offset {scan.offset}: record {lsn} is damaged, and a later one proves that it was synced. "
            "`stompd log verify` says more; see docs/operations.md, \"Damaged data\""
        )
