"""The campaigns of kills and signals lose with tools that are broken, and only with those."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from . import shim
from .chain import Chain, steps
from .kills import LOOKS, at_every_step, at_random, every_step, sample, while_resuming
from .lab import Lab, share
from .signals import CALLS, at_calls, at_steps
from .tally import Tally

needs_shim = pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())


CONTROLS = [
    (at_random, "in_place", 4),
    pytest.param(at_every_step, "manifest_last", 14, marks=needs_shim),
    pytest.param(at_every_step, "believing", 14, marks=needs_shim),
    pytest.param(at_every_step, "unsweeping", 14, marks=needs_shim),
    pytest.param(at_every_step, "untidy", 14, marks=needs_shim),
    pytest.param(while_resuming, "unhashing", 3, marks=needs_shim),
    pytest.param(at_steps, "deaf", 3, marks=needs_shim),
    pytest.param(at_steps, "messy", 10, marks=needs_shim),
]


@pytest.mark.parametrize(("campaign", "how", "amount"), CONTROLS)
def test_a_broken_tool_loses(
    made: Lab, campaign: Callable[..., Tally], how: str, amount: int
) -> None:
    """Undisturbed it does nothing wrong, so it is the faults that find out."""
    chain = Chain(made, made.works[0], (), how)
    assert chain.run().code == 0
    assert chain.work.ended_right(chain.target)
    assert os.listdir(chain.target.parent) == [chain.target.name]
    assert campaign(made, amount, 0, how).losses


def test_signals_at_calls_of_python(made: Lab) -> None:
    """The campaign's, where there is no compiler; and tools that are broken lose here as well.

    A worker is soon done with what it writes, so that a signal at one call may come late enough
    for the messy tool to have nothing left to leave: about every other one finds it out.
    """
    tally = at_calls(made, made.works)
    assert tally.losses == []
    assert tally.injected == len(CALLS) * len(made.works)
    for how in ("deaf", "messy"):
        assert any(at_calls(made, made.works[:1], how, [n]).losses for n in range(20, 60))


@needs_shim
def test_every_step_is_met(made: Lab) -> None:
    """As many as an undisturbed run has, of every kind; with none more."""
    work = made.by_name["shard-hf"]
    found = steps(made, work)
    assert set(found) == set(shim.CHANGES)
    for number, code in ((len(found), -signal.SIGKILL), (len(found) + 1, 0)):
        chain = Chain(made, work)
        assert chain.run(chain.arm(shim.CHANGES, "kill-before", number)).code == code
    assert len(steps(made, work, (*LOOKS, *shim.CHANGES))) > len(found)


@needs_shim
def test_a_sample_meets_every_work(made: Lab) -> None:
    """Its first step, and the rename that makes the target appear, from both sides."""
    every = every_step(made)
    found = sample(every, 50, share(0, "sample"))
    assert len(found) == len(set(found)) == 50
    for work in made.works:
        mine = [s for s in found if s.work == work.name]
        assert min(s.number for s in mine) == 1
        last = next(s for s in every if s.work == work.name and s.action == "kill-after")
        assert {s.action for s in mine if s.number == last.number} == {"kill-before", "kill-after"}
        assert any(s.action == "tear" for s in mine)
    assert sorted(sample(every, 9999, share(0, "sample"))) == sorted(every)


@needs_shim
def test_a_run_that_is_not_disturbed_is_no_fault(made: Lab) -> None:
    chain, tally = Chain(made, made.works[0]), Tally()
    assert not chain.kill("never", chain.arm(shim.CHANGES, "kill-before", 10_000))
    chain.end(tally)
    assert tally == Tally()
