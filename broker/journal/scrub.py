"""The scrub: reads what lies on the medium again, a little at a time, so that rot is found before it is needed."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Final, NamedTuple
from zlib import crc32

from broker.errors import PASSING, StompdError
from broker.journal.reader import Damage
from broker.journal.segment import SEGMENT_HEADER_BYTES, place_of, segment_name
from broker.journal.view import TolerantDisk
from broker.journal.walk import Gap, Walk, read_header
from broker.journal.writer import join_path
from broker.system import Disk, Handle

_DAMAGES_MAX: Final = 64  # of one step; more of them say nothing new


class ScrubResult(NamedTuple):
    """offset: where the next step goes on. done: the segment was read to its end. size: bytes that were read.

    damages: their places are where something is not sound; that need not be where a record begins.
    """

    offset: int
    done: bool
    size: int
    damages: list[Damage]


class Scrub:
    """Verifies records that are synced: CRC, LSN, chain, SEAL, and the segment's own header. Keeps no state."""

    def __init__(self, disk: Disk, log_dir: str, log_id: bytes) -> None:
        self._disk = disk
        self._log_dir = log_dir
        self._log_id = log_id
        self._seed = crc32(log_id)

    def step(self, number: int, first_lsn: int, last_lsn: int, end: int, offset: int, budget: int) -> ScrubResult:
        """Reads about `budget` bytes (one record at least) of a segment whose synced records are `first_lsn` to
        `last_lsn` and end at the offset `end`. offset: 0, or that of the step before.

        Never raises for what a disk can do. The record at `offset` is read again: it ties this step's chain to
        that of the step before.
        """
        path = join_path(self._log_dir, segment_name(number))
        offset = max(offset, SEGMENT_HEADER_BYTES)
        try:
            handle = self._disk.open(path)
        except OSError as error:
            passing = error.errno in PASSING
            text = f"{path}: cannot be opened ({error.strerror or error})"
            return ScrubResult(offset, not passing, 0, [Damage(place_of(number, 0), text, passing)])
        try:
            with suppress(OSError):
                self._disk.drop_cache(handle)  # what is read must come from the medium
            return self._walk(handle, path, number, (first_lsn, last_lsn), end, offset, budget)
        except OSError as error:  # not a read: those are patched
            text = f"{path}: {error.strerror or error}"
            passing = error.errno in PASSING
            return ScrubResult(offset, not passing, 0, [Damage(place_of(number, offset), text, passing)])
        finally:
            with suppress(OSError):
                self._disk.close(handle)

    def _walk(
        self, handle: Handle, path: str, number: int, lsns: tuple[int, int], end: int, offset: int, budget: int
    ) -> ScrubResult:
        disk = TolerantDisk(self._disk)
        damages: list[Damage] = []
        prev_crc: int | None = None
        if offset == SEGMENT_HEADER_BYTES:
            try:
                header = read_header(disk, handle, path, self._log_id, number)
                prev_crc = header.prev_crc
            except StompdError as error:
                damages.append(Damage(place_of(number, 0), str(error)))
        walk = Walk(
            disk, handle, path, self._seed,
            first_lsn=lsns[0], prev_crc=prev_crc, stop=(lsns[1], None), offset=offset,
        )  # fmt: skip
        last, done = offset, True
        try:
            for item in walk.items():
                if isinstance(item, Gap):
                    if len(damages) < _DAMAGES_MAX:
                        text = f"{path}: offset {item.offset}: {item.text}"
                        damages.append(Damage(place_of(number, item.offset), text))
                    continue
                last = item.offset
                if last - offset >= budget and last > offset:
                    done = False
                    break
        except StompdError as error:
            damages.append(Damage(place_of(number, walk.offset), f"{path}: offset {walk.offset}: {error}"))
        if done and not damages and walk.offset != end:
            text = f"{path}: offset {walk.offset}: the records end here; expected them to end at {end}"
            damages.append(Damage(place_of(number, walk.offset), text))
        for at, size, code in disk.unreadable:
            text = f"{path}: offset {at}: {size} bytes cannot be read ({errno.errorcode.get(code, code)})"
            if len(damages) < _DAMAGES_MAX and at < end:
                damages.append(Damage(place_of(number, at), text))
        return ScrubResult(walk.offset if done else last, done, walk.offset - offset, damages)
