"""A disk that is only looked at: for tools that must not change what they examine."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final, NoReturn

from broker.system import Disk, Handle

_BLOCK_BYTES: Final = 4096  # what one bad spot of the medium costs
_UNREADABLE_MAX: Final = 1000  # remembered


class ReadOnlyDisk:
    """Reads go to the disk behind it; a call that would change anything fails with EROFS.

    Syncs do nothing: there is nothing of ours to sync, and a read-only copy need not allow them.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def list_dir(self, path: str) -> list[str]:
        return self._disk.list_dir(path)

    def lock(self, path: str, *, shared: bool = False) -> Handle:
        if not shared:
            self._refuse(path)
        return self._disk.lock(path, shared=True)

    def open(self, path: str, *, write: bool = False) -> Handle:
        if write:
            self._refuse(path)
        return self._disk.open(path)

    def close(self, handle: Handle) -> None:
        self._disk.close(handle)

    def size(self, handle: Handle) -> int:
        return self._disk.size(handle)

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        return self._disk.read(handle, size, offset)

    def drop_cache(self, handle: Handle) -> None:
        self._disk.drop_cache(handle)

    def read_ahead(self, handle: Handle) -> None:
        self._disk.read_ahead(handle)

    def sync_data(self, handle: Handle) -> None:
        pass

    def sync_all(self, handle: Handle) -> None:
        pass

    def sync_dir(self, path: str) -> None:
        pass

    def free(self, path: str) -> tuple[int, int]:
        return self._disk.free(path)

    def make_dir(self, path: str) -> None:
        self._refuse(path)

    def create(self, path: str) -> Handle:
        self._refuse(path)

    def allocate(self, handle: Handle, size: int) -> None:
        self._refuse("")

    def write(self, handle: Handle, buffers: Sequence[bytes], offset: int) -> int:
        self._refuse("")

    def truncate(self, handle: Handle, size: int) -> None:
        self._refuse("")

    def rename(self, old: str, new: str) -> None:
        self._refuse(old)

    def link(self, old: str, new: str) -> None:
        self._refuse(new)

    def unlink(self, path: str) -> None:
        self._refuse(path)

    @staticmethod
    def _refuse(path: str) -> NoReturn:
        raise OSError(errno.EROFS, "this disk is only looked at", path)


class TolerantDisk(ReadOnlyDisk):
    """The same, and what cannot be read comes as zeros: whatever has a CRC finds them, and what lies around is saved.

    unreadable: (offset, size, errno) of those places, a thousand at most.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.unreadable: list[tuple[int, int, int]] = []

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        try:
            return self._disk.read(handle, size, offset)
        except OSError:
            size = min(size, max(0, self._disk.size(handle) - offset))
        parts: list[bytes] = []
        at = offset
        while at < offset + size:
            piece = min(_BLOCK_BYTES - at % _BLOCK_BYTES, offset + size - at)
            try:
                parts.append(self._disk.read(handle, piece, at).ljust(piece, b"\0"))
            except OSError as error:
                parts.append(bytes(piece))
                self._note(at, piece, error.errno or 0)
            at += piece
        return b"".join(parts)

    def _note(self, offset: int, size: int, code: int) -> None:
        if self.unreadable and sum(self.unreadable[-1][:2]) == offset:
            before = self.unreadable.pop()
            self.unreadable.append((before[0], before[1] + size, code))
        elif len(self.unreadable) < _UNREADABLE_MAX and (offset, size, code) not in self.unreadable:
            self.unreadable.append((offset, size, code))
