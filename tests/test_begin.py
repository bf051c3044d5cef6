"""Going on with a run, killed at each step: the job is the old one or the new; both are right."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp8convert import durable
from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError
from fp8convert.journal import record_name
from fp8convert.plan import Plan
from fp8convert.publish import JOB, Staging, opened

from .crash import CHANGES, FailAt, nothing, real, trace
from .mini import SOURCE
from .nested import nested
from .test_publish import finish_task, record_text


class KilledError(BaseException):
    """What a kill looks like from within."""


class KillAt:
    """A ``before``: from the ``n``-th call on nothing is done any more."""

    def __init__(self, n: int) -> None:
        self.left, self.name = n, ""

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        self.left -= 1
        if self.left <= 0:
            self.name = self.name or name
            raise KilledError


@pytest.fixture(params=["flat", "nested"])
def left(request: pytest.FixtureRequest, fast_path: Path, flat: Plan) -> tuple[Staging, str]:
    """What a run has left that was killed: two files, one of them journaled, and temporaries."""
    made = Staging(fast_path / "dst", flat if request.param == "flat" else nested(flat))
    with opened(made):
        run = made.begin(SOURCE)
        finish_task(made, 0)
        (made.out / made.plan.tasks[1].file).write_bytes(b"x")
        made.temporary(made.out, "x").write_bytes(b"x")
        made.temporary(made.fence.way, JOB).write_bytes(b"x")
        os.rename(made.fence.way, fast_path / "kept")
    os.rename(fast_path / "kept", made.state / run)
    return made, run


def begin(of: Staging) -> tuple[Staging, str]:
    made = Staging(of.target, of.plan)
    with opened(made):
        return made, made.begin(SOURCE)


def killed(of: Staging, n: int) -> KillAt:
    """One that goes on, killed before its ``n``-th step."""
    kill = KillAt(n)
    with pytest.MonkeyPatch.context() as patch:
        trace(patch.setattr, (*CHANGES, "symlink"), kill, nothing)
        try:
            begin(of)
        except KilledError:
            pass
        else:
            kill.left = max(kill.left, 1)
    return kill


def job_of(of: Staging) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((of.state / JOB).read_bytes())
    return found


def kills(left: tuple[Staging, str], place: Path) -> Iterator[KillAt]:
    """Killed at each step, from the same state; stopped when a run has come to its end."""
    staging, _ = left
    shutil.copytree(staging.state, place, symlinks=True)
    n = 0
    while True:
        n += 1
        shutil.rmtree(staging.state)
        shutil.copytree(place, staging.state, symlinks=True)
        kill = killed(staging, n)
        if not kill.name:
            return
        yield kill


def test_killed_at_every_step_of_going_on(left: tuple[Staging, str], fast_path: Path) -> None:
    """What is journaled stays, the same again goes on, and its name is a new one."""
    staging, run = left
    before, jobs, steps = job_of(staging), list[bool](), list[str]()
    for kill in kills(left, fast_path / "copy"):
        found = job_of(staging)
        assert found | {"run": run} == before
        jobs.append(found["run"] == run)
        steps.append(kill.name)
        again, name = begin(staging)
        assert job_of(staging) == before | {"run": name}
        number = int(name.split(".")[1])
        assert number > int(found["run"].split(".")[1])
        assert [bool(again.recorded(t)) for t in again.plan.tasks] == [True, False, False]
        assert [n for n in os.listdir(staging.state) if n.startswith("run.")] == []
        with Staging(staging.target, staging.plan).joined(SOURCE, name):
            pass
    # The old one up to the rename; only the sync of the folder, and the link's removal, follow.
    assert jobs == sorted(jobs, reverse=True)
    assert steps[jobs.index(False) - 1 :] == ["replace", "fsync", "unlink"]
    assert len(steps) > 10


def test_who_was_to_join_what_was_killed(left: tuple[Staging, str], fast_path: Path) -> None:
    """It does, as long as nobody has begun; is told to wait; or that there is a later run."""
    staging, run = left
    ends = []
    for _ in kills(left, fast_path / "copy"):
        try:
            with Staging(staging.target, staging.plan).joined(SOURCE, run):
                ends.append("joined")
        except ResumableError:
            ends.append("taken over")
        except TargetError:
            ends.append("plan again")
        found = job_of(staging)["run"]
        assert (ends[-1] == "plan again") == (found != run)
    order = ["joined", "taken over", "plan again"]
    assert ends == sorted(ends, key=order.index)
    assert set(ends) == set(order)


def test_room_is_made_before_anything_is_written(
    left: tuple[Staging, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: a job that says the same but for the run must not keep a run from going on."""
    staging, _ = left
    kept = {staging.plan.tasks[0].file, f"{staging.plan.tasks[0].file}.json"}
    written = durable.write

    def write(fd: int, data: bytes, name: str) -> None:
        names = [p for p in staging.out.rglob("*") if p.is_file()]
        if {p.relative_to(staging.out).as_posix() for p in names} - kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(fd, data, name)

    monkeypatch.setattr(durable, "write", write)
    begin(staging)


def test_the_job_is_whole_before_it_has_its_name(
    left: tuple[Staging, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written aside, synced, renamed, and its folder synced: the last that is done."""
    staging, _ = left
    steps: list[tuple[str, str]] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        at = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else args[-1]
        at = args[0] if name == "open" else at
        steps.append((name, Path(real(at)).name.split(".")[0]))

    trace(monkeypatch.setattr, CHANGES, before, nothing)
    begin(staging)
    last = [("open", "job"), ("fsync", "job"), ("replace", "job"), ("fsync", ""), ("unlink", "run")]
    assert steps[-5:] == last


def failed(of: Staging) -> Exception | None:
    try:
        begin(of)
    except (OSError, Fp8ConvertError) as e:
        return e
    return None


@pytest.mark.parametrize("late", [False, True])
def test_each_step_fails_once(left: tuple[Staging, str], fast_path: Path, late: bool) -> None:
    """EIO, before it is done or after: refused, or begun; the next one goes on."""
    staging, run = left
    shutil.copytree(staging.state, fast_path / "copy", symlinks=True)
    n = 0
    while True:
        n += 1
        shutil.rmtree(staging.state)
        shutil.copytree(fast_path / "copy", staging.state, symlinks=True)
        fail = FailAt(n)
        with pytest.MonkeyPatch.context() as patch:
            trace(patch.setattr, CHANGES, *((nothing, fail) if late else (fail, nothing)))
            error = failed(staging)
        if error:
            assert "Input/output error" in str(error)
        else:  # of a folder that is there already, or of what does no harm
            assert fail.failed in ("", "unlink", "mkdir")
        if not fail.failed:
            break
        again, name = begin(staging)
        assert name != run
        assert [bool(again.recorded(t)) for t in again.plan.tasks] == [True, False, False]
    assert n > 8


def test_the_journal_of_what_is_swept_is_swept(left: tuple[Staging, str]) -> None:
    """The control of the tests above: what is journaled and there is kept, what is not is not."""
    staging, _ = left
    task = staging.plan.tasks[1]
    record = json.loads(record_text(staging, 1))
    (staging.journal / record_name(task.file)).write_text(json.dumps(record))
    begin(staging)
    assert len(os.listdir(staging.journal)) == 1
    assert not (staging.out / task.file).exists()
