"""Who holds how many bytes: named accounts under one limit; says hold or release.

The one budget of `memory.limit` covers frames in the making, output that a peer has not read, the journal's queue,
open transactions and what topics keep for slow subscribers. Each owner books on an account of its own, so that an
operator can see who holds the memory.
"""

from __future__ import annotations


class Account:
    """One owner's share of the budget, in bytes. Only its owner books on it."""

    __slots__ = ("_budget", "name", "used")

    def __init__(self, budget: Budget, name: str) -> None:
        self._budget = budget
        self.name = name
        self.used = 0

    def book(self, change: int) -> None:
        """Take (positive) or give back (negative) bytes. It always succeeds: who may take is asked of `Budget.over`."""
        self.used += change
        self._budget.used += change


class Budget:
    """The sum of all accounts against `limit` bytes.

    alarm: why producers are to be held back whatever is used, e.g. a full disk; "" for no reason.
    """

    __slots__ = ("accounts", "alarm", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.alarm = ""
        self.accounts: dict[str, Account] = {}

    def account(self, name: str) -> Account:
        """The account of that name, made at its first use."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(self, name)
        return account

    @property
    def over(self) -> bool:
        """True while producers are to be held back."""
        return self.used >= self.limit or bool(self.alarm)

    @property
    def full(self) -> bool:
        """True while the memory is used up, whatever else there is."""
        return self.used >= self.limit
