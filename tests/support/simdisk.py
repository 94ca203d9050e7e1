"""A disk in memory that loses what was not synced (reliability.md 3.1), under a seed.

What lasts and what does not:

- A file has bytes on the medium and bytes in the cache. `sync_data` makes the cached bytes and the size
  durable. At a crash each 512-byte sector written since then is old, new or one of the versions in between,
  by itself, or the bytes written in it are junk or zeros; the size may be ahead of the data. Bytes that no
  write touched since the last sync stay what they are (disks keep that; SQLite calls it powersafe overwrite).
- A folder has names on the medium and operations (create, rename, unlink, make_dir) that `sync_dir` makes
  durable. At a crash any subset of the others happened; each is atomic.
- A sync can fail: the dirty sectors turn clean, some of them on the medium and some not; the cache keeps the
  new bytes (ext4, XFS: variant "keep") or shows the old ones (Btrfs: variant "revert").
- Any call can be made to fail (`faults`), writes can be short, the disk can be full, and the power can go at
  any call (`power_at`).

It implements broker.system.Disk. Single-threaded.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from broker.system import Handle

SECTOR = 512
READING = ("read", "size", "open", "close", "list_dir", "drop_cache", "free")  # what a trace leaves out


class PowerLoss(BaseException):
    """The power went in the middle of a call. Nothing but the simulation's own loop catches it."""


@dataclass
class Fault:
    """Fails the call number `at` (from 1, of `op` where that is set); sticky: all later ones, too."""

    at: int
    code: int = errno.EIO
    op: str | None = None
    sticky: bool = False
    revert: bool = False  # a failed sync shows the old bytes from then on (Btrfs)
    hits: int = 0


@dataclass(eq=False)
class Dirty:
    """A sector written since the last sync: its looks after each write, and which bytes were written."""

    versions: list[bytes] = field(default_factory=list)
    low: int = SECTOR
    high: int = 0


@dataclass(eq=False)
class Inode:
    """A file: `cache` is what reads see, `durable` what the medium holds."""

    cache: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: dict[int, Dirty] = field(default_factory=dict)  # by sector
    sizes: list[int] = field(default_factory=list)  # sizes since the last sync
    locked: bool = False


@dataclass(eq=False)
class Folder:
    names: dict[str, Inode | Folder] = field(default_factory=dict)
    durable: dict[str, Inode | Folder] = field(default_factory=dict)
    # operations that no sync_dir has covered: (name to take away, the file or folder, name to give it)
    pending: list[tuple[str | None, Inode | Folder, str | None]] = field(default_factory=list)


class SimDisk:
    """`rng` decides what is lost; the same seed and the same calls lose the same."""

    def __init__(self, rng: Random, *, capacity: int | None = None, short_writes: float = 0.0) -> None:
        """capacity: bytes of all files together. short_writes: how likely a write takes only a part."""
        self._rng = rng
        self.capacity = capacity
        self.short_writes = short_writes
        self.links = True  # whether files may have two names
        self.root = Folder()
        self._handles: dict[int, tuple[Inode, str]] = {}
        self._next_handle = 100
        self.calls = 0
        self.counts: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.power_at: int | None = None  # the call, counted by `calls`, in which the power goes
        self.trace: list[tuple[str, str]] | None = (
            None  # (operation, path) of each call that changes or syncs
        )
        self.on_call: Callable[[str, str], None] | None = None

    # ------------------------------------------------------------------------------------------------- the
    # faults

    def crash(self) -> None:
        """Power loss and restart: what was not synced is partly gone, handles and locks are."""
        self._crash_folder(self.root, set())
        self._restarted()

    def kill(self) -> None:
        """The process is gone, the machine is not: the cache stays."""
        self._restarted()

    def copy(self, rng: Random) -> SimDisk:
        """Another disk with what the medium holds now, for experiments."""
        other = SimDisk(rng)
        other.root = _copy_folder(self.root, {})
        return other

    def _restarted(self) -> None:
        for inode, _ in self._handles.values():
            inode.locked = False
        self._handles.clear()
        self.power_at = None
        self.faults.clear()

    def _crash_folder(self, folder: Folder, seen: set[int]) -> None:
        for remove, node, add in folder.pending:
            if self._rng.random() < 0.5:
                _apply(folder.durable, remove, node, add)
        folder.pending.clear()
        folder.names = dict(folder.durable)
        for node in folder.durable.values():
            if isinstance(node, Folder):
                self._crash_folder(node, seen)
            elif id(node) not in seen:
                seen.add(id(node))
                self._crash_file(node)

    def _crash_file(self, inode: Inode) -> None:
        rng = self._rng
        durable = inode.durable
        if inode.sizes:
            size = rng.choice([len(durable), *inode.sizes])
            if size < len(durable):
                del durable[size:]
            else:
                durable.extend(bytes(size - len(durable)))
        mood = rng.random()  # whole files lost or kept are as likely as a mixture
        for sector, dirty in inode.dirty.items():
            start = sector * SECTOR
            room = min(SECTOR, len(durable) - start)
            choice = rng.random()
            if room <= 0 or mood < 0.15 or 0.4 <= choice < 0.6:
                continue
            if mood < 0.3 or choice < 0.4:
                data = dirty.versions[-1]
            elif choice < 0.75:
                data = rng.choice(dirty.versions)
            else:
                size = dirty.high - dirty.low
                spoilt = bytes(size) if choice < 0.9 else rng.randbytes(size)
                kept = bytes(durable[start : start + room]).ljust(SECTOR, b"\0")
                data = kept[: dirty.low] + spoilt + kept[dirty.high :]
            durable[start : start + room] = data.ljust(SECTOR, b"\0")[:room]
        inode.cache = bytearray(durable)
        inode.dirty.clear()
        inode.sizes.clear()

    def _call(self, op: str, path: str) -> None:
        self.calls += 1
        self.counts[op] = count = self.counts.get(op, 0) + 1
        if self.trace is not None and op not in READING:
            self.trace.append((op, path))
        if self.on_call is not None:
            self.on_call(op, path)
        if self.power_at is not None and self.calls >= self.power_at:
            raise PowerLoss(f"call {self.calls}: {op} {path}")
        for fault in self.faults:
            if fault.op not in (None, op):
                continue
            number = count if fault.op else self.calls
            if number == fault.at or (fault.sticky and number > fault.at):
                fault.hits += 1
                if op in ("sync_data", "sync_all"):
                    self._fail_sync(path, fault.revert)
                raise OSError(fault.code, os.strerror(fault.code), path)

    def _fail_sync(self, path: str, revert: bool) -> None:
        for inode, name in self._handles.values():
            if name == path:
                for sector, dirty in inode.dirty.items():
                    if self._rng.random() < 0.5:
                        start, data = sector * SECTOR, dirty.versions[-1]
                        missing = start + len(data) - len(inode.durable)
                        inode.durable.extend(bytes(max(0, missing)))
                        inode.durable[start : start + len(data)] = data
                inode.dirty.clear()
                inode.sizes.clear()
                size = len(inode.cache)
                if len(inode.durable) < size:  # the size is metadata, which a failed data sync need not lose
                    inode.durable.extend(bytes(size - len(inode.durable)))
                if revert:
                    inode.cache = bytearray(inode.durable)
                return

    # -------------------------------------------------------------------------------------------------- the
    # folders

    def _find(self, path: str) -> Inode | Folder:
        node: Inode | Folder = self.root
        for part in _parts(path):
            if not isinstance(node, Folder) or part not in node.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = node.names[part]
        return node

    def _folder_of(self, path: str) -> tuple[Folder, str]:
        parts = _parts(path)
        folder = self._find("/".join(parts[:-1]))
        if not isinstance(folder, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return folder, parts[-1]

    def _file(self, path: str) -> Inode:
        node = self._find(path)
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return node

    def make_dir(self, path: str) -> None:
        self._call("make_dir", path)
        folder, name = self._folder_of(path)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        made = Folder()
        folder.names[name] = made
        folder.pending.append((None, made, name))

    def list_dir(self, path: str) -> list[str]:
        self._call("list_dir", path)
        node = self._find(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return sorted(node.names)

    def rename(self, old: str, new: str) -> None:
        self._call("rename", f"{old} -> {new}")
        folder, old_name = self._folder_of(old)
        target, new_name = self._folder_of(new)
        node = self._find(old)
        del folder.names[old_name]
        target.names[new_name] = node
        if folder is target:
            folder.pending.append((old_name, node, new_name))
        else:  # harsher than real: a crash may leave both names or none
            folder.pending.append((old_name, node, None))
            target.pending.append((None, node, new_name))

    def link(self, old: str, new: str) -> None:
        self._call("link", f"{old} -> {new}")
        node = self._file(old)
        folder, name = self._folder_of(new)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        if not self.links:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), new)
        folder.names[name] = node
        folder.pending.append((None, node, name))

    def unlink(self, path: str) -> None:
        self._call("unlink", path)
        node = self._file(path)
        folder, name = self._folder_of(path)
        del folder.names[name]
        folder.pending.append((name, node, None))

    def sync_dir(self, path: str) -> None:
        self._call("sync_dir", path)
        node = self._find(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        node.durable = dict(node.names)
        node.pending.clear()

    # ---------------------------------------------------------------------------------------------------- the
    # files

    def _new_handle(self, inode: Inode, path: str) -> Handle:
        self._next_handle += 1
        self._handles[self._next_handle] = (inode, path)
        return Handle(self._next_handle)

    def _of(self, op: str, handle: Handle) -> Inode:
        if handle not in self._handles:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        inode, path = self._handles[handle]
        self._call(op, path)
        return inode

    def lock(self, path: str, *, shared: bool = False) -> Handle:
        self._call("lock", path)
        try:
            inode = self._file(path)
        except FileNotFoundError:
            if shared:
                raise
            inode = self._create(path)
        if inode.locked:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), path)
        inode.locked = True
        return self._new_handle(inode, path)

    def create(self, path: str) -> Handle:
        self._call("create", path)
        return self._new_handle(self._create(path), path)

    def _create(self, path: str) -> Inode:
        folder, name = self._folder_of(path)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        inode = Inode()
        folder.names[name] = inode
        folder.pending.append((None, inode, name))
        return inode

    def open(self, path: str, *, write: bool = False) -> Handle:
        self._call("open", path)
        return self._new_handle(self._file(path), path)

    def close(self, handle: Handle) -> None:
        inode = self._of("close", handle)
        path = self._handles.pop(handle)[1]
        if path.endswith("LOCK"):
            inode.locked = False

    def size(self, handle: Handle) -> int:
        return len(self._of("size", handle).cache)

    def allocate(self, handle: Handle, size: int) -> None:
        inode = self._of("allocate", handle)
        grow = size - len(inode.cache)
        if grow > 0:
            if grow > self._free():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            inode.cache.extend(bytes(grow))
            inode.sizes.append(len(inode.cache))

    def free(self, path: str) -> tuple[int, int]:
        self._call("free", path)
        self._find(path)
        return max(0, self._free()), self.capacity or 1 << 62

    def _free(self) -> int:
        if self.capacity is None:
            return 1 << 62
        return self.capacity - _used(self.root, set())

    def write(self, handle: Handle, buffers: Sequence[bytes], offset: int) -> int:
        inode = self._of("write", handle)
        if len(buffers) > 1024:
            raise OSError(errno.EINVAL, "more than IOV_MAX buffers")
        data = b"".join(buffers)
        grow = offset + len(data) - len(inode.cache)
        if grow > 0 and grow > (free := self._free()):
            data = data[: max(0, len(data) - (grow - free))]
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if len(data) > 1 and self._rng.random() < self.short_writes:
            data = data[: self._rng.randrange(1, len(data))]
        if offset + len(data) > len(inode.cache):
            inode.cache.extend(bytes(offset + len(data) - len(inode.cache)))
            inode.sizes.append(len(inode.cache))
        inode.cache[offset : offset + len(data)] = data
        for sector in range(offset // SECTOR, (offset + len(data) + SECTOR - 1) // SECTOR):
            start = sector * SECTOR
            dirty = inode.dirty.setdefault(sector, Dirty())
            dirty.versions.append(bytes(inode.cache[start : start + SECTOR]))
            dirty.low = min(dirty.low, max(0, offset - start))
            dirty.high = max(dirty.high, min(SECTOR, offset + len(data) - start))
        return len(data)

    def read(self, handle: Handle, size: int, offset: int) -> bytes:
        return bytes(self._of("read", handle).cache[offset : offset + size])

    def truncate(self, handle: Handle, size: int) -> None:
        inode = self._of("truncate", handle)
        if size < len(inode.cache):
            del inode.cache[size:]
            for sector in [sector for sector in inode.dirty if sector * SECTOR >= size]:
                del inode.dirty[sector]
        else:
            inode.cache.extend(bytes(size - len(inode.cache)))
        inode.sizes.append(size)

    def sync_data(self, handle: Handle) -> None:
        self._sync(self._of("sync_data", handle))

    def sync_all(self, handle: Handle) -> None:
        self._sync(self._of("sync_all", handle))

    def _sync(self, inode: Inode) -> None:
        """Only what is dirty: after a failed sync the other sectors count as clean and stay lost."""
        size = len(inode.cache)
        del inode.durable[size:]
        inode.durable.extend(bytes(size - len(inode.durable)))
        for sector in inode.dirty:
            start = sector * SECTOR
            inode.durable[start : start + SECTOR] = inode.cache[start : start + SECTOR]
        inode.dirty.clear()
        inode.sizes.clear()

    def read_ahead(self, handle: Handle) -> None:
        """Nothing is slow here."""

    def drop_cache(self, handle: Handle) -> None:
        """Clean sectors are read from the medium again; dirty ones stay."""
        inode = self._of("drop_cache", handle)
        if inode.dirty or inode.sizes:
            return
        inode.cache = bytearray(inode.durable)

    # ----------------------------------------------------------------------------------- for tests: look and
    # damage

    def contents(self, path: str) -> bytes:
        return bytes(self._file(path).cache)

    def put(self, path: str, data: bytes) -> None:
        """Replaces a file's bytes on the medium, behind everybody's back."""
        inode = self._file(path)
        inode.cache, inode.durable = bytearray(data), bytearray(data)
        inode.dirty.clear()
        inode.sizes.clear()

    def remove(self, path: str) -> None:
        """Takes a name away, durably."""
        folder, name = self._folder_of(path)
        del folder.names[name]
        folder.durable.pop(name, None)

    def files(self, path: str) -> list[str]:
        """Paths of the files in a folder, [] where there is none."""
        try:
            node = self._find(path)
        except FileNotFoundError:
            return []
        if not isinstance(node, Folder):
            return []
        return [f"{path}/{name}" for name, child in sorted(node.names.items()) if isinstance(child, Inode)]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _apply(
    names: dict[str, Inode | Folder], remove: str | None, node: Inode | Folder, add: str | None
) -> None:
    if remove is not None and names.get(remove) is node:
        del names[remove]
    if add is not None:
        names[add] = node


def _used(folder: Folder, seen: set[int]) -> int:
    used = 0
    for node in folder.names.values():
        if isinstance(node, Folder):
            used += _used(node, seen)
        elif id(node) not in seen:
            seen.add(id(node))
            used += len(node.cache)
    return used


def _copy_folder(folder: Folder, seen: dict[int, Inode]) -> Folder:
    copied: dict[str, Inode | Folder] = {}
    for name, node in folder.durable.items():
        if isinstance(node, Folder):
            copied[name] = _copy_folder(node, seen)
        else:
            copied[name] = seen.setdefault(
                id(node), Inode(bytearray(node.durable), bytearray(node.durable))
            )
    return Folder(dict(copied), copied)
