"""Fuzzing of what reads bytes from others: the wire, the log, checkpoints, the configuration.

    python tools/fuzz.py --seconds 10                        every target for ten seconds, from the corpus
    python tools/fuzz.py --target segments --seconds 600
    python tools/fuzz.py --target frames --seconds 60 --atheris    guided by coverage (pip install atheris)

The targets and what each promises are in tests/fuzz/targets.py; the corpus is tests/fuzz/corpus/TARGET, and the
tests replay it. An input that led to something that none before it did is kept there, while there are fewer than
--keep. One that breaks a promise is kept as `found-...`, so that the tests fail until it is mended.

Without atheris the inputs are mutations of the corpus under --seed: the same seed, corpus and number of
executions is the same run. Exit code 0: every promise was kept; 1: one was not, and the input is named.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

KEPT_BYTES_MAX: Final = 2048
ATHERIS_SLACK_SECONDS: Final = 120.0  # to import, to read the corpus, and to end


@dataclass
class Report:
    target: str
    executions: int = 0
    seconds: float = 0.0
    corpus: int = 0
    added: int = 0
    coverage: str = ""
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0.0
        extra = f", {self.coverage}" if self.coverage else ""
        text = (
            f"{self.target}: {self.executions:,} executions in {self.seconds:.0f} s ({rate:,.0f}/s), "
            f"{self.corpus} in the corpus, {self.added} of them new{extra}"
        )
        return text + (f"; {len(self.failures)} BROKEN" if self.failures else "")


def mutate(rng: Random, data: bytes, others: Sequence[bytes], words: Sequence[bytes], most: int) -> bytes:
    """`data` with one to four small changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(8):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(changed):
                changed[at] = rng.choice((0, 1, 10, 13, 58, 92, 127, 128, 255, rng.randrange(256)))
            case 3:
                del changed[at : at + rng.choice((1, 2, 6, 30))]
            case 4:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 6)))
            case 5 if words:
                changed[at:at] = rng.choice(words)
            case 6:
                start = rng.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + rng.randrange(1, 40)]
            case 7 if others:
                other = rng.choice(others)
                changed[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                width = rng.choice((2, 4, 8))
                number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(300)))
                changed[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(changed[:most])


class Corpus:
    """The inputs of one target, and what each of them led to."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self.entries = [path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file()]
        self.seen: set[str] = set()
        self.added = 0

    def offer(self, data: bytes, outcome: str) -> None:
        """Keep an input where it led to something new."""
        if outcome in self.seen:
            return
        self.seen.add(outcome)
        self.entries.append(data)
        if len(data) <= KEPT_BYTES_MAX and sum(1 for _ in self._folder.glob("*")) < self._keep:
            self._write("", data)
            self.added += 1

    def found(self, data: bytes) -> Path:
        return self._write("found-", data)

    def _write(self, prefix: str, data: bytes) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / (prefix + hashlib.sha256(data).hexdigest()[:16])
        path.write_bytes(data)
        return path


def run_plain(
    target: Target,
    corpus: Corpus,
    seed: int,
    enough: Callable[[int], bool],
    most: int,
    failures_max: int = 3,
) -> Report:
    """Mutations until `enough(executions)`. The corpus itself is run first."""
    report = Report(target.name)
    rng = Random(seed)
    start = time.monotonic()
    known = {(data, False) for data in corpus.entries}
    first = list(corpus.entries) + [data for data in target.seeds() if (data, False) not in known]
    broken: set[str] = set()
    while first or not enough(report.executions):
        entries = corpus.entries
        data = first.pop(0) if first else mutate(rng, rng.choice(entries), entries, target.words, most)
        report.executions += 1
        try:
            outcome = target.run(data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} {where.filename}:{where.lineno}"
            if kind not in broken:
                broken.add(kind)
                path = corpus.found(data)
                text = "".join(traceback.format_exception(error))[-1500:]
                report.failures.append(f"{target.name}, seed {seed}, {path}:\n{text}")
                if len(broken) >= failures_max:
                    break
            continue
        if data in corpus.entries:
            corpus.seen.add(outcome)
        else:
            corpus.offer(data, outcome)
    report.seconds = time.monotonic() - start
    report.corpus, report.added = len(corpus.entries), corpus.added
    return report


def quoted(word: bytes) -> str:
    """As libFuzzer's dictionaries have it."""
    return "".join(f"\\x{octet:02x}" for octet in word)


def run_atheris(target: Target, corpus: Corpus, seed: int, seconds: float, most: int) -> Report:
    """libFuzzer in a process of its own, guided by the coverage of broker/; what it found is offered to the corpus."""
    report = Report(target.name)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        work, artifacts = Path(folder, "work"), Path(folder, "artifacts")
        work.mkdir()
        artifacts.mkdir()
        for data in [*corpus.entries, *target.seeds()]:
            (work / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        words = Path(folder, "words")
        words.write_text("".join(f'"{quoted(word)}"\n' for word in target.words))
        command = [sys.executable, str(Path(__file__).resolve()), "--inner", target.name, str(work)]
        command += [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed + 1}", f"-max_len={most}", "-timeout=20"]
        command += ["-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={artifacts}/"]
        command += [f"-dict={words}"] if target.words else []
        start = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, timeout=seconds + ATHERIS_SLACK_SECONDS, check=False, cwd=folder
        )
        report.seconds = time.monotonic() - start
        text = (done.stdout + done.stderr).decode(errors="replace")
        counted = re.search(r"stat::number_of_executed_units: ([0-9]+)", text) or re.search(r"Done ([0-9]+) runs", text)
        report.executions = int(counted[1]) if counted else 0
        coverage = re.findall(r"cov: ([0-9]+) ft: ([0-9]+)", text)
        report.coverage = f"coverage {coverage[-1][0]}, features {coverage[-1][1]}" if coverage else ""
        for path in sorted(artifacts.iterdir()):
            kept = corpus.found(path.read_bytes())
            report.failures.append(f"{target.name}, {kept}:\n{text[-3000:]}")
        if (done.returncode and not report.failures) or not report.executions:
            report.failures.append(f"{target.name}: atheris ended with {done.returncode}:\n{text[-2000:]}")
        if not report.failures:
            for data in list(corpus.entries):
                corpus.seen.add(target.run(data))
            for path in sorted(work.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
                if (data := path.read_bytes()) not in corpus.entries:
                    corpus.offer(data, target.run(data))
    report.corpus, report.added = len(corpus.entries), corpus.added
    return report


def inner(name: str, arguments: list[str]) -> None:
    """The process that atheris runs in. It never comes back."""
    import atheris

    with atheris.instrument_imports(include=["broker"]):
        from tests.fuzz.targets import TARGETS
    run = TARGETS[name].run
    run(b"")  # builds what is built once

    def once(data: bytes) -> None:
        run(data)

    atheris.Setup([sys.argv[0], *arguments], once)
    atheris.Fuzz()


def arguments(names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=names, help="repeatable; all of them if none is given")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target (default: 10)")
    parser.add_argument("--executions", type=int, help="that many for each target instead of --seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--corpus", type=Path, help="another folder than tests/fuzz/corpus")
    parser.add_argument("--keep", type=int, default=60, help="most files of a target in the corpus (default: 60)")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, where atheris is installed")
    return parser.parse_args()


def main() -> int:
    if sys.argv[1:2] == ["--inner"]:
        inner(sys.argv[2], sys.argv[3:])
    from tests.fuzz.targets import INPUT_BYTES_MAX, TARGETS

    options = arguments(list(TARGETS))
    if options.atheris and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 1
    reports = []
    for name in options.target or TARGETS:
        target = TARGETS[name]
        corpus = Corpus(options.corpus / name if options.corpus else target.corpus, options.keep)
        if options.atheris:
            report = run_atheris(target, corpus, options.seed, options.seconds, INPUT_BYTES_MAX)
        else:
            end = time.monotonic() + options.seconds
            wanted = options.executions

            def enough(count: int, end: float = end, wanted: int | None = wanted) -> bool:
                return count >= wanted if wanted is not None else time.monotonic() >= end

            report = run_plain(target, corpus, options.seed, enough, INPUT_BYTES_MAX)
        print(report.line(), flush=True)
        reports.append(report)
    for report in reports:
        print("\n".join(report.failures))
    print(f"in all: {sum(report.executions for report in reports):,} executions")
    return 1 if any(report.failures for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
