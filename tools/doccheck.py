"""Are the documents true to the tree? Links and named files exist; no page shows one machine's paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)\s]*)?\)")
FILE = re.compile(r"`((?:broker|docs|tests|tools|\.ci)/[A-Za-z0-9_./-]*[A-Za-z0-9_/-])`")
FOREIGN = re.compile(r"(/work/|/home/[a-z]|/Users/|/root/|/tmp/(?:brief|venv))")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    found = set()
    for line in FENCE.sub("", page.read_text()).split("\n"):
        if heading := re.fullmatch(r"#{1,6} +(.*?) *#*", line):
            text = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add("#" + text.replace(" ", "-"))
    return found


def problems(page: Path) -> Iterator[str]:
    text = page.read_text()
    for found in FOREIGN.finditer(text):
        yield f"shows a path of one machine: {found[0]}"
    for target, anchor in LINK.findall(FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        linked = (page.parent / target).resolve()
        if not linked.exists():
            yield f"links to {target}, which is not there"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked):
            yield f"links to {target}{anchor}, which has no such heading"
    for name in FILE.findall(text):
        if not any(ROOT.glob(name)):
            yield f"names `{name}`, which is not there"


def main() -> int:
    count = 0
    for page in pages():
        for problem in problems(page):
            print(f"{page.relative_to(ROOT)}: {problem}")
            count += 1
    print(f"documents: {len(pages())} pages, {count} problems")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
