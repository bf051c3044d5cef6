"""The executor ``ray``: a Ray task for every output file; seen from outside, as a local run.

The run is begun here and held while its tasks are out, so that another one is refused; files are
written where Ray has room, and what they make up is put in its place here.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..convert import execute, resumable, undisturbed
from ..distributed import PlanFile, Planned, begin, complete, write_plan
from ..errors import Fp8ConvertError
from ..job import Job, Manifest
from ..lock import TEMPORARY, BusyError
from ..settings import Settings, usual
from ..stage import Stage
from ..staged import state_of
from .cluster import connected
from .tasks import CPUS, Tasks
from .working import Plan

THREADS = 6  # of a task, at most: of more, one file only fills the buffers, which costs
ENDING_S = 10.0  # that workers which were lost may take to be gone
STOPPING_S = 2.0  # the same, where nobody wants to wait

T = TypeVar("T")


def run(job: Job, settings: Settings | None = None) -> Manifest:
    """As :func:`~fp8convert.convert.execute`; workers of a Ray cluster write the files."""
    settings = settings or Settings()
    with resumable():
        if job.stage.finished(job.catalogue.fingerprint) is not None:
            return execute(job, settings)
    how = worker_settings(settings, job)
    with connected() as ray:
        tasks = Tasks(ray, job.plan, how, settings.scratch, settings.progress)
        with _written(job) as (file, plan):
            if file.run:  # else another run has ended it meanwhile
                with _held(job, file.run):
                    tasks.run(plan, file.run)
        return _patient(lambda: complete(Planned(file, job)), ENDING_S)


def worker_settings(settings: Settings, job: Job) -> Settings:
    """Those of one task: as many threads as its CPUs keep busy, unless it is said how many."""
    workers = settings.workers or min(usual(job.plan.needs, CPUS), THREADS)
    return job.fitted(replace(settings, workers=workers, progress=None))


@contextlib.contextmanager
def _written(job: Job) -> Iterator[tuple[PlanFile, Plan]]:
    """The run is begun. Its plan lies in the state folder, which all nodes see, until DST appears
    or another run begins."""
    if isinstance(job.target, Path):
        path = state_of(job.target) / f"plan{TEMPORARY}"

        def write(file: PlanFile) -> None:
            if file.run:  # else DST is there, and no state folder
                file.write(path)

        yield begin(job, write), str(path)
        return
    with tempfile.TemporaryDirectory(prefix="fp8convert-") as folder:
        path = Path(folder, "plan.json")
        yield write_plan(job, path), path.read_bytes()


@contextlib.contextmanager
def _held(job: Job, run: str) -> Iterator[None]:
    """No other run begins meanwhile. After a failure no worker of this one writes any more, and
    what was unfinished is gone, as far as that is possible."""
    stage, source, ours = job.stage, job.catalogue.fingerprint, False
    try:
        with resumable(), stage.joined(source, run), undisturbed(stage):
            try:
                yield
            except BaseException:
                ours = stage.overtaken() is None
                raise
    except BaseException:
        if ours:
            with contextlib.suppress(OSError, Fp8ConvertError):
                _patient(lambda: _put_out(stage, source), STOPPING_S)
        raise


def _put_out(stage: Stage, source: dict[str, Any]) -> None:
    with stage.opened():
        stage.begin(source)


def _patient(action: Callable[[], T], seconds: float) -> T:
    """``action``, again for some time while it is refused because somebody holds the lock."""
    until = time.monotonic() + seconds
    while True:
        try:
            return action()
        except BusyError:
            if time.monotonic() >= until:
                raise
        except Fp8ConvertError as e:
            if not isinstance(e.__cause__, BusyError) or time.monotonic() >= until:
                raise
        time.sleep(0.05)
