"""Carries a batch to the disk. Blocking: in production it runs in the storage thread, in tests where it is
called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol

from broker.errors import NoRoom, no_room
from broker.journal.batch import Append, Batch, Roll
from broker.journal.segment import SEGMENT_HEADER_BYTES, Segment, segment_name
from broker.journal.state import SEAL_BYTES
from broker.system import Disk, Handle

IOV_MAX: Final = 1024  # buffers in one gathered write, on every system that we run on
TMP_SUFFIX: Final = ".tmp"
SMALL_BATCH: Final = 32 * 1024  # bytes; up to this size the sync takes longer than the bytes
ZERO_AHEAD: Final = 512 * 1024  # bytes
MIB: Final = 1024 * 1024


def join_path(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def tmp_name(number: int) -> str:
    """What a segment is called until its header is on the medium."""
    return segment_name(number) + TMP_SUFFIX


class Ballast(Protocol):
    """What is kept for a full disk (broker/journal/space.py)."""

    def release(self) -> bool:
        """Gives its room back; False where there is none."""


class Writer:
    """Owns the handle of the current segment, open from its first write to its last sync, and the prepared
    next file.

    After an error it is of no more use: the journal never gives it another batch. NoRoom is none: whatever can be
    done without more room was done, the rest is done when the same batch is run again. Records are written where
    they belong and as they were, so that a part of them that is there already does no harm; nothing is cut back.
    """

    def __init__(self, disk: Disk, log_dir: str, ballast: Ballast | None = None) -> None:
        self._disk = disk
        self._log_dir = log_dir
        self._ballast = ballast
        self.small_batch = SMALL_BATCH
        self._handle: Handle | None = None
        self._segment: Segment | None = None
        self._size = 0  # bytes allocated for it
        self._end = 0  # where the last record ends
        self._zeroed = 0  # up to this offset the file holds written bytes
        self._prepared: tuple[str, Handle, int] | None = None
        self._batch: Batch | None = None  # the one that was run last, and how much of it is done
        self._done = 0

    def run(self, batch: Batch) -> None:
        """Raises NoRoom: run the same batch again. OSError: what now is on the medium, only a restart can tell."""
        if batch is not self._batch:
            self._batch, self._done = batch, 0
        for step in batch.steps[self._done :]:
            if isinstance(step, Append):
                self._append(step, batch)
            else:
                self._roll(step, batch)
            self._done += 1
        done = self._done - len(batch.steps)
        if not done:
            if batch.sync:
                self._zero_ahead(batch.size)
                self._disk.sync_data(self._current())
            self._done += 1
        if batch.unlink:
            # Only behind the sync of the TRIM: without it, a hole could not be told from a lost segment.
            for segment in batch.unlink[max(0, done - 1) :]:
                self._roomy(batch, self._disk.unlink, segment.path)
                self._done += 1
            self._disk.sync_dir(self._log_dir)
        if batch.prepare is not None:
            self._prepare(*batch.prepare, batch)

    def close(self) -> None:
        """Closes the files. Syncs nothing: whoever stops in good order has synced a WITNESS before.

        So nothing hangs on these calls any more, and an error of the disk here is nobody's: what stays of a
        prepared segment is cleared away by the next start.
        """
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with suppress(OSError):
                self._disk.close(handle)
        if self._prepared is not None:
            path, handle, _ = self._prepared
            self._prepared = None
            with suppress(OSError):
                self._disk.close(handle)
            with suppress(OSError):
                self._disk.unlink(path)

    def _current(self) -> Handle:
        if self._handle is None:
            raise RuntimeError("the writer has no segment yet")
        return self._handle

    def _roomy(self, batch: Batch, call: Callable[..., object], *args: object) -> None:
        """A call that may need room: with the ballast, where it must be. Raises NoRoom, OSError. Never a sync."""
        try:
            call(*args)
        except OSError as error:
            if not no_room(error):
                raise
            batch.no_room = True
            if self._ballast is None or not self._ballast.release():
                raise NoRoom(error.errno, f"{error.strerror}, and nothing is left in reserve") from error
            try:
                call(*args)
            except OSError as again:
                if not no_room(again):
                    raise
                raise NoRoom(again.errno, f"{again.strerror}, also with what was in reserve") from again

    def _append(self, step: Append, batch: Batch) -> None:
        handle = self._current()
        if step.segment is not self._segment:
            raise RuntimeError(f"records for {step.segment}, but {self._segment} is open")
        buffers: Sequence[bytes] = step.buffers
        offset = step.offset
        for at in range(0, len(buffers), IOV_MAX):
            chunk = buffers[at : at + IOV_MAX]
            try:
                offset += write_all(self._disk, handle, chunk, offset)
            except OSError as error:
                if not no_room(error):
                    raise
                self._roomy(batch, write_all, self._disk, handle, chunk, offset)
                offset += sum(map(len, chunk))
        self._end = offset

    def _zero_ahead(self, size: int) -> None:
        """Write zeros behind a small batch, so that the next syncs need not change the file's extents.

        Many small batches gain by it (docs/benchmarks.md); for large ones it would double the bytes instead.
        Recovery is not concerned: what is there before a record is zeros or, after a crash, junk.
        """
        end = self._end
        if self._segment is None or end <= self._zeroed:
            return
        self._zeroed = end
        ahead = min(ZERO_AHEAD, self._size - end)
        if size <= self.small_batch and ahead > 0:
            try:
                write_all(self._disk, self._current(), [bytes(ahead)], end)
            except OSError as error:
                if not no_room(error):  # where allocated room is not kept for us, do without
                    raise
            self._zeroed = end + ahead

    def _roll(self, step: Roll, batch: Batch) -> None:
        """The file of a segment gets its name only when all before it is on the medium.

        So the mere presence of a segment proves that the records up to the end that its header names were
        synced.
        """
        disk, segment = self._disk, step.segment
        if self._handle is not None:
            disk.sync_data(self._handle)
            disk.close(self._handle)
            self._handle = None
        path, handle, size = self._next_file(step, batch)
        header = step.header if size == step.header.size else replace(step.header, size=size)
        self._roomy(batch, write_all, disk, handle, [header.pack()], 0)
        disk.sync_all(handle)
        self._roomy(batch, disk.rename, path, segment.path)
        disk.sync_dir(self._log_dir)
        if size != segment.size:
            batch.shrunk.append((segment, size))
        self._prepared = None
        self._handle, self._segment, self._size = handle, segment, size
        self._end = self._zeroed = SEGMENT_HEADER_BYTES

    def _next_file(self, step: Roll, batch: Batch) -> tuple[str, Handle, int]:
        """The file that becomes the next segment, with as much room as there is, at least for this batch."""
        disk, want = self._disk, step.segment.size
        if self._prepared is None:
            path = join_path(self._log_dir, tmp_name(step.segment.number))
            self._roomy(batch, self._create, path)
        if self._prepared is None:  # for mypy; _create has set it
            raise RuntimeError("no prepared segment")
        path, handle, size = self._prepared
        if size == want:
            return self._prepared
        if size > want:
            disk.truncate(handle, want)
        else:
            least = min(want, max(batch.need(step.segment), SEGMENT_HEADER_BYTES) + SEAL_BYTES)
            want = self._fit(handle, size, want, least, batch)
        disk.sync_all(handle)
        self._prepared = (path, handle, want)
        return self._prepared

    def _create(self, path: str) -> None:
        self._prepared = (path, self._disk.create(path), 0)

    def _fit(self, handle: Handle, size: int, want: int, least: int, batch: Batch) -> int:
        """Allocates `want` bytes, or less where there is no room, but `least`; how many it are now. Raises NoRoom.

        A smaller segment needs less of the ballast, or none.
        """
        sizes = [want]
        while sizes[-1] > least:
            sizes.append(max(sizes[-1] // 4, least))
        for each in sizes:
            if each <= size:
                return size  # what was prepared is more
            try:
                self._disk.allocate(handle, each)
                return each
            except OSError as error:
                if not no_room(error):
                    raise
                batch.no_room = True
                self._disk.truncate(handle, size)  # it may have got a part, which the next try needs
        few = min(want, max(least, MIB))
        self._roomy(batch, self._disk.allocate, handle, few)
        return few

    def _prepare(self, path: str, size: int, batch: Batch) -> None:
        """Ahead of need: where there is no room, there is none yet."""
        disk = self._disk
        try:
            self._create(path)
            if self._prepared is None:  # for mypy
                raise RuntimeError("no prepared segment")
            disk.allocate(self._prepared[1], size)
        except OSError as error:
            if not no_room(error):
                raise
            batch.no_room = True
            if self._prepared is not None:
                disk.close(self._prepared[1])
                self._prepared = None
                disk.unlink(path)
            return
        disk.sync_all(self._prepared[1])
        self._prepared = (path, self._prepared[1], size)


def write_all(disk: Disk, handle: Handle, buffers: Sequence[bytes], offset: int) -> int:
    """Writes all of `buffers`, however little the disk takes at a time; returns their size in bytes. Raises
    OSError.
    """
    total = sum(map(len, buffers))
    left: list[bytes] = list(buffers)
    done = 0
    while done < total:
        taken = disk.write(handle, left, offset + done)
        done += taken
        if done == total:
            break
        if taken <= 0:
            raise OSError(f"a write at offset {offset + done} took {taken} bytes")
        # Drop what was taken. The next write tells the reason of the short one, e.g. ENOSPC.
        while taken >= len(left[0]):
            taken -= len(left[0])
            del left[0]
        if taken:
            left[0] = left[0][taken:]
    return total
