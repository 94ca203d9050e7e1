"""One change to the code that would break a promise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """name: what was done wrong. breaks: what would come of it. old: once in file. test: as pytest takes it."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    test: str
