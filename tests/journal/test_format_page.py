"""docs/journal-format.md says what is on the disk, byte by byte."""

from __future__ import annotations

import re
from pathlib import Path

from broker.journal.checkpoint import Basis, CheckpointFile, Part, encode_part, read_parts, verify_checkpoint
from broker.journal.records import RecordType, acked_payload, messages_payload
from broker.journal.segment import SEGMENT_HEADER_BYTES, place_of
from tests.journal.harness import DATA, LOG_ID, META, Bench, records_in, segment_path

CHECKPOINT = f"{DATA}/ckpt/{5:020d}.ck"
FILES = (("META", META), ("segment", segment_path(1)), ("checkpoint", CHECKPOINT))
PAGE = Path(__file__).parents[2] / "docs" / "journal-format.md"


def example(file: str) -> dict[int, bytes]:
    """Offset -> 16 bytes or fewer, as the page shows them."""
    lines: dict[int, bytes] = {}
    for block in re.findall(rf"```hex {file}\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for offset, data in re.findall(r"^([0-9a-f]{6})  ([0-9a-f ]+)$", block, re.MULTILINE):
            lines[int(offset, 16)] = bytes.fromhex(data)
    return lines


def the_log_of_the_page() -> Bench:
    bench = Bench()
    with bench.running() as run:
        journal = run.journal
        seq = journal.take_seqs(2)
        head = b"content-type:text/plain\n"
        two = messages_payload(
            b"/queue/orders", (), head, 1_700_000_000_123, seq, None, [b"hello", b"world!"]
        )
        journal.append(RecordType.MESSAGES, two)
        journal.append(RecordType.ACKED, acked_payload(b"/queue/orders", [1]))
        run.pump()
        journal.append_witness()
        run.pump()
        file = CheckpointFile(bench.disk, DATA, LOG_ID)
        file.begin()
        fresh = b"".join(number.to_bytes(8, "little") for number in (seq + 1, place_of(1, 0x258), 1, 6))
        file.add(encode_part(Part(b"/queue/orders", 0, fresh, b"")))
        file.finish(Basis(5, 5, 1, 1, journal.next_seq, journal.boot, bench.clock.wall_ms()))
    return bench


def test_the_example_is_what_the_code_writes() -> None:
    bench = the_log_of_the_page()
    for file, path in FILES:
        data, shown = bench.disk.contents(path), example(file)
        assert shown
        for offset, line in shown.items():
            assert data[offset : offset + len(line)] == line, f"{file} at {offset:#x}"


def test_the_example_shows_every_byte_that_is_not_zero() -> None:
    bench = the_log_of_the_page()
    for file, path in FILES:
        data = bytearray(bench.disk.contents(path))
        for offset, line in example(file).items():
            data[offset : offset + len(line)] = bytes(len(line))
        assert not data.strip(b"\0")


def test_the_example_has_the_records_that_the_page_tells_of() -> None:
    data = the_log_of_the_page().disk.contents(segment_path(1))
    kinds = [RecordType(fields[3]).name for _, fields, _ in records_in(data)]
    assert kinds == ["EPOCH", "MESSAGES", "ACKED", "WITNESS", "WITNESS"]
    assert records_in(data)[0][0] == SEGMENT_HEADER_BYTES


def test_the_example_of_a_checkpoint_is_read_as_the_page_says() -> None:
    disk = the_log_of_the_page().disk
    basis = verify_checkpoint(disk, CHECKPOINT, LOG_ID)
    assert (basis.lsn, basis.segment, basis.next_seq, basis.segments) == (5, 1, 3, [])
    (part,) = read_parts(disk, CHECKPOINT, LOG_ID)
    assert part.queue == b"/queue/orders" and len(part.fresh) == 32
    assert basis.anchor.to_bytes(4, "little") == disk.contents(segment_path(1))[508:512]


def test_every_type_of_record_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", PAGE.read_text(), re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(kind.value, kind.name) for kind in RecordType]
