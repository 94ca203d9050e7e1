"""Payloads come back as they went in, and what is not known or does not add up is said."""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import DataDamaged, FormatNotKnown
from broker.journal.records import (
    COPY_MAX,
    RUN_MAX,
    Acked,
    Carried,
    CarriedRun,
    Delivered,
    Lost,
    Messages,
    Moved,
    RecordType,
    Returned,
    Run,
    Value,
    acked_payload,
    carried_payload,
    decode,
    delivered_payload,
    lost_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    skim,
    transaction_payload,
)
from broker.journal.state import Seal, State, decode_seal, decode_state, seal_payload, state_payload

names = st.binary(max_size=300)
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
entries = st.lists(st.tuples(u64, u64, u32, u32), max_size=5)


def back(kind: RecordType, payload: list[bytes]) -> object:
    """Decoded from the middle of a larger buffer, as replay does it; a skim says the same."""
    joined = b"".join(payload)
    ((found, value),) = decode(kind, b"before" + joined + b"behind", 6, 6 + len(joined))
    assert found is kind
    assert skim(kind, b"before" + joined + b"behind", 6, 6 + len(joined)) == [(kind, skimmed(value))]
    return value


def skimmed(value: Value) -> Value:
    """What a skim must make of what was decoded."""
    if isinstance(value, Messages):
        return Run(value.destination, value.queues, value.first_seq, sizes(value))
    if isinstance(value, Carried):
        return CarriedRun(value.queue, value.note, value.entries, sizes(value))
    return value


def sizes(value: Messages | Carried) -> tuple[int, ...]:
    owns = value.owns or [b""] * len(value.bodies)
    return tuple(len(own) + len(body) for own, body in zip(owns, value.bodies, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_run_comes_back_as_it_went_in(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, RUN_MAX))
    size = st.binary(max_size=data.draw(st.sampled_from([0, 3, 40, COPY_MAX + 5])))
    bodies = data.draw(st.lists(size, min_size=count, max_size=count))
    owns = data.draw(st.none() | st.lists(st.binary(max_size=30), min_size=count, max_size=count))
    queues = tuple(data.draw(st.lists(names, max_size=4)))
    destination, head = data.draw(names), data.draw(st.binary(max_size=600))
    stamp, seq = data.draw(u64), data.draw(u64)
    payload = messages_payload(destination, queues, head, stamp, seq, owns, bodies)
    wanted = Messages(destination, queues, head, stamp, seq, owns, bodies)
    assert back(RecordType.MESSAGES, payload) == wanted


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_was_carried_comes_back_as_it_went_in(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, RUN_MAX))
    size = st.binary(max_size=data.draw(st.sampled_from([0, 3, 40, COPY_MAX + 5])))
    bodies = data.draw(st.lists(size, min_size=count, max_size=count))
    owns = data.draw(st.none() | st.lists(st.binary(max_size=30), min_size=count, max_size=count))
    listed = data.draw(st.lists(st.tuples(u64, u32, u32), min_size=count, max_size=count))
    queue, destination, head = data.draw(names), data.draw(names), data.draw(st.binary(max_size=600))
    note, stamp = data.draw(st.binary(max_size=60)), data.draw(u64)
    payload = carried_payload(queue, destination, head, stamp, note, listed, owns, bodies)
    wanted = Carried(queue, destination, head, stamp, note, listed, owns, bodies)
    assert back(RecordType.CARRIED, payload) == wanted


@pytest.mark.parametrize(
    ("entries", "owns", "bodies"),
    [(0, None, 0), (65, None, 65), (1, None, 2), (2, None, 1), (2, 1, 2)],
)
def test_carried_messages_that_do_not_add_up_are_not_written(
    entries: int, owns: int | None, bodies: int
) -> None:
    lines = None if owns is None else [b""] * owns
    with pytest.raises(ValueError, match="as many of each"):
        carried_payload(b"q", b"q", b"", 0, b"", [(1, 0, 0)] * entries, lines, [b""] * bodies)


def test_a_large_body_is_handed_on_without_a_copy_and_a_small_one_is_joined() -> None:
    large, small = bytes(COPY_MAX + 1), bytes(COPY_MAX)
    assert messages_payload(b"q", (), b"", 0, 1, None, [large])[1] is large
    assert messages_payload(b"q", (), b"", 0, 1, None, [small, large])[2] is large
    assert len(messages_payload(b"q", (), b"", 0, 1, None, [small])) == 1
    assert len(messages_payload(b"q", (), b"", 0, 1, None, [small] * 64)) == 1
    inner = messages_payload(b"q", (), b"", 0, 1, None, [large])
    assert any(buffer is large for buffer in transaction_payload([(RecordType.MESSAGES, inner)]))
    assert carried_payload(b"q", b"q", b"", 0, b"", [(1, 0, 0)], None, [large])[1] is large


@pytest.mark.parametrize("count", [0, RUN_MAX + 1])
def test_a_run_of_no_or_too_many_messages_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        messages_payload(b"q", (), b"", 0, 1, None, [b""] * count)


def test_own_lines_for_only_some_messages_are_refused() -> None:
    with pytest.raises(ValueError, match="owns"):
        messages_payload(b"q", (), b"", 0, 1, [b"a:1\n"], [b"", b""])


@settings(max_examples=100, deadline=None)
@given(names, st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=600))
def test_every_acked_seq_comes_back_and_no_other(queue: bytes, seqs: list[int]) -> None:
    value = back(RecordType.ACKED, acked_payload(queue, seqs))
    assert isinstance(value, Acked)
    assert value.queue == queue
    assert [seq for first, last in value.seqs for seq in range(first, last + 1)] == seqs


def test_acks_in_order_take_one_range_and_long_ones_few() -> None:
    assert len(acked_payload(b"q", range(5, 5000))[0]) == 8 + 16 + 1
    holes = [seq for seq in range(2000) if seq % 100]
    assert len(acked_payload(b"q", holes)[0]) == 8 + 20 * 16 + 1
    assert len(acked_payload(b"q", range(0, 2000, 2))[0]) == 8 + 1000 * 8 + 1
    assert back(RecordType.ACKED, acked_payload(b"q", [3, 4, 2, 5])) == Acked(
        b"q", [(3, 3), (4, 4), (2, 2), (5, 5)]
    )


@settings(max_examples=60, deadline=None)
@given(names, names, entries, st.binary(max_size=50), u64)
def test_the_other_records_come_back_as_they_went_in(
    queue: bytes, target: bytes, listed: list[tuple[int, int, int, int]], note: bytes, seq: int
) -> None:
    assert back(RecordType.RETURNED, returned_payload(queue, listed)) == Returned(queue, listed)
    assert back(RecordType.LOST, lost_payload(queue, [seq])) == Lost(queue, [(seq, seq)])
    assert back(RecordType.DELIVERED, delivered_payload(queue, seq)) == Delivered(queue, seq)
    assert back(RecordType.MOVED, moved_payload(queue, target, listed, note)) == Moved(
        queue, target, listed, note
    )


def test_a_transaction_gives_its_parts_in_order() -> None:
    parts = [
        (RecordType.MESSAGES, messages_payload(b"q", (), b"h:1\n", 7, 9, None, [b"a", bytes(5000)])),
        (RecordType.ACKED, acked_payload(b"q", [1, 7])),
        (RecordType.MOVED, moved_payload(b"q", b"DLQ.q", [(1, 2, 3, 4)], b"why")),
    ]
    joined = b"".join(transaction_payload(parts))
    assert decode(RecordType.TRANSACTION, joined, 0, len(joined)) == [
        (RecordType.MESSAGES, Messages(b"q", (), b"h:1\n", 7, 9, None, [b"a", bytes(5000)])),
        (RecordType.ACKED, Acked(b"q", [(1, 1), (7, 7)])),
        (RecordType.MOVED, Moved(b"q", b"DLQ.q", [(1, 2, 3, 4)], b"why")),
    ]


def test_the_journals_own_records_come_back_and_say_nothing_to_the_core() -> None:
    state = State(low=3, next_seq=2**50, boot=7, wall_ms=5, clean=True, end_lsn=9, cut_bytes=11)
    for filler in (0, 400):
        payload = b"".join(state_payload(state, filler))
        assert decode_state(payload, 0, len(payload)) == state
        assert decode(RecordType.WITNESS, payload, 0, len(payload)) == []
    seal = Seal(5, 4, 0xFFFFFFFF, bytes(range(16)))
    payload = b"".join(seal_payload(seal))
    assert decode_seal(payload, 0, len(payload)) == seal
    assert decode(RecordType.SEAL, payload, 0, len(payload)) == []


ONE = b"".join(messages_payload(b"q", (), b"h", 1, 1, None, [b"body"]))
TWO = b"".join(messages_payload(b"q", (b"x",), b"h", 1, 1, [b"", b""], [b"body", b""]))
CARRIED = b"".join(
    carried_payload(
        b"q", b"dest", b"h", 1, b"[]", [(1, 2, 3), (9, 0, 0)], [b"o:1\n", b""], [b"body", b""]
    )
)


def with_u16(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<H", value) + data[at + 2 :]


NEWER = {
    "options in a message": (RecordType.MESSAGES, with_u16(ONE, 28, 4)),
    "a flag in a message": (RecordType.MESSAGES, with_u16(ONE, 30, 2)),
    "a flag in a run": (RecordType.MESSAGES, with_u16(TWO, 30, 3)),
    "a kind of ACKED": (RecordType.ACKED, with_u16(acked_payload(b"q", [1])[0], 2, 2)),
    "a kind of RETURNED": (RecordType.RETURNED, with_u16(returned_payload(b"q", [])[0], 2, 1)),
    "a flag of a TRANSACTION": (RecordType.TRANSACTION, struct.pack("<II", 0, 1)),
    "a type in a TRANSACTION": (RecordType.TRANSACTION, struct.pack("<IIHHI", 1, 0, 13, 0, 0)),
    "a flag in a TRANSACTION": (RecordType.TRANSACTION, struct.pack("<IIHHI", 1, 0, 4, 1, 0)),
    "a transaction in a TRANSACTION": (RecordType.TRANSACTION, struct.pack("<IIHHI", 1, 0, 6, 0, 0)),
    "a flag of CARRIED": (RecordType.CARRIED, with_u16(CARRIED, 22, 2)),
    "a kind of LOST": (RecordType.LOST, with_u16(lost_payload(b"q", [1])[0], 2, 2)),
    "a type": (13, b""),
    "a very high type": (65535, b""),
}


@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_version_may_write_is_not_taken_for_something_else(what: str) -> None:
    kind, payload = NEWER[what]
    for read in (decode, skim):
        with pytest.raises(FormatNotKnown):
            read(kind, payload, 0, len(payload))


def test_a_flag_of_a_newer_version_in_the_journals_state_is_refused() -> None:
    payload = state_payload(State(1, 1, 1, 1))[0][:48] + struct.pack("<Q", 2)
    with pytest.raises(FormatNotKnown):
        decode_state(payload, 0, len(payload))
    with pytest.raises(DataDamaged):
        decode_state(payload, 0, 55)


WHOLE = {
    RecordType.MESSAGES: TWO,
    RecordType.ACKED: acked_payload(b"queue", [1, 5])[0],
    RecordType.RETURNED: returned_payload(b"queue", [(1, 2, 3, 4)])[0],
    RecordType.DELIVERED: delivered_payload(b"queue", 1)[0],
    RecordType.MOVED: moved_payload(b"queue", b"t", [(1, 2, 3, 4)], b"n")[0],
    RecordType.TRANSACTION: transaction_payload([(RecordType.ACKED, acked_payload(b"queue", [1, 5]))])[0],
    RecordType.CARRIED: CARRIED,
    RecordType.LOST: lost_payload(b"queue", [1, 5])[0],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_payload_of_another_length_is_damage(kind: RecordType) -> None:
    whole = WHOLE[kind]
    for read in (decode, skim):
        for size in range(len(whole)):
            with pytest.raises(DataDamaged):
                read(kind, whole[:size], 0, size)
            with pytest.raises(DataDamaged):  # also where more lies behind, as in a chunk of a segment
                read(kind, whole, 0, size)
        with pytest.raises(DataDamaged):
            read(kind, whole + b"!", 0, len(whole) + 1)


@pytest.mark.parametrize("kind", WHOLE)
def test_no_bytes_make_a_decoder_raise_anything_else(kind: RecordType) -> None:
    rng = Random(int(kind))
    for _ in range(2000):
        data = bytearray(WHOLE[kind])
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            whole = decode(kind, bytes(data), 0, len(data))
        except (DataDamaged, FormatNotKnown) as error:
            with pytest.raises(type(error)):
                skim(kind, bytes(data), 0, len(data))
        else:
            assert skim(kind, bytes(data), 0, len(data)) == [(k, skimmed(v)) for k, v in whole]
