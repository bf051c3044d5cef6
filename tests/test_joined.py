"""Runs that share one state folder: who may join, until when, and what becomes of what they do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError
from fp8convert.fence import Fence
from fp8convert.plan import Plan
from fp8convert.publish import JOB, Staging, opened

from .crash import marks
from .interleaved import Stepped, stepping
from .mini import SOURCE
from .test_publish import changed, finish_task


def unlocked(fd: int, how: int) -> None:
    """A lock that does nothing."""
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture
def begun(fast_path: Path, flat: Plan) -> tuple[Staging, str]:
    """A run that has begun, and gone: others are to work on it."""
    made = Staging(fast_path / "dst", flat)
    with opened(made):
        return made, made.begin(SOURCE)


def another(of: Staging) -> Staging:
    """Another process's view of the same target, same plan."""
    return Staging(of.target, of.plan)


def links(state: Path) -> list[str]:
    return sorted(n for n in os.listdir(state) if n.startswith("run."))


# --- Names of runs


def test_numbers_of_runs_grow(begun: tuple[Staging, str]) -> None:
    """Also where no link of an earlier one is left: the job knows the last."""
    staging, run = begun
    assert links(staging.state) == []
    names = [run]
    for _ in range(11):
        with opened(again := another(staging)):
            names.append(again.begin(SOURCE))
        assert json.loads((staging.state / JOB).read_bytes())["run"] == names[-1]
    assert [int(name.split(".")[1]) for name in names] == list(range(1, 13))
    assert len({name.split(".")[2] for name in names}) == 12


ODD = (None, 7, [], "", "run", "run.x.y", "run.-4.x", "walk.9.x", f"run.²{'.0' * 32}",
       f"run.{'9' * 5000}.{'0' * 32}")  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_job_with_an_odd_name(begun: tuple[Staging, str], name: Any) -> None:
    """Whatever stands there, a run that goes on gets a name that it can have."""
    staging, _ = begun
    finish_task(staging, 0)
    job = json.loads((staging.state / JOB).read_bytes())
    (staging.state / JOB).write_text(json.dumps(job | {"run": name}))
    with opened(again := another(staging)):
        run = again.begin(SOURCE)
        assert again.recorded(again.plan.tasks[0])
    assert run.split(".")[:2] == ["run", "1"]
    with another(staging).joined(SOURCE, run):
        pass


def test_a_job_of_an_older_version(begun: tuple[Staging, str]) -> None:
    """It names no run: it is gone on with, and nobody can join it before."""
    staging, run = begun
    job = json.loads((staging.state / JOB).read_bytes())
    del job["run"]
    (staging.state / JOB).write_text(json.dumps(job))
    with pytest.raises(TargetError, match="found 'None'"), another(staging).joined(SOURCE, run):
        pytest.fail("joined")
    with opened(again := another(staging)):
        assert again.begin(SOURCE).startswith("run.1.")


# --- Who may join


def test_several_join_and_one_does_not_see_the_others_end(begun: tuple[Staging, str]) -> None:
    staging, run = begun
    one, two = another(staging), another(staging)
    with one.joined(SOURCE, run):
        with two.joined(SOURCE, run):
            record = finish_task(two, 1)
            assert links(staging.state) == sorted([one.fence.way.name, two.fence.way.name])
        assert not one.fence.is_overtaken()
        assert one.recorded(one.plan.tasks[1]) == record
        finish_task(one, 0)
    assert links(staging.state) == []
    assert one.out == staging.state / "out"
    assert [bool(staging.recorded(t)) for t in staging.plan.tasks] == [True, True, False]


def test_who_joins_does_not_sweep(begun: tuple[Staging, str]) -> None:
    """Temporaries there are of those that are at work."""
    staging, run = begun
    staging.temporary(staging.out, "x").write_bytes(b"x")
    (staging.out / staging.plan.tasks[0].file).write_bytes(b"x")
    before = marks(staging.state)
    with another(staging).joined(SOURCE, run):
        assert marks(staging.state) == before
    assert marks(staging.state) == before


def test_a_run_that_is_not_the_last(begun: tuple[Staging, str]) -> None:
    staging, run = begun
    with opened(again := another(staging)):
        later = again.begin(SOURCE)
    before = marks(staging.state)
    words = f"expected '{run}' in its job.json, found '{later}': plan again"
    with pytest.raises(TargetError, match=words), another(staging).joined(SOURCE, run):
        pytest.fail("joined")
    assert marks(staging.state) == before
    assert links(staging.state) == []
    with another(staging).joined(SOURCE, later):
        pass


@pytest.mark.parametrize("name", ["run.1.x", "", "run", "run.9.x", "../run.1.x"])
def test_a_run_that_never_was(begun: tuple[Staging, str], name: str) -> None:
    staging, _ = begun
    with pytest.raises(TargetError, match="not of the run"), another(staging).joined(SOURCE, name):
        pytest.fail("joined")
    assert links(staging.state) == []


def test_another_plan_or_source_does_not_join(begun: tuple[Staging, str]) -> None:
    staging, run = begun
    before = marks(staging.state)
    other = Staging(staging.target, changed(staging.plan, dtype="float16"))
    with pytest.raises(TargetError, match="is not this one"), other.joined(SOURCE, run):
        pytest.fail("joined")
    newer = {name: {**facts, "mtime_ns": 9} for name, facts in SOURCE.items()}
    with pytest.raises(TargetError, match="mtime_ns"), another(staging).joined(newer, run):
        pytest.fail("joined")
    assert marks(staging.state) == before
    assert links(staging.state) == []


def test_what_is_not_there_is_not_joined(fast_path: Path, flat: Plan) -> None:
    """Nothing is made: not the folder, and no lock in one that is somebody's."""
    made = Staging(fast_path / "dst", flat)
    with pytest.raises(TargetError), made.joined(SOURCE, "run.1.x"):
        pytest.fail("joined")
    assert not os.listdir(fast_path)
    made.state.mkdir()
    (made.state / "mine").write_text("mine")
    with pytest.raises(TargetError, match="which no run has made"), made.joined(SOURCE, "run.1.x"):
        pytest.fail("joined")
    assert os.listdir(made.state) == ["mine"]
    os.rename(made.state, fast_path / "elsewhere")
    made.state.symlink_to(fast_path / "elsewhere")
    with pytest.raises(TargetError, match="and no folder"), made.joined(SOURCE, "run.1.x"):
        pytest.fail("joined")
    assert os.listdir(made.state) == ["mine"]


# --- The lock, shared and not


def test_who_joins_keeps_out_who_would_begin(begun: tuple[Staging, str]) -> None:
    """Also after the first of them has gone, until the last has."""
    staging, run = begun
    one, two = another(staging), another(staging)
    with one.joined(SOURCE, run):
        with two.joined(SOURCE, run):
            pass
        before = marks(staging.state)
        with pytest.raises(TargetError, match="is writing"), opened(another(staging)):
            pytest.fail("locked")
        assert marks(staging.state) == before
        assert not one.fence.is_overtaken()
    with opened(another(staging)):
        pass


def test_who_has_begun_keeps_out_who_would_join(begun: tuple[Staging, str]) -> None:
    staging, run = begun
    with opened(first := another(staging)):
        words = "another run is writing"
        with pytest.raises(TargetError, match=words), another(staging).joined(SOURCE, run):
            pytest.fail("joined")
        later = first.begin(SOURCE)
        with pytest.raises(TargetError, match=words), another(staging).joined(SOURCE, later):
            pytest.fail("joined")
        assert not first.fence.is_overtaken()
    with another(staging).joined(SOURCE, later):
        pass


def test_the_lock_goes_while_it_is_waited_for(
    begun: tuple[Staging, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is finished just then, and its state removed."""
    staging, run = begun
    real = fcntl.flock

    def late(fd: int, how: int) -> None:
        shutil.rmtree(staging.state)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with (
        pytest.raises(TargetError, match="has just finished"),
        another(staging).joined(SOURCE, run),
    ):
        pytest.fail("joined")
    assert not staging.state.exists()


def test_a_filesystem_without_links(
    fast_path: Path, flat: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock has to do, and the job says which run it is; anything but that is an error."""

    def fail(code: int) -> None:
        def symlink(src: Any, dst: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "symlink", symlink)

    fail(errno.EPERM)
    staging = Staging(fast_path / "dst", flat)
    with opened(staging):
        run = staging.begin(SOURCE)
        with pytest.raises(TargetError, match="is writing"), another(staging).joined(SOURCE, run):
            pytest.fail("joined")
    one, two = another(staging), another(staging)
    with one.joined(SOURCE, run), two.joined(SOURCE, run):
        finish_task(one, 0)
        assert two.recorded(two.plan.tasks[0])
        assert not one.fence.is_overtaken()
        with pytest.raises(TargetError, match="is writing"), opened(another(staging)):
            pytest.fail("locked")
    with opened(again := another(staging)):
        assert again.begin(SOURCE).startswith("run.2.")
    with pytest.raises(TargetError, match="plan again"), another(staging).joined(SOURCE, run):
        pytest.fail("joined")
    fail(errno.EIO)
    with (
        pytest.raises(OSError, match="Input/output error"),
        another(staging).joined(SOURCE, json.loads((staging.state / JOB).read_bytes())["run"]),
    ):
        pytest.fail("joined")


# --- Where locks do not keep them apart


def test_whoever_begins_puts_all_out(
    begun: tuple[Staging, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, run = begun
    monkeypatch.setattr(fcntl, "flock", unlocked)
    one, two = another(staging), another(staging)
    with one.joined(SOURCE, run), two.joined(SOURCE, run):
        finish_task(one, 0)
        with opened(last := another(staging)):
            last.begin(SOURCE)
            for put_out in (one, two):
                assert put_out.overtaken()
                with pytest.raises(FileNotFoundError):
                    put_out.put_bytes("x", b"x")
            assert last.recorded(last.plan.tasks[0])
            assert sorted(os.listdir(last.out)) == [last.plan.tasks[0].file]
    assert one.overtaken() is two.overtaken() is None  # they have let go


def test_a_late_one_does_not_join(
    begun: tuple[Staging, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another has taken over and is at work, but has not yet said so in the job."""
    staging, run = begun
    monkeypatch.setattr(fcntl, "flock", unlocked)
    (staging.state / f"run.2.{'a' * 32}").symlink_to(".")
    late = another(staging)
    words = r"has taken over.* \(or plan again, if it was killed\)"
    with pytest.raises(ResumableError, match=words), late.joined(SOURCE, run):
        pytest.fail("joined")
    assert links(staging.state) == [f"run.2.{'a' * 32}"]


STEPS = ("open", "symlink", "listdir", "unlink", "replace")


def is_step(name: str, args: tuple[Any, ...]) -> bool:
    """Of what both look at: the job and the links."""
    path = str(args[-1] if name == "replace" else args[1] if name == "symlink" else args[0])
    if name == "open":
        return path.endswith(f"/{JOB}")
    return name == "listdir" or path.endswith(f"/{JOB}") or ".fp8convert/run." in path


def orders(staging: Staging, patch: pytest.MonkeyPatch) -> Iterator[tuple[Staging, Stepped, str]]:
    """One that joins, stopped once or twice, while another one begins, and ends."""
    patch.setattr(fcntl, "flock", unlocked)
    players: list[Stepped] = []
    stepping(patch.setattr, os, STEPS, players, is_step)
    ahead = between = within = 0
    while True:
        shutil.rmtree(staging.state, ignore_errors=True)
        first, joining, beginning = (another(staging) for _ in range(3))
        with opened(first):
            run = first.begin(SOURCE)
        held = joining.joined(SOURCE, run)

        def begin(of: Staging = beginning) -> str:
            with opened(of):
                return of.begin(SOURCE)

        players[:] = one, two = Stepped(held.__enter__), Stepped(begin)
        less = one.go(ahead) < ahead
        late = two.go(within) < within
        fewer = one.go(between) < between
        two.finish()
        one.finish()
        players.clear()
        assert two.error is None, two.error
        yield joining, one, f"{ahead} steps, then {within}, then {between}"
        if not one.error:
            held.__exit__(None, None, None)
        if not (fewer or less):
            between += 1
        elif not late:
            between, within = 0, within + 1
        elif not less:
            between, within, ahead = 0, 0, ahead + 1
        else:
            return


def wrong(staging: Staging) -> tuple[list[str], set[str]]:
    """Orders in which one that joins goes on when another has begun; and how the rest ended."""
    found, ends = [], set()
    with pytest.MonkeyPatch.context() as patch:
        for joining, one, order in orders(staging, patch):
            if one.error is None:
                ends.add("overtaken")
                if not joining.overtaken():
                    found.append(order)
            elif isinstance(one.error, Fp8ConvertError):
                ends.add("taken over" if "taken over" in str(one.error) else "plan again")
                assert joining.fence.way == joining.state
            else:
                found.append(f"{order}: {one.error!r}")
    return found, ends


def test_every_order_of_joining_and_beginning(fast_path: Path, flat: Plan) -> None:
    """Whoever has begun is alone, whatever step of the other one it came between."""
    found, ends = wrong(Staging(fast_path / "dst", flat))
    assert found == []
    assert ends == {"overtaken", "taken over", "plan again"}


@pytest.mark.parametrize("broken", ["links", "job"])
def test_orders_tell_what_is_looked_at_too_early(
    fast_path: Path, flat: Plan, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A control: the links alone do not tell, nor does the job before the links are looked at."""
    real = Fence._remain

    def remain(self: Fence, mine: str, check: Any) -> None:
        if broken == "links":
            real(self, mine, lambda: None)
        else:
            check()

    monkeypatch.setattr(Fence, "_remain", remain)
    found, _ = wrong(Staging(fast_path / "dst", flat))
    assert found
