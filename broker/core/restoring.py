"""From records that were read back to messages."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from broker.budget import Account
from broker.core.entries import Entry, unpack_counts
from broker.core.message import Envelope, Message
from broker.errors import DataDamaged
from broker.journal import Carried, Messages, Moved, RecordType, Value, number_of, offset_of, segment_name

Values = Sequence[tuple[RecordType, Value]]
FEW: Final = 8  # parts of a record; with more of them they are not looked through for each message


class _Index:
    """Which parts of a transaction's record are about a message."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self._sent = [(kind, value) for kind, value in values if isinstance(value, Messages)]
        self._starts = [value.first_seq for _, value in self._sent if isinstance(value, Messages)]  # they ascend
        self._moved: dict[int, list[tuple[RecordType, Value]]] = {}
        for kind, value in values:
            if isinstance(value, Moved):
                for first, last, _, _ in value.entries:
                    for seq in range(first, last + 1):
                        self._moved.setdefault(seq, []).append((kind, value))

    def sent(self, first: int, last: int) -> Values:
        """Those with the messages themselves."""
        return self._sent[max(bisect_right(self._starts, first) - 1, 0) : bisect_right(self._starts, last)]

    def moved(self, seq: int) -> Values:
        """Those that made it a dead letter."""
        return self._moved.get(seq, [])


class Restorer:
    """Makes the messages of a queue's entries. What does not hold what its entry says is damage."""

    def __init__(self, prefix: bytes, account: Account | None = None) -> None:
        """prefix: of the message-ids of this log. account: for large headers."""
        self._prefix = prefix
        self._account = account
        self._envelope: Envelope | None = None
        # What was worked out last: where the note lies, its text, the envelope before and the one of a dead letter.
        self._dead: tuple[int, bytes, Envelope, Envelope] | None = None
        self._indexes: list[_Index] = []  # of the records used last: one with messages, one with notes

    def forget(self) -> None:
        """The records of which messages were made are not needed any more."""
        self._indexes.clear()
        self._envelope = self._dead = None

    def _index(self, values: Values) -> _Index:
        for index in self._indexes:
            if index.values is values:
                return index
        index = _Index(values)
        self._indexes = [*self._indexes[-1:], index]
        return index

    def _sent(self, values: Values, first: int, last: int) -> Values:
        """The parts of a record in which messages from `first` to `last` may be."""
        return values if len(values) <= FEW else self._index(values).sent(first, last)

    def fresh(self, key: bytes, entry: Entry, values: Values) -> list[Message]:
        """The messages of an entry of `Runs`. Raises DataDamaged."""
        seq, place, mask, _ = entry
        count = mask.bit_length()
        made: list[Message] = []
        # A transaction's messages are one entry where their seqs follow each other, and may lie in several parts.
        # The first bits may be those of messages that are gone, which a copy (CARRIED) does not hold.
        for _, value in self._sent(values, seq, seq + count - 1):
            if isinstance(value, Messages):
                low, high = max(seq, value.first_seq), min(seq + count, value.first_seq + len(value.bodies))
                if low < high and key in (value.queues or (value.destination,)):
                    part = mask >> (low - seq) & ((1 << (high - low)) - 1)
                    made += self._run(value, low - value.first_seq, high - low, place, part)
            elif isinstance(value, Carried) and value.queue == key:
                where = {one[0]: at for at, one in enumerate(value.entries)}
                wanted = [seq + bit for bit in range(count) if mask >> bit & 1]
                made += [self._carried(value, where, one, place) for one in wanted if one in where]
        if len(made) < mask.bit_count():
            there = {message.seq for message in made}
            lost = next(seq + bit for bit in range(count) if mask >> bit & 1 and seq + bit not in there)
            raise missing(key, lost, place)
        return made

    def _run(self, value: Messages, at: int, count: int, place: int, mask: int) -> list[Message]:
        envelope = self._shared(value.destination, value.head, value.stamp_ms)
        bodies = value.bodies[at : at + count]
        if len(bodies) < count:
            raise missing(value.destination, value.first_seq + at + count - 1, place)
        seqs = range(value.first_seq + at, value.first_seq + at + count)
        if value.owns is None:
            made = [
                Message(n, body, b"", envelope, place, size)
                for n, body, size in zip(seqs, bodies, map(len, bodies), strict=True)
            ]
        else:
            owns = value.owns[at : at + count]
            made = [
                Message(n, body, own, envelope, place, len(body) + len(own))
                for n, body, own in zip(seqs, bodies, owns, strict=True)
            ]
        if mask.bit_count() == count:
            return made
        return [message for bit, message in enumerate(made) if mask >> bit & 1]

    def _carried(self, value: Carried, where: dict[int, int], seq: int, place: int) -> Message:
        if seq not in where:
            raise missing(value.queue, seq, place)
        at = where[seq]
        envelope = self._shared(value.destination, value.head, value.stamp_ms)
        own = value.owns[at] if value.owns else b""
        return Message(seq, value.bodies[at], own, envelope, place, len(value.bodies[at]) + len(own))

    def counted(self, key: bytes, entry: Entry, values: Values, note_values: Values | None) -> Message:
        """The message of an entry of `Singles`; note_values: the record of its note. Raises DataDamaged."""
        seq, place, note, counts = entry
        (message,) = self.fresh(key, (seq, place, 1, 0), values) if not note else self._first(entry, values)
        message.deliveries, message.failures, _ = unpack_counts(counts)
        if note:
            message.envelope = self._buried(key, seq, note, message.envelope, values if note == place else note_values)
        return message

    def _first(self, entry: Entry, values: Values) -> list[Message]:
        """A dead letter's record names the queue that it was sent to, so only the seq tells."""
        seq, place, _, _ = entry
        for _, value in self._sent(values, seq, seq):
            if isinstance(value, Messages) and 0 <= seq - value.first_seq < len(value.bodies):
                return self._run(value, seq - value.first_seq, 1, place, 1)
            if isinstance(value, Carried):
                where = {one[0]: at for at, one in enumerate(value.entries)}
                if seq in where:
                    return [self._carried(value, where, seq, place)]
        raise missing(b"", seq, place)

    def _buried(self, key: bytes, seq: int, note: int, old: Envelope, values: Values | None) -> Envelope:
        values = values or ()
        for _, value in values if len(values) <= FEW else self._index(values).moved(seq):
            if isinstance(value, Moved) and value.target == key:
                if not any(first <= seq <= last for first, last, _, _ in value.entries):
                    continue
            elif not (isinstance(value, Carried) and value.queue == key and any(e[0] == seq for e in value.entries)):
                continue
            if self._dead is not None and self._dead[:3] == (note, value.note, old):
                return self._dead[3]  # not known by its place alone: a transaction's record may hold several
            envelope = dead_envelope(old, key.decode(), [(name, text) for name, text in json.loads(value.note)])
            envelope.note = note
            self._dead = (note, value.note, old, envelope)
            return envelope
        raise missing(key, seq, note)

    def _shared(self, destination: bytes, head: bytes, stamp: int) -> Envelope:
        text = destination.decode()
        envelope = self._envelope
        if (
            envelope is None
            or envelope.head != head
            or envelope.stamp != stamp
            or envelope.destination != text
        ):
            envelope = self._envelope = Envelope(text, head, stamp, self._prefix, account=self._account)
        return envelope


def missing(key: bytes, seq: int, place: int) -> DataDamaged:
    name = key.decode("utf-8", "backslashreplace") or "its queue"
    where = f"{segment_name(number_of(place))}: offset {offset_of(place)}"
    return DataDamaged(f"{where}: the record there is sound, but does not hold message {seq} of {name}")


def dead_envelope(old: Envelope, name: str, extra: list[tuple[str, str]]) -> Envelope:
    """The envelope of a dead letter: its own destination, where it was sent first, and why it is here."""
    return Envelope(
        name, old.head, old.stamp, old.prefix, (("original-destination", old.destination), *extra), old.account
    )
