"""A checkpoint is read back as it was written, or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import CheckpointDoubted, FormatNotKnown
from broker.journal.checkpoint import (
    HEADER_BYTES,
    PART_BYTES_MAX,
    POSITION_BYTES,
    TMP_NAME,
    Basis,
    CheckpointFile,
    Part,
    checkpoint_name,
    encode_part,
    list_checkpoints,
    read_parts,
    verify_checkpoint,
)
from broker.system import SystemDisk
from tests.journal.harness import DATA, LOG_ID, ONE, Bench, patched, resealed, three_messages
from tests.support.simdisk import Fault, PowerLoss, SimDisk

CKPT = f"{DATA}/ckpt"
PARTS = [
    Part(b"/queue/a", 7, bytes(range(32)) * 3, b"c" * 64),
    Part(b"/queue/b", 0, b"", b""),
    Part(b"/queue/a", 9, b"f" * 32, b""),
]
BASIS = Basis(5, 7, 2, 1, 4, 1, 1_700_000_000_000, [(1, 1, 4, 4096)])


def path_of(lsn: int) -> str:
    return f"{CKPT}/{checkpoint_name(lsn)}"


def basis(lsn: int) -> Basis:
    return Basis(lsn, lsn + 2, 1, 1, 4, 1, 1_700_000_000_000)


def write(disk: SimDisk, basis: Basis, parts: list[Part] = PARTS) -> Basis:
    file = CheckpointFile(disk, DATA, LOG_ID)
    file.begin()
    for part in parts:
        file.add(encode_part(part))
    return file.finish(basis)


def read(disk: SimDisk, lsn: int) -> tuple[list[Part], Basis]:
    basis = verify_checkpoint(disk, path_of(lsn), LOG_ID)
    return list(read_parts(disk, path_of(lsn), LOG_ID)), basis


def folder() -> SimDisk:
    """With a log in it."""
    return three_messages().disk


def test_a_checkpoint_comes_back_as_it_was_written() -> None:
    disk = folder()
    written = write(disk, BASIS)
    assert read(disk, 5) == (PARTS, written)
    assert written == Basis(5, 7, 2, 1, 4, 1, 1_700_000_000_000, [(1, 1, 4, 4096)])
    assert disk.files(CKPT) == [path_of(5)]


def test_a_checkpoint_is_tied_to_the_header_of_the_segment_where_replay_begins() -> None:
    disk = folder()
    header = disk.contents(ONE)[:512]
    written = write(disk, basis(1))
    assert written.anchor == int.from_bytes(header[-4:], "little") != 0


positions = st.integers(0, 40).map(lambda count: Random(count).randbytes(count * POSITION_BYTES))
parts = st.builds(Part, st.binary(max_size=60), st.integers(0, 2**64 - 1), positions, positions)


@settings(max_examples=60, deadline=None)
@given(st.lists(parts, max_size=8), st.booleans(), st.integers(0, 2**64 - 2))
def test_any_parts_come_back_in_their_order(listed: list[Part], joined: bool, lsn: int) -> None:
    disk = SimDisk(Random(1))
    disk.make_dir(DATA)
    file = CheckpointFile(disk, DATA, LOG_ID)
    file.begin()
    for data in [b"".join(map(encode_part, listed))] if joined else map(encode_part, listed):
        file.add(data)
    written = file.finish(Basis(lsn, lsn + 1, 3, 3, 2**64 - 1, 9, 0))
    assert read(disk, lsn) == (listed, written)


def test_parts_larger_than_a_chunk_come_back_and_too_large_ones_are_not_made() -> None:
    disk = folder()
    rng = Random(4)
    listed = [
        Part(b"q%d" % size, size, rng.randbytes(size), rng.randbytes(96))
        for size in (1024 * 1024 - 128, 1024 * 1024, 32, 3 * 1024 * 1024, 0, 64)
    ]
    written = write(disk, BASIS, listed)
    assert read(disk, 5) == (listed, written)
    with pytest.raises(ValueError, match="4194304"):
        encode_part(Part(b"q", 0, bytes(PART_BYTES_MAX), bytes(32)))
    with pytest.raises(ValueError, match="multiples of 32"):
        encode_part(Part(b"q", 0, bytes(33), b""))


def test_a_wrong_byte_anywhere_is_noticed() -> None:
    disk = folder()
    write(disk, BASIS)
    data = disk.contents(path_of(5))
    for at in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            disk.put(path_of(5), patched(data, at, bytes([data[at] ^ flip])))
            with pytest.raises(CheckpointDoubted, match="offset"):
                verify_checkpoint(disk, path_of(5), LOG_ID)


def test_a_file_of_another_length_is_noticed() -> None:
    disk = folder()
    write(disk, BASIS)
    data = disk.contents(path_of(5))
    for wrong in (*(data[:size] for size in range(len(data))), data + b"\0", data + data):
        disk.put(path_of(5), wrong)
        with pytest.raises(CheckpointDoubted):
            verify_checkpoint(disk, path_of(5), LOG_ID)


def test_sound_parts_in_another_order_or_from_another_checkpoint_are_noticed() -> None:
    disk = folder()
    write(disk, BASIS)
    data = disk.contents(path_of(5))
    one, two = encode_part(PARTS[0]), encode_part(PARTS[1])
    middle = HEADER_BYTES + len(one) + len(two)
    wrong = {
        "swapped": data[:HEADER_BYTES] + two + one + data[middle:],
        "left out": data[:HEADER_BYTES] + two + data[middle:],
        "doubled": data[:HEADER_BYTES] + one + one + two + data[middle:],
        "of another": data[:HEADER_BYTES] + encode_part(PARTS[0]._replace(mark=8)) + data[middle - len(two) :],
    }
    for name, bad in wrong.items():
        disk.put(path_of(5), bad)
        with pytest.raises(CheckpointDoubted):
            verify_checkpoint(disk, path_of(5), LOG_ID)
            raise AssertionError(name)


def test_bytes_that_changed_since_the_file_was_verified_are_noticed() -> None:
    disk = folder()
    write(disk, BASIS)
    data = disk.contents(path_of(5))
    listed = read_parts(disk, path_of(5), LOG_ID)
    assert next(listed) == PARTS[0]
    disk.put(path_of(5), data)
    assert next(listed) == PARTS[1]
    for wrong in (patched(data, HEADER_BYTES + 60, b"\xee"), data[: HEADER_BYTES + 300]):
        disk.put(path_of(5), wrong)
        with pytest.raises(CheckpointDoubted):
            list(read_parts(disk, path_of(5), LOG_ID))


def test_no_bytes_make_the_reader_raise_anything_else() -> None:
    disk = folder()
    write(disk, BASIS)
    data = disk.contents(path_of(5))
    rng = Random(11)
    for _ in range(3000):
        bad = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(bad))
            bad[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
        if bytes(bad) == data:
            continue
        disk.put(path_of(5), bytes(bad))
        with pytest.raises(CheckpointDoubted):
            verify_checkpoint(disk, path_of(5), LOG_ID)


def test_another_logs_checkpoint_and_one_under_a_wrong_name_are_not_taken() -> None:
    disk = folder()
    write(disk, BASIS)
    with pytest.raises(CheckpointDoubted, match="belongs to log"):
        verify_checkpoint(disk, path_of(5), bytes(16))
    disk.rename(path_of(5), path_of(6))
    with pytest.raises(CheckpointDoubted, match="checkpoint of lsn 5"):
        verify_checkpoint(disk, path_of(6), LOG_ID)


def test_a_newer_versions_checkpoint_is_known_as_such() -> None:
    disk = folder()
    write(disk, BASIS)
    data = disk.contents(path_of(5))
    disk.put(path_of(5), resealed(patched(data, 8, b"\2"), HEADER_BYTES))
    with pytest.raises(FormatNotKnown, match="format 2"):
        verify_checkpoint(disk, path_of(5), LOG_ID)


def test_the_two_newest_are_kept_and_what_is_of_no_log_of_ours_goes() -> None:
    disk = folder()
    assert list_checkpoints(disk, DATA) == []
    for lsn in (1, 2, 2, 3):
        write(disk, basis(lsn))
    assert list_checkpoints(disk, DATA) == [checkpoint_name(3), checkpoint_name(2)]
    disk.close(disk.create(path_of(900)))
    disk.close(disk.create(f"{CKPT}/notes"))
    write(disk, basis(4))
    assert disk.files(CKPT) == [path_of(3), path_of(4), f"{CKPT}/notes"]


def test_steps_in_the_wrong_order_are_a_bug_and_said_so() -> None:
    file = CheckpointFile(folder(), DATA, LOG_ID)
    for step in (lambda: file.add(encode_part(PARTS[0])), lambda: file.finish(BASIS)):
        with pytest.raises(RuntimeError, match="no checkpoint"):
            step()
    file.begin()
    with pytest.raises(RuntimeError, match="neither finished"):
        file.begin()


def test_an_abandoned_checkpoint_leaves_nothing() -> None:
    disk = folder()
    write(disk, basis(1))
    file = CheckpointFile(disk, DATA, LOG_ID)
    for _ in range(2):
        file.begin()
        file.add(encode_part(PARTS[0]))
        file.abandon()
        file.abandon()
        assert disk.files(CKPT) == [path_of(1)]


def test_a_start_removes_what_a_crash_left_half_made() -> None:
    bench = three_messages()
    file = CheckpointFile(bench.disk, DATA, LOG_ID)
    file.begin()
    file.add(encode_part(PARTS[0]))
    assert bench.disk.files(CKPT) == [f"{CKPT}/{TMP_NAME}"]
    bench.disk.kill()
    with bench.running():
        assert bench.disk.files(CKPT) == []


def test_power_loss_at_any_call_leaves_the_checkpoint_before_it_or_the_new_one() -> None:
    for seed in range(4):
        finished = False
        for call in range(1, 60):
            disk = three_messages_on(SimDisk(Random(1000 * seed + call)))
            before = write(disk, basis(1))
            old = write(disk, basis(2))
            disk.power_at = disk.calls + call
            try:
                new = write(disk, basis(3), PARTS[:1])
                finished, disk.power_at = True, None
            except PowerLoss:
                disk.crash()
            names = list_checkpoints(disk, DATA)
            if checkpoint_name(3) in names:
                assert read(disk, 3)[0] == PARTS[:1]
            else:
                assert read(disk, 1) == (PARTS, before)
            assert read(disk, 2) == (PARTS, old)
            if finished:
                assert read(disk, 3) == (PARTS[:1], new)
                break
        assert finished


def three_messages_on(disk: SimDisk) -> SimDisk:
    bench = Bench(disk=disk)
    with bench.running() as run:
        run.send(b"one")
        run.pump()
    return disk


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_an_error_at_any_call_surfaces_and_the_checkpoint_before_is_as_it_was(code: int) -> None:
    for call in range(1, 60):
        disk = folder()
        old = write(disk, basis(1))
        fault = Fault(disk.calls + call, code)
        disk.faults.append(fault)
        file = CheckpointFile(disk, DATA, LOG_ID)
        try:
            file.begin()
            for part in PARTS:
                file.add(encode_part(part))
            file.finish(basis(2))
        except OSError as error:
            assert error.errno == code
            file.abandon()
        disk.faults.clear()
        assert read(disk, 1) == (PARTS, old)
        if not fault.hits:
            assert read(disk, 2)[0] == PARTS
            return
        file = CheckpointFile(disk, DATA, LOG_ID)  # what may be left does not stop the next one
        file.begin()
        file.finish(basis(3))
        assert read(disk, 3)[0] == []
    raise AssertionError("a checkpoint has more than 60 calls")


def test_a_checkpoint_on_a_real_file_system_comes_back(tmp_path: Path) -> None:
    disk, data_dir = SystemDisk(), str(tmp_path)
    for lsn in range(4):
        file = CheckpointFile(disk, data_dir, LOG_ID)
        file.begin()
        for part in PARTS:
            file.add(encode_part(part))
        file.finish(basis(lsn))
    names = list_checkpoints(disk, data_dir)
    assert names == [checkpoint_name(3), checkpoint_name(2)]
    path = f"{data_dir}/ckpt/{names[0]}"
    assert verify_checkpoint(disk, path, LOG_ID) == basis(3)
    assert list(read_parts(disk, path, LOG_ID)) == PARTS
