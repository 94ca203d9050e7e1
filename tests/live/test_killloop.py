"""A few rounds of tools/killloop.py: kill -9 under load breaks no promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.killloop import run


@pytest.mark.parametrize("seed", [1])
def test_a_kill_under_load_breaks_no_promise(seed: int, tmp_path: Path) -> None:
    said: list[str] = []
    problems = run(3, seed, tmp_path / "broker", said.append)
    assert problems == [], f"python tools/killloop.py --rounds 3 --seed {seed}\n" + "\n".join(said)
    assert len(said) == 5
