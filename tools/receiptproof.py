"""Proof that a RECEIPT is an fsync, from the system calls of a running broker.

    python tools/receiptproof.py --receipts 1000

Runs the broker under strace, drives SEND, ACK, NACK, COMMIT and DISCONNECT with receipts from several
connections, and then shows for each RECEIPT: the bytes of its record were handed to a write call on the log;
that call ended; after it an fdatasync of the same file began and returned 0; and only after that began the
call that put the RECEIPT on the socket. Exit code 0: this holds for every receipt; 1: it does not; 2: strace
is missing.

strace prints the calls in the order of their begin and end over all threads: a call that another thread's
call overtakes is split in two lines. So the number of the line is the clock.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.process import BrokerProcess
from tests.support.wire import Wire, close_all

WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
SENDS = ("write", "writev", "send", "sendto", "sendmsg")
RECEIVES = ("read", "recv", "recvfrom", "recvmsg", "recvmmsg", "readv")
SYNCS = ("fdatasync", "fsync")
CALLS = sorted({*WRITES, *SENDS, *RECEIVES, *SYNCS} - {"send", "recv"})
PER_ROUND = 10  # SENDs that are on their way at once, of one connection

LINE = re.compile(r"(?P<pid>[0-9]+) +(?P<time>[0-9.]+) (?P<rest>.*)")
RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
RESULT = re.compile(r" = (?P<value>-?[0-9]+)(?P<why>[^=]*)$")
FILE = re.compile(r"[0-9]+<(?P<path>[^>]*)>")
TAIL = " <unfinished ...>"


class ProofFailed(Exception):
    """The trace cannot be read, or a claim does not hold."""


@dataclass
class Call:
    """One system call: the lines in which it began and ended (-1: never), and its result."""

    name: str
    path: str
    text: str
    began: int
    ended: int = -1
    result: int = -1


@dataclass(frozen=True)
class Claim:
    """A receipt, and what its record holds: a mark in its body, or the name of a queue that is its own.

    after: the record was written after the broker had received this text (the SEND before an ACK named the
    queue too).
    """

    kind: str
    receipt: str
    marks: tuple[str, ...]
    after: str = ""


@dataclass(frozen=True)
class Proof:
    claim: Claim
    write: Call
    sync: Call
    send: Call


def parse(lines: Iterable[str]) -> list[Call]:
    """The calls of a trace made with -f -ttt -y, in the order in which they began."""
    calls: list[Call] = []
    open_calls: dict[str, Call] = {}
    for number, line in enumerate(lines):
        match = LINE.match(line)
        if match is None:
            continue
        pid, rest = match["pid"], match["rest"].rstrip("\n")
        resumed = RESUMED.match(rest)
        if resumed is not None:
            call = open_calls.pop(pid, None)
            if call is not None:
                call.text += resumed["rest"]
                _end(call, number, resumed["rest"])
            continue
        name, bracket, arguments = rest.partition("(")
        if not bracket or not name.isidentifier():
            continue  # a signal, or the end of a thread
        file = FILE.match(arguments)
        call = Call(name, file["path"] if file else "", arguments, number)
        calls.append(call)
        if rest.endswith(TAIL):
            open_calls[pid] = call
        else:
            _end(call, number, arguments)
    return calls


def _end(call: Call, number: int, text: str) -> None:
    call.ended = number
    result = RESULT.search(text)
    call.result = int(result["value"]) if result else -1


def prove(calls: list[Call], claims: Iterable[Claim]) -> list[Proof]:
    """One proof for each claim. Raises ProofFailed for the first that does not hold."""
    writes = [call for call in calls if call.name in WRITES and "/log/" in call.path]
    syncs = [call for call in calls if call.name in SYNCS and "/log/" in call.path and call.result == 0]
    sends = [call for call in calls if call.name in SENDS and "/log/" not in call.path]
    receives = [call for call in calls if call.name in RECEIVES and "/log/" not in call.path]
    return [proof for claim in claims for proof in _prove(claim, writes, syncs, sends, receives)]


def _prove(
    claim: Claim, writes: list[Call], syncs: list[Call], sends: list[Call], receives: list[Call]
) -> list[Proof]:
    label = f"{claim.kind} {claim.receipt}"
    wanted = f"receipt-id:{claim.receipt}\\n"
    answers = [call for call in sends if wanted in call.text]
    if len(answers) != 1:
        raise ProofFailed(f"{label}: its RECEIPT was sent {len(answers)} times")
    since = 0
    if claim.after:
        came = [call for call in receives if claim.after in call.text]
        if not came:
            raise ProofFailed(f"{label}: the trace does not show that its frame was received")
        since = came[0].began
    proofs = []
    for mark in claim.marks:
        write = next((call for call in writes if mark in call.text and call.began >= since), None)
        if write is None:
            raise ProofFailed(f"{label}: no write to the log holds {mark!r}")
        if write.ended < 0 or write.result <= 0:
            raise ProofFailed(
                f"{label}: the write of its record failed or did not end (line {write.began + 1})"
            )
        sync = next((call for call in syncs if call.path == write.path and call.began >= write.ended), None)
        if sync is None:
            raise ProofFailed(f"{label}: no sync of {write.path} after the write in line {write.ended + 1}")
        if not sync.ended <= answers[0].began:
            at = answers[0].began + 1
            raise ProofFailed(f"{label}: RECEIPT in line {at}, but the sync ended in line {sync.ended + 1}")
        proofs.append(Proof(claim, write, sync, answers[0]))
    return proofs


def drive(address: tuple[str, int], receipts: int) -> list[Claim]:
    """Ask for that many receipts, of all kinds; what each of them claims."""
    claims: list[Claim] = []
    wires = [Wire(address) for _ in range(3)]
    try:
        for wire in wires:
            wire.connect("1.2")
        number = 0
        while len(claims) < receipts:
            number += 1
            for index, wire in enumerate(wires):
                claims += _sends(wire, f"{number}-{index}")
                claims += _settlements(wire, f"{number}-{index}")
                claims += _transaction(wire, f"{number}-{index}")
            claims += _disconnect(address, str(number))
        for each in wires:
            each.call("DISCONNECT")
    finally:
        close_all(wires)
    return claims


def _sends(wire: Wire, name: str) -> list[Claim]:
    """SENDs behind one another without waiting, so that batches of them share a sync."""
    claims = []
    for count in range(PER_ROUND):
        receipt = f"send-{name}-{count}"
        mark = f"body-{receipt}|"
        wire.tell("SEND", {"destination": "/queue/proof", "receipt": receipt}, mark.encode())
        claims.append(Claim("SEND", receipt, (mark,)))
    for claim in claims:
        wire.receipt(claim.receipt)
    return claims


def _settlements(wire: Wire, name: str) -> list[Claim]:
    """A NACK and an ACK of one message in a queue of its own, so that its name marks their records."""
    queue = f"/queue/settle-{name}|"
    wire.publish(queue, "x")
    wire.subscribe(queue, ack="client-individual", name=queue)
    claims = []
    for command in ("NACK", "ACK"):
        got = wire.expect("MESSAGE")
        receipt = f"{command.lower()}-{name}"
        wire.tell(command, {"id": got["ack"], "receipt": receipt})
        wire.receipt(receipt)
        claims.append(Claim(command, receipt, (queue,), after=f"receipt:{receipt}\\n"))
    wire.call("UNSUBSCRIBE", {"id": queue})
    return claims


def _transaction(wire: Wire, name: str) -> list[Claim]:
    marks = tuple(f"body-commit-{name}-{count}|" for count in range(3))
    wire.tell("BEGIN", {"transaction": name})
    for count, mark in enumerate(marks):
        headers = {"destination": f"/queue/proof.{count}", "transaction": name}
        wire.tell("SEND", headers, mark.encode())
    wire.tell("COMMIT", {"transaction": name, "receipt": f"commit-{name}"})
    wire.receipt(f"commit-{name}")
    return [Claim("COMMIT", f"commit-{name}", marks, after=f"receipt:commit-{name}\\n")]


def _disconnect(address: tuple[str, int], name: str) -> list[Claim]:
    """The receipt of DISCONNECT covers SENDs that asked for none."""
    marks = tuple(f"body-bye-{name}-{count}|" for count in range(3))
    with Wire(address) as wire:
        wire.connect("1.2")
        for mark in marks:
            wire.tell("SEND", {"destination": "/queue/proof"}, mark.encode())
        wire.tell("DISCONNECT", {"receipt": f"bye-{name}"})
        wire.receipt(f"bye-{name}")
    return [Claim("DISCONNECT", f"bye-{name}", marks)]


def run(folder: Path, receipts: int) -> list[Proof]:
    """Trace a broker in that folder and prove every receipt. Raises ProofFailed."""
    trace = folder / "strace.txt"
    folder.mkdir(parents=True, exist_ok=True)
    prefix = [
        "strace",
        "-f",
        "-ttt",
        "-y",
        "-s",
        "8388608",
        "-o",
        str(trace),
        "-e",
        f"trace={','.join(CALLS)}",
    ]
    broker = BrokerProcess(folder / "broker", prefix=prefix)
    try:
        broker.start()
        claims = drive(broker.address, receipts)
        broker.stop()
    finally:
        broker.close()
    with trace.open(errors="replace") as lines:
        return prove(parse(lines), claims)


def report(proofs: list[Proof]) -> str:
    kinds: dict[str, set[str]] = {}
    for proof in proofs:
        kinds.setdefault(proof.claim.kind, set()).add(proof.claim.receipt)
    counts = ", ".join(f"{len(receipts)} {kind}" for kind, receipts in kinds.items())
    syncs = len({proof.sync.began for proof in proofs})
    return f"OK: {sum(map(len, kinds.values()))} receipts ({counts}), each behind one of {syncs} syncs"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="proof from an strace that each RECEIPT follows the sync of its record",
        epilog="example: python tools/receiptproof.py --receipts 1000",
    )
    parser.add_argument("--receipts", type=int, default=1000, metavar="N", help="how many at least (1000)")
    args = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is missing (apt-get install strace)")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="receiptproof-"))
    try:
        proofs = run(folder, args.receipts)
    except ProofFailed as error:
        print(f"FAILED: {error}; the trace is kept in {folder}")
        return 1
    print(report(proofs))
    last = proofs[-1]
    for what, call in (("write", last.write), ("sync", last.sync), ("RECEIPT", last.send)):
        print(f"  e.g. {last.claim.receipt}: {what:8} line {call.began + 1}-{call.ended + 1}: {call.name}")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
