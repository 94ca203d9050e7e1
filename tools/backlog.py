"""A backlog that is larger than memory: how much memory, how soon after a kill, how fast from disk?

    python tools/backlog.py                              all scenarios: about 20 minutes
    python tools/backlog.py --only a --count 200000      one of them, smaller
    python tools/backlog.py --only d --runs 9 --json d.json

Scenarios a, b and c fill a broker, let it wait, drain it, fill it again, kill it with SIGKILL and start it: its
memory is sampled every 50 ms throughout, and every message must come back, once and in order. Each body begins
with the number of its queue and its own number. Scenario d measures: draining a backlog from the disk and from
memory in turn, each alone and while a producer publishes.

Exit code 0: all messages came, in order; 1: they did not. Whether a number is good enough is for the reader.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import build_load, cpu_seconds, machine
from contenders import NoContender, Stompd
from numbered import BODY_BYTES, Drain, Wrong, fill

from tests.support.process import BrokerFailed, BrokerProcess

MIB: Final = 1024 * 1024
SAMPLE_SECONDS: Final = 0.05


# ------------------------------------------------------------------------------------------------- the scenes


@dataclass
class Phase:
    """What happened in one part of a scene; sizes in MiB, times in seconds."""

    name: str
    seconds: float = 0.0
    cpu: float = 0.0  # seconds of it that the broker used
    rss_max: float = 0.0
    rss_end: float = 0.0
    peak: float = 0.0  # VmHWM: what no sample can miss
    log: float = 0.0  # the files of the log, at its end
    first: float = 0.0  # until the first message, where the broker was started anew
    pause: float = 0.0  # the longest one between two chunks of messages that came


def status(pid: int) -> dict[str, int]:
    """Lines of /proc/PID/status that are in kB, as bytes."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().split("\n"):
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value[:-3]) * 1024
    return found


def folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            total += path.stat().st_size
    return total


@contextlib.contextmanager
def watched(name: str, broker: BrokerProcess, phases: list[Phase]) -> Iterator[Phase]:
    """Samples the memory of the process while the block runs. The broker may be started inside."""
    phase = Phase(name)
    done = threading.Event()

    def sample() -> None:
        reset = False
        while not done.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError, KeyError, BrokerFailed):
                if not reset:
                    Path(f"/proc/{broker.pid}/clear_refs").write_text("5")  # VmHWM counts from here
                    reset = True
                found = status(broker.pid)
                phase.rss_end = found["VmRSS"] / MIB
                phase.rss_max = max(phase.rss_max, phase.rss_end)
                phase.peak = max(phase.peak, found["VmHWM"] / MIB)

    thread = threading.Thread(target=sample)
    thread.start()
    start, used = time.perf_counter(), cpu_seconds(broker.pid) if broker.alive() else 0.0
    try:
        yield phase
    finally:
        with contextlib.suppress(OSError, BrokerFailed):
            phase.cpu = cpu_seconds(broker.pid) - used
        phase.seconds = phase.seconds or time.perf_counter() - start
        done.set()
        thread.join()
        phase.log = folder_bytes(broker.data_dir / "log") / MIB
        phases.append(phase)
        print(f"  {phase}", file=sys.stderr, flush=True)


@dataclass
class Scene:
    key: str
    title: str
    queues: int
    each: int
    limit: str = ""  # memory.limit

    def run(self, root: Path | None, wait: float, cores: tuple[int | None, int | None]) -> list[Phase]:
        sections = {"storage": {"segment_size": '"64MiB"'}, "log": {"level": '"warning"'}}
        if self.limit:
            sections["memory"] = {"limit": f'"{self.limit}"'}
        folder = Path(tempfile.mkdtemp(prefix="backlog-", dir=root))
        broker = BrokerProcess(folder, sections)
        phases: list[Phase] = []
        try:
            broker.start()
            pin(broker.pid, cores[0])
            pin(0, cores[1])
            with watched("filling", broker, phases) as phase:
                phase.seconds = fill(broker.port, self.queues, self.each)
            with watched("waiting", broker, phases):
                time.sleep(wait)
            with watched("draining", broker, phases) as phase:
                drained = Drain(broker.port, self.queues, self.each).run(time.perf_counter())
                phase.seconds, phase.pause = drained.seconds, drained.pause
            with watched("filling again", broker, phases) as phase:
                phase.seconds = fill(broker.port, self.queues, self.each)
            broker.kill()
            with watched("after kill -9", broker, phases) as phase:
                start = time.perf_counter()
                broker.start(wait=False)
                pin(broker.pid, cores[0])
                drained = Drain(broker.port, self.queues, self.each).run(start)
                phase.seconds, phase.first, phase.pause = drained.seconds, drained.first, drained.pause
            broker.stop()
        except (Wrong, BrokerFailed, OSError) as error:
            raise Wrong(f"{error}\n{broker.stderr()[-2000:]}") from error
        finally:
            broker.close()
            shutil.rmtree(folder, ignore_errors=True)
        return phases


def pin(pid: int, core: int | None) -> None:
    """The threads that it has and will start. 0: ourselves."""
    if core is not None:
        for thread in os.listdir(f"/proc/{pid or os.getpid()}/task"):
            os.sched_setaffinity(int(thread), {core})


# --------------------------------------------------------------------------------------------- from the disk


@dataclass
class Rates:
    """Messages a second."""

    where: str  # "disk" or "memory"
    drain: float = 0.0
    drain_busy: float = 0.0  # while one producer publishes
    publish_busy: float = 0.0
    publish: float = 0.0  # that producer alone, into an empty queue
    errors: list[str] = field(default_factory=list)


def load(binary: Path, port: int, arguments: str, core: int | None) -> subprocess.Popen[str]:
    command = [str(binary), "--port", str(port), "--size", str(BODY_BYTES), "--secs", "300", *arguments.split()]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str], rates: Rates) -> dict[str, Any]:
    out, errors = process.communicate(timeout=360)
    if process.returncode:
        rates.errors.append(f"stompload: {errors.strip()[-300:]} {out.strip()[-300:]}")
    try:
        found: dict[str, Any] = json.loads(out)
    except json.JSONDecodeError:
        found = {"deliver_per_s": 0, "confirm_per_s": 0, "delivered": 0}
    return found


def drain_rates(where: str, count: int, binary: Path, options: argparse.Namespace) -> Rates:
    """One round on fresh brokers: a drain alone, and a drain beside a producer of half as many messages."""
    rates = Rates(where)
    broker_core, core = options.cores
    # 8 GiB: nothing has to go. The default: nearly all of it has to.
    extra = '[memory]\nlimit = "8GiB"\n' if where == "memory" else ""
    filling = f"--producers 4 --window 1000 --count {count}"
    draining = f"--producers 0 --consumers 4 --count {count}"
    publishing = f"--producers 1 --window 1000 --count {count // 2}"
    with Stompd(core=broker_core, root=options.root, extra=extra) as broker:
        result(load(binary, broker.port, filling, core), rates)
        found = result(load(binary, broker.port, draining, core), rates)
        rates.drain = found["deliver_per_s"]
        if found["delivered"] < count:
            rates.errors.append(f"{found['delivered']} of {count} came")
        rates.publish = result(load(binary, broker.port, f"{publishing} --dest /queue/b", core), rates)["confirm_per_s"]
    with Stompd(core=broker_core, root=options.root, extra=extra) as broker:
        result(load(binary, broker.port, filling, core), rates)
        consumers = load(binary, broker.port, draining, core)
        producer = load(binary, broker.port, publishing, core)
        rates.publish_busy = result(producer, rates)["confirm_per_s"]
        rates.drain_busy = result(consumers, rates)["deliver_per_s"]
    return rates


# ----------------------------------------------------------------------------------------------- the results


def scene_table(scene: Scene, phases: Sequence[Phase]) -> str:
    rows = [f"{scene.title}:", ""]
    rows.append(
        "| phase | seconds | of CPU | messages a second | longest pause | RSS, most | VmHWM | RSS at the end | log |"
    )
    rows.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for phase in phases:
        rate = "" if phase.name == "waiting" else f"{scene.queues * scene.each / phase.seconds:,.0f}"
        name = f"{phase.name}: first message after {phase.first:.2f} s" if phase.first else phase.name
        pause = f"{phase.pause:.2f} s" if phase.pause else ""
        sizes = " | ".join(f"{size:,.0f} MiB" for size in (phase.rss_max, phase.peak, phase.rss_end, phase.log))
        rows.append(f"| {name} | {phase.seconds:.1f} | {phase.cpu:.1f} | {rate} | {pause} | {sizes} |")
    return "\n".join(rows)


def rates_table(rates: Sequence[Rates]) -> str:
    rows = ["| messages a second | from disk | from memory | disk / memory |", "|---|---:|---:|---:|"]
    titles = {
        "drain": "drain, 4 consumers",
        "drain_busy": "drain while one producer publishes",
        "publish_busy": "that producer",
        "publish": "that producer alone",
    }
    for name, title in titles.items():
        cells, medians = [], []
        for where in ("disk", "memory"):
            values = [getattr(one, name) for one in rates if one.where == where and not one.errors] or [0.0]
            medians.append(statistics.median(values))
            cells.append(f"{medians[-1]:,.0f} ({min(values):,.0f}-{max(values):,.0f})")
        ratio = f"{medians[0] / medians[1]:.2f}" if medians[1] else "-"
        rows.append(f"| {title} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="a,b,c,d", help="scenarios, separated by commas (default: a,b,c,d)")
    parser.add_argument("--runs", type=int, default=5, help="rounds of d (default: 5)")
    parser.add_argument("--count", type=int, default=1_000_000, help="messages (default: 1,000,000)")
    parser.add_argument("--queues", type=int, default=10_000, help="queues of scenario b (default: 10,000)")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds between filling and draining (default: 10)")
    parser.add_argument("--root", type=Path, default=None, help="where data folders are made (default: /tmp)")
    parser.add_argument("--no-pin", action="store_true", help="let the system choose the cores")
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    options = parser.parse_args()
    alone = options.no_pin or (os.cpu_count() or 1) < 2
    options.cores = (None, None) if alone else (0, 1)
    return options


def main() -> int:
    options = arguments()
    count = options.count
    each = max(1, count // options.queues)
    scenes = [
        Scene("a", f"a. {count:,} messages of 1 KiB in one queue", 1, count),
        Scene("b", f"b. {options.queues:,} queues with {each:,} messages of 1 KiB each", options.queues, each),
        Scene("c", f'c. {count:,} messages of 1 KiB in one queue, memory.limit = "32MiB"', 1, count, "32MiB"),
    ]
    wanted = options.only.split(",")
    facts = machine(options.root or Path(tempfile.gettempdir()))
    print("\n".join(f"- {name}: {fact}" for name, fact in facts.items()), flush=True)
    failed = []
    document: dict[str, Any] = {"machine": facts, "scenes": {}, "rates": []}
    for scene in scenes:
        if scene.key not in wanted:
            continue
        try:
            phases = scene.run(options.root, options.wait, options.cores)
        except Wrong as error:
            print(f"  {scene.key}: {error}", file=sys.stderr, flush=True)
            failed.append(f"{scene.key}: {error}")
            continue
        document["scenes"][scene.key] = [asdict(phase) for phase in phases]
        print(f"\n{scene_table(scene, phases)}", flush=True)
    if "d" in wanted:
        rates = []
        with tempfile.TemporaryDirectory() as folder:
            binary = build_load(Path(folder))
            for run in range(options.runs):
                for where in ("disk", "memory"):
                    try:
                        one = drain_rates(where, count, binary, options)
                    except NoContender as error:
                        one = Rates(where, errors=[str(error)])
                    print(f"  run {run + 1}: {one}", file=sys.stderr, flush=True)
                    rates.append(one)
        document["rates"] = [asdict(one) for one in rates]
        print(f"\nd. {count:,} messages of 1 KiB, medians of {options.runs} (lowest-highest):\n\n{rates_table(rates)}")
        failed += [f"d, {one.where}: {error}" for one in rates for error in one.errors]
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(f"failed: {text}" for text in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
