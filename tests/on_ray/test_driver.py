"""What needs no cluster: one worker's part, errors on their way back, settings, connections."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from fp8convert import convert, errors, executors
from fp8convert.convert import prepare
from fp8convert.distributed import write_plan
from fp8convert.errors import (
    DataError,
    Fp8ConvertError,
    ResumableError,
    TargetError,
    UsageError,
)
from fp8convert.executors import cluster, on_ray, working
from fp8convert.executors.on_ray import worker_settings
from fp8convert.executors.totals import Count
from fp8convert.executors.working import Outcome, work_on
from fp8convert.hub import shipper
from fp8convert.hub.push import Push
from fp8convert.job import Job, Manifest
from fp8convert.lock import BusyError
from fp8convert.options import Quantize, ToBf16
from fp8convert.settings import Settings

from ..mini import CUT
from .runs import contents

HOW = {"workers": 1, "memory": 512 << 20, "io": "auto"}


@pytest.fixture
def job(mini: Path, tmp_path: Path) -> Job:
    working._planned.cache_clear()
    return prepare(mini, tmp_path / "dst", ToBf16(max_shard_size=CUT))


@pytest.mark.parametrize("travels", ["path", "bytes"])
def test_a_worker_plans_once_and_does_its_tasks(
    travels: str, job: Job, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    run = write_plan(job, path).run
    plan = str(path) if travels == "path" else path.read_bytes()
    planned: list[Any] = []
    real = working.replanned

    def counted(path: Any) -> Any:
        planned.append(path)
        return real(path)

    monkeypatch.setattr(working, "replanned", counted)
    outcomes = [work_on(plan, run, n, HOW, "nobody") for n in range(len(job.plan.tasks))]
    assert [o.error for o in outcomes] == [""] * 3
    assert [o.moved.written for o in outcomes] == [t.size for t in job.plan.tasks]
    assert len(planned) == 1
    on_ray.complete(real(path))
    convert.to_bf16(mini, tmp_path / "local", max_shard_size=CUT)
    assert contents(tmp_path / "dst") == contents(tmp_path / "local")


def test_a_node_that_does_not_see_the_target(job: Job, tmp_path: Path) -> None:
    run = write_plan(job, tmp_path / "plan.json").run
    (tmp_path / ".dst.fp8convert").rename(tmp_path / "elsewhere")
    outcome = work_on(str(tmp_path / "plan.json"), run, 0, HOW, "nobody")
    with pytest.raises(TargetError, match="on storage that all machines share"):
        outcome.check()
    assert not (tmp_path / ".dst.fp8convert").exists()


def test_a_worker_of_a_run_that_was_overtaken(job: Job, tmp_path: Path) -> None:
    first = write_plan(job, tmp_path / "plan.json").run
    write_plan(job, tmp_path / "plan.json")
    with pytest.raises(ResumableError, match=r"another run on .* has taken over"):
        work_on(str(tmp_path / "plan.json"), first, 0, HOW, "nobody").check()


def test_no_other_run_begins_while_one_is_held(job: Job, mini: Path, tmp_path: Path) -> None:
    run = write_plan(job, tmp_path / "plan.json").run
    with on_ray._held(job, run), pytest.raises(BusyError, match="another run is writing"):
        convert.to_bf16(mini, tmp_path / "dst", max_shard_size=CUT)
    convert.to_bf16(mini, tmp_path / "dst", max_shard_size=CUT)  # it is let go


def test_after_a_failure_workers_are_put_out(job: Job, tmp_path: Path) -> None:
    run = write_plan(job, tmp_path / "plan.json").run
    with pytest.raises(DataError), on_ray._held(job, run):
        raise DataError("of one of them")
    with pytest.raises(TargetError, match="plan again"):
        work_on(str(tmp_path / "plan.json"), run, 0, HOW, "nobody").check()


def test_a_run_that_another_has_taken_over_leaves_it_alone(job: Job, tmp_path: Path) -> None:
    first = write_plan(job, tmp_path / "plan.json").run
    second = write_plan(job, tmp_path / "plan.json").run
    with pytest.raises(Fp8ConvertError), on_ray._held(job, first):
        raise AssertionError("it is held")
    assert work_on(str(tmp_path / "plan.json"), second, 0, HOW, "nobody").error == ""


KINDS = [k for k in vars(errors).values() if isinstance(k, type)]


@pytest.mark.parametrize("kind", [*KINDS, BusyError])
def test_errors_are_the_same_where_they_are_heard(
    kind: type[Fp8ConvertError], job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise kind("words\nof more than one line")

    monkeypatch.setattr(working, "work", refuse)
    run = write_plan(job, tmp_path / "plan.json").run
    outcome = work_on(str(tmp_path / "plan.json"), run, 0, HOW, "nobody")
    with pytest.raises(Fp8ConvertError, match=r"^words\nof more than one line$") as raised:
        outcome.check()
    assert type(raised.value) is (TargetError if kind is BusyError else kind)


def test_an_outcome_that_is_none_is_quiet() -> None:
    Outcome(Count(3)).check()


def test_settings_of_a_task(job: Job, mini: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    found = worker_settings(Settings(progress=told.append), job)
    assert (found.workers, found.progress) == (on_ray.THREADS, None)
    assert worker_settings(Settings(workers=3), job).workers == 3
    encoding = prepare(mini, tmp_path / "int8", Quantize(scheme="int8-channel"))
    assert worker_settings(Settings(), encoding).workers == 2
    with pytest.raises(UsageError, match="too little"):
        worker_settings(Settings(memory=100 << 20), job)


def test_without_ray(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'fp8convert\[ray\]'"):
        executors.run("ray", job)
    assert job.stage.left() is None


def test_another_executor_is_none(job: Job) -> None:
    with pytest.raises(UsageError, match="executor 'dask', expected one of local, ray"):
        executors.run("dask", job)


def test_the_local_executor(job: Job, tmp_path: Path) -> None:
    assert executors.run("local", job).path == tmp_path / "dst"


def test_no_cluster_at_ray_address(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ResumableError, match="no Ray cluster answers at RAY_ADDRESS="):
            executors.run("ray", job)
    assert job.stage.left() is None


class Fake:
    """A module ``ray`` that is refused by what is there."""

    exceptions = exceptions

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.asked, self.shut = list(errors), [], 0  # type: ignore[var-annotated]

    def is_initialized(self) -> bool:
        return False

    def init(self, **words: Any) -> None:
        self.asked.append(words)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        if error := self.errors.pop(0):
            raise error

    def shutdown(self) -> None:
        self.shut += 1


@pytest.mark.parametrize("errors", [[None], [ValueError("there is one"), None]])
def test_connecting(errors: list[Exception | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Fake(*errors)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        with cluster.connected():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ray.shut == 1
    assert all(words["log_to_driver"] is False for words in ray.asked)
    assert "object_store_memory" in ray.asked[0]  # which is what a cluster that is there refuses
    assert all("object_store_memory" not in words for words in ray.asked[1:])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("Version mismatch: the cluster was started with"), UsageError),
        (exceptions.RayError("Token authentication is enabled but no"), UsageError),
        (ConnectionError("nobody"), ResumableError),
    ],
)
def test_a_cluster_that_refuses(
    error: Exception, kind: type[Fp8ConvertError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Fake(error)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(kind, match=str(error)) as raised, cluster.connected():
        raise AssertionError("it is connected")
    assert ("RAY_AUTH_MODE=token" in str(raised.value)) == (kind is ResumableError)
    assert signal.getsignal(signal.SIGTERM) is before
    assert ray.shut == 1


def test_a_signal_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends the process by SystemExit then; whoever runs this has said what is to become."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray, noted = Fake(SystemExit(15)), list[int]()  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]

    def stop(signum: int, _: object) -> None:
        noted.append(signum)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), cluster.connected():
            raise AssertionError("it is connected")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (noted, ray.shut) == ([signal.SIGTERM], 1)


def test_what_a_process_is_connected_to_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Fake()
    ray.is_initialized = lambda: True  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    with cluster.connected() as found:
        assert found is ray
    assert (ray.asked, ray.shut) == ([], 0)


def test_uploading_follows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    made, pushed = Manifest(job.target, {}), Manifest(job.target, {}, already_done=True)
    settings, push = Settings(), Push("org/name")

    def noting(name: str, result: Any) -> Any:
        return lambda *args: done.append((name, *args)) or result

    monkeypatch.setattr(on_ray, "run", noting("run", made))
    monkeypatch.setattr(shipper, "check", noting("check", None))
    monkeypatch.setattr(shipper, "deliver", noting("deliver", pushed))
    assert executors.run("ray", job, settings, push) is pushed
    assert done == [("check", job, push), ("run", job, settings), ("deliver", job, made, push)]
    done.clear()
    there = Manifest(job.target, {"files": []}, already_done=True)  # its weights may be dropped
    monkeypatch.setattr(shipper, "check", noting("check", there))
    assert executors.run("ray", job, settings, push) is pushed
    assert done == [("check", job, push), ("deliver", job, there, push)]
    done.clear()
    assert executors.run("ray", job, settings) is made
    assert done == [("run", job, settings)]


@pytest.mark.parametrize("wrapped", [True, False])
def test_patience_with_those_that_hold_the_lock(wrapped: bool) -> None:
    left = [BusyError("busy"), BusyError("busy")]

    def action() -> str:
        if not left:
            return "done"
        if wrapped:
            raise TargetError("in other words") from left.pop()
        raise left.pop()

    assert on_ray._patient(action, 60) == "done"
    left.append(BusyError("busy"))
    with pytest.raises(TargetError):
        on_ray._patient(action, 0)


def test_no_patience_with_other_errors() -> None:
    asked = SimpleNamespace(count=0)

    def action() -> None:
        asked.count += 1
        raise TargetError("no")

    with pytest.raises(TargetError, match="no"):
        on_ray._patient(action, 60)
    assert asked.count == 1
