"""What must hold of a log whose files were edited (tests/fuzz/forge.py): recovery, reader, walk, scrub."""

from __future__ import annotations

import re
import struct
from typing import Any

from broker.errors import CheckpointDoubted, DataDamaged, FormatNotKnown
from broker.journal.checkpoint import Part, read_parts, verify_checkpoint
from broker.journal.reader import Damage, Reader
from broker.journal.records import (
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
    carried_payload,
    decode,
    delivered_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    transaction_payload,
)
from broker.journal.recovery import open_log
from broker.journal.scrub import Scrub
from broker.journal.segment import offset_of, place_of
from broker.journal.walk import Gap, Walk
from tests.fuzz.forge import SEED, Broken, base, edited
from tests.journal.harness import DATA, LOG, LOG_ID, Bench, segment_path

# ------------------------------------------------------------------------------- values: decode against skim


def hold_skim(decoded: Any, skimmed: Any) -> None:
    """Raises Broken unless a skim tells of the same messages."""
    if len(decoded) != len(skimmed):
        raise Broken(f"{len(decoded)} values decoded, {len(skimmed)} skimmed")
    for (kind, value), (other, seen) in zip(decoded, skimmed, strict=True):
        if (kind, skimmed_of(value)) != (other, seen):
            raise Broken(f"decode gives {value}, skim gives {seen}")


def skimmed_of(value: Any) -> Any:
    """What a skim must make of what was decoded."""
    if isinstance(value, Messages):
        return Run(value.destination, value.queues, value.first_seq, _sizes(value))
    if isinstance(value, Carried):
        return CarriedRun(value.queue, value.note, value.entries, _sizes(value))
    return value


def _sizes(value: Messages | Carried) -> tuple[int, ...]:
    owns = value.owns or [b""] * len(value.bodies)
    return tuple(len(own) + len(body) for own, body in zip(owns, value.bodies, strict=True))


def hold_round_trip(kind: int, values: Any) -> None:
    """Raises Broken where what was decoded would be written as something else."""
    if kind == RecordType.TRANSACTION:
        payload = transaction_payload([(part, [_encoded(value)]) for part, value in values])
    elif values:
        payload = [_encoded(values[0][1])]
    else:
        return
    joined = b"".join(payload)
    if (again := decode(kind, joined, 0, len(joined))) != values:
        raise Broken(f"{values} came back as {again}")


def _encoded(value: Any) -> bytes:
    match value:
        case Messages():
            payload = messages_payload(*value)
        case Carried():
            payload = carried_payload(*value)
        case Acked() | Lost():
            # The encoder chooses the form; one range each keeps them as they are.
            numbers = [number for pair in value.seqs for number in pair]
            head = struct.pack("<HHI", len(value.queue), 1, len(value.seqs))
            payload = [head, struct.pack(f"<{len(numbers)}Q", *numbers), value.queue]
        case Returned():
            payload = returned_payload(value.queue, value.entries)
        case Delivered():
            payload = delivered_payload(value.queue, value.seq)
        case Moved():
            payload = moved_payload(value.source, value.target, value.entries, value.note)
        case _:
            raise Broken(f"{value} is no value of the core's")
    return b"".join(payload)


# ---------------------------------------------------------------------------------------- the promises


def _outline(error: Exception) -> str:
    text = str(error).partition("begins with")[0]
    text = re.sub(r"0x[0-9a-f]+|[0-9a-f]{32}|[0-9]+|\S*data/\S+", "#", text)
    return f"{type(error).__name__} {text[:80]}"


def run_segments(script: bytes) -> str:
    """A start: refused, or exactly what was written up to where the log ends."""
    made = edited(script)
    bench = Bench(disk=made.disk)
    found, parts = [], []
    try:
        log = open_log(made.disk, DATA, bench.settings, bench.clock, _NoRng())
        for item in log.replay(skim=not (script[:1] or b"\0")[0] & 4):
            if isinstance(item, Part):
                parts.append(item)
            else:
                found.append((item.lsn, item.type, skimmed_of(item.value)))
    except (DataDamaged, FormatNotKnown) as error:
        return _outline(error)
    if not made.forged:
        _hold_values(found, parts, made.simple)
    ended = f"{log.summary.clean} {log.summary.torn_bytes > 0}"
    return f"{made.forged} {ended} {len(parts)} {len(found).bit_length()}"


def _hold_values(found: list[tuple[int, RecordType, Any]], parts: list[Part], simple: bool) -> None:
    written = base().values
    if parts and parts != base().parts:
        raise Broken(f"the checkpoint said {base().parts}, {parts} came")
    first = found[0][0] if found else written[-1][0] + 1
    if not parts and found and first != written[0][0]:
        raise Broken(f"the log begins at lsn {written[0][0]}, it was read from {first} on")
    wanted = [value for value in written if value[0] >= first]
    if found != wanted[: len(found)]:
        bad = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
        raise Broken(f"what was read was not written: {bad}")
    if simple and len(found) < len(wanted):
        raise Broken(f"one bad sector, and only {len(found)} of {len(wanted)} values came")


class _NoRng:
    def token(self, size: int) -> bytes:
        return bytes(size)


def run_reader(script: bytes) -> str:
    """Every place read back: the record that was written there, or damage."""
    made = edited(script)
    places = list(base().records)
    order = sorted(places, key=lambda place: (place * 7919) % 101) if script[:1] > b"\x80" else places
    wrong = [place + 8 for place in places[::5]] + [place_of(9, 512), place_of(1, 1 << 31)]
    reader = Reader(made.disk, LOG, LOG_ID)
    results = reader.read([*order, *wrong])
    reader.close()
    sound = 0
    texts = set()
    for place, result in zip([*order, *wrong], results, strict=True):
        if result.place != place:
            raise Broken(f"asked for {place}, got {result.place}")
        if isinstance(result, Damage):
            texts.add(_outline(DataDamaged(result.text))[:40])
            continue
        sound += 1
        if not made.forged:
            _hold_record(place, result.lsn, result.values)
    return f"{made.forged} {sound.bit_length()} {sorted(texts)[:2]}"


def _hold_record(place: int, lsn: int, values: Any) -> None:
    """A sound record of this log may have got into another place; the LSN says that to whoever asks."""
    for kind, number, payload in base().records.values():
        if number == lsn:
            if decode(kind, payload, 0, len(payload)) != values:
                raise Broken(f"lsn {lsn} at offset {offset_of(place)} gives what was not written")
            return
    raise Broken(f"lsn {lsn} was never written")


def run_checkpoint(script: bytes) -> str:
    """The checkpoint: exactly what was written, or a doubt."""
    made = edited(bytes([script[0] & ~2]) + script[1:] if script else script)
    try:
        basis = verify_checkpoint(made.disk, base().checkpoint, LOG_ID)
        parts = list(read_parts(made.disk, base().checkpoint, LOG_ID))
    except FileNotFoundError:
        return "gone"
    except (CheckpointDoubted, FormatNotKnown) as error:
        return _outline(error)
    if not made.forged and (basis, parts) != (base().basis, base().parts):
        raise Broken(f"{basis} with {parts} was never written")
    return f"{made.forged} {len(parts)}"


def run_walk(script: bytes) -> str:
    """Every segment walked and scrubbed: each LSN is either what was written or in a gap."""
    made = edited(script)
    seen = []
    for number, first, last, end in base().rows:
        path = segment_path(number)
        try:
            handle = made.disk.open(path)
        except FileNotFoundError:
            seen.append("gone")
            continue
        crc = base().crcs[last]
        before = base().crcs.get(first - 1, 0)
        walk = Walk(made.disk, handle, path, SEED, first_lsn=first, prev_crc=before, stop=(last, crc))
        try:
            items = list(walk.items())
        except FormatNotKnown as error:
            if not made.forged:
                raise
            seen.append(_outline(error))
            continue
        finally:
            made.disk.close(handle)
        gaps = [item for item in items if isinstance(item, Gap)]
        if not made.forged:
            _hold_walk(items, first, last)
        damages = Scrub(made.disk, LOG, LOG_ID).step(number, first, last, end, 0, 1 << 20).damages
        if not made.forged and not damages and made.disk.contents(path)[:end] != base().files[path][:end]:
            raise Broken(f"the scrub finds nothing wrong with {path}, and it is not what was written")
        seen.append(f"{sorted({re.sub('[0-9]+', '#', gap.text)[:12] for gap in gaps})} {bool(damages)}")
    return str(sorted(set(seen)))


def _hold_walk(items: list[Any], first: int, last: int) -> None:
    accounted: set[int] = set()
    lsn = 0
    for item in items:
        if isinstance(item, Gap):
            accounted |= set(range(item.first_lsn or first, (item.last_lsn or last) + 1))
            continue
        if item.lsn <= lsn:
            raise Broken(f"lsn {item.lsn} comes behind {lsn}")
        lsn = item.lsn
        accounted.add(lsn)
        found = (item.kind, item.data[item.start : item.end])
        if found != base().by_lsn.get(lsn):
            raise Broken(f"lsn {lsn} at offset {item.offset} gives what was not written: {found}")
    if missing := set(range(first, last + 1)) - accounted:
        raise Broken(f"nobody says anything of lsn {sorted(missing)}")
