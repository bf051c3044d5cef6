"""Power loss with a write cache: anything written since the last flush is lost, or some of it.

As ``power``, on a disk that keeps what it is told in its cache until it is flushed, and then
writes it in any order. The power fails after any block, also in the middle of a flush.
"""

from __future__ import annotations

import bisect
import random
from pathlib import Path

from . import cachedisk, shim
from .aftermath import Case, Cut
from .cachedisk import Log, Lost
from .lab import Lab, share
from .power import CASES, judge
from .stepping import place, started, stopped
from .tally import Campaign, Tally

Marks = list[tuple[int, str]]  # entries of the log before a step, and the step; "": none is left


def run(lab: Lab, amount: int, seed: int) -> Tally:
    """Lose ``amount`` caches, spread over the cases; over a few, if it is not many."""
    tally, rng = Tally(), share(seed, "power loss, write cache")
    cases = rng.sample(CASES, min(len(CASES), max(amount // 8, 1)))
    for case in cases:
        run_case(lab, case, amount // len(cases), rng, tally)
    return tally


def run_case(lab: Lab, case: Case, many: int, rng: random.Random, tally: Tally) -> None:
    """Lose the cache ``many`` times in a case; always right after the run has ended."""
    with place(lab) as folder:
        case, start = started(lab, case, folder, rng)
        log, marks = recorded(lab, case, start)
        done, seen = marks[-1][0], set[tuple[str, bool]]()
        for lost in failures(log, done, many, rng):
            image = folder / "lost"
            key = lost.image(start, log, image, rng), lost.at == done
            if key not in seen:
                seen.add(key)
                judge(lab, case, Cut(image, _when(lost, marks), lost.at == done), tally)


def recorded(lab: Lab, case: Case, start: Path) -> tuple[Log, Marks]:
    """What a run has the disk do, and when; unmounting comes after that and does not count."""
    log: Log = []
    marks: Marks = []
    device = cachedisk.caching(start, log)
    stopped(lab, case, device, lambda step, disk: marks.append((len(log), step)))
    return log[: marks[-1][0]], marks


def failures(log: Log, done: int, many: int, rng: random.Random) -> list[Lost]:
    """Ways to lose the cache: when the run is done, before a flush ends, and anywhere."""
    flushes = [n for n, entry in enumerate(log) if entry is None]
    found = [Lost(done, how) for how in ("all", "some", "none")]
    while len(found) < many:
        at = rng.choice(flushes) if rng.random() < 0.5 else rng.randrange(done)
        found.append(Lost(at, rng.choice(("all", "some", "some", "some", "none"))))
    return found


def _when(lost: Lost, marks: Marks) -> str:
    step = marks[bisect.bisect_left(marks, (lost.at, ""))][1]
    return f"before {step or 'the end'}, after {lost.at} orders: {lost.how} of the cache is lost"


def missing() -> str:
    """Why this cannot be tried here, or nothing."""
    return shim.missing() or cachedisk.missing()


CAMPAIGN = Campaign("power loss, write cache", run, 2000, 24, missing, "cuts")
