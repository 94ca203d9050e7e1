"""Checkpoint files: where all messages lie at some LSN, so that a start need not read the whole log.

The log is the truth, a checkpoint only a shortcut: whatever is doubtful about one, it is not used.
docs/journal-format.md has the file byte by byte and says why a dump that was taken while the traffic went on
is right.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from broker.errors import CheckpointDoubted, DataDamaged, FormatNotKnown
from broker.journal.folder import CHECKPOINTS_NAME, ensure_dir
from broker.journal.segment import (
    SEGMENT_HEADER_BYTES,
    check_sealed,
    sealed,
    segment_name,
)
from broker.journal.writer import TMP_SUFFIX, join_path, write_all
from broker.system import Disk, Handle

CHECKPOINT_VERSION: Final = 1
HEADER_BYTES: Final = 64
POSITION_BYTES: Final = 32
PART_BYTES_MAX: Final = 4 * 1024 * 1024  # of positions in one part: what a start must hold of a queue at once
KEPT: Final = 2
TMP_NAME: Final = "next.ck" + TMP_SUFFIX
DIGEST_BYTES: Final = 16

_MAGIC: Final = b"STOMPDCK"
_HEADER: Final = Struct("<8sII16s")  # magic, version, 0, log id
# bytes behind this header, crc, kind, bytes of the queue's name, fresh, counted, 0, mark
_FRAME: Final = Struct("<IIHHIIIQ")
_KIND_PART: Final = 1
_KIND_BASIS: Final = 2
# lsn, end lsn, segment, low, next seq, boot, wall ms, parts, crc of the segment's header, count of segments
_BASIS: Final = Struct("<QQQQQQQQII")
_SEGMENT: Final = Struct("<QQQQ")  # number, first lsn, last lsn, end
_CHUNK_BYTES: Final = 1024 * 1024
_FRAME_MAX: Final = 64 * 1024 * 1024  # a Basis with the table of 2 million segments; no part is so long
_NAME: Final = re.compile(r"([0-9]{20})\.ck")


class Part(NamedTuple):
    """Positions of `queue`, 32 bytes each. mark: its high-water mark of deliveries.

    A queue may come in several parts, and a message more than once: the later one counts.
    """

    queue: bytes
    mark: int
    fresh: bytes
    counted: bytes


@dataclass(frozen=True, slots=True)
class Basis:
    """What a checkpoint stands on. Everything in it is right once all records after `lsn` are replayed over it.

    lsn: of the last record before the dump began. end_lsn: of the last before it ended; the checkpoint is
    finished only when that one is synced. segment: the number of the one that holds lsn + 1. low, next_seq,
    boot, wall_ms: the journal's own state when the dump began. segments: (number, first lsn, last lsn, end in
    bytes) of those before `segment` that are needed, ascending. anchor: crc of the header of `segment`; it is
    put in by `CheckpointFile.finish`.
    """

    lsn: int
    end_lsn: int
    segment: int
    low: int
    next_seq: int
    boot: int
    wall_ms: int
    segments: list[tuple[int, int, int, int]] = field(default_factory=list)
    anchor: int = 0


def checkpoint_name(lsn: int) -> str:
    return f"{lsn:020d}.ck"


def checkpoint_lsn(name: str) -> int | None:
    """The LSN in a checkpoint's file name, None for any other name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


# ---------------------------------------------------------------------------------------------------- writing


def encode_part(part: Part) -> bytes:
    """Raises ValueError for more than 4 MiB of positions: cut them into several parts."""
    fresh, odd = divmod(len(part.fresh), POSITION_BYTES)
    counted, odder = divmod(len(part.counted), POSITION_BYTES)
    if odd or odder or len(part.fresh) + len(part.counted) > PART_BYTES_MAX:
        raise ValueError(
            f"a part has {len(part.fresh)} and {len(part.counted)} bytes of positions; "
            f"multiples of {POSITION_BYTES} up to {PART_BYTES_MAX} in all are possible"
        )
    body = part.queue + part.fresh + part.counted
    return _frame(_KIND_PART, len(part.queue), fresh, counted, part.mark, body)


def _frame(kind: int, name: int, fresh: int, counted: int, mark: int, body: bytes) -> bytes:
    crc = crc32(body, crc32(_FRAME.pack(len(body), 0, kind, name, fresh, counted, 0, mark)))
    return _FRAME.pack(len(body), crc, kind, name, fresh, counted, 0, mark) + body


def _encode_basis(basis: Basis, parts: int) -> bytes:
    body = _BASIS.pack(
        basis.lsn,
        basis.end_lsn,
        basis.segment,
        basis.low,
        basis.next_seq,
        basis.boot,
        basis.wall_ms,
        parts,
        basis.anchor,
        len(basis.segments),
    )
    return _frame(_KIND_BASIS, 0, 0, 0, 0, body + b"".join(_SEGMENT.pack(*row) for row in basis.segments))


class CheckpointFile:
    """Writes one checkpoint after the other: begin, add..., finish or abandon. Blocking, for a worker thread.

    All raise OSError. Whatever fails, and wherever the power goes, the checkpoints before are as they were.
    After an error call `abandon`. An error of a sync means, as everywhere, that the medium is not to be trusted.
    """

    def __init__(self, disk: Disk, data_dir: str, log_id: bytes) -> None:
        self._disk = disk
        self._data_dir = data_dir
        self._dir = join_path(data_dir, CHECKPOINTS_NAME)
        self._tmp = join_path(self._dir, TMP_NAME)
        self._log_id = log_id
        self._made = False
        self._handle: Handle | None = None
        self._offset = 0
        self._parts = 0
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def begin(self) -> None:
        if self._handle is not None:
            raise RuntimeError("a checkpoint was begun and neither finished nor abandoned")
        if not self._made:
            ensure_dir(self._disk, self._dir)
            self._made = True
        with suppress(FileNotFoundError):  # what was abandoned, and could not be removed
            self._disk.unlink(self._tmp)
        self._handle = self._disk.create(self._tmp)
        self._offset = self._parts = 0
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._write(sealed(_HEADER.pack(_MAGIC, CHECKPOINT_VERSION, 0, self._log_id), HEADER_BYTES))

    def add(self, data: bytes) -> None:
        """One part or several, as `encode_part` made them."""
        at = 0
        while at < len(data):
            at += _FRAME.size + _FRAME.unpack_from(data, at)[0]
            self._parts += 1
        self._write(data)

    def finish(self, basis: Basis) -> Basis:
        """Only when the journal is synced up to `basis.end_lsn`: a start takes a checkpoint for a witness of that.

        Gives back what was written: `basis` with its anchor.
        """
        if self._handle is None:
            raise RuntimeError("no checkpoint was begun")
        basis = replace(basis, anchor=self._anchor(basis.segment))
        self._write(_encode_basis(basis, self._parts))
        self._write(self._digest.digest())
        self._disk.sync_all(self._handle)
        handle, self._handle = self._handle, None
        self._disk.close(handle)
        self._disk.rename(self._tmp, join_path(self._dir, checkpoint_name(basis.lsn)))
        self._disk.sync_dir(self._dir)
        self._remove_old(basis.lsn)
        return basis

    def abandon(self) -> None:
        """Never raises: the next `begin` or the next start removes what is left."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                self._disk.close(handle)
            with suppress(OSError):
                self._disk.unlink(self._tmp)

    def _write(self, data: bytes) -> None:
        if self._handle is None:
            raise RuntimeError("no checkpoint was begun")
        write_all(self._disk, self._handle, [data], self._offset)
        self._digest.update(data)
        self._offset += len(data)

    def _anchor(self, number: int) -> int:
        """Ties the file to this history of this log: the header covers the chain up to there.

        0 where the segment is gone already; then the log begins behind it, and nobody needs the checkpoint.
        """
        path = join_path(join_path(self._data_dir, "log"), segment_name(number))
        try:
            handle = self._disk.open(path)
        except FileNotFoundError:
            return 0
        try:
            header = self._disk.read(handle, SEGMENT_HEADER_BYTES, 0)
        finally:
            self._disk.close(handle)
        return anchor_of(header)

    def _remove_old(self, lsn: int) -> None:
        """All but the new one and the one before it. Should the power bring one back, nothing is wrong with it."""
        found = sorted(
            (number, name)
            for name in self._disk.list_dir(self._dir)
            if (number := checkpoint_lsn(name)) is not None
        )
        # One with a higher LSN is of no log that this could be.
        older = [name for number, name in found if number < lsn][-(KEPT - 1) :]
        for number, name in found:
            if number != lsn and name not in older:
                self._disk.unlink(join_path(self._dir, name))


def anchor_of(header: bytes) -> int:
    """The crc in the last four bytes of a segment's header."""
    return int.from_bytes(header[-4:], "little")


# ---------------------------------------------------------------------------------------------------- reading


def list_checkpoints(disk: Disk, data_dir: str) -> list[str]:
    """Names of the finished ones, newest first; [] where there is no folder. Raises OSError."""
    try:
        names = disk.list_dir(join_path(data_dir, CHECKPOINTS_NAME))
    except FileNotFoundError:
        return []
    return sorted((name for name in names if checkpoint_lsn(name) is not None), reverse=True)


def verify_checkpoint(disk: Disk, path: str, log_id: bytes) -> Basis:
    """Reads the whole file, a chunk or a part at a time.

    Raises CheckpointDoubted where a byte is wrong or it belongs to another log, FormatNotKnown for a newer
    version's, OSError.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    parts, basis = 0, None
    handle = disk.open(path)
    try:
        disk.drop_cache(handle)
        disk.read_ahead(handle)
        size = disk.size(handle)
        digest.update(_read_header(disk, handle, path, log_id))
        for offset, raw in _frames(disk, handle, path, size):
            digest.update(raw)
            if _FRAME.unpack_from(raw)[2] == _KIND_PART:
                _decode_part(raw, path, offset)
                parts += 1
                continue
            basis, said = _decode_basis(raw, path, offset)
            if said != parts:
                raise _doubt(path, offset, f"{said} parts were written, {parts} are here")
            end = offset + len(raw)
            found = disk.read(handle, DIGEST_BYTES + 1, end)
            if found != digest.digest():
                raise _doubt(path, end, "the digest at the end is not that of the bytes before it")
            break
    finally:
        disk.close(handle)
    if basis is None:
        raise _doubt(path, size, "the file ends too early")
    lsn = checkpoint_lsn(path.rpartition("/")[2])
    if lsn is not None and lsn != basis.lsn:
        raise _doubt(path, 0, f"this is the checkpoint of lsn {basis.lsn}")
    return basis


def read_parts(disk: Disk, path: str, log_id: bytes) -> Iterator[Part]:
    """The parts of a file that was verified before, each checked once more. Raises as `verify_checkpoint` does."""
    handle = disk.open(path)
    try:
        _read_header(disk, handle, path, log_id)
        for offset, raw in _frames(disk, handle, path, disk.size(handle)):
            if _FRAME.unpack_from(raw)[2] != _KIND_PART:
                return
            yield _decode_part(raw, path, offset)
    finally:
        disk.close(handle)
    raise _doubt(path, 0, "the file ended too early when it was read again")


def _read_header(disk: Disk, handle: Handle, path: str, log_id: bytes) -> bytes:
    header = disk.read(handle, HEADER_BYTES, 0)
    try:
        version = check_sealed(header, HEADER_BYTES, _MAGIC, path, "checkpoint's header")
    except DataDamaged as error:
        raise CheckpointDoubted(str(error)) from error
    if version != CHECKPOINT_VERSION:
        raise FormatNotKnown(
            f"{path}: checkpoint format {version}, this version of stompd reads {CHECKPOINT_VERSION}"
        )
    found: bytes = _HEADER.unpack_from(header)[3]
    if found != log_id:
        raise _doubt(path, 0, f"it belongs to log {found.hex()}, this is log {log_id.hex()}")
    return header


def _frames(disk: Disk, handle: Handle, path: str, size: int) -> Iterator[tuple[int, bytes]]:
    """(offset, header and body) of each frame with the right crc; ends where no frame begins any more."""
    data, base, at = b"", HEADER_BYTES, 0
    while base + at + _FRAME.size <= size:
        if at + _FRAME.size > len(data):
            data, base, at = disk.read(handle, _CHUNK_BYTES, base + at), base + at, 0
            if len(data) < _FRAME.size:
                return
        length, crc, kind, name, fresh, counted, zero, mark = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        if length > _FRAME_MAX or base + end > size:
            raise _doubt(path, base + at, f"a part of {length} bytes is not possible here")
        if end > len(data):
            data, base, at = disk.read(handle, max(_CHUNK_BYTES, end - at), base + at), base + at, 0
            end = _FRAME.size + length
        raw = data[at:end]
        body = memoryview(raw)[_FRAME.size :]
        if crc32(body, crc32(_FRAME.pack(length, 0, kind, name, fresh, counted, zero, mark))) != crc:
            raise _doubt(path, base + at, f"the crc of a part of {length} bytes is not {crc:#010x}")
        yield base + at, raw
        at = end


def _decode_part(raw: bytes, path: str, offset: int) -> Part:
    length, _, kind, name_size, fresh, counted, zero, mark = _FRAME.unpack_from(raw)
    at = _FRAME.size + name_size
    middle = at + fresh * POSITION_BYTES
    if kind != _KIND_PART or zero or middle + counted * POSITION_BYTES != _FRAME.size + length:
        raise _doubt(path, offset, "the sizes in a part do not add up")
    return Part(raw[_FRAME.size : at], mark, raw[at:middle], raw[middle:])


def _decode_basis(raw: bytes, path: str, offset: int) -> tuple[Basis, int]:
    """The Basis, and how many parts there are."""
    kind, at = _FRAME.unpack_from(raw)[2], _FRAME.size
    if kind != _KIND_BASIS or len(raw) < at + _BASIS.size:
        raise _doubt(path, offset, f"this is neither a part nor the end (kind {kind}, {len(raw)} bytes)")
    lsn, end_lsn, segment, low, next_seq, boot, wall_ms, parts, anchor, count = _BASIS.unpack_from(raw, at)
    rows = raw[at + _BASIS.size :]
    if len(rows) != count * _SEGMENT.size or not lsn <= end_lsn:
        raise _doubt(path, offset, f"the end of the file does not fit itself ({count} segments)")
    segments = [(number, first, last, end) for number, first, last, end in _SEGMENT.iter_unpack(rows)]
    if any(row[0] != segment - count + at for at, row in enumerate(segments)):
        raise _doubt(path, offset, f"its segments are not the {count} before {segment}")
    return Basis(lsn, end_lsn, segment, low, next_seq, boot, wall_ms, segments, anchor), parts


def _doubt(path: str, offset: int, text: str) -> CheckpointDoubted:
    return CheckpointDoubted(f"{path}: offset {offset}: {text}")
