"""All mutants: changes to the code that would break a promise, and the test that notices each (tools/mutants.py)."""

from __future__ import annotations

from typing import Final

from tests.mutants.core import CORE_MUTANTS
from tests.mutants.journal import JOURNAL_MUTANTS
from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS: Final = (*JOURNAL_MUTANTS, *CORE_MUTANTS)
