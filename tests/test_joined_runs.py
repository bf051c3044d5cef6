"""Tasks run by several that have joined one run: each file once, whoever wrote it; and put out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fp8convert.convert import Job, execute, prepare, resumable, to_bf16, undisturbed
from fp8convert.engine import Engine
from fp8convert.errors import Fp8ConvertError, TargetError
from fp8convert.fence import Fence
from fp8convert.journal import Record
from fp8convert.options import ToBf16
from fp8convert.settings import Settings

from .crash import CHANGES, contents, nothing, state_of, temporaries, trace
from .mini import CUT
from .test_joined import unlocked

ONE = Settings(workers=1)


@pytest.fixture(scope="module")
def expected(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What every run of mini ends with."""
    dst = tmp_path_factory.mktemp("expected") / "dst"
    to_bf16(mini, dst, max_shard_size=CUT)
    return contents(dst)


@dataclass
class Run:
    """One that was begun, for others to join."""

    job: Job
    name: str

    @classmethod
    def of(cls, src: Path, dst: Path) -> Run:
        job = prepare(src, dst, ToBf16(max_shard_size=CUT))
        stage = job.stage
        with stage.opened():
            return cls(job, stage.begin(job.catalogue.fingerprint))

    def work(self, *numbers: int, settings: Settings = ONE) -> list[Record]:
        """Join, and run these tasks."""
        stage, job = self.job.stage, self.job
        with (
            resumable(),
            stage.joined(job.catalogue.fingerprint, self.name),
            undisturbed(stage),
        ):
            return Engine(job.catalogue, stage, settings).run([job.plan.tasks[n] for n in numbers])

    @property
    def out(self) -> dict[str, bytes]:
        """What there is of the target."""
        return contents(state_of(Path(str(self.job.target))) / "out")

    @property
    def journal(self) -> list[str]:
        return sorted(contents(state_of(Path(str(self.job.target))) / "journal"))


def files_of(expected: dict[str, bytes]) -> dict[str, bytes]:
    return {n: data for n, data in expected.items() if n.endswith(".safetensors")}


class At:
    """A ``before``: calls ``act`` before the ``n``-th call, whose own calls do not count."""

    def __init__(self, n: int, act: Callable[[], Any]) -> None:
        self.left, self.act, self.busy = n, act, False

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        if self.busy:
            return
        self.left -= 1
        if self.left == 0:
            self.busy = True
            self.act()
            self.busy = False


@contextlib.contextmanager
def acting(n: int, act: Callable[[], Any]) -> Any:
    at = At(n, act)
    with pytest.MonkeyPatch.context() as patch:
        trace(patch.setattr, (*CHANGES, "symlink"), at, nothing)
        yield at


# --- Together


def test_each_runs_some_and_the_last_ends_it(
    mini: Path, fast_path: Path, expected: dict[str, bytes], written: list[str]
) -> None:
    run = Run.of(mini, fast_path / "dst")
    for numbers in ((2,), (), (0, 1)):
        assert len(run.work(*numbers)) == len(numbers)
    assert run.out == files_of(expected)
    assert run.journal == [f"{name}.json" for name in files_of(expected)]
    assert len(written) == 3
    execute(run.job)
    assert len(written) == 3  # nothing was done again
    assert contents(fast_path / "dst") == expected
    assert os.listdir(fast_path) == ["dst"]


def test_what_is_there_is_not_done_again(mini: Path, fast_path: Path, written: list[str]) -> None:
    """A file that is journaled but spoiled is."""
    run = Run.of(mini, fast_path / "dst")
    first = run.work(0, 1)
    assert run.work(1, 2)[0] == first[1]
    assert len(written) == 3
    before = run.out
    spoiled = state_of(fast_path / "dst") / "out" / first[1].file
    spoiled.write_bytes(bytes(first[1].size))
    assert run.work(0, 1) == first
    assert written[3:] == [first[1].file]
    assert run.out == before


def test_two_write_the_same_task_at_every_step_of_one(
    mini: Path, fast_path: Path, expected: dict[str, bytes]
) -> None:
    """A whole second one between two steps of the first: one record, equal bytes, no leftovers."""
    n = 0
    while True:
        n += 1
        run, other = Run.of(mini, fast_path / f"{n}" / "dst"), list[Record]()
        task = run.job.plan.tasks[1]
        with acting(n, lambda run=run, other=other: other.extend(run.work(1))) as at:  # type: ignore[misc]
            records = run.work(1)
        assert records == (other or records)
        assert run.out == {task.file: expected[task.file]}
        assert run.journal == [f"{task.file}.json"]
        assert [run.job.stage.recorded(task)] == records
        assert not [p for p in os.listdir(state_of(fast_path / f"{n}" / "dst")) if "run." in p]
        shutil.rmtree(fast_path / f"{n}")
        if at.left > 0:
            break
    assert n > 15


def test_many_at_once(mini: Path, fast_path: Path, expected: dict[str, bytes]) -> None:
    """All of them run every task, each in its own order, with threads of its own."""
    run = Run.of(mini, fast_path / "dst")
    orders = [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]
    errors: list[BaseException] = []
    start = threading.Barrier(len(orders))

    def work(numbers: tuple[int, ...]) -> None:
        try:
            start.wait()
            records = run.work(*numbers, settings=Settings(workers=2))
            assert [r.file for r in records] == [run.job.plan.tasks[n].file for n in numbers]
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(numbers,)) for numbers in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert run.out == files_of(expected)
    assert len(run.journal) == 3
    assert not temporaries(fast_path)
    execute(run.job)
    assert contents(fast_path / "dst") == expected


# --- Put out


def put_out(mini: Path, dst: Path, n: int, act: Callable[[Run], Any]) -> tuple[bool, str]:
    """Whether ``act`` came before the ``n``-th step of one that has joined; how that ended."""
    run = Run.of(mini, dst)
    with acting(n, lambda: act(run)) as at:
        try:
            run.work(0, 1, 2)
        except Fp8ConvertError as e:
            return True, f"{e.exit_code}: {e}"
    return at.left <= 0, "done"


JOINING = 2  # steps: the lock is opened, the link made
DONE = 2  # the last folder is synced, the link removed


def is_right(ends: list[str]) -> bool:
    """While it joins it may be refused; then all ends with 75, but when its work was done."""
    joining, working, done = ends[:JOINING], ends[JOINING:-DONE], ends[-DONE:]
    overtaken = [e for e in working if e.startswith("75: another run on ") and "taken over" in e]
    refused = all(e[:3] in ("1: ", "75:") for e in joining)
    return refused and overtaken == working and set(done) == {"done"} and len(working) > 30


def test_the_target_is_finished_at_every_step_of_one_that_has_joined(
    mini: Path, fast_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run that no lock keeps out: the other one ends with 75, and nothing of it is there."""
    monkeypatch.setattr(fcntl, "flock", unlocked)
    ends: list[str] = []
    while True:
        dst = fast_path / f"{len(ends)}" / "dst"
        came, ended = put_out(mini, dst, len(ends) + 1, lambda run: execute(run.job, ONE))
        if not came:
            break
        ends.append(ended)
        assert contents(dst) == expected
        assert os.listdir(dst.parent) == ["dst"]
        shutil.rmtree(dst.parent)
    assert is_right(ends), "\n".join(ends)


def test_another_begins_at_every_step_of_one_that_has_joined(
    mini: Path, fast_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is still at work when the other one has ended: nothing has come into its folder."""
    monkeypatch.setattr(fcntl, "flock", unlocked)
    ends: list[str] = []
    while True:
        dst = fast_path / f"{len(ends)}" / "dst"
        seen: list[Any] = []

        def begin(run: Run, seen: list[Any] = seen) -> None:
            stage = run.job.stage
            stage.begin(run.job.catalogue.fingerprint)
            seen += [stage, run.out, run.journal]

        came, ended = put_out(mini, dst, len(ends) + 1, begin)
        if not came:
            break
        ends.append(ended)
        stage, out, journal = seen
        assert contents(state_of(dst) / "out") == out
        assert sorted(contents(state_of(dst) / "journal")) == journal
        assert out.items() <= expected.items()
        stage.fence.let_go()
        to_bf16(mini, dst, max_shard_size=CUT, workers=1)
        assert contents(dst) == expected
        shutil.rmtree(dst.parent)
    assert is_right(ends), "\n".join(ends)


def test_who_is_not_put_out_leaves_something(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: without links of their own, it is seen what the other one writes."""
    monkeypatch.setattr(fcntl, "flock", unlocked)
    monkeypatch.setattr(Fence, "join", lambda self, run, check: check())
    left = 0
    for n in range(1, 30):
        dst = fast_path / f"{n}" / "dst"
        seen: list[dict[str, bytes]] = []

        def begin(run: Run, seen: list[dict[str, bytes]] = seen) -> None:
            run.job.stage.begin(run.job.catalogue.fingerprint)
            seen.append(run.out)

        put_out(mini, dst, n, begin)
        left += contents(state_of(dst) / "out") != seen[0]
    assert left > 5


@pytest.mark.parametrize("name", ["out", "journal"])
def test_a_folder_is_gone(name: str, mini: Path, fast_path: Path) -> None:
    """As where a target was made and moved away; whoever begins again mends it."""
    run = Run.of(mini, fast_path / "dst")
    (state_of(fast_path / "dst") / name).rmdir()
    with pytest.raises(TargetError, match=f"no folder '{name}' now: plan again"):
        run.work(0)
    assert len(Run.of(mini, fast_path / "dst").work(0)) == 1
