"""What fuzzers found interesting, and a few seconds of new inputs, break no promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.forge import Broken
from tests.fuzz.targets import INPUT_BYTES_MAX, TARGETS, Target
from tests.support.process import ROOT, environment
from tools.fuzz import Corpus, mutate, run_plain

EXAMPLES = {"frames": 60, "reader": 60, "walk": 60, "segments": 100}  # the others are quicker
quick = settings(derandomize=True, deadline=None, database=None)


def entries(target: Target) -> list[Path]:
    return sorted(target.corpus.glob("*"))


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_breaks_no_promise(name: str) -> None:
    """A failure names the file. `found-...` are inputs that once did break it."""
    files = entries(TARGETS[name])
    assert len(files) >= 10
    for path in files:
        try:
            TARGETS[name].run(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(ROOT)}: {TARGETS[name].promise}: {error}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_corpus_break_no_promise(name: str) -> None:
    target = TARGETS[name]
    corpus = [path.read_bytes() for path in entries(target)]

    @settings(quick, max_examples=EXAMPLES.get(name, 300))
    @given(seed=st.integers(0, 2**32), raw=st.none() | st.binary(max_size=120))
    def hold(seed: int, raw: bytes | None) -> None:
        rng = Random(seed)
        data = rng.choice(corpus) if raw is None else raw
        target.run(mutate(rng, data, corpus, target.words, INPUT_BYTES_MAX))

    hold()


def test_the_same_input_has_the_same_outcome() -> None:
    """Otherwise nobody could run a failure again."""
    for target in TARGETS.values():
        for path in entries(target)[:10]:
            assert target.run(path.read_bytes()) == target.run(path.read_bytes()), path


def planted(data: bytes) -> str:
    if data[:1] == b"B" and b"UG" in data:
        raise Broken("found")
    return str(data[:1] == b"B")


def test_a_planted_bug_is_found_and_kept(tmp_path: Path) -> None:
    target = Target("planted", "none", planted, lambda: [b"C"], (b"UG",))
    corpus = Corpus(tmp_path / "planted", 20)
    report = run_plain(target, corpus, 1, lambda count: count >= 50_000, 50)
    assert report.failures
    assert "Broken" in report.failures[0]
    (found,) = (tmp_path / "planted").glob("found-*")
    with pytest.raises(Broken):
        planted(found.read_bytes())


def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    target = TARGETS["records"]
    runs = []
    for name in ("one", "two"):
        corpus = Corpus(tmp_path / name, 100)
        run_plain(target, corpus, 7, lambda count: count >= 2000, INPUT_BYTES_MAX)
        runs.append(corpus.entries)
    assert runs[0] == runs[1]


def test_the_tool_runs_atheris_and_reports_its_executions(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    words = ["--atheris", "--target", "escapes", "--seconds", "2", "--corpus", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "fuzz.py"), *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "coverage" in done.stdout
    assert "in all: 0 executions" not in done.stdout
