"""A small log with every kind of record in it, and its files after a script of edits: damaged or forged.

The bytes that a fuzzer makes are a script: the first byte says whether all checksums are made right again
afterwards (then they are a forgery, which must be refused or read without a bug), and every six bytes after it
are one edit. Without that, whatever is read must be what was written.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Final
from zlib import crc32

from broker.journal.checkpoint import (
    Basis,
    CheckpointFile,
    Part,
    checkpoint_name,
    encode_part,
)
from broker.journal.records import (
    HEADER,
    HEADER_BYTES,
    STATE_TYPES,
    RecordType,
    acked_payload,
    carried_payload,
    delivered_payload,
    lost_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    skim,
    transaction_payload,
)
from broker.journal.segment import SEGMENT_HEADER_BYTES, place_of, segment_number
from broker.journal.state import Seal, State, seal_payload, state_payload
from tests.journal.harness import DATA, LOG, LOG_ID, META, Bench, records_in
from tests.support.simdisk import SimDisk

SECTOR: Final = 512
SEED: Final = crc32(LOG_ID)
_FRAME_BYTES: Final = 32  # of a part in a checkpoint
_CHECKPOINT_HEADER: Final = 64


class Broken(Exception):
    """A promise was broken."""


def every_record() -> list[tuple[int, bytes]]:
    """(type, payload) of at least one record of each type."""
    run = messages_payload(b"/queue/a", (), b"h:1\n", 1, 1, None, [b"one", b"", b"three"])
    spread = messages_payload(
        b"/topic/t", (b"/queue/a", b"/queue/b"), b"h:1\n", 2, 4, [b"x:1\n", b""], [b"four", b"five"]
    )
    acked = acked_payload(b"/queue/a", [1, 3])
    moved = moved_payload(b"/queue/a", b"/queue/DLQ", [(2, 2, 10, 10)], b'{"reason":"x"}')
    state = State(low=1, next_seq=6, boot=1, wall_ms=1_700_000_000_000)
    found = [
        (RecordType.MESSAGES, run),
        (RecordType.MESSAGES, messages_payload(b"/queue/a", (), b"", 1, 9, None, [b"alone"])),
        (RecordType.MESSAGES, spread),
        (RecordType.ACKED, acked),
        (RecordType.ACKED, acked_payload(b"/queue/a", [5, 6, 7])),
        (RecordType.RETURNED, returned_payload(b"/queue/b", [(4, 5, 1, 1)])),
        (RecordType.DELIVERED, delivered_payload(b"/queue/a", 1000)),
        (RecordType.MOVED, moved),
        (RecordType.TRANSACTION, transaction_payload([(RecordType.MESSAGES, run), (RecordType.ACKED, acked)])),
        (RecordType.TRIM, state_payload(state)),
        (RecordType.EPOCH, state_payload(state)),
        (RecordType.SEAL, seal_payload(Seal(3, 3, 77, bytes(16)))),
        (RecordType.WITNESS, state_payload(state, filler=8)),
        (
            RecordType.CARRIED,
            carried_payload(b"/queue/DLQ", b"/queue/a", b"h:1\n", 1, b'{"r":1}', [(2, 10, 10)], [b"x:1\n"], [b"two"]),
        ),
        (RecordType.LOST, lost_payload(b"/queue/b", [4, 6, 7, 9])),
    ]
    return [(int(kind), b"".join(payload)) for kind, payload in found]


# --------------------------------------------------------------------------------------------- the small log


@dataclass(frozen=True)
class Base:
    """What was written.

    records: place -> (type, lsn, payload). values: (lsn, type, value) in order, skimmed. rows: number, first and
    last LSN, end of each segment. crcs, by_lsn: the crc field, and type and payload, by LSN.
    """

    files: dict[str, bytes]
    records: dict[int, tuple[int, int, bytes]]
    values: list[tuple[int, RecordType, Any]]
    checkpoint: str
    basis: Basis
    parts: list[Part]
    rows: list[tuple[int, int, int, int]]
    crcs: dict[int, int]
    by_lsn: dict[int, tuple[int, bytes]]


@cache
def base() -> Base:
    bench = Bench()
    log = bench.open()
    list(log.replay())
    journal, writer = log.start()

    def pump() -> None:
        while (batch := journal.take_batch()) is not None:
            writer.run(batch)
            journal.done(batch, None)

    for turn in range(6):
        for kind, payload in every_record():
            if kind not in STATE_TYPES and kind != RecordType.SEAL:
                journal.append(RecordType(kind), [payload + b""])
                if kind % 3 == turn % 3:
                    pump()
        journal.append_witness()
        pump()
    journal.append_witness(clean=True)
    pump()
    writer.close()
    log.close()
    disk = bench.disk
    paths = disk.files(LOG)
    records, rows = {}, []
    for path in paths:
        number = segment_number(path.rpartition("/")[2])
        if number is None:
            raise Broken(f"{path} is no segment")
        found = records_in(disk.contents(path))
        for offset, fields, payload in found:
            records[place_of(number, offset)] = (fields[3], fields[5], payload)
        end = found[-1][0] + HEADER_BYTES + (len(found[-1][2]) + 7) // 8 * 8
        rows.append((number, found[0][1][5], found[-1][1][5], end))
    values = [
        (lsn, part, value)
        for kind, lsn, payload in records.values()
        for part, value in skim(kind, payload, 0, len(payload))
    ]
    # The checkpoint's dump began in the second segment and ended in the third.
    basis = Basis(rows[1][1] + 1, rows[2][1] + 1, 2, 1, 6, 1, 1_700_000_000_000, rows[:1])
    parts = [
        Part(b"/queue/a", 1000, struct.pack("<4Q", 1, place_of(1, 512), 5, 6), b""),
        Part(
            b"/queue/b",
            0,
            struct.pack("<4Q", 4, place_of(1, 640), 3, 8) * 2,
            struct.pack("<4Q", 9, place_of(1, 700), 0, 1),
        ),
        Part(b"/queue/empty", 7, b"", b""),
    ]
    file = CheckpointFile(disk, DATA, LOG_ID)
    file.begin()
    for part in parts:
        file.add(encode_part(part))
    basis = file.finish(basis)
    checkpoint = f"{DATA}/ckpt/{checkpoint_name(basis.lsn)}"
    files = {path: disk.contents(path) for path in [META, *paths, checkpoint]}
    crcs = {fields[5]: fields[1] for path in paths for _, fields, _ in records_in(disk.contents(path))}
    by_lsn = {lsn: (kind, payload) for kind, lsn, payload in records.values()}
    return Base(files, records, values, checkpoint, basis, parts, rows, crcs, by_lsn)


# ------------------------------------------------------------------------------------------------- the edits


@dataclass
class Edited:
    """The files after a script. simple: one edit that a single bad sector can be."""

    disk: SimDisk
    forged: bool
    simple: bool


def edited(script: bytes) -> Edited:
    """Byte 0: bit 0 forged, bit 1 without the checkpoint. Then (operation, file, offset u16, value u16) each."""
    files: dict[str, bytearray] = {path: bytearray(data) for path, data in base().files.items()}
    flags = script[0] if script else 0
    if flags & 2:
        del files[base().checkpoint]
    removed, kinds = False, []
    for at in range(1, min(len(script), 1 + 6 * 24) - 5, 6):
        operation, which, offset, value = struct.unpack_from("<BBHH", script, at)
        operation %= 10
        path = sorted(files)[which % len(files)]
        if operation == 8:
            if removed:  # with everything gone there is nothing that could be found out
                continue
            removed = True
            del files[path]
        else:
            _edit(files, path, operation, offset, value)
        kinds.append(operation)
    if flags & 1:
        for path, data in files.items():
            if path.endswith(".ck"):
                _reseal_checkpoint(data)
        _reseal_log(files)
    disk = SimDisk(Random(1))
    disk.make_dir(DATA)
    disk.make_dir(LOG)
    disk.make_dir(f"{DATA}/ckpt")
    for path, data in files.items():
        disk.close(disk.create(path))
        disk.put(path, bytes(data))
    for folder in (".", DATA, LOG, f"{DATA}/ckpt"):
        disk.sync_dir(folder)
    return Edited(disk, bool(flags & 1), len(kinds) == 1 and kinds[0] < 4)


def _edit(files: dict[str, bytearray], path: str, operation: int, offset: int, value: int) -> None:
    data = files[path]
    size = len(data)
    at = offset % max(1, size)
    start = at // SECTOR * SECTOR
    other = files[sorted(files)[value % len(files)]]
    if operation in (0, 1) and size:
        data[at] ^= value % 255 + 1
    elif operation == 2:
        data[start : start + SECTOR] = bytes(len(data[start : start + SECTOR]))
    elif operation == 3:
        junk = Random(value).randbytes(SECTOR)
        data[start : start + SECTOR] = junk[: len(data[start : start + SECTOR])]
    elif operation == 4:
        wide = min(8, size - at)
        data[at : at + wide] = struct.pack("<Q", value << (offset % 49))[:wide]
    elif operation == 5:
        del data[at:]
    elif operation == 6:
        data.extend(bytes(value % 2048))
    elif operation == 7:  # one sector of another file, or of this one, in the place of another
        source = value // 7 * SECTOR % max(1, len(other))
        block = bytes(other[source : source + SECTOR])
        data[start : start + len(block)] = block
    elif operation == 9:
        data[:] = other


def _reseal_log(files: dict[str, bytearray]) -> None:
    """Checksums, chain and SEALs as they would be had all this been written."""
    before = 0
    if META in files:
        _seal(files[META], 64)
    for path in sorted(files):
        data = files[path]
        if not path.endswith(".seg") or len(data) < SEGMENT_HEADER_BYTES:
            continue
        data[64:68] = struct.pack("<I", before)
        _seal(data, SEGMENT_HEADER_BYTES)
        digest, at = hashlib.blake2b(digest_size=16), SEGMENT_HEADER_BYTES
        while at + HEADER_BYTES <= len(data):
            length, _, _, kind, flags, lsn, synced = HEADER.unpack_from(data, at)
            end = at + HEADER_BYTES + ((length + 7) & -8)
            if not kind or end > len(data):
                break
            if kind == RecordType.SEAL and length == 40:
                data[at + 48 : at + 52] = struct.pack("<I", before)
                data[at + 56 : at + 72] = digest.digest()
            head = HEADER.pack(length, 0, before, kind, flags, lsn, synced)
            before = crc32(data[at + HEADER_BYTES : end], crc32(head, SEED))
            data[at : at + HEADER_BYTES] = head[:4] + struct.pack("<I", before) + head[8:]
            digest.update(data[at : at + HEADER_BYTES])
            at = end


def _seal(data: bytearray, size: int) -> None:
    if len(data) >= size:
        data[size - 4 : size] = struct.pack("<I", crc32(data[: size - 4]))


def _reseal_checkpoint(data: bytearray) -> None:
    _seal(data, _CHECKPOINT_HEADER)
    at = _CHECKPOINT_HEADER
    while at + _FRAME_BYTES <= len(data) - 16:
        (length,) = struct.unpack_from("<I", data, at)
        end = at + _FRAME_BYTES + length
        if end > len(data):
            break
        data[at + 4 : at + 8] = bytes(4)
        data[at + 4 : at + 8] = struct.pack("<I", crc32(data[at:end]))
        at = end
    data[at : at + 16] = hashlib.blake2b(data[:at], digest_size=16).digest()


def seed_edits() -> list[bytes]:
    """Nothing; each operation at a few places; some scripts of several; each damaged and forged."""
    random = Random(3)
    found = [bytes([flags]) for flags in range(8)]
    for operation in range(10):
        for which in range(5):
            edit = struct.pack("<BBHH", operation, which, random.randrange(1 << 16), random.randrange(1 << 16))
            found.append(bytes([random.randrange(8)]) + edit)
    found += [bytes([random.randrange(8)]) + random.randbytes(6 * random.randrange(2, 6)) for _ in range(12)]
    return found
