#!/usr/bin/env python3
"""How fast is it? stompload against this broker and the yardstick in turn: medians and ratios in a table.

    python3 tools/bench.py                          all scenarios, 9 runs each: about 20 minutes
    python3 tools/bench.py --runs 3 --only publish  one scenario, quickly
    python3 tools/bench.py --peer rabbitmq --only publish --only publish-own-headers
    python3 tools/bench.py --before ../older         this tree against another checkout of it
    python3 tools/bench.py --only through --profile where the time goes, by function

Every run has a fresh process and a fresh data folder on the same disk. With two cores or more the broker has
core 0 and the load core 1, whoever the broker is. Compare within one call: a shared machine drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pstats
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from contenders import REPOSITORY, Before, Contender, NoContender, RabbitMQ, Stompd, Yardstick, pinned

LOAD_SECONDS_MAX: Final = 180  # RabbitMQ takes 20 s for 200,000 messages
COUNT: Final = 200_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of the table. `load` and `fill` are arguments of stompload; `fill` goes first, unmeasured."""

    name: str
    title: str
    load: str
    measure: str  # "confirm_per_s", "deliver_per_s", or "confirm_us.p50"
    goal: str
    fill: str = ""
    count: int = COUNT
    usual: bool = True  # without --only, too
    yardstick: bool = True  # it has queues only

    @property
    def less_is_better(self) -> bool:
        return "_us" in self.measure


PUBLISH = "--producers 4 --window 1000"
THROUGH = f"{PUBLISH} --consumers 4"
SCENARIOS: Final = (
    Scenario("publish", "publish, 4 producers, receipts, window 1000", PUBLISH, "confirm_per_s", ">= 1.2"),
    Scenario(
        "publish-own-headers",
        "the same, each message with a header of its own (`--vary 1`)",
        f"{PUBLISH} --vary 1",
        "confirm_per_s",
        ">= 0.45",
    ),
    Scenario("through", "through, 4 + 4, client-individual", THROUGH, "deliver_per_s", ">= 1.1"),
    Scenario(
        "through-own-headers",
        "the same, own headers, sizes and ACKs with `subscription` (`--vary 7`)",
        f"{THROUGH} --vary 7",
        "deliver_per_s",
        ">= 0.45",
    ),
    Scenario(
        "drain",
        "drain a backlog, 4 consumers",
        "--producers 0 --consumers 4",
        "deliver_per_s",
        ">= 0.9",
        fill=PUBLISH,
    ),
    Scenario(
        "large",
        "16 KiB bodies, 2 + 2",
        "--producers 2 --consumers 2 --window 1000 --size 16384",
        "deliver_per_s",
        ">= 0.8",
    ),
    Scenario(
        "single",
        "one producer, one SEND at a time: p50, us",
        "--producers 1 --window 1",
        "confirm_us.p50",
        "<= 1.1",
        count=10_000,
    ),
    Scenario(
        "singles", "32 such producers", "--producers 32 --window 1", "confirm_per_s", ">= 0.8", count=100_000
    ),
    Scenario(
        "topic",
        "topic to 50 subscribers, not persistent, deliveries",
        # The window keeps what waits for one subscriber under limits.output, so that nobody is a slow one.
        "--producers 1 --consumers 50 --fanout 1 --dest /topic/load --ack auto --persistent 0 --window 200",
        "deliver_per_s",
        ">= 500,000/s",
        count=40_000,
        yardstick=False,
    ),
    Scenario(
        "paced",
        "1,000/s, SEND to MESSAGE: p50, us",
        "--producers 1 --consumers 1 --window 1000 --rate 1000",
        "deliver_us.p50",
        "<= 1.0",
        count=5_000,
        usual=False,
    ),
)


@dataclass(slots=True)
class Result:
    """One run of stompload."""

    scenario: str
    contender: str
    run: int
    value: float
    broker_cpu_s: float
    raw: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def build_load(folder: Path) -> Path:
    """Compile stompload. Raises CalledProcessError where there is no C compiler that can."""
    binary = folder / "stompload"
    compiler = shutil.which("cc") or "gcc"
    source = REPOSITORY / "tools" / "stompload.c"
    subprocess.run([compiler, "-O2", "-w", "-o", str(binary), str(source)], check=True)
    return binary


def cpu_seconds(pid: int) -> float:
    """What that process and its threads have used of the CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(
    binary: Path, contender: Contender, arguments: str, count: int, core: int | None
) -> tuple[dict[str, Any], str]:
    """Run stompload once: what it printed, and what went wrong (empty if nothing did)."""
    command = [str(binary), "--port", str(contender.port), "--count", str(count), *shlex.split(arguments)]
    command += ["--secs", str(LOAD_SECONDS_MAX)]
    if contender.login:
        command += ["--login", contender.login[0], "--passcode", contender.login[1]]
    done = subprocess.run(
        pinned(command, core), capture_output=True, text=True, timeout=LOAD_SECONDS_MAX + 60, check=False
    )
    try:
        raw: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raw = {}
    error = f"stompload ended with {done.returncode}: {done.stderr.strip()[-300:]}" if done.returncode else ""
    # Consumers alone have nothing to compare their count with: look here.
    if not error and "--producers 0" in arguments and raw["delivered"] < count:
        error = f"{raw['delivered']} of {count} came"
    return raw, error


def value_of(measure: str, raw: dict[str, Any]) -> float:
    """A value by its dotted path, 0 where it is missing."""
    found: Any = raw
    for part in measure.split("."):
        found = found.get(part, 0)
    return float(found)


def measure(
    scenario: Scenario,
    contender: Contender,
    run: int,
    binary: Path,
    core: int | None,
    count: int,
) -> Result:
    """One run on a fresh broker."""
    with contender:
        if scenario.fill:
            _, error = load(binary, contender, scenario.fill, count, core)
            if error:
                return Result(scenario.name, contender.name, run, 0.0, 0.0, error=f"filling: {error}")
        before = cpu_seconds(contender.pid)
        raw, error = load(binary, contender, scenario.load, count, core)
        used = 0.0 if error else cpu_seconds(contender.pid) - before
    value = value_of(scenario.measure, raw)
    return Result(scenario.name, contender.name, run, value, round(used, 2), raw, error)


def machine(root: Path) -> dict[str, str]:
    """What the numbers depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().split("\n"):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    commit = subprocess.run(
        ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fdatasync of 4 KiB, p50": f"{sync_microseconds(root):.0f} us",
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def sync_microseconds(root: Path) -> float:
    """Median time of one append of 4 KiB and its fdatasync on the disk that is measured on."""
    times = []
    with tempfile.TemporaryFile(dir=root) as file:
        for _ in range(100):
            start = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def table(scenarios: Sequence[Scenario], results: Sequence[Result], names: Sequence[str]) -> str:
    """Medians, with the lowest and highest of the runs, and the ratios of the medians, as Markdown."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for result in results:
        if not result.error:
            values[result.scenario, result.contender].append(result.value)
    others = [name for name in names if name != "stompd"]
    head = ["scenario", *names, *(f"stompd / {name}" for name in others), "wanted of the yardstick"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 2) + "---|"]
    for scenario in scenarios:
        cells = [scenario.title]
        for name in names:
            got = values[scenario.name, name]
            middle = f"{statistics.median(got):,.0f}" if got else "-"
            cells.append(f"{middle} ({min(got):,.0f}-{max(got):,.0f})" if len(got) > 1 else middle)
        for name in others:
            ours, theirs = values[scenario.name, "stompd"], values[scenario.name, name]
            ratio = statistics.median(ours) / statistics.median(theirs) if ours and theirs else None
            cells.append("-" if ratio is None else f"{ratio:.2f}")
        lines.append("| " + " | ".join([*cells, scenario.goal]) + " |")
    return "\n".join(lines)


def profile(scenario: Scenario, binary: Path, cores: tuple[int | None, int | None], options: Any) -> None:
    """Run our broker under cProfile and print where its time goes: that of the loop's thread only."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile"
        flags = ("-m", "cProfile", "-o", str(file))
        broker = Stompd(core=cores[0], root=options.root, python_flags=flags)
        result = measure(scenario, broker, 0, binary, cores[1], options.count or scenario.count)
        print(f"\n{scenario.name} under cProfile: {result.value:,.0f} {scenario.measure} {result.error}")
        if not file.exists():
            raise NoContender("the broker left no profile: it did not end by itself on SIGTERM")
        pstats.Stats(str(file)).sort_stats("tottime").print_stats(options.lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", action="append", default=[], choices=names, help="repeatable")
    parser.add_argument("--runs", type=int, default=9, help="runs of each scenario (default: 9)")
    parser.add_argument("--count", type=int, default=0, help="messages a run (default: the scenario's)")
    parser.add_argument("--peer", choices=("rabbitmq",), help="also measure RabbitMQ's STOMP plugin")
    parser.add_argument("--before", type=Path, help="also measure the broker of this checkout")
    parser.add_argument("--without-yardstick", action="store_true", help="only our broker, and the peer")
    parser.add_argument("--root", type=Path, default=None, help="where data folders are made (default: /tmp)")
    parser.add_argument("--no-pin", action="store_true", help="let the system choose the cores")
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    parser.add_argument("--profile", action="store_true", help="profile our broker instead of measuring")
    parser.add_argument("--lines", type=int, default=40, help="lines of the profile (default: 40)")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Scenario]:
    return [s for s in SCENARIOS if (s.name in options.only if options.only else s.usual)]


def cores_for(options: argparse.Namespace) -> tuple[int | None, int | None]:
    """The core of the broker and of the load; None twice where they cannot be kept apart."""
    if options.no_pin or (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None:
        return None, None
    return 0, 1


def run_all(options: argparse.Namespace, scenarios: Sequence[Scenario], binary: Path) -> list[Result]:
    """Every scenario on every contender in turn, `--runs` times."""
    broker_core, load_core = cores_for(options)
    kinds: list[Callable[..., Contender]] = [Stompd]
    if not options.without_yardstick:
        kinds.append(Yardstick)
    if options.peer:
        kinds.append(RabbitMQ)
    if options.before:
        Before.tree = options.before.resolve()
        kinds.insert(1, Before)
    results = []
    for run in range(1, options.runs + 1):
        for scenario in scenarios:
            for kind in kinds:
                if kind is Yardstick and not scenario.yardstick:
                    continue
                contender = kind(core=broker_core, root=options.root)
                count = options.count or scenario.count
                try:
                    result = measure(scenario, contender, run, binary, load_core, count)
                except NoContender as error:
                    result = Result(scenario.name, contender.name, run, 0.0, 0.0, error=str(error))
                results.append(result)
                shown = result.error or f"{result.value:,.0f} ({result.broker_cpu_s} s of CPU)"
                print(f"run {run}: {scenario.name}, {contender.name}: {shown}", file=sys.stderr, flush=True)
    return results


def main() -> int:
    options = arguments()
    scenarios = chosen(options)
    root = options.root or Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory() as folder:
        binary = build_load(Path(folder))
        if options.profile:
            for scenario in scenarios:
                profile(scenario, binary, cores_for(options), options)
            return 0
        facts = machine(root)
        results = run_all(options, scenarios, binary)
    names = list(dict.fromkeys(result.contender for result in results))
    print("\n".join(f"- {name}: {fact}" for name, fact in facts.items()))
    print(f"\nMessages a second, medians of {options.runs} (lowest-highest):\n")
    print(table(scenarios, results, names))
    if options.json:
        document = {"machine": facts, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    failed = [result for result in results if result.error]
    for result in failed:
        where = f"{result.scenario}, {result.contender}, run {result.run}"
        print(f"failed: {where}: {result.error[-300:].strip()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
