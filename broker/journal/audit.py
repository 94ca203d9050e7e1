"""A whole data folder, read as far as anything in it can be verified, and never changed.

A start refuses damage as a whole. This goes on over it: every sound record in the order of the log, and between
them what is missing. The broker must not run meanwhile; its lock is asked for, where there is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from broker.errors import CheckpointDoubted, DataDamaged, DataDirInUse, FormatNotKnown, UsageError
from broker.journal.checkpoint import Basis, list_checkpoints, verify_checkpoint
from broker.journal.folder import CHECKPOINTS_NAME, LOCK_NAME, LOG_NAME, META_NAME
from broker.journal.records import STATE_TYPES
from broker.journal.scan import Scan, look_beyond
from broker.journal.segment import META_BYTES, SEGMENT_HEADER_BYTES, Meta, SegmentHeader, segment_name, segment_number
from broker.journal.state import State, decode_state
from broker.journal.verdict import Evidence, Length, Named, Verdict, Vouched, judge
from broker.journal.view import TolerantDisk
from broker.journal.walk import Gap, Sound, Walk, read_header
from broker.journal.writer import join_path
from broker.system import Disk, Handle


class Hole(NamedTuple):
    """Something that is not as it was written: bytes `offset` to `end` of a file.

    number: of the segment, 0 for META and checkpoints. first_lsn, last_lsn: of the records that are gone; None: not
    known; last_lsn < first_lsn: none. queues: named by what can be read there, a hint.
    """

    number: int
    path: str
    offset: int
    end: int
    first_lsn: int | None
    last_lsn: int | None
    queues: tuple[bytes, ...]
    text: str

    @property
    def loses_records(self) -> bool:
        return self.number > 0 and (self.first_lsn is None or self.last_lsn is None or self.last_lsn >= self.first_lsn)


@dataclass(slots=True)
class Piece:
    """A segment of the log; header: None where it cannot be read, path: "" where the file is missing."""

    number: int
    path: str
    size: int = 0
    header: SegmentHeader | None = None


class Audit:
    """Open, then `items`, as often as wanted, then `close`.

    holes: those of META, the checkpoints and the headers; the others come from `items`. checkpoint: the newest that
    is sound and belongs to this log, as (path, Basis). state: the journal's own, as far as the headers and the last
    segment say it.
    """

    def __init__(self, disk: Disk, data_dir: str) -> None:
        """Raises DataDirInUse, UsageError where there is no such folder, FormatNotKnown, DataDamaged where nothing
        says which log this is, OSError.
        """
        self.disk = TolerantDisk(disk)
        self.data_dir = data_dir
        self.log_dir = join_path(data_dir, LOG_NAME)
        self.holes: list[Hole] = []
        self.pieces: list[Piece] = []
        self.checkpoint: tuple[str, Basis] | None = None
        self.low = 0
        self._end_case = ""  # why the end of the log is damage
        self._end: tuple[int, int] | None = None  # LSN and crc of the last record, where the log has a sound end
        self._lock: Handle | None = None
        try:
            names = self.disk.list_dir(data_dir)
            self._lock = take_lock(self.disk, data_dir)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"there is no data folder {data_dir}") from error
        try:
            self.fresh = META_NAME not in names and not self._numbers()
            if not self.fresh:
                self._survey(META_NAME in names)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of all segments that are needed."""
        return sum(piece.size for piece in self.pieces)

    def close(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                self.disk.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------------------------------ what there is

    def _numbers(self) -> list[int]:
        try:
            names = self.disk.list_dir(self.log_dir)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(number for name in names if (number := segment_number(name)) is not None)

    def _survey(self, has_meta: bool) -> None:
        numbers = self._numbers()
        found: dict[int, Piece] = {}  # by the number in the name
        texts: dict[int, str] = {}
        for number in numbers:
            found[number] = piece = Piece(number, join_path(self.log_dir, segment_name(number)))
            texts[number] = self._look(piece)
        self.log_id = self._find_log_id(has_meta, found)
        self.seed = crc32(self.log_id)
        self._settle_names(found, texts)
        self._find_checkpoint(found)
        headers = [piece.header for piece in found.values() if piece.header is not None]
        self.low = max((header.low for header in headers), default=numbers[0] if numbers else 1)
        if numbers:
            self._find_end(found[max(found)])
            for number in range(self.low, max(found) + 1):
                self.pieces.append(found.get(number) or Piece(number, ""))
        else:
            self._hole(0, self.log_dir, "there is no segment, but META says that there was a log")
        for number, text in texts.items():
            if text and number >= self.low:
                self._hole(number, join_path(self.log_dir, segment_name(number)), text)

    def _hole(self, number: int, path: str, text: str) -> None:
        """One that by itself costs no record."""
        self.holes.append(Hole(number, path, 0, 0, 1, 0, (), text))

    def _look(self, piece: Piece) -> str:
        """Reads the header; what is wrong with it."""
        try:
            handle = self.disk.open(piece.path)
        except OSError as error:
            piece.path = ""
            return f"cannot be opened ({error.strerror or error})"
        try:
            with suppress(OSError):
                self.disk.drop_cache(handle)
            piece.size = self.disk.size(handle)
            piece.header = SegmentHeader.unpack(self.disk.read(handle, SEGMENT_HEADER_BYTES, 0), piece.path)
        except FormatNotKnown:
            raise
        except DataDamaged as error:
            return str(error)
        finally:
            self.disk.close(handle)
        return ""

    def _find_log_id(self, has_meta: bool, found: dict[int, Piece]) -> bytes:
        path = join_path(self.data_dir, META_NAME)
        if has_meta:
            handle = self.disk.open(path)
            try:
                return Meta.unpack(self.disk.read(handle, META_BYTES + 1, 0), path).log_id
            except FormatNotKnown:
                raise
            except DataDamaged as error:
                self._hole(0, path, str(error))
            finally:
                self.disk.close(handle)
        else:
            self._hole(0, path, "META is missing")
        ids = Counter(piece.header.log_id for piece in found.values() if piece.header is not None)
        if not ids:
            raise DataDamaged(
                f"{self.data_dir}: neither META nor any segment's header can be read, and without the log's id no "
                "record can be verified"
            )
        return ids.most_common(1)[0][0]

    def _settle_names(self, found: dict[int, Piece], texts: dict[int, str]) -> None:
        """A sound header says better than the file's name which segment it is; another log's is none."""
        strays: list[Piece] = []
        for number, piece in found.items():
            if piece.header is None:
                continue
            handle = self.disk.open(piece.path)
            try:
                read_header(self.disk, handle, piece.path, self.log_id, number)
            except DataDamaged as error:
                texts[number] = str(error)
                strays.append(Piece(piece.header.number, piece.path, piece.size, piece.header))
                piece.header = None
            finally:
                self.disk.close(handle)
        for stray in strays:
            header = stray.header
            if header is None or header.log_id != self.log_id or header.first_lsn != header.prev_last_lsn + 1:
                continue
            home = found.get(stray.number)
            if home is None or home.header is None:
                found[stray.number] = stray

    def _find_checkpoint(self, found: dict[int, Piece]) -> None:
        folder = join_path(self.data_dir, CHECKPOINTS_NAME)
        for name in list_checkpoints(self.disk, self.data_dir):
            path = join_path(folder, name)
            try:
                basis = verify_checkpoint(self.disk, path, self.log_id)
            except (CheckpointDoubted, OSError) as error:
                self._hole(0, path, str(error))
                continue
            piece = found.get(basis.segment)
            # Tied to this history of the log by the header of the segment where its replay begins.
            anchored = piece is not None and piece.header is not None
            if anchored and self.checkpoint is None and _anchor(piece) == basis.anchor:
                self.checkpoint = path, basis

    def _find_end(self, piece: Piece) -> None:
        """What a start would say about the end of the last segment; and `low`, as the last segment has it."""
        header = piece.header
        if header is None or not piece.path:
            return
        handle = self.disk.open(piece.path)
        try:
            scan = Scan(self.disk, handle, piece.path, self.seed, header.first_lsn, header.prev_crc, None)
            with suppress(DataDamaged):
                for kind, data, start, end, _ in scan.records():
                    if kind in STATE_TYPES:
                        self.low = max(self.low, decode_state(data, start, end).low)
            beyond = look_beyond(self.disk, handle, scan.offset, scan.size, self.seed, scan.lsn + 1)
        finally:
            self.disk.close(handle)
        vouched = Vouched.BEYOND if self.checkpoint and scan.lsn < self.checkpoint[1].end_lsn else Vouched.NO
        length = Length.SHORT if scan.size < header.size else Length.WHOLE
        case = judge(Evidence(Named.NOT, beyond.later, beyond.rest, length, vouched))
        if case.verdict is Verdict.DAMAGED:
            self._end_case = case.why
        else:
            self._end = scan.lsn, scan.crc

    # --------------------------------------------------------------------------------------- what is in there

    def items(self, told: Callable[[int], None] = lambda _: None) -> Iterator[tuple[Piece, Sound] | Hole]:
        """All sound records from the oldest segment on, in the order of the log, and the holes between them.

        told: called with the bytes read so far. Raises FormatNotKnown, OSError.
        """
        done = 0
        expected: int | None = None  # the LSN that comes next, where that is known
        crc: int | None = None  # and the crc that it is chained to
        for index, piece in enumerate(self.pieces):
            following = self.pieces[index + 1].header if index + 1 < len(self.pieces) else None
            stop = (following.prev_last_lsn, following.prev_crc) if following else None
            if piece is self.pieces[-1]:
                stop = self._end
            if not piece.path:
                last = stop[0] if stop else None
                path = join_path(self.log_dir, segment_name(piece.number))
                yield Hole(
                    piece.number, path, 0, 0, expected, last, (), "the segment's file is missing or cannot be read"
                )
                expected, crc = (stop[0] + 1, stop[1]) if stop else (None, None)
                continue
            header = piece.header
            if header is not None:
                if expected is not None and header.first_lsn > expected:
                    text = "the segment before this one should go on up to here"
                    yield Hole(piece.number, piece.path, 0, 0, expected, header.first_lsn - 1, (), text)
                expected, crc = header.first_lsn, header.prev_crc
            handle = self.disk.open(piece.path)
            try:
                walk = Walk(self.disk, handle, piece.path, self.seed, first_lsn=expected, prev_crc=crc, stop=stop)
                yield from self._walk(walk, piece, done, told)
                if stop is not None:
                    expected, crc = stop[0] + 1, stop[1]
                elif walk.lsn >= (expected or 1):
                    expected, crc = walk.lsn + 1, walk.crc
            finally:
                self.disk.close(handle)
            done += piece.size
            told(done)

    def _walk(
        self, walk: Walk, piece: Piece, done: int, told: Callable[[int], None]
    ) -> Iterator[tuple[Piece, Sound] | Hole]:
        whole = True
        for count, item in enumerate(walk.items()):
            if isinstance(item, Gap):
                whole = False
                yield Hole(piece.number, piece.path, *item)
                continue
            if not count & 0xFF:
                told(done + item.offset)
            yield piece, item
        if piece is not self.pieces[-1] or not self._end_case:
            return
        # The log should go on here, and nothing says how far, but perhaps a checkpoint.
        vouched = self.checkpoint[1].end_lsn if self.checkpoint else 0
        if walk.lsn < vouched or whole:
            last = vouched if vouched > walk.lsn else None
            yield Hole(piece.number, piece.path, walk.offset, walk.size, walk.lsn + 1, last, (), self._end_case)


def take_lock(disk: Disk, data_dir: str) -> Handle | None:
    """Keeps a broker from starting while we look; None where there is no LOCK. Raises DataDirInUse, OSError."""
    try:
        return disk.lock(join_path(data_dir, LOCK_NAME), shared=True)
    except FileNotFoundError:
        return None
    except BlockingIOError as error:
        raise DataDirInUse(
            f"data folder {data_dir} is in use by a running stompd (it holds {LOCK_NAME}); stop it first, or look at "
            "a copy made with `stompd backup`"
        ) from error


def state_of(item: Sound) -> State | None:
    """What TRIM, EPOCH and WITNESS say, None for any other record."""
    return decode_state(item.data, item.start, item.end) if item.kind in STATE_TYPES else None


def _anchor(piece: Piece | None) -> int | None:
    return None if piece is None or piece.header is None else int.from_bytes(piece.header.pack()[-4:], "little")
