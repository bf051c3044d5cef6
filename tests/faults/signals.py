"""SIGINT and SIGTERM at every step: a run ends in order, says so, and can be resumed."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator, Sequence

from ..crash import Ended
from . import shim
from .chain import Chain, appearance, steps
from .kills import Step
from .lab import Lab, Work, share, temporaries
from .tally import Campaign, Tally

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EVERY = 3  # steps
CALLS = (3, 9, 16, 24, 40)


def _places(lab: Lab) -> Iterator[tuple[Step, bool]]:
    """Every third step of every work, and the last; whether it is after the target's rename."""
    for work in lab.works:
        found = steps(lab, work)
        last = appearance(found)
        for number, kind in enumerate(found, 1):
            if number % EVERY == 1 or number in (last, len(found)):
                yield Step(work.name, "signal", number, kind, ()), number > last


def at_steps(lab: Lab, amount: int, seed: int, broken: str = "") -> Tally:
    """One of the two at a step, then the same command again."""
    rng, tally = share(seed, "signals"), Tally()
    found = [(*place, signum) for place in _places(lab) for signum in SIGNALS]
    rng.shuffle(found)
    for step, late, signum in found[:amount]:
        chain = Chain(lab, lab.by_name[step.work], step.more, broken)
        ended = chain.run(chain.arm(shim.CHANGES, "signal", step.number, signum))
        note(chain, f"{signum.name} at step {step.number}, {step.kind}", ended, late)
        chain.end(tally)
    return tally


def at_calls(
    lab: Lab, works: Sequence[Work], broken: str = "", calls: Sequence[int] = CALLS
) -> Tally:
    """As :func:`at_steps`, at some calls that Python makes: no compiler is needed for that."""
    tally = Tally()
    for n, (work, number) in enumerate(itertools.product(works, calls)):
        chain, signum = Chain(lab, work, (), broken), SIGNALS[n % 2]
        ended = chain.run(("signal_at", number, signum))
        note(chain, f"{signum.name} at call {number}", ended)
        chain.end(tally)
    return tally


def note(chain: Chain, what: str, ended: Ended, late: bool = False) -> None:
    """Exit code 75 and how to go on; 0 if the target was whole and only the rest to be removed."""
    stopped = ended.code == 75 and all(
        words in ended.err for words in ("interrupted", "Run the same command again to resume.")
    )
    there = chain.work.ended_right(chain.target)
    orderly = not temporaries(chain.target.parent) and "Traceback" not in ended.err
    whole = there if late else chain.absent or there
    right = orderly and whole and (stopped or (late and ended.code == 0))
    chain.note(what, right, ended)


CAMPAIGN = Campaign("SIGINT, SIGTERM", at_steps, 5000, 20, shim.missing)
