"""Gives up messages that nobody can read any more, so that their queue goes on without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from broker.errors import CheckpointDoubted, DataDamaged, UsageError
from broker.journal.batch import StorageSettings
from broker.journal.checkpoint import Part
from broker.journal.describe import text_of
from broker.journal.folder import LOG_NAME, META_NAME
from broker.journal.reader import Damage, Reader, Record
from broker.journal.records import Carried, Messages, RecordType, lost_payload
from broker.journal.recovery import Log, open_log
from broker.journal.transfer import pump
from broker.journal.waiting import Waiting
from broker.journal.writer import join_path
from broker.system import Clock, Disk, Rng

_RANGE_MAX: Final = 1_000_000  # seqs at a time
_SEQS_MAX: Final = 16_384  # in one record


class Doomed(NamedTuple):
    """A message that is about to be given up. text: its headers where they can be read, else why they cannot."""

    seq: int
    deliveries: int
    readable: bool
    size: int
    text: str


class Forget:
    """Opens the log as a start does; then `find`, perhaps `commit`, and `close`.

    queue: as it is called in the log.
    """

    def __init__(
        self,
        disk: Disk,
        data_dir: str,
        settings: StorageSettings,
        clock: Clock,
        rng: Rng,
        queue: str,
        seqs: tuple[int, int],
    ) -> None:
        """Raises UsageError where there is no log or nothing of that kind waits, and what a start is refused with."""
        first, last = seqs
        if last - first >= _RANGE_MAX:
            raise UsageError(f"{first}-{last}: at most {_RANGE_MAX:,} messages at a time")
        try:
            if META_NAME not in disk.list_dir(data_dir):
                raise UsageError(f"{data_dir} holds no data of stompd: there is no {META_NAME} in it")
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"there is no data folder {data_dir}") from None
        self._disk = disk
        self._log_dir = join_path(data_dir, LOG_NAME)
        self._log: Log = open_log(disk, data_dir, settings, clock, rng)
        try:
            self._waiting = self._replay(first, last)
            self.queue = self._find_queue(queue, first, last)
            self.seqs = sorted(self._waiting.lines[self.queue].places)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the lock back."""
        self._log.close()

    def _replay(self, first: int, last: int) -> Waiting:
        while True:
            waiting = Waiting(first, last)
            try:
                for item in self._log.replay(skim=True):
                    if isinstance(item, Part):
                        waiting.take_part(item)
                    else:
                        waiting.apply(item.value, item.place)
            except CheckpointDoubted:
                continue
            except DataDamaged as error:
                raise DataDamaged(
                    f"{error}. A start is refused, so nothing can be forgotten: `stompd log salvage` is the way"
                ) from error
            return waiting

    def _find_queue(self, queue: str, first: int, last: int) -> bytes:
        holders = sorted(name for name, line in self._waiting.lines.items() if line.places)
        for name in (queue.encode(), f"/queue/{queue}".encode()):
            if name in holders:
                return name
        which = f"message {first}" if first == last else f"of the messages {first} to {last}"
        elsewhere = ", ".join(map(text_of, holders[:8]))
        raise UsageError(
            f"no {which} waits in {queue}" + (f"; in {elsewhere} there is" if elsewhere else ", nor in any other queue")
        )

    def find(self) -> Iterator[Doomed]:
        """What would be given up, in the order of the queue. A record that cannot be read is no error here."""
        line = self._waiting.lines[self.queue]
        reader = Reader(self._disk, self._log_dir, self._log.log_id)
        try:
            for seq in self.seqs:
                (record,) = reader.read([line.places[seq]])
                deliveries = line.counts.get(seq, (0, 0))[0]
                if isinstance(record, Damage):
                    yield Doomed(seq, deliveries, False, 0, record.text)
                else:
                    yield _doomed(record, seq, deliveries)
        finally:
            reader.close()

    def commit(self) -> None:
        """Appends LOST, and what a stop ends with; both synced when it returns. Raises StorageFailed.

        The end is as clean as it was found: whether messages were delivered without a trace is for the next start.
        """
        journal, writer = self._log.start()
        try:
            for at in range(0, len(self.seqs), _SEQS_MAX):
                journal.append(RecordType.LOST, lost_payload(self.queue, self.seqs[at : at + _SEQS_MAX]))
            journal.append_witness(clean=self._log.summary.clean)
            pump(journal, writer)
        finally:
            with suppress(OSError):
                writer.close()


def _doomed(record: Record, seq: int, deliveries: int) -> Doomed:
    for _, value in record.values:
        index = None
        if isinstance(value, Messages) and 0 <= seq - value.first_seq < len(value.bodies):
            index = seq - value.first_seq
        elif isinstance(value, Carried):
            index = next((at for at, entry in enumerate(value.entries) if entry[0] == seq), None)
        if index is not None and isinstance(value, Messages | Carried):
            lines = value.head + (value.owns[index] if value.owns else b"")
            shown = b"destination:" + value.destination + b"\n" + lines
            return Doomed(seq, deliveries, True, len(value.bodies[index]), text_of(shown.rstrip(b"\n")))
    return Doomed(seq, deliveries, False, 0, f"the record at {record.place:#x} does not hold it")
