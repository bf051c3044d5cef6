"""Shards that come while a run is at work: nothing is begun before, and nobody waits for ever."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import fp8convert
from fp8convert import engine
from fp8convert.convert import Job, execute, prepare
from fp8convert.engine import Engine
from fp8convert.errors import Fp8ConvertError, ResumableError
from fp8convert.fileio import SourceFile
from fp8convert.folder import Folder
from fp8convert.jobs import Jobs
from fp8convert.options import ShardForTp, ToBf16
from fp8convert.origin import Scratch, Wanted
from fp8convert.plan import Task
from fp8convert.publish import Staging
from fp8convert.settings import Progress, Settings
from fp8convert.sources import Sources
from fp8convert.teams import teams

from .crash import contents, temporaries
from .feeding import Coming, Make, Strict, Tight, feeding
from .mini import CUT
from .nested import tree

LATE: dict[str, Make] = {
    "at once": Strict, "tight": Tight,
    **{f"coming {n}": functools.partial(Coming, seed=n) for n in range(4)},
}  # fmt: skip


# --- The order of work


class Chance(Strict):
    """Ready when it pleases."""

    rng = random.Random(0)

    def is_there(self, group: Wanted) -> bool:
        """Now and then; not less than it was."""
        return set(group.files) <= self.begun or self.rng.random() < 0.2

    def wait(self, file: str) -> None:
        """Told that it is there."""
        self.waited.append(file)
        self.begun |= set(self.group[file].files)


def groups(tasks: Sequence[Task]) -> list[Wanted]:
    """Those that are written together, and all that they read."""
    return [Wanted(tuple(t.file for t in team), frozenset(s for t in team for s in t.reads))
            for team in teams(tasks)]  # fmt: skip


@pytest.fixture(scope="module", params=["flat", "teams"])
def job(request: pytest.FixtureRequest, tiny_fp8: Path, tmp_path_factory: Any) -> Job:
    """Of files that are written alone, or together with others."""
    dst = tmp_path_factory.mktemp("job") / "dst"
    options = ToBf16(max_shard_size=2_000_000) if request.param == "flat" else ShardForTp(tp=2)
    made = prepare(tiny_fp8, dst, options)
    assert (max(t.team for t in made.plan.tasks) >= 0) == (request.param == "teams")
    return made


@pytest.mark.parametrize("files", [1, 2, 4])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_file_is_begun_before_it_is_ready(job: Job, files: int, seed: int) -> None:
    """And it is waited for only where nothing else is left to do."""
    tasks = job.plan.tasks
    staging = Staging(job.target, job.plan)
    staging.out.mkdir(parents=True, exist_ok=True)
    staging._make_folders()
    engine = Engine(job.catalogue, staging, Settings())
    feed = Chance(job.catalogue.folder, job.catalogue.shards, groups(tasks), Scratch())
    feed.rng = random.Random(seed)
    at = {t.file: -1 for t in tasks}
    idle: list[bool] = []
    real = feed.wait

    def wait(file: str) -> None:
        idle.append(all(at[t.file] in (-1, t.size) for t in tasks))
        real(file)

    def begin(task: Task) -> Any:
        assert task.file in feed.begun, task.file
        at[task.file] = 0
        return engine._begin(task)

    feed.wait = wait  # type: ignore[method-assign]
    for found in Jobs(tasks, begin, files, 1 << 18, feed):
        for run, tile in found:
            assert tile.begin == at[run.task.file]
            at[run.task.file] = tile.end
    assert at == {t.file: t.size for t in tasks}
    assert all(idle)
    assert idle[0]  # there is nothing else at the very first
    assert len(idle) < len(feed.wanted) or files == 1 or len(feed.wanted) == 1
    for run in engine._running:
        run.abandon()
    engine.sources.close()


# --- Whole runs


@pytest.fixture(scope="module")
def expected(job: Job) -> dict[str, bytes]:
    execute(job)
    return tree(Path(str(job.target)))


@pytest.mark.parametrize("how", LATE)
@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_bytes_however_late_shards_come(
    job: Job, expected: dict[str, bytes], how: str, workers: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fed = feeding(monkeypatch.setattr, LATE[how])
    seen: list[Progress] = []
    again = Job(job.catalogue, job.plan, tmp_path / "dst")
    scratch = Scratch(tmp_path / "scratch", 7, keep=True)
    execute(again, Settings(workers=workers, scratch=scratch, progress=seen.append))
    assert tree(tmp_path / "dst") == expected
    feed = fed()
    assert feed.errors == []
    assert feed.wanted == groups(job.plan.tasks)
    assert sorted(feed.finished) == sorted(t.file for t in job.plan.tasks)
    assert feed.calls == ["begin", "close"]
    assert feed.scratch == scratch
    assert feed.files.keys() == {s for group in feed.wanted for s in group.shards}
    came = sum(job.catalogue.shards[n].size for n in feed.files) if "coming" in how else 0
    assert seen[-1].arrived == came


def test_only_what_is_left_is_fed(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that the journal vouches for need no shards."""
    job = prepare(mini, fast_path / "dst", ToBf16(max_shard_size=CUT))
    stage = job.stage
    with stage.opened():
        stage.begin(job.catalogue.fingerprint)
        Engine(job.catalogue, stage, Settings(workers=1)).run(job.plan.tasks[:2])
    fed = feeding(monkeypatch.setattr, Strict)
    execute(job)
    assert [g.files for g in fed().wanted] == [(job.plan.tasks[2].file,)]
    assert fed().errors == []


# --- What goes wrong


class Broken(Strict):
    """Something fails at the second group."""

    error: BaseException = OSError(5, "Input/output error", "a shard")

    def __init__(self, where: str, *args: Any) -> None:
        super().__init__(*args)
        self.where = where

    def _fail(self, where: str, file: str) -> None:
        if self.where == where and file in self.wanted[1].files:
            raise self.error

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """Or right at the beginning."""
        super().begin(leaving, arrived)
        self._fail("begin", self.wanted[1].files[0])

    def is_there(self, group: Wanted) -> bool:
        """The second group's only when it is waited for."""
        self._fail("ready", group.files[0])
        return self.where != "wait" or group is not self.wanted[1]

    def wait(self, file: str) -> None:
        """Not the second."""
        self._fail("wait", file)
        super().wait(file)

    def opened(self, shard: int, io: str) -> SourceFile:
        """Only shards of the first."""
        if self.where == "opened" and shard not in self.wanted[0].shards:
            raise self.error
        return super().opened(shard, io)

    def done(self, file: str) -> None:
        """Not the second."""
        self._fail("done", file)
        super().done(file)


@pytest.mark.parametrize("where", ["begin", "ready", "wait", "opened", "done"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error", "a shard"),
                                   ResumableError("no network")])  # fmt: skip
def test_a_feed_that_fails(
    tiny_fp8: Path, fast_path: Path, where: str, workers: int, error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its error is told, it is stopped and closed, and nothing unfinished is left."""
    dst = fast_path / "dst"
    with monkeypatch.context() as patch:
        patch.setattr(Broken, "error", error)
        fed = feeding(patch.setattr, functools.partial(Broken, where))
        with pytest.raises(ResumableError, match=r"Input/output error \('a shard'\)|no network"):
            fp8convert.to_bf16(tiny_fp8, dst, workers=workers)
        feed = fed()
    assert "stop" in feed.calls
    assert feed.calls.count("close") == 1
    assert feed.calls[-1] == "close"
    assert all(file.fd == -1 for files in feed.files.values() for file in files)
    assert not dst.exists()
    assert not temporaries(fast_path)
    fp8convert.to_bf16(tiny_fp8, dst)
    fp8convert.to_bf16(tiny_fp8, fast_path / "other")
    assert contents(dst) == contents(fast_path / "other")


def test_a_feed_that_cannot_be_made(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def feed(self: Folder, *args: Any) -> Strict:
        raise Fp8ConvertError("no scratch")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "feed", feed)
        with pytest.raises(Fp8ConvertError, match="no scratch"):
            fp8convert.to_bf16(mini, fast_path / "dst", workers=3)
    assert not temporaries(fast_path)
    fp8convert.to_bf16(mini, fast_path / "dst")


class Never(Strict):
    """Its shards do not come."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.is_waited_for = threading.Event()

    def is_there(self, group: Wanted) -> bool:
        """Once it is known that somebody waits."""
        self.is_waited_for.set()
        return False


def test_an_interrupt_wakes_who_waits(
    mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread is interrupted while a worker waits for a shard."""
    fed = feeding(monkeypatch.setattr, Never)

    def wait(futures: Iterable[Any], timeout: float) -> None:
        feed = fed()
        assert isinstance(feed, Never)
        feed.is_waited_for.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "wait", wait)
    with pytest.raises(ResumableError, match="interrupted"):
        fp8convert.to_bf16(mini, fast_path / "dst", workers=3)
    assert fed().calls[:2] == ["begin", "stop"]
    assert fed().calls[-1] == "close"
    assert fed().waited
    assert fed().finished == []
    assert not temporaries(fast_path)


# --- Controls


def run_with(
    job: Job, dst: Path, patch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> Strict:
    """The feed of a run of a spoilt engine."""
    fed = feeding(patch.setattr, Tight)
    spoil(patch)
    execute(Job(job.catalogue, job.plan, dst), Settings(workers=1))
    return fed()


def asks_nobody(patch: pytest.MonkeyPatch) -> None:
    """Groups are begun as there is room for their files."""

    def may(self: Jobs) -> bool:
        return bool(self._waiting)

    patch.setattr(Jobs, "_may_begin", may)


def forgets_a_shard(patch: pytest.MonkeyPatch) -> None:
    """What a task reads is not all said."""
    real = Task.__dict__["reads"].func

    def reads(self: Task) -> dict[int, int]:
        return {n: nbytes for n, nbytes in real(self).items() if n}

    patch.setattr(Task, "reads", property(reads))


def keeps_shards_open(patch: pytest.MonkeyPatch) -> None:
    """What goes keeps its room."""
    patch.setattr(Sources, "forget", lambda self, shard: None)


@pytest.mark.parametrize("spoil", [asks_nobody, forgets_a_shard, keeps_shards_open])
def test_a_strict_feed_finds_it(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pytest.MonkeyPatch], None],
) -> None:  # fmt: skip
    assert run_with(job, tmp_path / "dst", monkeypatch, spoil).errors
