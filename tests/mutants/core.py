"""Mutants of the broker: receipts, deliveries, the backlog, compaction and the content of checkpoints."""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

CORE: Final = "tests/core"

_PROMISES = (
    Mutant(
        "receipt before the sync",
        "a power cut takes what was receipted",
        "broker/session/session.py",
        "        if not self._waiting and lsn <= self.broker.journal.durable:\n            self._emit(data, close)\n",
        "        if not self._waiting:\n            self._emit(data, close)\n",
        "tests/session/test_receipts.py::test_a_receipt_covers_frames_that_asked_for_none",
    ),
    Mutant(
        "receipt of DISCONNECT too early",
        "it covers every frame before it",
        "broker/session/session.py",
        '            self._answer(receipt(frame.receipt) if frame.receipt is not None else b"", close=True)\n',
        '            self._emit(receipt(frame.receipt) if frame.receipt is not None else b"", True)\n',
        "tests/session/test_receipts.py::test_the_receipt_of_disconnect_covers_all_before_it_and_then_the_connection_ends",
    ),
    Mutant(
        "delivery before the sync",
        "a consumer acts on a message that a crash takes back",
        "broker/core/broker.py",
        "        self._ledger.reached(journal.durable)\n",
        "        self._ledger.reached(journal.lsn)\n",
        f"{CORE}/test_delivery.py::test_a_batch_that_is_synced_lets_nothing_of_the_next_one_pass",
    ),
    Mutant(
        "ACK dropped",
        "what was acknowledged comes back",
        "broker/core/settling.py",
        "        seqs = self._ledger.let_go_all(queue, messages)\n        if not seqs:\n            return 0\n"
        "        return self._ledger.append(RecordType.ACKED, acked_payload(queue.key, seqs))\n",
        "        seqs = self._ledger.let_go_all(queue, messages)\n        return 0\n",
        "tests/session/test_receipts.py::test_what_was_receipted_as_acknowledged_never_comes_back",
    ),
    Mutant(
        "high-water mark off by one",
        "a message that a client got is delivered again without a flag",
        "broker/core/queue.py",
        "        if last > self.mark or last + (self.step >> 1) > self.mark_asked:\n",
        "        if last > self.mark + 1 or last + (self.step >> 1) > self.mark_asked + 1:\n",
        f"{CORE}/test_marks.py::test_a_mark_that_was_asked_for_but_is_not_synced_lets_nothing_pass",
    ),
    Mutant(
        "redelivered always false",
        "a consumer takes a message for new that another one may have worked on",
        "broker/session/delivering.py",
        "        if message.deliveries > 0:\n",
        "        if message.deliveries > 1 << 30:\n",
        f"{CORE}/test_marks.py::test_after_a_kill_what_a_client_got_is_flagged",
    ),
    Mutant(
        "no flags after a crash",
        "the same, after a crash only",
        "broker/core/replay.py",
        "            if not clean and (flagged := restored.flag()):\n",
        "            if clean and (flagged := restored.flag()):\n",
        f"{CORE}/test_marks.py::test_after_a_kill_what_a_client_got_is_flagged",
    ),
)

_BACKLOG = (
    Mutant(
        "eviction drops a message",
        "a message is lost when memory gets short",
        "broker/core/queue.py",
        "        self.stored.add_front(entries_of(self._placed(spilled)))\n",
        "        self.stored.add_front(entries_of(self._placed(spilled[1:])))\n",
        f"{CORE}/test_on_disk.py::test_a_backlog_larger_than_memory_comes_back_whole_and_in_order",
    ),
    Mutant(
        "loaded behind what came later",
        "messages that were read back are delivered out of order",
        "broker/core/queue.py",
        "        if self.stored or (self.loading is not None and self.loading.fresh):\n"
        "            self.tail += messages\n",
        "        if self.stored:\n            self.tail += messages\n",
        f"{CORE}/test_on_disk.py::test_messages_that_come_while_a_read_is_under_way_stay_behind_it",
    ),
    Mutant(
        "positions put back in front are not found",
        "a message of theirs cannot be copied forward or settled late",
        "broker/core/positions.py",
        "            self._firsts[0] = self._blocks[0][0]\n",
        "            pass\n",
        f"{CORE}/test_positions.py::test_what_was_taken_and_put_back_in_front_is_found_again",
    ),
    Mutant(
        "budget never released",
        "memory.limit is used up by messages that are gone, and producers wait for ever",
        "broker/core/backlog.py",
        "                    message.envelope = message.envelope.light\n        self._memory.book(-size)\n",
        "                    message.envelope = message.envelope.light\n",
        f"{CORE}/test_on_disk.py::test_a_backlog_larger_than_memory_comes_back_whole_and_in_order",
    ),
    Mutant(
        "bodies kept in flight",
        "memory grows with what consumers have not acknowledged",
        "broker/core/backlog.py",
        '                size += message.size\n                message.body = message.own = b""\n',
        "                pass\n",
        f"{CORE}/test_on_disk.py::test_messages_in_flight_hold_no_bodies",
    ),
    Mutant(
        "segment removed while it is read",
        "a read finds another file or none, and a sound queue is closed",
        "broker/journal/journal.py",
        "                and not segment.readers\n",
        "",
        f"{CORE}/test_on_disk.py::test_a_segment_that_is_being_read_is_not_removed",
    ),
    Mutant(
        "damage passed over",
        "a message is skipped without a word",
        "broker/core/backlog.py",
        "            if loading.fresh:\n                made += ",
        "            if isinstance(found[place], Damage):\n                continue\n"
        "            if loading.fresh:\n                made += ",
        f"{CORE}/test_on_disk.py::test_a_record_that_cannot_be_read_closes_its_queue_and_no_other",
    ),
)

_SPACE = (
    Mutant(
        "carry forgets counts",
        "a message that was delivered is new again, and its failures are forgotten",
        "broker/core/compaction.py",
        "            [(message.seq, message.deliveries, message.failures) for message in messages],\n",
        "            [(message.seq, 0, 0) for message in messages],\n",
        f"{CORE}/test_on_disk.py::test_counts_and_failures_go_with_a_message_that_is_carried",
    ),
    Mutant(
        "carry forgets why a message is dead",
        "a dead letter loses its reason and the queue that it came from",
        "broker/core/compaction.py",
        "            note = json.dumps(why).encode()\n",
        "            note = json.dumps([]).encode()\n",
        f"{CORE}/test_on_disk.py::test_a_dead_letter_says_why_after_it_was_carried",
    ),
    Mutant(
        "CARRIED written for a killed message",
        "what was acknowledged late comes back",
        "broker/core/compaction.py",
        "            and low <= message.place < high\n            and message.deliveries >= 0\n",
        "            and low <= message.place < high\n",
        f"{CORE}/test_on_disk.py::test_a_message_settled_late_while_another_consumer_has_it_is_not_carried",
    ),
    Mutant(
        "old copy never let go",
        "the segment stays for ever, and the log grows",
        "broker/core/compaction.py",
        "        ledger.let_go(old, 1, size)\n",
        "",
        f"{CORE}/test_on_disk.py::test_counts_and_failures_go_with_a_message_that_is_carried",
    ),
    Mutant(
        "old segments never copied",
        "one old message pins the whole log",
        "broker/core/compaction.py",
        "        if oldest.number in self._stuck:\n            return\n",
        "        return\n",
        f"{CORE}/test_on_disk.py::test_one_old_message_does_not_pin_the_log_and_is_the_same_after_it_was_carried",
    ),
    Mutant(
        "marks go with their segment",
        "after a crash what was delivered is not flagged",
        "broker/core/broker.py",
        "            self._ledger.carry_marks({segment.number for segment in dead})\n",
        "",
        f"{CORE}/test_marks.py::test_dead_segments_go_and_the_mark_stays",
    ),
)

_CHECKPOINTS = (
    Mutant(
        "checkpoint finished before the journal is synced",
        "it vouches for records that a power cut takes: the start is refused",
        "broker/core/checkpoints.py",
        "            if self._journal.synced < self._end_lsn:\n                return []\n",
        "",
        f"{CORE}/test_on_disk.py::test_a_checkpoint_is_finished_only_when_the_journal_is_synced_up_to_its_end",
    ),
    Mutant(
        "checkpoint without what moves",
        "a message that becomes a dead letter while it is made is lost at the next start",
        "broker/core/checkpoints.py",
        "            self._note(queue.key, queue.mark_asked, messages)\n",
        "            pass\n",
        f"{CORE}/test_on_disk.py::test_a_dead_letter_that_moves_while_a_checkpoint_is_made_is_not_lost",
    ),
    Mutant(
        "checkpoint without what is in flight",
        "a message that a consumer has is lost when the broker is killed",
        "broker/core/queue.py",
        "        for subscription in (*self.leaving, *self.subscriptions):\n"
        "            yield from subscription.in_flight.values()\n",
        "",
        f"{CORE}/test_on_disk.py::test_a_start_with_a_checkpoint_has_what_was_in_flight",
    ),
)

CORE_MUTANTS: Final = (*_PROMISES, *_BACKLOG, *_SPACE, *_CHECKPOINTS)
