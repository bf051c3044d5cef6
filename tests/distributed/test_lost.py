"""Workers, planners and whoever finalizes are killed; others go on, and the bytes are right."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from fp8convert.distributed import read_plan

from ..crash import Ended, temporaries
from ..faults.together import Stage
from .fleet import Fleet, at_once

KILL, STOP = signal.SIGKILL, signal.SIGINT


def missing(ended: Ended) -> list[int]:
    """The numbers of tasks that a refusal lists."""
    lines = ended.err.splitlines()
    assert "tasks are not done" in lines[0]
    return [int(line.split()[0]) for line in lines[1:] if line.startswith("  ")]


def refused_late(ended: Ended) -> bool:
    """Whether that is how a worker ends whose run is no more."""
    if ended.code == 75:  # who took over had not come to say so in the job
        return "has taken over" in ended.err
    return ended.code == 1 and "plan again" in ended.err


def recorded(one: Fleet) -> set[int]:
    """The numbers of tasks that are in the journal."""
    numbers = {f"{t['file']}.json": n for n, t in enumerate(one.said["tasks"])}
    return {numbers[p.name] for p in (one.state / "journal").iterdir() if p.name in numbers}


def test_a_worker_is_killed_at_any_step(machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """Its tasks are missing, and listed; another machine runs them; what it left is swept."""
    rng, left, hits, counts = random.Random(8), 0, 0, set()
    for n in [1, *rng.sample(range(2, 50), 9)]:
        one = fleet()
        killed = machines.forkers[0].run(*one.share(0, 2), tamper=("signal_at", n, KILL))
        if killed.code == 0:
            assert n > 40
            continue
        hits += 1
        left += len(temporaries(one.state)) > 0
        assert at_once(machines.forkers[1:], [one.share(1, 2)])[0].code == 0
        there = recorded(one)
        refused = one.run(one.ending)
        assert refused.code == 1
        assert missing(refused) == sorted({0, 2, 4, 6} - there)
        counts.add(len(there))
        again = machines.forkers[1].run(*one.share(0, 2))
        assert again.code == 0
        assert f"{4 - len(there - {1, 3, 5})} done" in again.out
        assert one.finished() == ""
    assert hits > 6
    assert left > 3  # there was something to be swept
    assert len(counts) > 2


def test_a_worker_is_killed_and_nobody_comes_back(fleet: Callable[..., Fleet]) -> None:
    """One machine ends it, with what is there, and then the plan is of no run any more."""
    one = fleet()
    assert one.run(one.share(0, 2), tamper=("signal_at", 30, KILL)).code == -KILL
    before = recorded(one)
    assert before
    kept = {p.name: p.stat().st_mtime_ns for p in (one.state / "out").glob("*.safetensors")}
    ended = one.run(one.work.argv(one.target, "--workers", 1), tamper=("signal_at", 12, KILL))
    assert ended.code == -KILL  # it has begun
    for argv in (one.share(1, 2), one.ending):
        refused = one.run(argv)
        assert refused.code == 1
        assert "plan again" in refused.err
    assert one.run(one.work.argv(one.target, "--workers", 1)).code == 0
    assert one.work.ended_right(one.target)
    for n in before:  # what was finished was not done again
        file = one.said["tasks"][n]["file"]
        assert (one.target / file).stat().st_mtime_ns == kept[file]
    assert os.listdir(one.target.parent) == ["dst"]
    assert "already done" in one.run(one.share(1, 2)).out
    assert one.finished() == ""


def points(one: Fleet, argv: list[object], signum: int, most: int) -> Iterator[Ended]:
    """The command, disturbed at one step after the other, from the same state each time."""
    aside = one.target.parent.with_suffix(".aside")
    shutil.copytree(one.target.parent, aside, symlinks=True)
    file = one.file.read_bytes() if one.file.exists() else None
    for n in range(1, most):
        ended = one.run(argv, tamper=("signal_at", n, signum))
        yield ended
        if ended.code == 0:
            break
        shutil.rmtree(one.target.parent)
        shutil.copytree(aside, one.target.parent, symlinks=True)
        if file is None:
            one.file.unlink(missing_ok=True)
        else:
            one.file.write_bytes(file)
    else:
        pytest.fail(f"more than {most} steps")
    shutil.rmtree(aside)


def test_finalize_is_killed_at_every_step(machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """It is the same command that goes on, whatever it had come to."""
    one = fleet("unshard-hf")  # of few files
    assert at_once(machines.forkers, [one.share(i, 2) for i in range(2)])[1].code == 0
    hits = begun = 0
    for ended in points(one, one.ending, KILL, 100):
        if ended.code == 0:
            break
        hits += 1
        assert ended.code == -KILL, ended
        assert not one.target.exists() or one.work.ended_right(one.target)
        if hits % 3 == 0:  # a worker that comes too late does no harm
            late = one.run(one.share(0, 2))
            assert late.code == 0 or refused_late(late)
            begun += late.code != 0
        last = one.run(one.ending)
        assert last.code == 0, (ended, last)
        assert one.work.ended_right(one.target)
        assert os.listdir(one.target.parent) == ["dst"]
    assert hits > 20
    assert begun > 4


def test_plan_is_killed_at_every_step(machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """plan.json is absent or whole, and if it is there its run is; the same again plans."""
    one = fleet()
    before = one.said["run"]
    assert one.run(one.share(0, 7)).code == 0
    runs = set()
    for ended in points(one, one.planning(), KILL, 60):
        assert ended.code in (0, -KILL), ended
        run = read_plan(one.file).run
        runs.add(run)
        work = one.run(one.share(1, 7))
        assert work.code == 0 or (run == before and refused_late(work))
        again = one.run(one.planning())
        assert again.code == 0
        assert "of them done" in again.out
    assert before in runs
    assert len(runs) > 2
    assert one.run(one.share(0, 1)).code == 0
    assert one.finished() == ""


@pytest.mark.parametrize(("n", "signum"), [(9, STOP), (25, signal.SIGTERM)])
def test_a_worker_is_interrupted(n: int, signum: int, fleet: Callable[..., Fleet]) -> None:
    """Ctrl-C, or a scheduler's SIGTERM: 75, nothing half done, the same again goes on."""
    one = fleet()
    slowly = ("together:unlocked", "pretend", ["slow", 0.05], ["signal_at", n, signum])
    ended = one.run(one.share(0, 1), tamper=slowly)
    assert ended.code == 75, ended
    assert "interrupted\nUnfinished work is in" in ended.err
    assert ended.err.endswith("Run the same command again to resume.\n")
    assert not temporaries(one.state)
    assert len(recorded(one)) < 7
    assert one.run(one.share(0, 1)).code == 0
    assert one.finished() == ""


def test_the_end_is_interrupted(fleet: Callable[..., Fleet]) -> None:
    """The target is not there; the same again ends it."""
    one = fleet()
    assert one.run(one.share(0, 1)).code == 0
    ended = one.run(one.ending, tamper=("signal_at", 12, STOP))
    assert ended.code == 75
    assert not one.target.exists()
    assert one.finished() == ""
