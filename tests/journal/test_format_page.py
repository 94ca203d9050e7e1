"""docs/journal-format.md says what is on the disk, byte by byte."""

from __future__ import annotations

import re
from pathlib import Path

from broker.journal.records import RecordType, acked_payload, messages_payload
from broker.journal.segment import SEGMENT_HEADER_BYTES
from tests.journal.harness import META, Bench, records_in, segment_path

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
    return bench


def test_the_example_is_what_the_code_writes() -> None:
    bench = the_log_of_the_page()
    for file, path in (("META", META), ("segment", segment_path(1))):
        data, shown = bench.disk.contents(path), example(file)
        assert shown
        for offset, line in shown.items():
            assert data[offset : offset + len(line)] == line, f"{file} at {offset:#x}"


def test_the_example_shows_every_byte_that_is_not_zero() -> None:
    bench = the_log_of_the_page()
    for file, path in (("META", META), ("segment", segment_path(1))):
        data = bytearray(bench.disk.contents(path))
        for offset, line in example(file).items():
            data[offset : offset + len(line)] = bytes(len(line))
        assert not data.strip(b"\0")


def test_the_example_has_the_records_that_the_page_tells_of() -> None:
    data = the_log_of_the_page().disk.contents(segment_path(1))
    kinds = [RecordType(fields[3]).name for _, fields, _ in records_in(data)]
    assert kinds == ["EPOCH", "MESSAGES", "ACKED", "WITNESS", "WITNESS"]
    assert records_in(data)[0][0] == SEGMENT_HEADER_BYTES


def test_every_type_of_record_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", PAGE.read_text(), re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(kind.value, kind.name) for kind in RecordType]
