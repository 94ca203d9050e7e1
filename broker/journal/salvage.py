"""Every message that can still be verified, out of a damaged data folder into a fresh one, and a list of the rest.

The source is never changed. What waits where is worked out from all sound records, in front of damage and behind it,
and from a checkpoint where there is a sound one: it knows what lies in records that are gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, NamedTuple

from broker.errors import CheckpointDoubted, StompdError, UsageError
from broker.journal.audit import Audit, Hole, Piece, state_of
from broker.journal.batch import StorageSettings
from broker.journal.checkpoint import read_parts
from broker.journal.describe import hole_row, text_of
from broker.journal.folder import META_NAME, UNFINISHED
from broker.journal.records import SKIMMERS, RecordType, decode
from broker.journal.recovery import Log, open_log
from broker.journal.segment import place_of
from broker.journal.transfer import Missing, Salvaged, Transfer, pump
from broker.journal.waiting import Waiting
from broker.journal.walk import Sound
from broker.journal.writer import TMP_SUFFIX, join_path, write_all
from broker.system import Clock, Disk, Rng

MISSING_NAME: Final = "missing.jsonl"


class _Settings(NamedTuple):
    """Nobody waits for a receipt: one sync at the end."""

    segment_size: int
    fsync: str = "never"
    interval: float = 1.0


class Salvage:
    """One run from `data_dir` into `target`, an empty folder or none.

    told: called with what is under way ("bytes read" or "messages copied"), how much is done and how much there is.
    """

    def __init__(
        self,
        disk: Disk,
        data_dir: str,
        target: str,
        settings: StorageSettings,
        clock: Clock,
        rng: Rng,
        *,
        told: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self._disk = disk
        self._data_dir = data_dir
        self._target = target
        self._settings = _Settings(settings.segment_size)
        self._clock = clock
        self._rng = rng
        self._told = told
        self._clean = False
        self._begin = 0  # the segment where the checkpoint leaves off
        self._known = 0  # the last LSN that it tells of; a record applied twice could kill what came later
        self._next_seq = 1
        self._waiting = Waiting()
        self.done = Salvaged()

    def run(self) -> Salvaged:
        """Raises UsageError (no data, the target is not empty), DataDirInUse, FormatNotKnown, DataDamaged where nothing
        can be verified, StorageFailed, OSError. What it leaves then is refused by every start.
        """
        audit = Audit(self._disk, self._data_dir)
        try:
            if audit.fresh:
                raise UsageError(f"{self._data_dir} holds no log")
            self._open_target()
            self._gather(audit)
            self._flag()
            log = open_log(self._disk, self._target, self._settings, self._clock, self._rng)
            try:
                self._write(audit, log)
            finally:
                log.close()
        finally:
            audit.close()
        return self.done

    def _open_target(self) -> None:
        try:
            self._disk.make_dir(self._target)
        except FileExistsError:
            if self._disk.list_dir(self._target):
                raise UsageError(f"{self._target} is not empty; salvage writes into a fresh folder only") from None

    # ------------------------------------------------------------------------------------------ what waits where

    def _gather(self, audit: Audit) -> None:
        self.done.holes += audit.holes
        self._take_checkpoint(audit)
        for item in audit.items(lambda done: self._told("bytes read", done, audit.size)):
            if isinstance(item, Hole):
                self.done.holes.append(item)
                if item.number >= self._begin:
                    self._clean = False
                    self.done.unsure = self.done.unsure or item.loses_records
                continue
            piece, sound = item
            self.done.records += 1
            self._clean = False
            try:
                self._take(piece, sound)
            except StompdError as error:  # sound, and yet not what a record may say
                text = f"the record is sound and cannot be understood: {error}"
                self.done.holes.append(
                    Hole(piece.number, piece.path, sound.offset, sound.offset, sound.lsn, sound.lsn, (), text)
                )
                self.done.unsure = True
        self._next_seq = max(self._next_seq, self._waiting.next_seq)

    def _take_checkpoint(self, audit: Audit) -> None:
        if audit.checkpoint is None:
            return
        path, basis = audit.checkpoint
        try:
            for part in read_parts(audit.disk, path, audit.log_id):
                self._waiting.take_part(part)
        except CheckpointDoubted:
            self._waiting = Waiting()  # the log alone, then
            return
        self._begin, self._known = basis.segment, basis.lsn
        self._next_seq = basis.next_seq

    def _take(self, piece: Piece, sound: Sound) -> None:
        """Raises StompdError."""
        state = state_of(sound)
        if state is not None:
            self._next_seq = max(self._next_seq, state.next_seq)
            self._clean = sound.kind == RecordType.WITNESS and state.clean
        elif piece.number >= self._begin and sound.lsn > self._known:
            place = place_of(piece.number, sound.offset)
            for _, value in decode(sound.kind, sound.data, sound.start, sound.end, SKIMMERS):
                self._waiting.apply(value, place)

    def _flag(self) -> None:
        """Whoever may have been with a client counts as delivered: too many may, too few may not."""
        done = self.done
        for line in self._waiting.lines.values():
            if self._clean and not done.unsure:
                continue
            for seq in line.places:
                if (done.unsure or seq <= line.mark) and seq not in line.counts:
                    line.counts[seq] = 1, 0
        if done.unsure:
            for queue, seq in self._waiting.orphans:
                done.missing.append(Missing(queue, seq, "it was moved here; the record with its body is gone"))

    # ------------------------------------------------------------------------------------------ the fresh folder

    def _write(self, audit: Audit, log: Log) -> None:
        for _ in log.replay():
            pass
        journal, writer = log.start()
        disk, meta = self._disk, join_path(self._target, META_NAME)
        # Until all is there no start may take this folder for whole.
        disk.rename(meta, meta + TMP_SUFFIX)
        handle = disk.create(meta)
        try:
            write_all(disk, handle, [UNFINISHED], 0)
            disk.sync_all(handle)
        finally:
            disk.close(handle)
        disk.sync_dir(self._target)
        journal.next_seq = max(journal.next_seq, self._next_seq)
        try:
            Transfer(audit, self._waiting, journal, writer, self.done, self._told).run()
            journal.append_witness(clean=True)
            pump(journal, writer)
        finally:
            writer.close()
        self._write_missing()
        disk.rename(meta + TMP_SUFFIX, meta)
        disk.sync_dir(self._target)

    def _write_missing(self) -> None:
        rows = [*map(hole_row, self.done.holes), *map(missing_row, self.done.missing)]
        handle = self._disk.create(join_path(self._target, MISSING_NAME))
        try:
            offset = 0
            for row in rows:
                line = json.dumps(row).encode() + b"\n"
                write_all(self._disk, handle, [line], offset)
                offset += len(line)
            self._disk.sync_all(handle)
        finally:
            self._disk.close(handle)


def missing_row(missing: Missing) -> dict[str, object]:
    return {"type": "message", "queue": text_of(missing.queue), "seq": missing.seq, "text": missing.text}
