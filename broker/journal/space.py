"""Room on the disk: what is kept in reserve for a full one, and when it counts as full (reliability.md 2.8).

The *ballast* is a file whose only use is that it can be removed. While there is hardly any room, producers are held
back, and consumers go on: what they acknowledge is written into room that the ballast gave back, and brings segments
back in turn. A start needs room for a segment as well, and takes it from there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from broker.errors import no_room
from broker.journal.writer import TMP_SUFFIX, join_path
from broker.system import Disk

RESERVE_NAME: Final = "RESERVE"
MIB: Final = 1024 * 1024
BALLAST_MAX: Final = 32 * MIB
SHARE: Final = 0.05  # of the disk, kept free
DEFAULT_MIN: Final = 1024 * MIB  # kept free at least ...
SHARE_MAX: Final = 0.25  # ... but on a small disk no more than this much of it
OVER: Final = 1.5  # so much of what raises the alarm must be free before it ends
ACK_BYTES: Final = 48  # what the ACK of a message takes in the log, roughly: each that waits has it reserved


def ballast_size(segment_size: int) -> int:
    """Bytes: two segments, from 4 MiB to 32 MiB (less only with segments below 1 MiB, which no configuration has)."""
    return min(BALLAST_MAX, max(2 * segment_size, 4 * min(segment_size, MIB)))


@dataclass(frozen=True, slots=True)
class Room:
    """What a look at the disk found. free, total: bytes. held: the ballast is there. probed: bytes that were tried
    for besides, and could be had.
    """

    free: int
    total: int
    held: bool
    probed: int = 0


class Ballast:
    """The file RESERVE of a data folder. Two threads may use it: one that looks and makes, one that releases.

    The names of files are all that they share: it is there under its name once its room is, and gone in one step.
    """

    def __init__(self, disk: Disk, data_dir: str, size: int) -> None:
        self._disk = disk
        self._data_dir = data_dir
        self._path = join_path(data_dir, RESERVE_NAME)
        self.size = size
        self._sure = False  # this process has seen that its room is really there

    def release(self) -> bool:
        """Gives its room back; False where there was none. Raises OSError."""
        self._sure = False
        try:
            self._disk.unlink(self._path)
        except FileNotFoundError:
            return False
        except OSError as error:  # there are file systems that need room to remove a name
            if not no_room(error):
                raise
            return False
        # Some file systems hand out room only when the removal is on the medium.
        self._disk.sync_dir(self._data_dir)
        return True

    def look(self, probe: int = 0) -> Room:
        """Makes the ballast if it is missing and there is room for it. Raises OSError, but not for want of room.

        probe: bytes that must be there besides; it is tried, because a quota shows in no number.
        """
        held = self._hold()
        probed = probe if held and probe and self._try(probe) else 0
        free, total = self._disk.free(self._data_dir)
        return Room(free, total, held, probed)

    def _hold(self) -> bool:
        if self._sure:
            return True
        disk = self._disk
        try:
            # One that a copy made anew may have no room behind its size.
            handle = disk.open(self._path, write=True)
        except FileNotFoundError:
            return self._make()
        try:
            disk.allocate(handle, self.size)
            disk.sync_all(handle)
        except OSError as error:
            if not no_room(error):
                raise
            return False
        finally:
            disk.close(handle)
        self._sure = True
        return True

    def _make(self) -> bool:
        if not self._try(self.size, self._path):
            return False
        self._disk.sync_dir(self._data_dir)
        self._sure = True
        return True

    def _try(self, size: int, keep: str | None = None) -> bool:
        """Whether a file of `size` bytes can be had; with `keep` it stays, under that name."""
        disk, tmp = self._disk, join_path(self._data_dir, RESERVE_NAME + TMP_SUFFIX)
        with suppress(FileNotFoundError):
            disk.unlink(tmp)
        try:
            handle = disk.create(tmp)
            try:
                disk.allocate(handle, size)
                if keep is not None:
                    disk.sync_all(handle)
            finally:
                disk.close(handle)
            if keep is not None:
                disk.rename(tmp, keep)
                return True
        except OSError as error:
            if not no_room(error):
                raise
            with suppress(FileNotFoundError):
                disk.unlink(tmp)
            return False
        disk.unlink(tmp)
        return True


class SpaceWatch:
    """Decides, from what is told: no calls, no clock.

    alarm: why producers are to be held back, "" while they are not.
    """

    def __init__(self, min_free: int, segment_size: int) -> None:
        """min_free: bytes that are to stay free; 0 for what suits the disk."""
        self._min_free = min_free
        self._segment_size = segment_size
        self.alarm = ""
        self._refused = False  # the system had no room, whatever the numbers say (a quota, a race)
        self._enough = False  # the numbers say that there is room

    @property
    def probe(self) -> int:
        """Bytes that the next look is to try for: where room was refused, the numbers alone end no alarm."""
        return self._segment_size if self._refused and self._enough else 0

    def low(self, total: int) -> int:
        """Below so many free bytes of a disk of `total` producers are held back."""
        usual = min(max(int(total * SHARE), DEFAULT_MIN), int(total * SHARE_MAX))
        return max(self._min_free or usual, 2 * self._segment_size)

    def refused(self) -> None:
        """An allocation or a write found no room."""
        self._refused, self._enough = True, False
        self.alarm = "the disk is full"

    def looked(self, room: Room, waiting: int) -> None:
        """waiting: messages whose ACK is still to be written."""
        low = self.low(room.total)
        free = room.free - ACK_BYTES * waiting
        if free < low:
            self.alarm = f"{max(0, room.free) >> 20:,} MiB of the disk are free, less than {low >> 20:,} MiB"
        elif not room.held:
            self.alarm = "the disk is full"
        self._enough = room.held and free >= OVER * low
        if self._enough and (not self._refused or room.probed):
            self.alarm = ""
            self._refused = False
