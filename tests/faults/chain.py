"""One target whose runs are disturbed, and resumed; the steps at which they can be."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..crash import Ended
from . import shim
from .lab import Lab, Work, state_of
from .tally import Tally

Tamper = tuple[Any, ...]


class Chain:
    """One target, whose runs are disturbed again and again, and in the end left alone."""

    def __init__(self, lab: Lab, work: Work, more: Sequence[object] = (), broken: str = "") -> None:
        self.lab, self.work, self.more, self.broken = lab, work, more, broken
        self.target = lab.new()
        self.empty = False  # whether there was an empty folder
        self.hits: list[tuple[str, bool, Ended]] = []

    def make_empty(self) -> None:
        """Have an empty folder in the target's place, which is as good as nothing."""
        self.target.mkdir()
        self.empty = True

    @property
    def absent(self) -> bool:
        """Whether nothing has the target's name, or what had it at first."""
        if self.empty and self.target.is_dir():
            return not os.listdir(self.target)
        return not os.path.lexists(self.target)

    def run(self, tamper: Tamper = (), **options: Any) -> Ended:
        """One run, by the broken tool if there is one."""
        if self.broken:
            tamper = ("breaks:broken", self.broken, *tamper)
        return self.lab.run(self.work, self.target, *self.more, tamper=tamper, **options)

    def kill(self, what: str, tamper: Tamper, **options: Any) -> bool:
        """One run that is to be killed; False if it ended before."""
        ended = self.run(tamper, **options)
        if hit := ended.code != 0:
            whole = self.absent or self.work.ended_right(self.target)
            self.note(what, ended.code == -signal.SIGKILL and whole, ended)
        return hit

    def note(self, what: str, survived: bool, ended: Ended) -> None:
        """A fault that did strike, to be counted at the end."""
        name = f"{self.work.name} {' '.join(map(str, self.more))}".rstrip()
        self.hits.append((f"{name}: {what}", survived, ended))

    def arm(self, kinds: Sequence[str], action: str, step: int, error: int = 0) -> Tamper:
        """The tampering of the shim in all that lies where the target does."""
        return ("arm", str(self.target.parent), list(kinds), action, step, error)

    def end(self, tally: Tally) -> None:
        """Run it undisturbed, judge, count, and remove it."""
        last = self.run()
        right = self.work.ended_right(self.target)
        right = right and os.listdir(self.target.parent) == [self.target.name]
        for what, survived, ended in self.hits:
            tally.add(what, survived and last.code == 0, right, _seen(ended, last))
        shutil.rmtree(self.target.parent)


def _seen(ended: Ended, last: Ended) -> str:
    return f"(exit {ended.code}, in the end {last.code}: {(ended.err + last.err)[-300:]!r})"


def steps(lab: Lab, work: Work, kinds: Sequence[str] = shim.CHANGES,
          begun: Path | None = None, more: Sequence[object] = ()) -> list[str]:  # fmt: skip
    """The kinds of the calls of an undisturbed run, in order; of a resumption of what is begun."""
    chain = Chain(lab, work, more)
    if begun:
        shutil.copytree(begun, state_of(chain.target), symlinks=True)
    log = chain.target.parent.with_suffix(".log")
    ended = chain.run((*chain.arm(kinds, "count", 1), 0, str(log)))
    found = log.read_text().splitlines()
    assert work.ended_right(chain.target), ended
    shutil.rmtree(chain.target.parent)
    log.unlink()
    return [line.split()[0] for line in found]


def appearance(found: Sequence[str]) -> int:
    """The number of the step (1 is the first) that gives the target its name, of a whole run."""
    return len(found) - found[::-1].index("rename")
