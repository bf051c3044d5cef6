"""What ``verify`` found: one :class:`Check` a line, together a :class:`Report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..junit import Case
from ..version import VERSION

FORMAT = 1
OK, FAIL, NOT_CHECKED = "ok", "FAIL", "not checked"
MOST_SHOWN = 20  # problems of one check in a table


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    ``detail`` is what was looked at. ``problems`` are all that is wrong, the first one first, each
    with the file, tensor or field, what was expected and what was found. ``warnings`` are doubtful
    but legal. A check that could not be made has ``checked`` False, its reason as ``detail``, and
    has not passed.
    """

    name: str
    passed: bool
    detail: str
    problems: tuple[str, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    checked: bool = True
    seconds: float = 0.0

    @classmethod
    def of(
        cls, name: str, detail: str, problems: Sequence[str], warnings: Sequence[str] = (),
        **counts: float,
    ) -> Check:  # fmt: skip
        """Passed if there are no ``problems``."""
        return cls(name, not problems, detail, tuple(problems), counts, tuple(warnings))

    @classmethod
    def skipped(cls, name: str, why: str) -> Check:
        """A check that could not be made."""
        return cls(name, False, why, checked=False)

    @property
    def result(self) -> str:
        """``ok``, ``FAIL`` or ``not checked``."""
        if not self.checked:
            return NOT_CHECKED
        return OK if self.passed else FAIL

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "result": self.result,
            "detail": self.detail,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "counts": dict(self.counts),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Report:
    """The answer of ``verify``: ``path`` was checked, against ``against`` if that is not None."""

    path: str
    against: str | None
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that found a problem."""
        return tuple(c for c in self.checks if c.result == FAIL)

    @property
    def passed(self) -> bool:
        """Whether no check failed, and at least one was made. Those not made do not count."""
        return not self.failed and any(c.passed for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "tool": f"fp8convert {VERSION}",
            "path": self.path,
            "against": self.against,
            "verdict": "pass" if self.passed else "fail",
            "failed": [c.name for c in self.failed],
            "not_checked": [c.name for c in self.checks if not c.checked],
            "checks": [c.to_dict() for c in self.checks],
        }

    def cases(self) -> list[Case]:
        """As test cases, for JUnit."""
        return [
            Case(
                c.name,
                failed="\n".join(c.problems) or c.detail if c.result == FAIL else None,
                skipped=c.detail if c.result == NOT_CHECKED else None,
                detail="\n".join([c.detail, *(f"warning: {w}" for w in c.warnings)]),
                seconds=c.seconds,
            )
            for c in self.checks
        ]

    def lines(self) -> list[str]:
        """A table: check, result, detail; below it every problem and warning."""
        rows = [("check", "result", "detail"), *((c.name, c.result, c.detail) for c in self.checks)]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        out = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        for check in self.checks:
            out += [f"{check.name}: {p}" for p in check.problems[:MOST_SHOWN]]
            if (more := len(check.problems) - MOST_SHOWN) > 0:
                out.append(f"{check.name}: and {more:,} more")
        return out + [f"warning: {c.name}: {w}" for c in self.checks for w in c.warnings]
