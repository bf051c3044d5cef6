"""What a class of faults did: how many, survived, identical; and what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .lab import Lab


@dataclass
class Tally:
    """One row of the table. ``survived``: ended as docs/reliability.md promises at once.

    ``identical``: had the right bytes in the end, after a resumption if one was needed; what has no
    output (a refusal, say) counts when nothing was left or touched.
    """

    injected: int = 0
    survived: int = 0
    identical: int = 0
    losses: list[str] = field(default_factory=list)

    def add(self, what: str, survived: bool, identical: bool, seen: object = "") -> None:
        """Count one fault; ``what`` and ``seen`` describe it if it was lost."""
        self.injected += 1
        self.survived += survived
        self.identical += identical
        if not (survived and identical):
            wrong = "not survived" if not survived else "not identical"
            self.losses.append(f"{what}: {wrong} {seen}".rstrip())

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """All of them together."""
        total = cls()
        for tally in tallies:
            total.injected += tally.injected
            total.survived += tally.survived
            total.identical += tally.identical
            total.losses += tally.losses
        return total


class Campaign(NamedTuple):
    """One class of faults. ``run`` takes a lab, how many (or seconds), and a seed."""

    name: str
    run: Callable[[Lab, int, int], Tally]
    full: int  # in `make torture`
    slice: int  # in the tests
    missing: Callable[[], str] = lambda: ""  # why it cannot run on this machine
    unit: str = "faults"
