"""One seed, from the first byte to the verdict."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from random import Random
from types import ModuleType

from broker.errors import DataDamaged, StorageFailed
from tests.sim.draining import drain
from tests.sim.line import Line
from tests.sim.peer import Peer
from tests.sim.shell import Broken, Shell, Stuck
from tests.sim.state import check_at_rest, check_empty, check_start
from tests.sim.swarm import Swarm, draw
from tests.support.exact import check_exactly
from tests.support.history import Event, What
from tests.support.simdisk import Fault, PowerLoss, SimDisk

MODULES = [
    import_module(f"broker.core.{name}")
    for name in (
        "backlog", "broker", "checkpoints", "compaction", "ledger", "positions", "queue", "replay", "settling",
    )
]  # fmt: skip
OPERATIONS = ("write", "sync_data", "sync_all", "sync_dir", "rename", "allocate", "create", "unlink", "read", None)


@contextmanager
def small_numbers(swarm: Swarm) -> Iterator[None]:
    """For as long as it runs the guards of large numbers guard small ones."""
    kept: list[tuple[ModuleType, str, float]] = []
    for full, value in {**swarm.small, "settling.MAX_DELIVERIES": swarm.failures}.items():
        home, _, name = full.rpartition(".")
        number: float = getattr(import_module(f"broker.core.{home}"), name)
        for module in MODULES:
            if getattr(module, name, None) is number:  # others have it under the same name
                kept.append((module, name, number))
                setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, number in kept:
            setattr(module, name, number)


class Simulation:
    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.random = random = Random(seed)
        self.seed = seed
        self.say = say
        self.swarm = draw(random)
        self.disk = SimDisk(random, short_writes=random.choice((0.0, 0.0, 0.1)))
        self.shell = Shell(random, self.disk, self.swarm.settings, say)
        self.peers: list[Peer] = []
        self.counts: Counter[str] = self.shell.counts
        self._lines = 0
        self._step = 0
        if say is not None:
            say(f"seed {seed}: {self.swarm}")

    @property
    def digest(self) -> str:
        return self.shell.digest.hexdigest()

    def tell(self, text: str) -> None:
        self.shell.note(text.encode())
        if self.say is not None:
            self.say(f"{self._step}: {text} (disk call {self.disk.calls}, {self.shell.clock.now:.3f} s)")

    # --- the whole ----------------------------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        """Raises Broken."""
        with small_numbers(self.swarm):
            try:
                self._run()
            except DataDamaged as error:
                raise Broken(f"seed {self.seed}, step {self._step}: false alarm: {error}") from error
            except Broken as error:
                raise Broken(f"seed {self.seed}, step {self._step}: {error}") from error
            except Exception as error:
                raise Broken(f"seed {self.seed}, step {self._step}: {type(error).__name__}: {error}") from error
        self.counts["seeds"] += 1
        return self.counts

    def _run(self) -> None:
        swarm = self.swarm
        share = swarm.steps // swarm.cycles
        for cycle in range(swarm.cycles):
            self._start(quiet=cycle == 0)
            ended = self._work(share)
            if cycle + 1 < swarm.cycles and not ended:
                self._end(self.random.choice(swarm.endings))
        self._finish()
        self._judge()

    def _work(self, steps: int) -> bool:
        """Returns whether the broker has died in it."""
        for _ in range(steps):
            self._step += 1
            try:
                self._one()
            except PowerLoss:
                self._die(power=self.random.random() < 0.7)
                return True
            if self.shell.failed is not None:
                self.counts["storage failed"] += 1
                self._die(power=self.random.random() < 0.5)
                return True
            if self.shell.at(self.swarm.ambush) and self.random.random() < 0.1:
                self._end(self.random.choice(self.swarm.endings))
                return True
        return False

    # --- runs of the broker -------------------------------------------------------------------------------------------

    def _start(self, *, quiet: bool = False) -> None:
        """Until it comes up: crashes and errors of the disk may come in between."""
        random = self.random
        for attempt in range(6):
            trouble = 0.0 if quiet and attempt == 0 and random.random() < 0.8 else 0.3
            if attempt < 4 and random.random() < trouble:
                self._trouble_at_start()
            else:
                self.disk.capacity = None
            if random.random() < 0.5:
                check_start(self.disk, self.shell, random)
            try:
                self.shell.start()
            except PowerLoss:
                self.counts["crash during start"] += 1
                self.tell("the power goes during the start")
                self._gone(power=random.random() < 0.7)
            except StorageFailed as error:
                self.counts["start failed"] += 1
                self.tell(f"start failed: {error}")
                self._gone(power=random.random() < 0.5)
            else:
                self.counts["starts"] += 1
                self.counts["clean starts"] += self.shell.clean
                self.tell(f"started, {'clean' if self.shell.clean else 'not clean'}")
                self.disk.faults.clear()
                self.disk.power_at = None
                return
        raise Stuck("the broker does not start on a disk in order")

    def _trouble_at_start(self) -> None:
        random, disk = self.random, self.disk
        if random.random() < 0.7 or self.swarm.faults == 0.0:
            if "power" in self.swarm.endings or random.random() < 0.5:
                disk.power_at = disk.calls + random.choice((random.randrange(1, 12), random.randrange(1, 80)))
        else:
            self._break_disk()

    def _end(self, how: str) -> None:
        self.tell(f"the end: {how}")
        self.counts[f"end {how}"] += 1
        shell, random = self.shell, self.random
        if how.endswith("in a call"):
            calls = random.choice((1, 2, random.randrange(1, 12), random.randrange(1, 60)))
            self.disk.power_at = self.disk.calls + calls
            try:
                for _ in range(8):
                    shell.settle()
                    self._send_something()
            except PowerLoss:
                pass
        elif how == "stop":
            self._stop()
            return
        self._die(power=how.startswith("power"))

    def _send_something(self) -> None:
        for peer in self.peers:
            peer.act("send")
            peer.act("settle")
            peer.line.arrive(1 << 20)

    def _stop(self) -> None:
        shell = self.shell
        try:
            shell.hang_up()
            shell.settle()
            shell.close()
        except (PowerLoss, OSError):
            self._die(power=True)
            return
        if shell.failed is not None:
            self._die(power=False)
            return
        shell.history.append(Event(What.STOP, ""))
        self.counts["stops"] += 1
        shell.die()
        self.peers.clear()
        self.disk.kill()  # clears the disk's troubles
        if self.random.random() < 0.5 and "power" in self.swarm.endings:
            self.disk.crash()  # a clean stop has synced everything

    def _die(self, *, power: bool) -> None:
        self.tell("the power is gone" if power else "killed")
        self.shell.note_crash()
        self._gone(power=power)

    def _gone(self, *, power: bool) -> None:
        if self.swarm.settings.storage.fsync != "always":
            power = False
        self.counts["power losses" if power else "kills"] += 1
        for line in list(self.shell.lines.values()):
            self.shell.history.append(Event(What.CLOSED, line.name))
        self.shell.history.append(Event(What.CRASH, ""))
        self.shell.die()
        self.peers.clear()
        if power:
            self.disk.crash()
        else:
            self.disk.kill()

    # --- one step -----------------------------------------------------------------------------------------------------

    def _one(self) -> None:
        random, swarm, shell = self.random, self.swarm, self.shell
        self.counts["steps"] += 1
        choice = random.random()
        if choice < 0.34:
            self._act()
        elif choice < 0.56:
            self._arrive()
        elif choice < 0.66:
            self._take()
        elif choice < 0.76:
            shell.turn()
        elif choice < 0.86:
            shell.run(self._lane())
        elif choice < 0.93:
            shell.report(self._lane())
        elif choice < 0.96:
            self._pass_time()
        elif random.random() < 0.5:
            self._connect()
        if random.random() < swarm.resets and self.peers:
            self._reset()
        if random.random() < swarm.faults:
            self._break_disk()
        if self.disk.capacity is None and random.random() < swarm.full:
            self._fill_disk()
        elif self.disk.capacity is not None and random.random() < 0.03:
            self.disk.capacity = None
            self.tell("there is room on the disk again")
        if random.random() < swarm.rest:
            self.tell("rest")
            for peer in self.peers:
                peer.line.arrive(1 << 20)
            shell.settle()
            if shell.failed is None:
                check_at_rest(shell)
        self.peers = [peer for peer in self.peers if not peer.line.closed]

    def _lane(self) -> str:
        """A thread that has something to do, or else the first."""
        busy = [name for name, tasks in self.shell.lanes.items() if tasks] or ["storage"]
        return self.random.choices(busy, [self.swarm.lanes[name] for name in busy])[0]

    def _connect(self) -> None:
        if len(self.peers) < self.swarm.clients:
            self._lines += 1
            line = Line(self.shell, f"c{self._lines}", self.swarm.window)
            self.peers.append(Peer(line, self.random, self.swarm))
            self.counts["connections"] += 1

    def _act(self) -> None:
        if not self.peers or (len(self.peers) < self.swarm.clients and self.random.random() < 0.3):
            self._connect()
        late = [peer for peer in self.peers if peer.view.late and not peer.silent]
        if late and self.shell.at("loading"):
            # What is being read back is settled late: rare, and hard to get right.
            peer = self.random.choice(late)
            if peer.act("late") and peer.line.read:
                return peer.line.arrive(1 << 20)
        peer = self.random.choice(self.peers)
        weights = self.swarm.weights
        for _ in range(3):
            action = self.random.choices(list(weights), list(weights.values()))[0]
            if peer.act(action):
                self.tell(f"{peer.line.name} {action}")
                return

    def _arrive(self) -> None:
        lines = [peer.line for peer in self.peers if peer.line.coming and peer.line.read]
        if not lines:
            return
        line = self.random.choice(lines)
        size = 1 << 20
        if self.swarm.cuts and self.random.random() < 0.7:
            size = self.random.randrange(1, line.waiting + 1) if line.waiting > 0 else 1
        self.tell(f"{size} bytes from {line.name}")
        line.arrive(size)

    def _take(self) -> None:
        peers = [peer for peer in self.peers if peer.line.going and peer.reads]
        if peers:
            peer = self.random.choice(peers)
            for got in peer.line.take(self.random.choice((1, 4, 1000))):
                peer.see(got)

    def _pass_time(self) -> None:
        seconds = self.random.choices((0.001, 0.02, 0.3, 2.0, 12.0, 70.0, 700.0), (10, 10, 10, 4, 2, 1, 1))[0]
        self.tell(f"{seconds} s pass")
        self.shell.advance(seconds)

    def _reset(self) -> None:
        peer = self.random.choice(self.peers)
        self.tell(f"{peer.line.name} is cut off")
        self.counts["resets"] += 1
        peer.line.cut()

    def _break_disk(self) -> None:
        random, disk = self.random, self.disk
        op = random.choice(OPERATIONS)
        code = random.choice((errno.EIO, errno.EIO, errno.EROFS, errno.ENOSPC, errno.EMFILE))
        base = disk.counts.get(op, 0) if op else disk.calls
        fault = Fault(
            base + random.choice((1, 1, 2, random.randrange(1, 20))),
            code,
            op,
            sticky=random.random() < 0.5,
            revert=random.random() < 0.5,
        )
        disk.faults.append(fault)
        self.counts["faults set"] += 1
        self.tell(f"the disk will fail: {fault}")

    def _fill_disk(self) -> None:
        paths = [path for folder in ("data", "data/log", "data/ckpt") for path in self.disk.files(folder)]
        used = sum(len(self.disk.contents(path)) for path in paths)
        self.disk.capacity = used + self.random.randrange(12000)
        self.counts["disk full"] += 1
        self.tell(f"the disk holds {self.disk.capacity}")

    # --- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The last run goes on without trouble until nothing is left."""
        shell = self.shell
        if not shell.running:
            self._start_quietly()
        shell.mend_disk()
        for peer in self.peers:
            peer.line.arrive(1 << 20)
        shell.settle()
        if shell.failed is not None:  # by what had happened before
            self._die(power=True)
            self._start_quietly()
        elif any(queue.damage for queue in shell.broker.queues.values()):
            self.counts["queues closed by errors"] += 1
            self._end("stop")  # a read failed, so the queue hands out nothing before the next start
            self._start_quietly()
        self.tell("everybody leaves")
        for peer in self.peers:
            if not peer.line.closed:
                peer.line.cut()
        self.peers.clear()
        shell.settle()
        check_at_rest(shell)
        if self.random.random() < 0.5:
            self.tell("a last restart")
            self._end(self.random.choice(self.swarm.endings))
            self._start_quietly()
        self.drains: list[str] = []
        for queue in self.swarm.queues:
            for destination in (f"/queue/{queue}", f"/queue/DLQ.{queue}"):
                self._lines += 1
                line = Line(shell, f"d{self._lines}", 1 << 20)
                self.drains.append(line.name)
                drain(line, destination, prefetch=self.random.choice((20, 1000, 1000)))
        shell.settle()
        check_empty(shell)
        self.counts["records"] += shell.journal.lsn

    def _start_quietly(self) -> None:
        self.disk.capacity = None
        self._start(quiet=True)

    def _judge(self) -> None:
        if self.say is not None:
            for event in self.shell.history:
                self.say(f"  {event}")
        found = check_exactly(self.shell.history, self.drains, failures=self.swarm.failures)
        if found:
            raise Broken("; ".join(str(each) for each in found[:3]))


def run_seed(seed: int, say: Callable[[str], None] | None = None) -> tuple[Counter[str], str]:
    """What happened, and the digest of all of it. Raises Broken with the seed in its text."""
    simulation = Simulation(seed, say)
    return simulation.run(), simulation.digest
