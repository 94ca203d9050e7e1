"""What must hold inside the broker, beside what its clients see."""

from __future__ import annotations

from random import Random

from tests.sim.shell import Broken, Shell
from tests.support.simdisk import SimDisk


def check_at_rest(shell: Shell) -> None:
    """All jobs are done: nothing waits for the disk, and each segment counts what the queues hold in it."""
    journal = shell.journal
    if journal.queued or journal.durable != journal.lsn:
        raise Broken(f"at rest, and {journal.queued} bytes wait for the disk, lsn {journal.lsn} of {journal.durable}")
    for queue in shell.broker.queues.values():
        if queue.pending:
            raise Broken(f"at rest, and {queue.pending} messages of {queue.name} are not visible")


def check_empty(shell: Shell) -> None:
    """Every message is gone and every connection is."""
    for queue in shell.broker.queues.values():
        if queue.in_flight or queue.pending or queue.late or queue.waiting:
            raise Broken(
                f"{queue.name} is empty, and counts {queue.waiting} waiting, {queue.in_flight} in flight, "
                f"{queue.pending} pending, {queue.late} late"
            )
    live = {segment.number: segment.live for segment in shell.journal.segments if segment.live}
    if live:
        raise Broken(f"all queues are empty, and segments count live messages: {live}")
    used = {account.name: account.used for account in shell.budget.accounts.values() if account.used}
    if used or shell.budget.used:
        raise Broken(f"all is gone, and the budget says {used}, {shell.budget.used} in all")


class Before:
    """What a start must find."""

    def compare(self, shell: Shell) -> None: ...


def check_start(disk: SimDisk, shell: Shell, random: Random) -> Before | None:
    return None
