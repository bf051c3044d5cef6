"""The one scale of a tensor, for those who need it: measured by tiles of their own before.

Whoever needs a scale waits for the tiles that measure it. Those were begun before, and wait for
nobody but others begun before them, so nobody waits for ever.
"""

from __future__ import annotations

import math
import threading

from .encoding.band import Group
from .encoding.encoder import Encoding
from .errors import ResumableError
from .tile import Measure


class Measured:
    """What one file's measuring tiles have found so far, by what names a shared scale."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, bool], int] = {}  # looked at; by scale and whether in a trial
        self._tops: dict[str, float] = {}
        self._trials: dict[str, dict[str, list[list[float]]]] = {}  # by weight: see _best
        self._turn = threading.Condition()
        self._stopped = False

    def look(self, m: Measure, group: Group) -> None:
        """Take in some rows, which ``group`` holds."""
        if m.trial:
            squares = [group.squares(s) for s in self._candidates(m.encoding)]
        else:
            top = group.top()
        key = m.encoding.shared
        with self._turn:
            if m.trial:
                self._trials.setdefault(key, {}).setdefault(m.weight.name, []).append(squares)
            else:
                self._tops[key] = max(self._tops.get(key, 0.0), top)
            self._rows[key, m.trial] = self._rows.get((key, m.trial), 0) + group.r1 - group.r0
            self._turn.notify_all()

    def scale(self, encoding: Encoding) -> float:
        """The scale of a tensor, when it is known; 1 where it has none, or takes the source's."""
        if not encoding.members:
            return 1.0
        candidates = self._candidates(encoding)
        if len(candidates) == 1:
            return candidates[0]
        self._wait(encoding, trial=True)
        return candidates[_best(list(self._trials[encoding.shared].values()))]

    def stop(self) -> None:
        """Wake whoever waits, with an error."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def _candidates(self, encoding: Encoding) -> list[float]:
        self._wait(encoding, trial=False)
        return encoding.encoder.tensor_scales(self._tops[encoding.shared])

    def _wait(self, encoding: Encoding, trial: bool) -> None:
        rows, key = sum(w.shape[0] for w in encoding.members), (encoding.shared, trial)
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or self._rows.get(key, 0) == rows)
            if self._stopped:
                raise ResumableError("stopped")


def _best(trials: list[list[list[float]]]) -> int:
    """Which candidate makes the least error of those that make no weight's larger than the first's.

    ``trials`` has for each weight, for each of its chunks, the squared error of each candidate.
    """
    errors = [[math.fsum(of) for of in zip(*chunks, strict=True)] for chunks in trials]
    sums = [math.fsum(of) for of in zip(*errors, strict=True)]
    fine = [k for k in range(len(sums)) if all(e[k] <= e[0] for e in errors)]
    return min(fine, key=lambda k: sums[k])  # the first of equals
