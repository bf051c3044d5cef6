"""One run on many machines: each works on some tasks of a plan, and one of them ends it.

Only the path of plan.json and the numbers of tasks travel. A worker plans again from the source,
and refuses if that is another plan; it joins the run that :func:`write_plan` has begun, which it
must see in the target's state folder, and writes what the journal there lacks. See
docs/distributed.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from .convert import finish, prepare, resumable, undisturbed
from .engine import Engine
from .errors import TargetError, UsageError, shown
from .folder import Folder
from .job import Job, Manifest
from .journal import Record
from .lock import BusyError
from .plan import Task
from .planfile import PlanFile, read_plan
from .settings import Settings
from .space import check_space
from .stage import Stage
from .staged import state_of
from .target import differences

__all__ = [
    "PlanFile",
    "Planned",
    "Work",
    "begin",
    "complete",
    "finalize",
    "numbers",
    "read_plan",
    "replanned",
    "run_tasks",
    "work",
    "write_plan",
]  # fmt: skip

LISTED = 20  # tasks that a message names


class Work(NamedTuple):
    """What a worker has done: the records of its tasks, in their order; how many of them the
    journal had before. No records, but the manifest, if the target was finished already."""

    records: list[Record]
    there: int
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Planned:
    """A plan file's job, planned again on this machine."""

    file: PlanFile
    job: Job

    def finished(self, stage: Stage) -> Manifest | None:
        """The manifest, if the target is there already."""
        found = stage.finished(self.job.catalogue.fingerprint)
        return None if found is None else Manifest(self.job.target, found, already_done=True)

    def looked_at(self, stage: Stage) -> Manifest | None:
        """As :meth:`finished`; TargetError if it is not, and this machine does not see the run."""
        left = stage.left()  # looked for first: what has gone by then is the target
        if manifest := self.finished(stage):
            return manifest
        if not self.file.run:
            raise TargetError(
                f"{shown(self.job.target)} was finished when it was planned, and is not there: "
                "plan again"
            )
        if left is None:
            raise TargetError(
                f"the run that was planned for {shown(self.job.target)} is not to be seen from "
                "this machine: expected its state folder there. The target must be on storage that "
                "all machines share, at the same path; if that run was given up, plan again"
            )
        return None


def write_plan(job: Job, path: str | os.PathLike[str]) -> PlanFile:
    """Begin a run for others to work on, and write plan.json.

    What an earlier run has finished stays; workers of earlier plans are put out. Of a target that
    is finished the plan's ``run`` is empty, and whoever reads it says so.
    """
    _check_place(job, Path(os.path.abspath(path)))
    return begin(job, lambda file: file.write(path))


def begin(job: Job, write: Callable[[PlanFile], None]) -> PlanFile:
    """As :func:`write_plan`; ``write`` is called where no other run can begin meanwhile."""
    stage = job.stage
    with resumable():
        source = job.catalogue.fingerprint
        if stage.finished(source) is not None:
            stage.tidy(source)
            return _written(PlanFile.of(job, ""), write)
        if stage.left() is None:
            check_space(job, stage)
        with stage.opened(), undisturbed(stage):
            if stage.finished(source) is not None:  # meanwhile
                stage.supersede(source)
                return _written(PlanFile.of(job, ""), write)
            run = stage.begin(source)
            check_space(job, stage)
            return _written(PlanFile.of(job, run), write)


def numbers(tasks: int, index: int, count: int) -> range:
    """The tasks, of so many, of worker ``index`` of ``count``; none if there are more workers."""
    if count < 1 or not 0 <= index < count:
        raise UsageError(f"index {index} of {count} workers, expected 0 to {count - 1}")
    return range(index, tasks, count)


def replanned(path: str | os.PathLike[str]) -> Planned:
    """Plan again what plan.json is of; TargetError if that is another plan now."""
    file = read_plan(path)
    job = prepare(file.source, file.target, file.located)
    job = replace(job, plan=replace(job.plan, options=file.chosen))
    if job.plan.id != file.plan:
        notes = differences(file.identity, job.plan.identity)
        raise TargetError(
            f"{shown(path)} is not the plan of what is in {shown(file.source)} now:\n"
            + "\n".join(notes)
            + "\nPlan again"
        )
    return Planned(file, job)


def run_tasks(
    path: str | os.PathLike[str], numbers: Sequence[int], settings: Settings | None = None
) -> list[Record]:
    """Run tasks of the plan at ``path``, by number; their records.

    None if the target was finished already. Errors are those of :func:`.convert.execute`.
    """
    return work(replanned(path), numbers, settings).records


def work(planned: Planned, numbers: Sequence[int], settings: Settings | None = None) -> Work:
    """As :func:`run_tasks`, for who runs several times."""
    job, stage = planned.job, planned.job.stage
    tasks = [_task(job, n) for n in numbers]
    settings = job.fitted(settings or Settings())
    with resumable():
        if manifest := planned.looked_at(stage):
            return Work([], 0, manifest)
        source, run = job.catalogue.fingerprint, planned.file.run
        with stage.joined(source, run), undisturbed(stage):
            there = sum(stage.recorded(t) is not None for t in tasks)
            return Work(Engine(job.catalogue, stage, settings).run(tasks), there)


def finalize(path: str | os.PathLike[str]) -> Manifest:
    """End the run of the plan at ``path``: the target appears. TargetError if tasks are missing,
    which leaves the run as it is, or while others are at work."""
    return complete(replanned(path))


def complete(planned: Planned) -> Manifest:
    """As :func:`finalize`."""
    job, stage = planned.job, planned.job.stage
    source = job.catalogue.fingerprint
    with resumable():
        if manifest := planned.looked_at(stage):
            stage.tidy(source)
            return manifest
        if missing := _missing(job, stage):
            with stage.joined(source, planned.file.run):
                pass  # or it is of another run, which is what is to be told
            raise missing
        with _alone(job, stage), undisturbed(stage):
            if manifest := planned.finished(stage):  # meanwhile
                stage.supersede(source)
                return manifest
            if missing := _missing(job, stage):
                raise missing
            stage.begin(source)
            return finish(job, stage, _records(job, stage))


def _task(job: Job, number: int) -> Task:
    if not 0 <= number < len(job.plan.tasks):
        raise UsageError(f"task {number}, expected 0 to {len(job.plan.tasks) - 1}")
    return job.plan.tasks[number]


@contextlib.contextmanager
def _alone(job: Job, stage: Stage) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(stage.opened())
        except BusyError as e:
            raise TargetError(
                f"{e}: all tasks are done, but workers are still at work there; wait until they "
                "have ended, and finalize again"
            ) from e
        yield


def _records(job: Job, stage: Stage) -> list[Record]:
    found = [r for r in map(stage.recorded, job.plan.tasks) if r]
    if len(found) < len(job.plan.tasks):  # what was there a moment ago is not
        raise TargetError(f"finished files of {shown(job.target)} have gone: plan again")
    return found


def _missing(job: Job, stage: Stage) -> TargetError | None:
    """The refusal of a run with tasks that are not done; None if all are."""
    found = [(n, t.file) for n, t in enumerate(job.plan.tasks) if not stage.recorded(t)]
    if not found:
        return None
    rest = len(found) - LISTED
    return TargetError(
        f"{len(found):,} of {len(job.plan.tasks):,} tasks are not done:\n"
        + "\n".join(f"  {n}  {shown(file)}" for n, file in found[:LISTED])
        + (f"\n  and {rest:,} more" if rest > 0 else "")
        + "\nWait for their workers, or run them again (run-task)"
    )


def _written(file: PlanFile, write: Callable[[PlanFile], None]) -> PlanFile:
    write(file)
    return file


def _check_place(job: Job, path: Path) -> None:
    """UsageError if plan.json would lie where only a checkpoint, or a run's state, does."""
    place, source = Path(os.path.realpath(path.parent), path.name), job.catalogue.folder
    folders = [source.root] if isinstance(source, Folder) else []
    if isinstance(job.target, Path):
        folders += [job.target, state_of(job.target)]
    for folder in folders:
        if place.is_relative_to(folder):
            raise UsageError(f"{shown(path)}: a plan is not to lie in {shown(folder)}")
