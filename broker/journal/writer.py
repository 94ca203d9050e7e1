"""Carries a batch to the disk. Blocking: in production it runs in the storage thread, in tests where it is
called.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from broker.journal.batch import Append, Batch, Roll
from broker.journal.segment import SEGMENT_HEADER_BYTES, Segment, segment_name
from broker.system import Disk, Handle

IOV_MAX: Final = 1024  # buffers in one gathered write, on every system that we run on
TMP_SUFFIX: Final = ".tmp"
SMALL_BATCH: Final = 32 * 1024  # bytes; up to this size the sync takes longer than the bytes
ZERO_AHEAD: Final = 512 * 1024  # bytes


def join_path(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def tmp_name(number: int) -> str:
    """What a segment is called until its header is on the medium."""
    return segment_name(number) + TMP_SUFFIX


class Writer:
    """Owns the handle of the current segment, open from its first write to its last sync, and the prepared
    next file.

    After an error it is of no more use: the journal never gives it another batch.
    """

    def __init__(self, disk: Disk, log_dir: str) -> None:
        self._disk = disk
        self._log_dir = log_dir
        self.small_batch = SMALL_BATCH
        self._handle: Handle | None = None
        self._segment: Segment | None = None
        self._end = 0  # where the last record ends
        self._zeroed = 0  # up to this offset the file holds written bytes
        self._prepared: tuple[str, Handle, int] | None = None

    def run(self, batch: Batch) -> None:
        """Raises OSError; what then is on the medium, only a restart can tell."""
        for step in batch.steps:
            if isinstance(step, Append):
                self._append(step)
            else:
                self._roll(step)
        if batch.sync:
            self._zero_ahead(batch.size)
            self._disk.sync_data(self._current())
        if batch.unlink:
            # Only behind the sync of the TRIM: without it, a hole could not be told from a lost segment.
            for segment in batch.unlink:
                self._disk.unlink(segment.path)
            self._disk.sync_dir(self._log_dir)
        if batch.prepare is not None:
            self._prepare(*batch.prepare)

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

    def _append(self, step: Append) -> None:
        handle = self._current()
        if step.segment is not self._segment:
            raise RuntimeError(f"records for {step.segment}, but {self._segment} is open")
        buffers: Sequence[bytes] = step.buffers
        offset = step.offset
        for at in range(0, len(buffers), IOV_MAX):
            chunk = buffers[at : at + IOV_MAX]
            offset += write_all(self._disk, handle, chunk, offset)
        self._end = offset

    def _zero_ahead(self, size: int) -> None:
        """Write zeros behind a small batch, so that the next syncs need not change the file's extents.

        Many small batches gain by it (docs/benchmarks.md); for large ones it would double the bytes instead.
        Recovery is not concerned: what is there before a record is zeros or, after a crash, junk.
        """
        end, segment = self._end, self._segment
        if segment is None or end <= self._zeroed:
            return
        self._zeroed = end
        ahead = min(ZERO_AHEAD, segment.size - end)
        if size <= self.small_batch and ahead > 0:
            write_all(self._disk, self._current(), [bytes(ahead)], end)
            self._zeroed = end + ahead

    def _roll(self, step: Roll) -> None:
        """The file of a segment gets its name only when all before it is on the medium.

        So the mere presence of a segment proves that the records up to the end that its header names were
        synced.
        """
        disk, segment = self._disk, step.segment
        if self._handle is not None:
            disk.sync_data(self._handle)
            disk.close(self._handle)
            self._handle = None
        tmp = join_path(self._log_dir, tmp_name(segment.number))
        if self._prepared is None:
            self._prepare(tmp, segment.size)
        if self._prepared is None:  # for mypy; _prepare has set it
            raise RuntimeError("no prepared segment")
        path, handle, size = self._prepared
        self._prepared = None
        self._handle, self._segment = handle, segment
        self._end = self._zeroed = SEGMENT_HEADER_BYTES
        if size < segment.size:
            disk.allocate(handle, segment.size)
        write_all(disk, handle, [step.header], 0)
        disk.sync_all(handle)
        disk.rename(path, segment.path)
        disk.sync_dir(self._log_dir)

    def _prepare(self, path: str, size: int) -> None:
        handle = self._disk.create(path)
        self._prepared = (path, handle, size)
        self._disk.allocate(handle, size)
        self._disk.sync_all(handle)


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
