"""One plan and its workers: command lines, files, and what must be true in the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..crash import Ended, Forker
from ..faults.lab import Lab, Work, state_of


class Fleet:
    """A plan of ``work`` for a new target, alone in its folder; plan.json is beside that."""

    def __init__(self, lab: Lab, work: Work) -> None:
        self.lab, self.work = lab, work
        self.target = lab.new()
        self.file = self.target.parent.with_suffix(".json")

    def planning(self, source: Path | None = None) -> list[object]:
        """The command that plans."""
        (command, source_, *rest) = self.work.argv(self.target, source=source)
        return ["plan", command, source_, *rest, "--out", self.file]

    def share(self, index: int, count: int, *more: object) -> list[object]:
        """The command of one worker."""
        return ["run-task", self.file, "--index", index, "--count", count, "--workers", 1, *more]

    @property
    def ending(self) -> list[object]:
        """The command that ends it."""
        return ["finalize", self.file]

    @property
    def state(self) -> Path:
        """Where unfinished work lies."""
        return state_of(self.target)

    def plan(self) -> Fleet:
        """Begin it."""
        assert self.run(self.planning()).code == 0
        return self

    def run(self, argv: Sequence[object], **options: Any) -> Ended:
        """One command, undisturbed if ``options`` do not say otherwise."""
        return self.lab.forker.run(*argv, **options)

    @property
    def said(self) -> dict[str, Any]:
        """What plan.json says."""
        found: dict[str, Any] = json.loads(self.file.read_bytes())
        return found

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self.said["tasks"])

    def finished(self) -> str:
        """Finalize, twice; what is wrong then, in a word, or nothing. It is gone then."""
        last, again = self.run(self.ending), self.run(self.ending)
        wrong = "" if last.code == 0 and again.code == 0 and "already done" in again.out else "code"
        wrong = wrong or ("" if self.work.ended_right(self.target) else "bytes")
        left = os.listdir(self.target.parent)
        self.remove()
        return wrong or ("" if left == ["dst"] else f"left: {left}")

    def remove(self) -> None:
        """Plan, target and state."""
        shutil.rmtree(self.target.parent)
        self.file.unlink(missing_ok=True)


def at_once(forkers: Sequence[Forker], argvs: Sequence[Sequence[object]]) -> list[Ended]:
    """Run the commands, as many at a time as there are forkers."""
    found: list[Ended] = []
    for begin in range(0, len(argvs), len(forkers)):
        some = argvs[begin : begin + len(forkers)]
        for forker, argv in zip(forkers, some, strict=False):
            forker.start(*argv)
        found += [forker.end() for forker, _ in zip(forkers, some, strict=False)]
    return found
