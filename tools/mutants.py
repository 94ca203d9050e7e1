"""Tests of the tests: changes to the code that break a promise, each of which a named test must notice.

    python tools/mutants.py                       all of them, two at a time: some minutes
    python tools/mutants.py --only checkpoint     those whose name holds that word
    python tools/mutants.py --list

The list is tests/mutants/catalogue.py. Each mutant is made in a copy of the tree, where only its own test is run; that
must fail. All these tests are run in an unchanged copy first, and must pass there. A text to be replaced that is not
found exactly once means that the list is stale, which is a failure, too.

Exit code 0: every mutant was killed; 1: one survived, the list is stale, or a test fails without any mutant.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT: Final = Path(__file__).resolve().parents[1]
SECONDS_MAX: Final = 180.0  # for the test of one mutant; one that hangs was not noticed
NOT_COPIED: Final = shutil.ignore_patterns(
    ".git", ".ci", "__pycache__", "*.egg-info", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".venv"
)
PASSED, FAILED = 0, 1  # of pytest; its other exit codes say that the tests were not run


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    killed: bool
    seconds: float
    text: str = ""  # why not


class Stale(Exception):
    """A mutant does not fit the code any more."""


def mutated(mutant: Mutant, root: Path) -> str:
    """The file with the change in it. Raises Stale."""
    source = (root / mutant.file).read_text()
    if (count := source.count(mutant.old)) != 1:
        raise Stale(f"{mutant.name}: the old text is {count} times in {mutant.file}; the list is stale")
    changed = source.replace(mutant.old, mutant.new)
    try:
        ast.parse(changed)
    except SyntaxError as error:
        raise Stale(f"{mutant.name}: {mutant.file} would not even be Python: {error}") from error
    return changed


def staleness(mutant: Mutant) -> str:
    """Why it does not fit this tree; empty if it does."""
    try:
        mutated(mutant, ROOT)
    except Stale as error:
        return str(error)
    file, _, name = mutant.test.partition("::")
    if f"def {name.partition('[')[0]}(" not in (ROOT / file).read_text():
        return f"{mutant.name}: there is no {mutant.test}; the list is stale"
    return ""


def copy_tree(folder: Path) -> Path:
    target = folder / "tree"
    shutil.copytree(ROOT, target, ignore=NOT_COPIED, symlinks=True)
    return target


def run_tests(tree: Path, tests: Sequence[str], seconds: float) -> tuple[int, str]:
    """pytest's exit code and the end of what it said; -1 where it did not end in time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOMPD_")}
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        return -1, output.decode(errors="replace")[-1500:]
    return process.returncode, output.decode(errors="replace")[-3000:]


def uses_the_copy(tree: Path) -> bool:
    """An installed package must not be what is tested."""
    done = subprocess.run(
        [sys.executable, "-c", "import broker; print(broker.__file__)"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip()).is_relative_to(tree)


def try_mutant(mutant: Mutant, tree: Path) -> Outcome:
    """Make the change in `tree`, run the mutant's test there, take the change back."""
    path = tree / mutant.file
    source = path.read_text()
    start = time.monotonic()
    try:
        path.write_text(mutated(mutant, tree))
        code, output = run_tests(tree, [mutant.test], SECONDS_MAX)
    except Stale as error:
        return Outcome(mutant, False, 0.0, str(error))
    finally:
        path.write_text(source)
    seconds = time.monotonic() - start
    if code == FAILED:
        return Outcome(mutant, True, seconds)
    if code == PASSED:
        return Outcome(mutant, False, seconds, f"SURVIVED: {mutant.test} passes")
    what = f"did not end within {SECONDS_MAX:.0f} s" if code == -1 else f"ended with {code}"
    return Outcome(mutant, False, seconds, f"{mutant.test} {what}:\n{output}")


def try_all(mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    """Each in one of `jobs` copies of the tree; in the order of the list."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            trees.put(copy_tree(Path(folder, str(number))))

        def one(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                outcome = try_mutant(mutant, tree)
            finally:
                trees.put(tree)
            said = "killed" if outcome.killed else "NOT KILLED"
            print(f"{said}, {outcome.seconds:.1f} s: {mutant.name}", file=sys.stderr, flush=True)
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, mutants))


def passes_unchanged(mutants: Sequence[Mutant]) -> str:
    """Empty where all tests pass without a mutant, else what is wrong."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copy_tree(Path(folder))
        if not uses_the_copy(tree):
            return "the copy of the tree is not what Python imports there"
        tests = list(dict.fromkeys(mutant.test for mutant in mutants))
        code, output = run_tests(tree, tests, SECONDS_MAX * len(tests))
        return "" if code == PASSED else f"the tests do not pass without any mutant (exit code {code}):\n{output}"


def table(outcomes: Sequence[Outcome]) -> str:
    rows = ["| mutant | file | killed by | seconds |", "|---|---|---|---:|"]
    for outcome in outcomes:
        mutant = outcome.mutant
        test = mutant.test if outcome.killed else "**nothing**"
        rows.append(f"| {mutant.name} | {mutant.file} | {test} | {outcome.seconds:.1f} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="a word of the name; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once (default: 2)")
    parser.add_argument("--list", action="store_true", help="say which mutants there are, and try none")
    parser.add_argument("--quick", action="store_true", help="do not run the tests without a mutant first")
    options = parser.parse_args()
    mutants = [m for m in MUTANTS if not options.only or any(word in m.name for word in options.only)]
    if options.list:
        print("\n".join(f"{mutant.name}: {mutant.breaks}" for mutant in mutants))
        return 0
    if stale := [text for mutant in mutants if (text := staleness(mutant))]:
        print("\n".join(stale))
        return 1
    if not options.quick and (text := passes_unchanged(mutants)):
        print(text)
        return 1
    outcomes = try_all(mutants, options.jobs)
    print(table(outcomes))
    left = [outcome for outcome in outcomes if not outcome.killed]
    for outcome in left:
        print(f"{outcome.mutant.name}: {outcome.text}")
    print(f"{len(outcomes) - len(left)} of {len(outcomes)} mutants were killed")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
