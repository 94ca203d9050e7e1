"""The journal: gives records their LSN and their place, and hands them out in batches. Sans-IO.

It lives on the event loop. One batch at a time is at the writer; while it is there, records pile up for the
next one, so that under load one sync serves many (group commit without a timer).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from typing import Final
from zlib import crc32

from broker.errors import StorageFailed
from broker.journal.batch import Append, Batch, Roll, StorageSettings
from broker.journal.records import COPY_MAX, HEADER, HEADER_BYTES, RecordType
from broker.journal.segment import SEGMENT_HEADER_BYTES, Segment, SegmentHeader, place_of, segment_name
from broker.journal.state import SEAL_BYTES, STATE_BYTES, Seal, State, seal_payload, state_payload
from broker.journal.writer import join_path, tmp_name
from broker.system import Clock

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024  # one record may be larger; it then goes alone
BATCH_RECORDS_MAX: Final = 1024
WITNESS_ALIGNMENT: Final = 512  # bytes; what a disk loses at a time
DIGEST_BYTES: Final = 16
SMALL_SEGMENT: Final = 1024 * 1024  # bytes; what new segments have while the disk is nearly full
# An unclean start skips this many seqs, and a WITNESS says the next one long before so many are given out
# unrecorded: messages that are not persistent take seqs without leaving a trace, and no seq may ever come
# back.
SEQ_JUMP: Final = 1 << 32
_SEQ_PROMISE: Final = 1 << 30

_PAD: Final = [bytes(n) for n in range(8)]
_head = HEADER.pack
_join = b"".join


class Journal:
    """Owns LSNs, seqs and the list of segments. Made by `Log.start`.

    lsn:       the last LSN given. durable:   highest LSN whose record may be receipted; it is synced,
    unless the configuration says otherwise. synced:    highest LSN known to be on the medium; every record
    carries it (reliability.md 2.3). segment:   where the record appended last lies. queued:    bytes
    appended and not yet done, waiting or at the writer. written:   bytes that are done, since the start.
    readable:  records at places below this one are in their files. small_segments: set it while the disk is
    nearly full: new segments are small then. failed:    set once and for ever when a
    batch failed.
    """

    def __init__(
        self,
        settings: StorageSettings,
        clock: Clock,
        log_dir: str,
        log_id: bytes,
        *,
        end: tuple[int, int, int],
        segments: Iterable[Segment],
        next_seq: int,
        boot: int,
    ) -> None:
        """end: number of the segment where the log ends, the last LSN and the crc of its record."""
        self._settings = settings
        self._clock = clock
        self._log_dir = log_dir
        self._seed = crc32(log_id)
        self.log_id = log_id
        self.boot = boot
        self.next_seq = next_seq
        self._seq_promised = next_seq + _SEQ_PROMISE
        prev_number, self.lsn, self._crc = end
        self.durable = self.synced = self.lsn
        self.failed: StorageFailed | None = None
        self.queued = 0
        self.written = 0
        self.small_segments = False
        self.readable = 0
        self.segments: deque[Segment] = deque(segments)
        self.by_number: dict[int, Segment] = {segment.number: segment for segment in self.segments}
        self._ready: deque[Batch] = deque()
        self._at_writer: Batch | None = None
        self._batch = Batch(self.lsn + 1)
        self._last_sync = clock.monotonic()
        self._witnessed = -1  # the last LSN that a WITNESS at the very end of the log vouches for
        self._heads: list[bytes] = []  # headers of records of this segment that are not yet in the digest
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._prepared = 0  # number of the segment that was made ready or is being so
        self._offset = SEGMENT_HEADER_BYTES  # where the next record goes
        self._at = 0  # where the last one begins
        self._limit = 0  # a record that would end behind this offset needs another segment or batch
        self._lsn_limit = 0  # the same for its LSN
        self._open_segment(None, prev_number + 1, settings.segment_size)

    # ---------------------------------------------------------------------------------------------- appending

    def append(self, type: RecordType, payload: list[bytes]) -> int:
        """The LSN of the new record. Hot: once per run. Raises StorageFailed for ever after an error of the
        disk.
        """
        if self.failed is not None:
            raise self.failed
        if len(payload) == 1:
            body = payload[0]
            size = len(body)
        else:
            size = sum(map(len, payload))
        need = (HEADER_BYTES + 7 + size) & -8
        end = self._offset + need
        lsn = self.lsn + 1
        if end > self._limit or lsn > self._lsn_limit:
            self._make_room(need)
            end = self._offset + need
            lsn = self.lsn + 1
        before, synced = self._crc, self.synced
        padding = _PAD[-size & 7]
        # The crc covers the header with this field 0, the payload and the padding.
        crc = crc32(_head(size, 0, before, type, 0, lsn, synced), self._seed)
        if len(payload) == 1 and size <= COPY_MAX:
            body += padding
            crc = crc32(body, crc)
            head = _head(size, crc, before, type, 0, lsn, synced)
            self._buffers.append(head + body)
        else:
            for part in payload:
                crc = crc32(part, crc)
            crc = crc32(padding, crc)
            head = _head(size, crc, before, type, 0, lsn, synced)
            self._buffers.append(head)
            self._buffers += payload
            if padding:
                self._buffers.append(padding)
        self._crc = crc
        self._heads.append(head)
        self.lsn = lsn
        self._at = self._offset
        self._offset = end
        self.queued += need
        return lsn

    @property
    def place(self) -> int:
        """Where the record appended last lies."""
        return self.segments[-1].number << 32 | self._at

    def take_seqs(self, count: int) -> int:
        """The first of `count` consecutive seqs that were never given before and never will be again."""
        first = self.next_seq
        self.next_seq = first + count
        if self.next_seq > self._seq_promised and self.failed is None:
            self._append_state(RecordType.WITNESS)
        return first

    @property
    def segment(self) -> Segment:
        return self.segments[-1]

    @property
    def _segment_size(self) -> int:
        size = self._settings.segment_size
        return min(size, SMALL_SEGMENT) if self.small_segments else size

    def _make_room(self, need: int) -> None:
        """A new batch, a new segment, or both, so that a record of `need` bytes can follow."""
        if self._offset + need > self.segment.size - SEAL_BYTES:
            old = self.segment
            self._seal()
            size = max(self._segment_size, SEGMENT_HEADER_BYTES + need + SEAL_BYTES)
            self._open_segment(old, old.number + 1, size)
        elif self._batch.steps and self.lsn >= self._batch.first_lsn:
            self._close_batch()
            self._ready.append(self._batch)
            self._batch = Batch(self.lsn + 1)
            self._open_step()
        self._set_limits(need)

    def _seal(self) -> None:
        """The last record of a segment; room for it was always kept."""
        segment = self.segment
        last_lsn, last_crc = self.lsn, self._crc
        self._hash_heads()
        seal = Seal(last_lsn, last_lsn + 1 - segment.first_lsn, last_crc, self._digest.digest())
        # A segment that got less room than it was to have may end behind that already.
        self._limit, self._lsn_limit = max(segment.size, self._offset + SEAL_BYTES), last_lsn + 1
        self.append(RecordType.SEAL, seal_payload(seal))
        self._close_step()
        self._batch.synced_lsn = self.lsn  # the roll that follows syncs it

    def _open_segment(self, old: Segment | None, number: int, size: int) -> None:
        segment = Segment(number, self.lsn + 1, join_path(self._log_dir, segment_name(number)), size)
        self.segments.append(segment)
        self.by_number[number] = segment
        header = SegmentHeader(
            log_id=self.log_id,
            number=number,
            first_lsn=self.lsn + 1,
            prev_number=number - 1,
            prev_last_lsn=self.lsn,
            prev_crc=self._crc,
            size=size,
            low=self.segments[0].number,
            created_ms=self._clock.wall_ms(),
        )
        self._heads.clear()
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._offset = SEGMENT_HEADER_BYTES
        self._batch.steps.append(Roll(old, segment, header))
        self._open_step()
        self._set_limits(0)

    def _open_step(self) -> None:
        step = Append(self.segment, self._offset, [])
        self._batch.steps.append(step)
        self._buffers = step.buffers

    def _close_step(self) -> None:
        """Writes down what the hot path left out."""
        segment = self.segment
        segment.last_lsn, segment.end = self.lsn, self._offset
        batch = self._batch
        batch.last_lsn = self.lsn
        batch.end = place_of(segment.number, self._offset)
        step = batch.steps[-1]
        if isinstance(step, Append):
            step.size = self._offset - step.offset
            batch.size += step.size
            if not step.buffers:
                batch.steps.pop()

    def _set_limits(self, need: int) -> None:
        batch = self._batch
        done = sum(step.size for step in batch.steps[:-1] if isinstance(step, Append))
        step = batch.steps[-1]
        start = step.offset if isinstance(step, Append) else self._offset
        # A record that fits nowhere else is admitted alone.
        self._limit = min(
            self.segment.size - SEAL_BYTES, max(start + BATCH_BYTES_MAX - done, self._offset + need)
        )
        self._lsn_limit = batch.first_lsn + BATCH_RECORDS_MAX - 1

    def _hash_heads(self) -> None:
        self._digest.update(_join(self._heads))
        self._heads.clear()

    # ------------------------------------------------------------------------------------------------ batches

    def take_batch(self) -> Batch | None:
        """What the writer is to do next; None while one is there, nothing is queued, or the journal has
        failed.
        """
        if self._at_writer is not None or self.failed is not None:
            return None
        if self._ready:
            batch = self._ready.popleft()
        elif self.lsn >= self._batch.first_lsn:
            self._close_batch()
            batch = self._batch
            self._batch = Batch(self.lsn + 1)
            self._open_step()
            self._set_limits(0)
        else:
            return None
        self._at_writer = batch
        batch.sync = batch.must_sync or self._wants_sync()
        if batch.sync:
            batch.synced_lsn = batch.last_lsn
        last = batch.steps[-1]
        if isinstance(last, Append) and last.segment.number >= self._prepared and last.past_half:
            self._prepared = last.segment.number + 1
            path = join_path(self._log_dir, tmp_name(self._prepared))
            batch.prepare = (path, self._segment_size)
        return batch

    def _close_batch(self) -> None:
        self._close_step()
        self._hash_heads()

    def _wants_sync(self) -> bool:
        if self._settings.fsync == "always":
            return True
        if self._settings.fsync == "never":
            return False
        return self._clock.monotonic() - self._last_sync >= self._settings.interval

    @property
    def syncs(self) -> bool:
        """Whether each batch ends with a sync."""
        return self._settings.fsync == "always"

    def done(self, batch: Batch, error: OSError | None) -> None:
        """The writer is through with `batch`. After an error no receipt leaves and nothing is tried again."""
        if batch is not self._at_writer:
            raise RuntimeError("this batch is not at the writer")
        self._at_writer = None
        if error is not None:
            self.fail(error)
            return
        for segment, size in batch.shrunk:
            segment.size = size
            if segment is self.segment:
                self._set_limits(0)  # what was appended behind its end meanwhile makes the file grow
        self.queued -= batch.size
        self.written += batch.size
        self.readable = batch.end
        self.durable = batch.last_lsn
        self.synced = max(self.synced, batch.synced_lsn)
        if batch.sync:
            self._last_sync = self._clock.monotonic()

    def fail(self, error: OSError) -> None:
        """The medium cannot be trusted any more: nothing is written or receipted from here on."""
        if self.failed is None:
            self.failed = StorageFailed(f"writing to the data folder of {self._log_dir} failed: {error}")
            self.failed.__cause__ = error

    # ----------------------------------------------------------------------------- witnesses, trimming, state

    @property
    def needs_witness(self) -> bool:
        """Whether the log ends with records that no later one vouches for, and nothing is under way.

        Call `append_witness` 250 ms after the last write: rot in the last batch can then be told from a
        torn tail.
        """
        if self.failed is not None or self.lsn != self.durable or self._settings.fsync == "never":
            return False
        return self._witnessed != self.lsn

    def append_witness(self, *, clean: bool = False) -> int:
        """One that is always synced. clean: the broker stops in good order, nothing follows.

        It begins a sector of its own, so that no single bad sector takes it and what it vouches for.
        """
        vouched = self.lsn
        position = self._offset + HEADER_BYTES + STATE_BYTES
        if self._offset % WITNESS_ALIGNMENT:
            self._append_state(RecordType.WITNESS, filler=-position % WITNESS_ALIGNMENT)
        lsn = self._append_state(RecordType.WITNESS, clean=clean)
        self._batch.must_sync = True
        self._witnessed = lsn if self.synced >= vouched else -1
        return lsn

    def append_epoch(self, end_lsn: int, cut_bytes: int) -> int:
        """The first record of a start: `Log.start` calls this."""
        lsn = self._append_state(RecordType.EPOCH, end_lsn=end_lsn, cut_bytes=cut_bytes)
        self._batch.must_sync = True
        return lsn

    def dead_segments(self) -> list[Segment]:
        """The wholly dead ones at the old end, oldest first; never the current one, only synced ones."""
        last = self.segments[-1]

        def dead(segment: Segment) -> bool:
            return (
                segment is not last
                and not segment.live
                and not segment.readers
                and segment.last_lsn <= self.synced
            )

        return list(takewhile(dead, self.segments)) if dead(self.segments[0]) else []

    def trim(self, segments: list[Segment]) -> None:
        """Forgets `segments`, the oldest ones. What still holds in them must have been appended again
        before.
        """
        if not segments:
            return
        if segments != self.dead_segments()[: len(segments)]:
            raise ValueError(f"only dead segments at the old end can go, not {segments}")
        for segment in segments:
            self.segments.popleft()
            del self.by_number[segment.number]
        self._append_state(RecordType.TRIM)
        self._batch.must_sync = True
        self._batch.unlink += segments

    def _append_state(
        self, kind: RecordType, *, clean: bool = False, end_lsn: int = 0, cut_bytes: int = 0, filler: int = 0
    ) -> int:
        state = State(
            low=self.segments[0].number,
            next_seq=self.next_seq,
            boot=self.boot,
            wall_ms=self._clock.wall_ms(),
            clean=clean,
            end_lsn=end_lsn,
            cut_bytes=cut_bytes,
        )
        self._seq_promised = self.next_seq + _SEQ_PROMISE
        return self.append(kind, state_payload(state, filler))
