"""From the files of a data folder to a running journal (reliability.md 2.5).

log = open_log(disk, data_dir, settings, clock, rng)    # lock, META
for item in log.replay(): ...                           # a checkpoint's parts, then every record behind it, verified
journal, writer = log.start()                           # a new segment and an EPOCH record, synced
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal, overload
from zlib import crc32

from broker.errors import DataDamaged, StompdError, StorageFailed
from broker.journal.batch import Batch, StorageSettings
from broker.journal.checkpoint import Basis, CheckpointFile, Part
from broker.journal.findings import WAY_OUT, End, Replayed, Seen, Summary, damage_text
from broker.journal.folder import Found, make_log_dir, survey, take_folder, write_meta
from broker.journal.journal import SEQ_JUMP, Journal
from broker.journal.reader import Reader
from broker.journal.records import DECODERS, HEADER_BYTES, SKIMMERS, STATE_TYPES, Messages, RecordType, Run, decode
from broker.journal.scan import Beyond, Scan, look_beyond
from broker.journal.scrub import Scrub
from broker.journal.segment import SEGMENT_HEADER_BYTES, Meta, Segment, SegmentHeader, place_of, segment_name
from broker.journal.shortcut import Shortcuts
from broker.journal.space import Ballast, ballast_size
from broker.journal.state import decode_state
from broker.journal.verdict import Case, Evidence, Later, Length, Named, Rest, Verdict, Vouched, judge
from broker.journal.writer import Writer, join_path
from broker.system import Clock, Disk, Handle, Rng

LOG_ID_BYTES: Final = 16


def open_log(disk: Disk, data_dir: str, settings: StorageSettings, clock: Clock, rng: Rng) -> Log:
    """Takes the lock and looks around. Raises DataDirInUse, DataDamaged, FormatNotKnown, StorageFailed."""
    with _storage(data_dir):
        lock = take_folder(disk, data_dir)
        try:
            # After a kill the cache may hold names that the medium has not; what we build on must last.
            disk.sync_dir(data_dir)
            return Log(disk, data_dir, settings, clock, rng, lock, survey(disk, data_dir))
        except BaseException:
            disk.close(lock)
            raise


@contextmanager
def _storage(what: str) -> Iterator[None]:
    """An error of the disk while the log is opened ends the start; it is never taken for an end of the
    data.
    """
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{what}: {error}") from error


class Log:
    """The log of a data folder before it runs: replay it once, then start it."""

    def __init__(
        self,
        disk: Disk,
        data_dir: str,
        settings: StorageSettings,
        clock: Clock,
        rng: Rng,
        lock: Handle,
        found: Found,
    ) -> None:
        self._disk = disk
        self._data_dir = data_dir
        self._log_dir = join_path(data_dir, "log")
        self._settings = settings
        self._clock = clock
        self._lock = lock
        self._found = found
        self.fresh = found.meta is None
        self.log_id = found.meta.log_id if found.meta else rng.token(LOG_ID_BYTES)
        self._seed = crc32(self.log_id)
        self._shortcuts = Shortcuts(disk, data_dir, self.log_id)
        self.ballast = Ballast(disk, data_dir, ballast_size(settings.segment_size))
        self._begin_replay()

    def _begin_replay(self) -> None:
        self._end = End()
        self._seen = Seen()
        self._segments: list[Segment] = []
        self._vouched = 0  # the log reaches at least to this LSN: a checkpoint says so
        self._replayed = False
        self.summary = Summary()
        self.checkpoint: Basis | None = None  # the one that this replay stands on

    @property
    def doubts(self) -> list[str]:
        """What was wrong with checkpoints that were not used: file, offset and why."""
        return self._shortcuts.doubts

    @property
    def numbers(self) -> list[int]:
        """Of the segments that the log consists of; complete once `replay` has ended."""
        return [segment.number for segment in self._segments]

    def doubt(self, text: str) -> None:
        """The core found that the checkpoint in use cannot be right: call `replay` again, it takes another or none."""
        self._shortcuts.doubt(text)

    @overload
    def replay(self, checkpoint: bool = True, *, skim: Literal[False] = False) -> Iterator[Replayed]: ...
    @overload
    def replay(self, checkpoint: bool = True, *, skim: Literal[True]) -> Iterator[Part | Replayed]: ...
    def replay(self, checkpoint: bool = True, *, skim: bool = False) -> Iterator[Part | Replayed]:
        """Everything that the log holds: with a checkpoint its parts, then the values of the records behind it.

        checkpoint: whether one may be used. skim: MESSAGES and CARRIED come without their bodies; otherwise no
        checkpoint is used, for it has none. Raises DataDamaged, FormatNotKnown, StorageFailed, and
        CheckpointDoubted where the file changed while it was read; what was yielded before is then of no use.
        After the last one, replay again. Holds one chunk, one part or one record in memory, whichever is the
        largest.
        """
        self._begin_replay()
        if self.fresh:
            self.summary.clean = self._replayed = True
            return
        with _storage(self._log_dir):
            self._disk.sync_dir(self._log_dir)
            newest = self._shortcuts.newest()
            self._vouched = newest.end_lsn if newest else 0
            headers = self._find_low()
            begin = min(headers)
            if checkpoint and skim and (basis := self._shortcuts.choose(headers)) is not None:
                self.checkpoint, begin = basis, basis.segment
                self._stand_on(basis, headers)
                yield from self._shortcuts.parts()
            for number in range(begin, max(headers) + 1):
                yield from self._replay_segment(number, headers, skim)
        seen, summary = self._seen, self.summary
        summary.clean = seen.clean and self._end.verdict is Verdict.CLEAN
        summary.boot = seen.boot + 1
        if not summary.clean:
            seen.next_seq += SEQ_JUMP
        self._replayed = True

    def _stand_on(self, basis: Basis, headers: dict[int, SegmentHeader]) -> None:
        """Takes over what the records that are not read would have said."""
        seen = self._seen
        seen.next_seq = max(seen.next_seq, basis.next_seq)
        seen.boot = max(seen.boot, basis.boot)
        for number, first_lsn, last_lsn, end in basis.segments:
            if number in headers:
                segment = Segment(number, first_lsn, self._path(number), headers[number].size)
                segment.last_lsn, segment.end = last_lsn, end
                self._segments.append(segment)
                self.summary.segments += 1

    def start(self) -> tuple[Journal, Writer]:
        """Makes the new segment, appends EPOCH and syncs both; then clears away what is no part of the log.

        Raises StorageFailed. Whatever a crash leaves behind here, the next start comes to the same records.
        """
        if not self._replayed:
            raise RuntimeError("replay the log to its end first")
        with _storage(self._log_dir):
            for path in self._found.leftovers:
                self._disk.unlink(path)
            if self.fresh:
                make_log_dir(self._disk, self._data_dir)
                for number in self._found.numbers:  # the empty one of a first start that was cut short
                    self._disk.unlink(self._path(number))
                self._disk.sync_dir(self._log_dir)
            journal, writer = self._begin()
            self._clear_away()
        self._shortcuts.put_aside()
        return journal, writer

    def checkpoint_file(self) -> CheckpointFile:
        """What writes checkpoints of this log."""
        return CheckpointFile(self._disk, self._data_dir, self.log_id)

    def reader(self) -> Reader:
        """What reads records of this log back from their places."""
        return Reader(self._disk, self._log_dir, self.log_id)

    def scrub(self) -> Scrub:
        """What verifies segments of this log."""
        return Scrub(self._disk, self._log_dir, self.log_id)

    def close(self) -> None:
        """Gives the lock back; for the very end, when the writer is closed.

        With an error, too: the system takes it back when the process is gone.
        """
        with suppress(OSError):
            self._disk.close(self._lock)

    # ----------------------------------------------------------------------------------------------- starting

    def _begin(self) -> tuple[Journal, Writer]:
        end = self._end
        journal = Journal(
            self._settings,
            self._clock,
            self._log_dir,
            self.log_id,
            end=(end.number, end.lsn, end.crc),
            segments=self._segments,
            next_seq=self._seen.next_seq,
            boot=self.summary.boot,
        )
        writer = Writer(self._disk, self._log_dir, self.ballast)
        journal.append_epoch(end.lsn, self.summary.torn_bytes)
        batch = journal.take_batch()
        if batch is None:
            raise RuntimeError("the first batch is missing")
        if self.fresh:
            # The segment, then META, then the first record: see `survey` for what a crash in between means.
            opening = Batch(batch.first_lsn)
            opening.steps.append(batch.steps.pop(0))
            writer.run(opening)
            write_meta(self._disk, self._data_dir, Meta(self.log_id, self._clock.wall_ms()))
        writer.run(batch)
        journal.done(batch, None)
        return journal, writer

    def _clear_away(self) -> None:
        """Behind the sync of EPOCH, when nobody will ever read these again."""
        for number in self._seen.stale:
            self._disk.unlink(self._path(number))
        if self._seen.stale:
            self._disk.sync_dir(self._log_dir)
        if self._end.number and self._end.verdict is Verdict.CLEAN:
            # Only zeros lie behind the end: the room goes back. A torn tail is evidence and stays as it is.
            handle = self._disk.open(self._path(self._end.number), write=True)
            try:
                self._disk.truncate(handle, self._end.offset)
            finally:
                self._disk.close(handle)

    # ---------------------------------------------------------------------------------------------- replaying

    def _path(self, number: int) -> str:
        return join_path(self._log_dir, segment_name(number))

    def _find_low(self) -> dict[int, SegmentHeader]:
        """Finds the end of the log and the oldest segment that is needed; the headers from there on.

        The last segment is read for that alone, before anything is replayed: its header and its TRIM
        records say what is needed, and without them a deleted segment could not be told from a lost one.
        """
        numbers = self._found.numbers
        last = numbers[-1]
        header = self._read_header(last)
        self._seen.low = header.low
        with self._open(last) as handle:
            scan = Scan(
                self._disk, handle, self._path(last), self._seed, header.first_lsn, header.prev_crc, None
            )
            for kind, data, start, end, _ in scan.records():
                if kind in STATE_TYPES:
                    self._take(kind, data, start, end)
            case, beyond = self._judge(handle, scan, header, None)
        if case.verdict is Verdict.DAMAGED:
            raise DataDamaged(damage_text(self._disk, scan, case, beyond, self._vouched))
        self._end = End(last, scan.lsn, scan.crc, scan.offset, case.verdict)
        self.summary.torn_bytes = beyond.cut_bytes
        low = self._seen.low
        self._seen.stale = [number for number in numbers if number < low]
        missing = sorted(set(range(low, last + 1)).difference(numbers))
        if missing:
            raise DataDamaged(self._missing(missing, header))
        headers = {number: self._read_header(number) for number in range(low, last)}
        headers[last] = header
        for number in range(low + 1, last + 1):
            if headers[number].prev_number != number - 1 or headers[number].low > low:
                raise DataDamaged(
                    f"{self._path(number)}: offset 0: the header does not fit the segments around it"
                )
        return headers

    def _take(self, kind: int, data: bytes, start: int, end: int) -> None:
        state = decode_state(data, start, end)
        self._seen.take(state, kind == RecordType.WITNESS and state.clean)

    def _read_header(self, number: int) -> SegmentHeader:
        path = self._path(number)
        handle = self._disk.open(path)
        try:
            # Sync first, then forget the cache: what is read from here on is what the medium holds.
            self._disk.sync_data(handle)
            self._disk.drop_cache(handle)
            header = SegmentHeader.unpack(self._disk.read(handle, SEGMENT_HEADER_BYTES, 0), path)
        finally:
            self._disk.close(handle)
        if (
            header.log_id != self.log_id
            or header.number != number
            or header.first_lsn != header.prev_last_lsn + 1
        ):
            raise DataDamaged(
                f"{path}: offset 0: the header is segment {header.number}'s, lsn {header.first_lsn} on, "
                f"log {header.log_id.hex()}; expected segment {number}, log {self.log_id.hex()}. {WAY_OUT}"
            )
        return header

    @contextmanager
    def _open(self, number: int) -> Iterator[Handle]:
        handle = self._disk.open(self._path(number))
        try:
            self._disk.read_ahead(handle)
            yield handle
        finally:
            self._disk.close(handle)

    def _replay_segment(
        self, number: int, headers: dict[int, SegmentHeader], skims: bool
    ) -> Iterator[Replayed]:
        header, following = headers[number], headers.get(number + 1)
        stop_lsn = following.prev_last_lsn if following else self._end.lsn
        segment = Segment(number, header.first_lsn, self._path(number), header.size)
        seen, summary = self._seen, self.summary
        decoders, base = (SKIMMERS if skims else DECODERS), place_of(number, 0)
        # What the checkpoint tells already: read to verify the rest, and told to nobody. Twice is not once here: an
        # ACKED kills what a later MOVED brought to the same queue under the same seq, and cannot bring again.
        known = self.checkpoint.lsn if self.checkpoint else 0
        with self._open(number) as handle:
            scan = Scan(
                self._disk, handle, segment.path, self._seed, header.first_lsn, header.prev_crc, stop_lsn
            )
            records = messages = 0
            for kind, data, start, end, lsn in scan.records():
                records += 1
                seen.clean = False
                if kind in STATE_TYPES:
                    self._take(kind, data, start, end)
                    continue
                if lsn <= known:
                    continue
                try:
                    values = decode(kind, data, start, end, decoders)
                except StompdError as error:
                    raise type(error)(
                        f"{scan.path}: the record before offset {scan.offset}: {error}"
                    ) from error
                place = base + scan.offset - HEADER_BYTES - ((end - start + 7) & -8)
                for part, value in values:
                    if isinstance(value, Run | Messages):
                        count = len(value.sizes if isinstance(value, Run) else value.bodies)
                        messages += count
                        if value.first_seq + count > seen.next_seq:
                            seen.next_seq = value.first_seq + count
                    yield Replayed(lsn, part, value, segment, place)
            summary.records += records
            summary.messages += messages
            # A second look at the last segment must come to the end that the first one found.
            named = (stop_lsn, following.prev_crc if following else self._end.crc)
            case, beyond = self._judge(handle, scan, header, named)
            if case.verdict is Verdict.DAMAGED:
                raise DataDamaged(damage_text(self._disk, scan, case, beyond, stop_lsn))
        segment.last_lsn, segment.end = scan.lsn, scan.offset
        self._segments.append(segment)
        summary.segments += 1
        summary.bytes += scan.offset

    def _judge(
        self, handle: Handle, scan: Scan, header: SegmentHeader, named: tuple[int, int] | None
    ) -> tuple[Case, Beyond]:
        """named: last LSN and its crc as the next segment says them."""
        beyond = Beyond(Later.NONE, Rest.ZEROS, 0, None, [])
        if named is None:
            saying = Named.NOT
        elif scan.lsn == named[0]:
            saying = Named.HERE if scan.crc == named[1] else Named.OTHER
        else:
            saying = Named.BEYOND
        if saying in (Named.NOT, Named.BEYOND):
            beyond = look_beyond(self._disk, handle, scan.offset, scan.size, self._seed, scan.lsn + 1)
        length = Length.SHORT if scan.size < header.size else Length.WHOLE
        vouched = Vouched.BEYOND if scan.lsn < self._vouched else Vouched.NO
        return judge(Evidence(saying, beyond.later, beyond.rest, length, vouched)), beyond

    # ------------------------------------------------------------------------------------- texts about damage

    def _missing(self, missing: list[int], last: SegmentHeader) -> str:
        names = ", ".join(str(number) for number in missing[:8]) + (" ..." if len(missing) > 8 else "")
        last_lsn = last.prev_last_lsn
        for number in self._found.numbers:
            if number > missing[-1]:
                last_lsn = self._read_header(number).prev_last_lsn
                break
        first_lsn = None
        for number in reversed(self._found.numbers):
            if number < missing[0] and number >= self._seen.low:
                first_lsn = self._read_header(number).first_lsn
                break
        at_risk = f"up to lsn {last_lsn}" + (f", some after lsn {first_lsn}" if first_lsn else "")
        return f"{self._log_dir}: segment {names} missing. At risk: records {at_risk}. {WAY_OUT}"
