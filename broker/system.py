"""The doors to the outside, as protocols, and the real ones.

Nothing below `server`, `client` and `cli` calls `time`, `os` I/O, `socket` or `random` by itself: it is handed a
Clock, a Disk or an Rng, so that a whole broker runs in a simulation under a seed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
import time
from collections.abc import Sequence
from typing import NewType, Protocol

Handle = NewType("Handle", int)  # an open file of a Disk


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds; only differences mean anything."""

    def wall_ms(self) -> int:
        """Unix time in milliseconds; for time stamps and logs, never for order or intervals."""


class Rng(Protocol):
    def token(self, size: int) -> bytes:
        """`size` random bytes that nobody can guess."""


class Disk(Protocol):
    """A file system. Every method may raise OSError; paths are strings; offsets and sizes are bytes."""

    def make_dir(self, path: str) -> None:
        """Create one folder, mode 0700. FileExistsError where it is there.

        Not durable before `sync_dir` of it and its parent.
        """

    def list_dir(self, path: str) -> list[str]:
        """Names in a folder, sorted. FileNotFoundError where there is none."""

    def lock(self, path: str, *, shared: bool = False) -> Handle:
        """Create or open `path` and lock it for us alone, without waiting. BlockingIOError where another holds it.

        shared: along with others who only read; the file is not created (FileNotFoundError) nor opened for writing.
        """

    def create(self, path: str) -> Handle:
        """Open a new file for reading and writing, mode 0600. FileExistsError where it is there."""

    def open(self, path: str, *, write: bool = False) -> Handle:
        """Open a file that is there."""

    def close(self, handle: Handle) -> None: ...

    def size(self, handle: Handle) -> int: ...

    def allocate(self, handle: Handle, size: int) -> None:
        """Reserve room for `size` bytes from the start; the file is at least that long then and reads as zeros."""

    def write(self, handle: Handle, buffers: Sequence[bytes], offset: int) -> int:
        """One gathered write of at most IOV_MAX buffers; returns how many bytes were taken, perhaps not all."""

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer at the end of the file only."""

    def truncate(self, handle: Handle, size: int) -> None: ...

    def sync_data(self, handle: Handle) -> None:
        """fdatasync: the bytes and the size of this file are on the medium when it returns."""

    def sync_all(self, handle: Handle) -> None:
        """fsync."""

    def drop_cache(self, handle: Handle) -> None:
        """Ask that the next read comes from the medium. Best effort."""

    def read_ahead(self, handle: Handle) -> None:
        """Say that all of it is about to be read. Best effort."""

    def rename(self, old: str, new: str) -> None:
        """Atomic; not durable before `sync_dir`."""

    def link(self, old: str, new: str) -> None:
        """Give the file `old` a second name. FileExistsError where `new` is there; OSError with EXDEV, EPERM, EMLINK
        or ENOTSUP where that cannot be done. Not durable before `sync_dir` of the folder of `new`.
        """

    def unlink(self, path: str) -> None: ...

    def sync_dir(self, path: str) -> None:
        """fsync of a folder: its names are on the medium when it returns."""

    def free(self, path: str) -> tuple[int, int]:
        """Bytes that this process may still take on the file system of `path`, and bytes of all of it."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class SystemRng:
    def token(self, size: int) -> bytes:
        return secrets.token_bytes(size)


class SystemDisk:
    """The file system of the machine. Files are opened close-on-exec, as Python does by itself."""

    def make_dir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def list_dir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def lock(self, path: str, *, shared: bool = False) -> Handle:
        fd = os.open(path, os.O_RDONLY if shared else os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return Handle(fd)

    def create(self, path: str) -> Handle:
        return Handle(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def open(self, path: str, *, write: bool = False) -> Handle:
        return Handle(os.open(path, os.O_RDWR if write else os.O_RDONLY))

    def close(self, handle: Handle) -> None:
        os.close(handle)

    def size(self, handle: Handle) -> int:
        return os.fstat(handle).st_size

    def allocate(self, handle: Handle, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        elif os.fstat(handle).st_size < size:
            os.ftruncate(handle, size)

    def write(self, handle: Handle, buffers: Sequence[bytes], offset: int) -> int:
        return os.pwritev(handle, buffers, offset)

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        return os.pread(handle, size, offset)

    def truncate(self, handle: Handle, size: int) -> None:
        os.ftruncate(handle, size)

    def sync_data(self, handle: Handle) -> None:
        if sys.platform == "darwin":
            # fsync on macOS leaves the data in the drive's cache; only F_FULLFSYNC keeps a receipt's promise.
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(handle)

    def sync_all(self, handle: Handle) -> None:
        if sys.platform == "darwin":
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        else:
            os.fsync(handle)

    def drop_cache(self, handle: Handle) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_ahead(self, handle: Handle) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def link(self, old: str, new: str) -> None:
        os.link(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free(self, path: str) -> tuple[int, int]:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
