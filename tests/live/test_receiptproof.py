"""A RECEIPT leaves after the fdatasync of its record: in the system calls of a running broker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.receiptproof import Claim, ProofFailed, parse, prove, run

GOOD = r"""
10 1.0 recvfrom(8<socket:[1]>, "SEND\nreceipt:r1\n\nmark|\0", 65536, 0, NULL, NULL) = 22
11 1.1 pwritev(5</d/log/1.seg>, [{iov_base="..mark|..", iov_len=9}], 1, 512 <unfinished ...>
10 1.2 epoll_wait(4, [], 2, 0) = 0
11 1.3 <... pwritev resumed>) = 9
11 1.4 fdatasync(5</d/log/1.seg> <unfinished ...>
10 1.5 epoll_wait(4, [], 2, 0) = 0
11 1.6 <... fdatasync resumed>) = 0
10 1.7 sendto(8<socket:[1]>, "RECEIPT\nreceipt-id:r1\n\n\0", 25, 0, NULL, 0) = 25
"""
LINES = GOOD.strip().split("\n")
CLAIM = Claim("SEND", "r1", ("mark|",), after="receipt:r1\\n")


def move(index: int, to: int) -> list[str]:
    lines = LINES.copy()
    lines.insert(to, lines.pop(index))
    return lines


def test_a_right_trace_is_a_proof() -> None:
    (proof,) = prove(parse(LINES), [CLAIM])
    assert (proof.write.ended, proof.sync.ended, proof.send.began) == (3, 6, 7)


@pytest.mark.parametrize(
    "lines",
    [
        move(7, 6),
        move(7, 4),
        move(7, 0),
        [*LINES[:4], LINES[7]],
        [*LINES[:6], LINES[6].replace("= 0", "= -1 EIO (Input/output error)"), LINES[7]],
        [line.replace("fdatasync(5</d/log/1.seg>", "fdatasync(6</d/log/0.seg>") for line in LINES],
        [line.replace("mark|..", "other..") for line in LINES],
        [*LINES[4:7], *LINES[:4], LINES[7]],
        LINES[:7],
        [*LINES, LINES[7]],
        [*LINES[:3], LINES[3].replace("= 9", "= -1 ENOSPC (No space left on device)"), *LINES[4:]],
        LINES[1:],
    ],
    ids=[
        "receipt before the sync ended",
        "receipt before the sync began",
        "receipt before the write",
        "no sync",
        "failed sync",
        "sync of another file",
        "record without the body",
        "sync before the write",
        "no receipt",
        "receipt twice",
        "failed write",
        "frame never received",
    ],
)
def test_a_wrong_trace_is_none(lines: list[str]) -> None:
    with pytest.raises(ProofFailed):
        prove(parse(lines), [CLAIM])


def can_trace() -> bool:
    strace = shutil.which("strace")
    return (
        strace is not None
        and subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(
    not can_trace(), reason="strace is missing, or may not trace here (apt-get install strace)"
)
def test_each_receipt_of_a_running_broker_follows_the_sync_of_its_record(tmp_path: Path) -> None:
    proofs = run(tmp_path, 100)
    assert {proof.claim.kind for proof in proofs} == {"SEND", "NACK", "ACK", "COMMIT", "DISCONNECT"}
    assert len({proof.claim.receipt for proof in proofs}) >= 100
