"""Records as plain values, for people and programs that read `stompd log dump`."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import Any

from broker.journal.audit import Hole
from broker.journal.records import (
    Acked,
    Carried,
    Delivered,
    Lost,
    Messages,
    Moved,
    RecordType,
    Returned,
    Value,
    decode,
)
from broker.journal.state import decode_seal, decode_state
from broker.journal.walk import Sound

Row = dict[str, Any]


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def describe(item: Sound, *, bodies: bool, queue: bytes | None = None) -> Row | None:
    """type and fields of a record; None where it has nothing to do with `queue`.

    bodies: with what is in them, else their sizes only. A TRANSACTION shows the parts that have to do with `queue`.
    Raises DataDamaged, FormatNotKnown where the payload cannot be understood.
    """
    parts = [
        _value(kind, value, bodies)
        for kind, value in decode(item.kind, item.data, item.start, item.end)
        if queue is None or queue in queues_of(value)
    ]
    if item.kind == RecordType.TRANSACTION:
        return {"type": "TRANSACTION", "parts": parts} if parts or queue is None else None
    if parts:
        return parts[0]
    return _own(item) if queue is None else None


def hole_row(hole: Hole) -> Row:
    """As a line of JSON says it."""
    return {
        "type": "damage",
        "file": hole.path,
        "segment": hole.number or None,
        "offset": hole.offset,
        "end": hole.end,
        "first_lsn": hole.first_lsn,
        "last_lsn": hole.last_lsn,
        "queues": [text_of(name) for name in hole.queues],
        "text": hole.text,
    }


def queues_of(value: Value) -> tuple[bytes, ...]:
    """The queues that a value is about."""
    if isinstance(value, Messages):
        return value.queues or (value.destination,)
    if isinstance(value, Moved):
        return value.source, value.target
    name = getattr(value, "queue", None)
    return (name,) if isinstance(name, bytes) else ()


def _value(kind: RecordType, value: Value, bodies: bool) -> Row:
    row: Row = {"type": kind.name}
    if isinstance(value, Messages):
        row["queues"] = [text_of(name) for name in queues_of(value)]
        row |= _run(value, bodies)
        first = value.first_seq
        row["messages"] = [{"seq": first + at, **message} for at, message in enumerate(_messages(value, bodies))]
    elif isinstance(value, Carried):
        row["queue"] = text_of(value.queue)
        row |= _run(value, bodies)
        row["note"] = text_of(value.note)
        row["messages"] = [
            {"seq": seq, "deliveries": deliveries, "failures": failures, **message}
            for (seq, deliveries, failures), message in zip(value.entries, _messages(value, bodies), strict=True)
        ]
    elif isinstance(value, Acked | Lost):
        row |= {"queue": text_of(value.queue), "seqs": value.seqs}
    elif isinstance(value, Returned):
        row |= {"queue": text_of(value.queue), "entries": _entries(value.entries)}
    elif isinstance(value, Delivered):
        row |= {"queue": text_of(value.queue), "seq": value.seq}
    elif isinstance(value, Moved):
        row |= {"source": text_of(value.source), "target": text_of(value.target)}
        row |= {"entries": _entries(value.entries), "note": text_of(value.note)}
    return row


def _run(value: Messages | Carried, bodies: bool) -> Row:
    row: Row = {"destination": text_of(value.destination), "stamp_ms": value.stamp_ms}
    return row | ({"headers": text_of(value.head)} if bodies else {"header_bytes": len(value.head)})


def _messages(value: Messages | Carried, bodies: bool) -> Iterable[Row]:
    for at, body in enumerate(value.bodies):
        row: Row = {"size": len(body)}
        if bodies:
            if value.owns:
                row["headers"] = text_of(value.owns[at])
            try:
                row["text"] = body.decode()
            except UnicodeDecodeError:
                row["base64"] = b64encode(body).decode()
        yield row


def _entries(entries: list[tuple[int, int, int, int]]) -> list[Row]:
    return [
        {"first_seq": first, "last_seq": last, "deliveries": deliveries, "failures": failures}
        for first, last, deliveries, failures in entries
    ]


def _own(item: Sound) -> Row:
    """TRIM, EPOCH, WITNESS and SEAL, which are the journal's own."""
    row: Row = {"type": RecordType(item.kind).name}
    if item.kind == RecordType.SEAL:
        seal = decode_seal(item.data, item.start, item.end)
        return row | {"last_lsn": seal.last_lsn, "count": seal.count}
    state = decode_state(item.data, item.start, item.end)
    return row | {
        "low": state.low,
        "next_seq": state.next_seq,
        "boot": state.boot,
        "wall_ms": state.wall_ms,
        "clean": state.clean,
        "end_lsn": state.end_lsn,
        "cut_bytes": state.cut_bytes,
    }
