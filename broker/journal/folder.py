"""The data folder: its lock, its META, the names in it, and the first start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.errors import DataDamaged, DataDirInUse
from broker.journal.segment import META_BYTES, SEGMENT_HEADER_BYTES, Meta, SegmentHeader, segment_number
from broker.journal.writer import TMP_SUFFIX, join_path, write_all
from broker.system import Disk, Handle

LOCK_NAME: Final = "LOCK"
META_NAME: Final = "META"
LOG_NAME: Final = "log"
CHECKPOINTS_NAME: Final = "ckpt"
QUARANTINE_NAME: Final = "quarantine"
# META of a backup (backup.py) and of what a salvage writes (salvage.py) until everything else is on the disk.
UNFINISHED: Final = b"This copy is not complete: stompd backup or stompd log salvage did not come to its end.\n"
_TMP: Final = re.compile(r"[0-9]{20}\.seg\.tmp")
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in the data folder. meta: None before the first start was finished."""

    meta: Meta | None
    numbers: list[int]  # of the segments, ascending
    leftovers: list[str]  # paths of files that a crash left half made


def take_folder(disk: Disk, data_dir: str) -> Handle:
    """Makes the folders where they are missing and takes the lock. Raises DataDirInUse, OSError."""
    ensure_dir(disk, data_dir)
    try:
        lock = disk.lock(join_path(data_dir, LOCK_NAME))
    except BlockingIOError as error:
        raise DataDirInUse(
            f"data folder {data_dir} is in use by another stompd (it holds {LOCK_NAME})"
        ) from error
    return lock


def survey(disk: Disk, data_dir: str) -> Found:
    """Looks around and decides whether this is a first start. Changes nothing. Raises DataDamaged, OSError.

    The first start makes a segment first and META last, so these are the cases:

    | META | segments          | meaning                                       |
    |------|-------------------|-----------------------------------------------|
    | no   | none              | first start, unless there is a checkpoint     |
    | no   | one without bytes | first start that a crash cut short: once more |
    | no   | any other         | META is lost: damage                          |
    | yes  | none              | the log is lost: damage                       |
    | yes  | some              | a log                                         |
    """
    log_dir = join_path(data_dir, LOG_NAME)
    names = disk.list_dir(data_dir)
    log_names = disk.list_dir(log_dir) if LOG_NAME in names else []
    numbers = sorted(number for name in log_names if (number := segment_number(name)) is not None)
    leftovers = [join_path(log_dir, name) for name in log_names if _TMP.fullmatch(name)]
    checkpoints_dir = join_path(data_dir, CHECKPOINTS_NAME)
    checkpoints = disk.list_dir(checkpoints_dir) if CHECKPOINTS_NAME in names else []
    leftovers += [join_path(checkpoints_dir, name) for name in checkpoints if name.endswith(TMP_SUFFIX)]
    if META_NAME + TMP_SUFFIX in names:
        leftovers.append(join_path(data_dir, META_NAME + TMP_SUFFIX))
    if META_NAME not in names:
        if len(numbers) > 1 or (numbers and not _is_empty(disk, log_dir, log_names)):
            raise DataDamaged(
                f"{join_path(data_dir, META_NAME)} is missing, but {log_dir} holds records. "
                "Restore the file from a backup of this folder"
            )
        if any(not name.endswith(TMP_SUFFIX) for name in checkpoints):
            # They are made long after META: there was a log, and nothing of it is left.
            raise DataDamaged(
                f"{join_path(data_dir, META_NAME)} and the segments are missing, but there are checkpoints in "
                f"{checkpoints_dir}. Restore this folder from a backup, or start with another data_dir"
            )
        return Found(None, numbers, leftovers)
    meta_path = join_path(data_dir, META_NAME)
    handle = disk.open(meta_path)
    try:
        data = disk.read(handle, max(META_BYTES + 1, len(UNFINISHED)), 0)
    finally:
        disk.close(handle)
    if data == UNFINISHED:
        raise DataDamaged(f"{meta_path}: this is a backup or a salvage that did not come to its end; it cannot be used")
    meta = Meta.unpack(data, meta_path)
    if not numbers:
        raise DataDamaged(
            f"{log_dir} holds no segment, but {meta_path} says that there was a log. "
            "Restore the segments, or start with another data_dir"
        )
    return Found(meta, numbers, leftovers)


def _is_empty(disk: Disk, log_dir: str, log_names: list[str]) -> bool:
    """Whether the only segment is as the first start makes it: a sound header and zeros."""
    path = next(join_path(log_dir, name) for name in log_names if segment_number(name) is not None)
    handle = disk.open(path)
    try:
        SegmentHeader.unpack(disk.read(handle, SEGMENT_HEADER_BYTES, 0), path)
        for offset in range(SEGMENT_HEADER_BYTES, disk.size(handle), _READ_BYTES):
            if disk.read(handle, _READ_BYTES, offset).strip(b"\0"):
                return False
    finally:
        disk.close(handle)
    return True


def make_log_dir(disk: Disk, data_dir: str) -> str:
    log_dir = join_path(data_dir, LOG_NAME)
    ensure_dir(disk, log_dir)
    return log_dir


def write_meta(disk: Disk, data_dir: str, meta: Meta) -> None:
    """Never overwrites in place. Raises OSError."""
    path = join_path(data_dir, META_NAME)
    handle = disk.create(path + TMP_SUFFIX)
    try:
        write_all(disk, handle, [meta.pack()], 0)
        disk.sync_all(handle)
    finally:
        disk.close(handle)
    disk.rename(path + TMP_SUFFIX, path)
    disk.sync_dir(data_dir)


def ensure_dir(disk: Disk, path: str) -> None:
    """mkdir, fsync of the folder, fsync of its parent; the same for parents that are missing. Raises OSError."""
    path = path.rstrip("/") or "/"
    parent = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    made = True
    try:
        disk.make_dir(path)
    except FileExistsError:
        made = False
    except FileNotFoundError:
        if parent == path:
            raise
        ensure_dir(disk, parent)
        disk.make_dir(path)
    disk.sync_dir(path)
    try:
        # Also where the folder was there: a start that was killed may have left its name unsynced.
        disk.sync_dir(parent)
    except PermissionError:
        if made:
            raise
