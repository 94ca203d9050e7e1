"""From the files of a data folder to a running journal (reliability.md 2.5).

log = open_log(disk, data_dir, settings, clock, rng)    # lock, META
for item in log.replay(): ...                           # every record, verified
journal, writer = log.start()                           # a new segment and an EPOCH record, synced
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from zlib import crc32

from broker.errors import DataDamaged, StompdError, StorageFailed
from broker.journal.batch import Batch, StorageSettings
from broker.journal.folder import Found, make_log_dir, survey, take_folder, write_meta
from broker.journal.journal import SEQ_JUMP, Journal
from broker.journal.records import STATE_TYPES, Messages, RecordType, Value, decode
from broker.journal.scan import Beyond, Scan, look_beyond, queues_at
from broker.journal.segment import SEGMENT_HEADER_BYTES, Meta, Segment, SegmentHeader, segment_name
from broker.journal.state import State, decode_state
from broker.journal.verdict import Case, Evidence, Later, Length, Named, Rest, Verdict, judge
from broker.journal.writer import Writer, join_path
from broker.system import Clock, Disk, Handle, Rng

LOG_ID_BYTES: Final = 16
_WAY_OUT: Final = (
    "Nothing was changed and nothing is skipped. Keep a copy of the folder; restore it from a backup, "
    'or read docs/operations.md, "Damaged data"'
)


class Replayed(NamedTuple):  # one for each record: a frozen dataclass takes twice as long to make
    """One value of the log, in the order of the LSNs; a TRANSACTION gives one for each of its parts."""

    lsn: int
    type: RecordType
    value: Value
    segment: Segment


@dataclass(slots=True)
class Summary:
    """What was found. Complete once `replay` has ended.

    clean: the log ended as a broker that stopped in good order leaves it. torn_bytes: what lies behind the
    end and was never known to be synced. boot: how many starts there were, this one included.
    """

    records: int = 0
    messages: int = 0
    bytes: int = 0
    segments: int = 0
    torn_bytes: int = 0
    clean: bool = False
    boot: int = 1


@dataclass(slots=True)
class _End:
    """Where the log ends: segment, its last LSN, that record's crc, the offset behind it."""

    number: int = 0
    lsn: int = 0
    crc: int = 0
    offset: int = SEGMENT_HEADER_BYTES
    verdict: Verdict = Verdict.CLEAN


@dataclass(slots=True)
class _Seen:
    """The journal's own state as the log tells it."""

    low: int = 0
    next_seq: int = 1
    boot: int = 0
    clean: bool = False  # the last record is a WITNESS of a clean stop
    stale: list[int] = field(default_factory=list)  # segments below `low` that a crash left undeleted

    def take(self, state: State, kind: int) -> None:
        self.low = max(self.low, state.low)
        self.next_seq = max(self.next_seq, state.next_seq)
        self.boot = max(self.boot, state.boot)
        self.clean = kind == RecordType.WITNESS and state.clean


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
        self._end = _End()
        self._seen = _Seen()
        self._segments: list[Segment] = []
        self._replayed = False
        self.summary = Summary()

    def replay(self) -> Iterator[Replayed]:
        """Everything that the log holds. Raises DataDamaged, FormatNotKnown, StorageFailed; what was
        yielded before is then of no use. Holds one chunk or one record in memory, whichever is larger.
        """
        if self.fresh:
            self.summary.clean = self._replayed = True
            return
        with _storage(self._log_dir):
            self._disk.sync_dir(self._log_dir)
            headers = self._find_low()
            for number in sorted(headers):
                yield from self._replay_segment(number, headers)
        seen, summary = self._seen, self.summary
        summary.clean = seen.clean and self._end.verdict is Verdict.CLEAN
        summary.boot = seen.boot + 1
        if not summary.clean:
            seen.next_seq += SEQ_JUMP
        self._replayed = True

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
        return journal, writer

    def close(self) -> None:
        """Gives the lock back; for the very end, when the writer is closed."""
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
        writer = Writer(self._disk, self._log_dir)
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
                    self._seen.take(decode_state(data, start, end), kind)
            case, beyond = self._judge(handle, scan, header, None)
        if case.verdict is Verdict.DAMAGED:
            raise DataDamaged(self._damage(scan, case, beyond, None))
        self._end = _End(last, scan.lsn, scan.crc, scan.offset, case.verdict)
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
                f"log {header.log_id.hex()}; expected segment {number}, log {self.log_id.hex()}. {_WAY_OUT}"
            )
        return header

    @contextmanager
    def _open(self, number: int) -> Iterator[Handle]:
        handle = self._disk.open(self._path(number))
        try:
            yield handle
        finally:
            self._disk.close(handle)

    def _replay_segment(self, number: int, headers: dict[int, SegmentHeader]) -> Iterator[Replayed]:
        header, following = headers[number], headers.get(number + 1)
        stop_lsn = following.prev_last_lsn if following else self._end.lsn
        segment = Segment(number, header.first_lsn, self._path(number), header.size)
        seen, summary = self._seen, self.summary
        with self._open(number) as handle:
            scan = Scan(
                self._disk, handle, segment.path, self._seed, header.first_lsn, header.prev_crc, stop_lsn
            )
            records = messages = 0
            for kind, data, start, end, lsn in scan.records():
                records += 1
                seen.clean = False
                if kind in STATE_TYPES:
                    seen.take(decode_state(data, start, end), kind)
                    continue
                try:
                    values = decode(kind, data, start, end)
                except StompdError as error:
                    raise type(error)(
                        f"{scan.path}: the record before offset {scan.offset}: {error}"
                    ) from error
                for part, value in values:
                    if part is RecordType.MESSAGES and isinstance(value, Messages):
                        count = len(value.bodies)
                        messages += count
                        if value.first_seq + count > seen.next_seq:
                            seen.next_seq = value.first_seq + count
                    yield Replayed(lsn, part, value, segment)
            summary.records += records
            summary.messages += messages
            # A second look at the last segment must come to the end that the first one found.
            named = (stop_lsn, following.prev_crc if following else self._end.crc)
            case, beyond = self._judge(handle, scan, header, named)
            if case.verdict is Verdict.DAMAGED:
                raise DataDamaged(self._damage(scan, case, beyond, stop_lsn))
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
        return judge(Evidence(saying, beyond.later, beyond.rest, length)), beyond

    # ------------------------------------------------------------------------------------- texts about damage

    def _damage(self, scan: Scan, case: Case, beyond: Beyond, last_lsn: int | None) -> str:
        first = scan.lsn + 1
        if beyond.first_lsn is not None and beyond.first_lsn > first:
            last_lsn = beyond.first_lsn - 1
        at_risk = f"lsn {first}" + (
            f" to {last_lsn}" if last_lsn and last_lsn > first else " and what follows"
        )
        with self._open_path(scan.path) as handle:
            queues = queues_at(self._disk, handle, scan.offset)
        queues += [name for name in beyond.queues if name not in queues]
        named = ", ".join(name.decode("utf-8", "backslashreplace") for name in queues) or "not known"
        return (
            f"{scan.path}: offset {scan.offset}: damaged or missing records: {case.why}. At risk: {at_risk}; "
            f"queues named there: {named}. {_WAY_OUT}"
        )

    @contextmanager
    def _open_path(self, path: str) -> Iterator[Handle]:
        handle = self._disk.open(path)
        try:
            yield handle
        finally:
            self._disk.close(handle)

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
        return f"{self._log_dir}: segment {names} missing. At risk: records {at_risk}. {_WAY_OUT}"
