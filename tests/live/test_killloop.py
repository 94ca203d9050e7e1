"""A few rounds of tools/killloop.py: kill -9 under load breaks no promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.killloop import run


@pytest.mark.parametrize("deep", [False, True], ids=["plain", "deep"])
def test_a_kill_under_load_breaks_no_promise(deep: bool, tmp_path: Path) -> None:
    said: list[str] = []
    rounds, seed = (5, 2) if deep else (3, 1)
    problems = run(rounds, seed, tmp_path / "broker", said.append, deep=deep)
    command = f"python tools/killloop.py --rounds {rounds} --seed {seed}{'' if deep else ' --plain'}"
    assert problems == [], f"{command}\n" + "\n".join(said)
    assert len(said) == rounds + 3
