"""Mutants of the journal: what writes the log, and what reads it at a start or later."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

JOURNAL: Final = "tests/journal"

_WRITER = (
    Mutant(
        "no fsync",
        "a power cut takes what was receipted",
        "broker/journal/writer.py",
        "                self._zero_ahead(batch.size)\n                self._disk.sync_data(self._current())\n",
        "                self._zero_ahead(batch.size)\n",
        f"{JOURNAL}/test_simulation.py::test_no_seed_breaks_a_promise",
    ),
    Mutant(
        "fsync retried",
        "after a failed fsync the pages are clean: the second one succeeds and the data is gone",
        "broker/journal/writer.py",
        "                self._disk.sync_data(self._current())\n",
        "                try:\n"
        "                    self._disk.sync_data(self._current())\n"
        "                except OSError:\n"
        "                    self._disk.sync_data(self._current())\n",
        f"{JOURNAL}/test_writer.py::test_a_failed_sync_is_a_failure_at_once_and_is_not_tried_again",
    ),
    Mutant(
        "fsync error swallowed",
        "receipts for what is not on the medium",
        "broker/journal/writer.py",
        "                self._disk.sync_data(self._current())\n",
        "                with suppress(OSError):\n                    self._disk.sync_data(self._current())\n",
        f"{JOURNAL}/test_writer.py::test_a_failed_sync_is_a_failure_at_once_and_is_not_tried_again",
    ),
    Mutant(
        "fsync that finds no room taken for a full disk",
        "the same batch would be synced a second time, which succeeds with the data gone",
        "broker/journal/writer.py",
        "                self._disk.sync_data(self._current())\n",
        "                self._roomy(batch, self._disk.sync_data, self._current())\n",
        f"{JOURNAL}/test_space.py::test_want_of_room_at_any_call_is_waited_for_and_at_a_sync_it_is_a_failure",
    ),
    Mutant(
        "full disk taken for a failed one",
        "the process ends where producers should only wait",
        "broker/journal/writer.py",
        "            if not no_room(error):\n                raise\n            batch.no_room = True\n"
        "            if self._ballast is None",
        "            raise\n            if self._ballast is None",
        f"{JOURNAL}/test_space.py::test_a_full_disk_takes_the_ballast_then_stops_and_goes_on_when_there_is_room",
    ),
    Mutant(
        "old segment not synced before the roll",
        "a new segment's name is to prove that the records before it were synced",
        "broker/journal/writer.py",
        "            disk.sync_data(self._handle)\n            disk.close(self._handle)\n"
        "            self._handle = None\n        path, handle",
        "            disk.close(self._handle)\n            self._handle = None\n        path, handle",
        f"{JOURNAL}/test_writer.py::test_a_roll_syncs_the_old_file_before_the_new_one_gets_its_name",
    ),
    Mutant(
        "no directory fsync",
        "receipted records could lie in a file that has no name after a power cut",
        "broker/journal/writer.py",
        "        self._roomy(batch, disk.rename, path, segment.path)\n        disk.sync_dir(self._log_dir)\n",
        "        self._roomy(batch, disk.rename, path, segment.path)\n",
        f"{JOURNAL}/test_simulation.py::test_no_seed_breaks_a_promise",
    ),
    Mutant(
        "TRIM and unlink swapped",
        "a hole that no TRIM explains cannot be told from a lost segment",
        "broker/journal/writer.py",
        "        for step in batch.steps[self._done :]:\n",
        "        for segment in batch.unlink:\n"
        "            self._disk.unlink(segment.path)\n"
        "        batch.unlink = []\n"
        "        for step in batch.steps[self._done :]:\n",
        f"{JOURNAL}/test_writer.py::test_a_removal_follows_the_sync_of_its_trim_oldest_first",
    ),
    Mutant(
        "short write taken for a whole one",
        "the rest of the records is never written",
        "broker/journal/writer.py",
        "        if done == total:\n            break\n",
        "        break\n",
        f"{JOURNAL}/test_writer.py::test_short_writes_lose_nothing",
    ),
    Mutant(
        "META gets its name before its bytes are synced",
        "a power cut leaves a META of zeros, and the log cannot be read",
        "broker/journal/folder.py",
        "        disk.sync_all(handle)\n    finally:\n        disk.close(handle)\n"
        "    disk.rename(path + TMP_SUFFIX, path)\n",
        "    finally:\n        disk.close(handle)\n    disk.rename(path + TMP_SUFFIX, path)\n",
        f"{JOURNAL}/test_writer.py::test_the_first_start_makes_everything_in_the_one_safe_order",
    ),
)

_READING = (
    Mutant(
        "no CRC check at a start",
        "rot is replayed as if it were what was sent",
        "broker/journal/scan.py",
        "                crc32(view[start:padded], crc32(pack(length, 0, before, kind, flags, lsn, synced), seed))\n"
        "                != crc\n",
        "                crc32(view[start:padded], crc32(pack(length, 0, before, kind, flags, lsn, synced), seed))\n"
        "                < 0\n",
        f"{JOURNAL}/test_damage.py::test_every_single_bit_that_a_later_record_vouches_for_is_found",
    ),
    Mutant(
        "no CRC check when a backlog is read back",
        "rot is delivered",
        "broker/journal/reader.py",
        '        if found != crc:\n            raise DataDamaged(f"the record is damaged',
        '        if found < 0:\n            raise DataDamaged(f"the record is damaged',
        f"{JOURNAL}/test_reader.py::test_any_flipped_bit_of_a_record_is_damage_and_its_neighbours_are_not",
    ),
    Mutant(
        "no chain check",
        "a record of an older life of the log takes the place of the one that was written",
        "broker/journal/scan.py",
        "            if lsn != self.lsn + 1 or before != self.crc or kind == 0:\n",
        "            if lsn != self.lsn + 1 or kind == 0:\n",
        f"{JOURNAL}/test_forgery.py::test_a_sound_record_with_the_right_lsn_from_another_life_of_the_log_does_not_chain",
    ),
    Mutant(
        "no LSN check",
        "a record that is not the next one is taken for it",
        "broker/journal/scan.py",
        "            if lsn != self.lsn + 1 or before != self.crc or kind == 0:\n",
        "            if before != self.crc or kind == 0:\n",
        f"{JOURNAL}/test_forgery.py::test_a_chained_record_with_a_wrong_lsn_is_not_taken",
    ),
    Mutant(
        "SEAL not compared",
        "records that were replaced before their segment was sealed are believed",
        "broker/journal/scan.py",
        "            fits = fits and (count, self._digest.digest()) == (seal.count, seal.digest)\n",
        "            pass\n",
        f"{JOURNAL}/test_forgery.py::test_a_seal_that_does_not_fit_its_segment_is_damage",
    ),
    Mutant(
        "verdict: proof of a sync not heeded",
        "damage to receipted data is called a torn tail, and cut off",
        "broker/journal/verdict.py",
        "    Case(Named.NOT, Later.PROVEN, None, None, None, Verdict.DAMAGED,",
        "    Case(Named.NOT, Later.PROVEN, None, None, None, Verdict.TORN,",
        f"{JOURNAL}/test_damage.py::test_every_single_bit_that_a_later_record_vouches_for_is_found",
    ),
    Mutant(
        "verdict: rows swapped",
        "a file that lost its end heals, with the receipted records in it gone",
        "broker/journal/verdict.py",
        "    Case(Named.NOT, None, None, Length.SHORT, None, Verdict.DAMAGED, "
        '"the file is shorter than it was made"),\n'
        "    Case(Named.NOT, Later.UNPROVEN, None, None, None, Verdict.TORN, "
        '"a later part of an unsynced write landed"),\n'
        "    Case(Named.NOT, Later.NONE, Rest.OTHER, None, None, Verdict.TORN, "
        '"an unsynced write was cut short"),\n',
        "    Case(Named.NOT, Later.UNPROVEN, None, None, None, Verdict.TORN, "
        '"a later part of an unsynced write landed"),\n'
        "    Case(Named.NOT, Later.NONE, Rest.OTHER, None, None, Verdict.TORN, "
        '"an unsynced write was cut short"),\n'
        "    Case(Named.NOT, None, None, Length.SHORT, None, Verdict.DAMAGED, "
        '"the file is shorter than it was made"),\n',
        f"{JOURNAL}/test_verdict.py::test_every_combination_of_evidence_has_the_right_verdict",
    ),
    Mutant(
        "torn tail not cut",
        "the next segment claims records that were never there, and every later start is refused",
        "broker/journal/recovery.py",
        "            end=(end.number, end.lsn, end.crc),\n",
        "            end=(end.number, end.lsn + (end.verdict is Verdict.TORN), end.crc),\n",
        f"{JOURNAL}/test_damage.py::test_a_torn_tail_is_kept_as_evidence_and_never_read_again",
    ),
    Mutant(
        "EPOCH not synced",
        "what the start found is not on the medium when the first client comes",
        "broker/journal/recovery.py",
        "        writer.run(batch)\n        journal.done(batch, None)\n",
        "        batch.sync = False\n        writer.run(batch)\n        journal.done(batch, None)\n",
        f"{JOURNAL}/test_writer.py::test_a_later_start_names_the_end_before_it_clears_away",
    ),
    Mutant(
        "seq jump dropped",
        "a message may get the id of one that was lost in a crash",
        "broker/journal/recovery.py",
        "            seen.next_seq += SEQ_JUMP\n",
        "            seen.next_seq += 0\n",
        f"{JOURNAL}/test_recovery.py::test_seqs_go_on_after_a_clean_stop_and_jump_after_any_other",
    ),
    Mutant(
        "witness that saw nothing",
        "a record says that others were synced which were not: a torn tail looks like damage",
        "broker/journal/journal.py",
        "        before, synced = self._crc, self.synced\n",
        "        before, synced = self._crc, self.lsn\n",
        f"{JOURNAL}/test_journal.py::test_each_record_says_what_was_synced_when_it_was_written",
    ),
)

_SPACE = (
    Mutant(
        "reserve not refilled",
        "the next full disk finds no room even for ACKs",
        "broker/journal/space.py",
        "        self._enough = room.held and free >= OVER * low\n",
        "        self._enough = free >= OVER * low\n",
        f"{JOURNAL}/test_space.py::test_the_alarm_begins_below_the_mark_and_ends_at_half_as_much_again",
    ),
    Mutant(
        "alarm ends where it began",
        "producers are let go and held back in turn all the time",
        "broker/journal/space.py",
        "        self._enough = room.held and free >= OVER * low\n",
        "        self._enough = room.held and free >= low\n",
        f"{JOURNAL}/test_space.py::test_the_alarm_begins_below_the_mark_and_ends_at_half_as_much_again",
    ),
)

_CHECKPOINTS = (
    Mutant(
        "checkpoint gets its name before its bytes are synced",
        "a power cut leaves a checkpoint of zeros in the place of a sound one",
        "broker/journal/checkpoint.py",
        "        self._disk.sync_all(self._handle)\n        handle, self._handle = self._handle, None\n"
        "        self._disk.close(handle)\n"
        "        self._disk.rename(self._tmp, join_path(self._dir, checkpoint_name(basis.lsn)))\n",
        "        handle, self._handle = self._handle, None\n        self._disk.close(handle)\n"
        "        self._disk.rename(self._tmp, join_path(self._dir, checkpoint_name(basis.lsn)))\n",
        f"{JOURNAL}/test_checkpoint.py::test_power_loss_at_any_call_leaves_the_checkpoint_before_it_or_the_new_one",
    ),
    Mutant(
        "digest of a checkpoint not compared",
        "parts in another order, or of another checkpoint, are believed",
        "broker/journal/checkpoint.py",
        "            if found != digest.digest():\n",
        "            if len(found) != DIGEST_BYTES:\n",
        f"{JOURNAL}/test_checkpoint.py::test_sound_parts_in_another_order_or_from_another_checkpoint_are_noticed",
    ),
    Mutant(
        "checkpoint of another history believed",
        "positions point into a log that is not the one they were made of",
        "broker/journal/shortcut.py",
        "        if anchor is None or anchor_of(anchor.pack()) != basis.anchor:\n",
        "        if anchor is None:\n",
        f"{JOURNAL}/test_shortcut.py::test_a_checkpoint_of_another_past_is_not_used",
    ),
)

JOURNAL_MUTANTS: Final = (*_WRITER, *_READING, *_SPACE, *_CHECKPOINTS)
