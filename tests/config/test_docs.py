"""docs/configuration.md says what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from broker.config import Key, Kind, keys, load, show, toml
from broker.config.settings import NEIGHBOURS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()


def row(key: Key) -> str:
    match key.kind:
        case Kind.CHOICE:
            allowed = ", ".join(f'`"{choice}"`' for choice in key.choices)
        case Kind.FLAG:
            allowed = "`true`, `false`"
        case Kind.ADDRESSES:
            allowed = "addresses"
        case Kind.TEXT:
            allowed = "a path"
        case _:
            allowed = f"{show(key.kind, key.low)} to {show(key.kind, key.high)}"
    return f"| `{key.name}` | `{toml(key.kind, key.default)}` | {allowed} | {key.why} |"


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: key.name)
def test_each_key_is_documented_with_default_bounds_and_reason(key: Key) -> None:
    assert row(key) in PAGE.split("\n")


def test_the_page_has_no_key_that_the_code_has_not() -> None:
    known = {key.name for key in keys()}
    documented = re.findall(r"^\| `([a-z_.]+)` \| `", PAGE, re.MULTILINE)
    neighbours = [small for small, _, _ in NEIGHBOURS]
    assert sorted(documented) == sorted([*known, *(n for n, _, share in NEIGHBOURS if n in neighbours)])


@pytest.mark.parametrize("small, large, share", NEIGHBOURS)
def test_each_pair_of_neighbours_is_documented(small: str, large: str, share: int) -> None:
    assert f"| `{small}` | `{large}`{f' / {share}' if share > 1 else ''} |" in PAGE.split("\n")


def test_the_file_on_the_page_is_taken(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        tomllib.loads(block)
        (tmp_path / "page.toml").write_text(block)
        load(str(tmp_path / "page.toml"), {}, {})


def test_the_refusal_on_the_page_is_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.errors import ConfigError

    monkeypatch.chdir(tmp_path)
    Path("stompd.toml").write_text('[limits]\nbdy = 1\n[memory]\nlimit = "96 megabytes"\n')
    with pytest.raises(ConfigError) as caught:
        load("stompd.toml", {}, {})
    assert f"stompd: {caught.value}\n" in PAGE
