"""The records that the journal writes for itself: TRIM, EPOCH, WITNESS and SEAL."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from broker.errors import DataDamaged, FormatNotKnown
from broker.journal.records import HEADER_BYTES


@dataclass(frozen=True, slots=True)
class State:
    """What TRIM, EPOCH and WITNESS carry alike: where the log begins and what was given out so far."""

    low: int  # number of the oldest segment that is needed
    next_seq: int
    boot: int  # how many starts this log has seen
    wall_ms: int
    clean: bool = False  # WITNESS: the broker stopped in good order behind this record
    end_lsn: int = 0  # EPOCH: where the log ended before this start
    cut_bytes: int = 0  # EPOCH: bytes behind that end that are no part of the log


@dataclass(frozen=True, slots=True)
class Seal:
    """The last record of a full segment."""

    last_lsn: int  # of the record before the seal
    count: int  # records before the seal
    last_crc: int
    digest: bytes  # blake2b-16 of the headers of all records before the seal


_STATE: Final = Struct("<QQQQQQQ")  # low, next seq, boot, wall ms, end lsn, cut bytes, flags
_SEAL: Final = Struct("<QQII16s")  # last lsn, count, crc of the record before, 0, digest
STATE_BYTES: Final = _STATE.size
SEAL_BYTES: Final = HEADER_BYTES + _SEAL.size  # 72: what every segment keeps free for its last record
_FLAG_CLEAN: Final = 1


def state_payload(state: State, filler: int = 0) -> list[bytes]:
    """The payload of TRIM, EPOCH and WITNESS; `filler` zeros behind it mean nothing."""
    fields = (
        state.low,
        state.next_seq,
        state.boot,
        state.wall_ms,
        state.end_lsn,
        state.cut_bytes,
        int(state.clean),
    )
    return [_STATE.pack(*fields) + bytes(filler)]


def decode_state(data: bytes, start: int, end: int) -> State:
    if end - start < STATE_BYTES:
        raise DataDamaged(
            f"a record with the journal's state has {end - start} bytes, {STATE_BYTES} at least"
        )
    low, next_seq, boot, wall_ms, end_lsn, cut_bytes, flags = _STATE.unpack_from(data, start)
    if flags & ~_FLAG_CLEAN:
        raise FormatNotKnown(f"a record with the journal's state has flags {flags:#x}, which are not known")
    return State(low, next_seq, boot, wall_ms, bool(flags & _FLAG_CLEAN), end_lsn, cut_bytes)


def seal_payload(seal: Seal) -> list[bytes]:
    return [_SEAL.pack(seal.last_lsn, seal.count, seal.last_crc, 0, seal.digest)]


def decode_seal(data: bytes, start: int, end: int) -> Seal:
    if end - start != _SEAL.size:
        raise DataDamaged(f"a SEAL record has {end - start} bytes instead of {_SEAL.size}")
    last_lsn, count, last_crc, _, digest = _SEAL.unpack_from(data, start)
    return Seal(last_lsn, count, last_crc, digest)
