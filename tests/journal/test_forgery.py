"""Records that are sound and still not the ones that belong there: order, chain, LSN, seal, other logs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from broker.journal.records import HEADER, RecordType, delivered_payload, messages_payload
from broker.journal.segment import SEGMENT_HEADER_BYTES
from broker.journal.state import Seal, seal_payload
from tests.journal.harness import (
    ONE,
    SENT,
    Bench,
    bodies,
    end_of,
    forged,
    heals,
    patched,
    records_in,
    refused,
    three_messages,
)


def rewritten(change: Callable[[list[bytes]], list[bytes]]) -> Bench:
    """The three messages and their witness, the whole records in another order or replaced."""
    bench = three_messages()
    data = bench.disk.contents(ONE)
    spots = [at for at, _, _ in records_in(data)] + [end_of(data)[0]]
    blocks = [data[a:b] for a, b in pairwise(spots)]
    new = b"".join(change(blocks))
    bench.disk.put(
        ONE, patched(data, SEGMENT_HEADER_BYTES, new.ljust(spots[-1] - SEGMENT_HEADER_BYTES, b"\0"))
    )
    return bench


def test_records_in_another_order_are_damage() -> None:
    refused(rewritten(lambda b: [b[0], b[2], b[1], *b[3:]]))


def test_a_record_that_is_there_twice_is_damage() -> None:
    refused(rewritten(lambda b: [b[0], b[1], b[1], b[2], b[3], *b[4:]]))


def test_a_record_that_was_taken_out_is_damage() -> None:
    refused(rewritten(lambda b: [b[0], b[2], b[3], *b[4:]]))


def test_a_sound_record_with_the_right_lsn_from_another_life_of_the_log_does_not_chain() -> None:
    """The same seed, the same LSN, a right crc: only the chain tells it from the one that was written."""

    def change(blocks: list[bytes]) -> list[bytes]:
        length, _, before, kind, flags, lsn, synced = HEADER.unpack_from(blocks[2])
        other = b"".join(messages_payload(b"/queue/a", (), b"h:1\n", 1, 2, None, [b"old" * 50]))
        assert len(other) == length
        return [*blocks[:2], forged(other, before ^ 1, kind, flags, lsn, synced), *blocks[3:]]

    refused(rewritten(change))


def test_a_replaced_record_breaks_the_chain_behind_it() -> None:
    def change(blocks: list[bytes]) -> list[bytes]:
        length, _, before, kind, flags, lsn, synced = HEADER.unpack_from(blocks[2])
        other = b"".join(messages_payload(b"/queue/a", (), b"h:1\n", 1, 2, None, [b"old" * 50]))
        assert len(other) == length
        return [*blocks[:2], forged(other, before, kind, flags, lsn, synced), *blocks[3:]]

    refused(rewritten(change))


def test_a_chained_record_with_a_wrong_lsn_is_not_taken() -> None:
    for step in (0, 2, 1000):
        bench = three_messages(witness=False)
        data = bench.disk.contents(ONE)
        end, last = end_of(data)
        payload = b"".join(delivered_payload(b"q", 5))
        record = forged(payload, last[1], RecordType.DELIVERED, 0, last[5] + step, last[5] - 1)
        bench.disk.put(ONE, patched(data, end, record))
        found, log = bench.replay()
        assert bodies(found) == SENT and len(found) == 3
        assert log.summary.torn_bytes == len(record.rstrip(b"\0"))


def test_a_record_of_another_log_is_no_record() -> None:
    bench = three_messages(witness=False)
    data = bench.disk.contents(ONE)
    end, last = end_of(data)
    payload = b"".join(delivered_payload(b"q", 5))
    foreign = forged(payload, last[1], RecordType.DELIVERED, 0, last[5] + 1, last[5], log_id=bytes(16))
    bench.disk.put(ONE, patched(data, end, foreign))
    assert len(bench.replay()[0]) == 3


def test_the_last_record_replaced_by_another_is_told_by_the_next_header() -> None:
    bench = Bench()
    for body in (b"first", b"again"):
        with bench.running() as run:
            run.send(body)
            run.pump()
    data = bench.disk.contents(ONE)
    at, fields, payload = records_in(data)[-1]
    other = payload.replace(b"first", b"other")
    bench.disk.put(ONE, patched(data, at, forged(other, fields[2], fields[3], 0, fields[5], fields[6])))
    assert "names another last record" in refused(bench)


WRONG_SEALS: dict[str, Callable[[Seal], Seal]] = {
    "last lsn": lambda seal: replace(seal, last_lsn=seal.last_lsn + 1),
    "count": lambda seal: replace(seal, count=seal.count - 1),
    "crc": lambda seal: replace(seal, last_crc=seal.last_crc ^ 1),
    "digest": lambda seal: replace(seal, digest=bytes(16)),
}


@pytest.mark.parametrize("what", WRONG_SEALS)
def test_a_seal_that_does_not_fit_its_segment_is_damage(what: str) -> None:
    bench = three_messages(witness=False)
    data = bench.disk.contents(ONE)
    end, last = end_of(data)
    heads = b"".join(data[at : at + HEADER.size] for at, _, _ in records_in(data))
    right = Seal(last[5], last[5], last[1], hashlib.blake2b(heads, digest_size=16).digest())
    for seal, fits in ((right, True), (WRONG_SEALS[what](right), False)):
        record = forged(b"".join(seal_payload(seal)), last[1], RecordType.SEAL, 0, last[5] + 1, last[5])
        bench.disk.put(ONE, patched(data, end, record))
        if fits:
            assert len(bench.replay()[0]) == 3
            bench.disk.kill()
        else:
            assert "SEAL" in refused(bench)


def test_a_message_that_holds_a_copy_of_the_log_does_not_make_a_torn_tail_look_like_damage() -> None:
    bench = Bench()
    with bench.running() as run:
        for body in SENT:
            run.send(body)
            run.pump()
        copy = bench.disk.contents(ONE)[512:1500]
        run.send(copy)
        run.pump()
    data = bench.disk.contents(ONE)
    at = records_in(data)[-1][0]
    bench.disk.put(ONE, patched(data, at, b"\xff"))  # the record with the copy was torn at its length
    heals(bench, SENT, torn=True)
