"""What a Ray worker does: one task of a plan, which it has planned once.

A refusal comes back as a value: it is no reason to try again, and it is to be the same in the
process that asked for it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from functools import lru_cache
from typing import Any, NamedTuple

from .. import errors
from ..distributed import Planned, replanned, work
from ..errors import Fp8ConvertError, ResumableError, shown
from ..settings import Progress, Settings
from .totals import EVERY_S, Count, Totals

Plan = str | bytes  # the path of plan.json; or, where machines share no folder, what is in it


class Outcome(NamedTuple):
    """What became of a task: what was written and read; or the class of an error, and its words."""

    moved: Count
    error: str = ""
    words: str = ""

    def check(self) -> None:
        """Raise the error, if it is one."""
        if self.error:
            raise getattr(errors, self.error, Fp8ConvertError)(self.words)


def work_on(plan: Plan, run: str, number: int, how: dict[str, Any], totals: str) -> Outcome:
    """Do the task of that number, of a plan begun as ``run``; ``how`` are fields of Settings."""
    report = Report(totals, number)
    try:
        work(_planned(plan, run), [number], Settings(**how, progress=report))
    except Fp8ConvertError as e:
        return Outcome(report.last, _known(e), str(e))
    return Outcome(report.last)


def _known(error: Fp8ConvertError) -> str:
    """The class of errors.py that it is of."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))


@lru_cache(maxsize=1)
def _planned(plan: Plan, run: str) -> Planned:
    """Planned by this process once, for all its tasks."""
    with _file_of(plan) as path:
        found = replanned(path)
    if found.file.run != run:
        raise ResumableError(
            f"another run on {shown(found.file.target)} has taken over: let it end, and run the "
            "same again"
        )
    return found


@contextlib.contextmanager
def _file_of(plan: Plan) -> Any:
    if isinstance(plan, str):
        yield plan
        return
    with tempfile.TemporaryDirectory(prefix="fp8convert-") as folder:
        path = os.path.join(folder, "plan.json")
        with open(path, "wb") as f:
            f.write(plan)
        yield path


class Report:
    """Called with every :class:`Progress`; now and then it tells whoever keeps the totals."""

    def __init__(self, totals: str, number: int) -> None:
        self._totals, self._number = totals, number
        self._keeper: Any = None
        self._due = time.monotonic() + EVERY_S
        self.last = Count()

    def __call__(self, now: Progress) -> None:
        self.last = Count(now.written, now.read, now.arrived)
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_S
        self._keeper = self._keeper or Totals.found(self._totals)
        if self._keeper is not None:
            self._keeper.note.remote(self._number, self.last)
