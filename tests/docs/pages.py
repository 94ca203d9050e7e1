"""The pages as the tests read them: sections, fenced blocks, tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: what stands behind the fence, and what is inside."""

    kind: str
    text: str


class Page:
    def __init__(self, name: str) -> None:
        self.text = (ROOT / name).read_text()

    def blocks(self, heading: str | None = None) -> list[Block]:
        """Fenced blocks of the page, or of one section."""
        text = self.text if heading is None else self.section(heading)
        return [Block(kind, inside) for kind, inside in _FENCE.findall(text)]

    def section(self, heading: str) -> str:
        """From the heading to the next one of the same level or above."""
        found = re.search(rf"^(#+) {re.escape(heading)}$", self.text, re.MULTILINE)
        if found is None:
            raise AssertionError(f"no heading {heading!r}")
        rest = self.text[found.end() :]
        end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
        return rest[: end.start()] if end else rest

    def table(self, heading: str, first_column: str) -> list[list[str]]:
        """The rows of the table there whose first column has this title; cells without backticks around."""
        lines = self.section(heading).split("\n")
        start = next(
            (at for at, line in enumerate(lines) if line.startswith(f"| {first_column} |")), None
        )
        if start is None:
            raise AssertionError(f"no table with the column {first_column!r} under {heading!r}")
        rows = []
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        return rows
