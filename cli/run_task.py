"""``fp8convert run-task``: one worker's share of a plan."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from .conversion import telling_what_is_left
from .elsewhere import scratch_of
from .planned import PLAN_ARGUMENT, params_of
from .progress import Meter
from .sizes import human

if TYPE_CHECKING:
    from fp8convert.distributed import Planned, Work

_RUNNING = ("workers", "memory", "io", "scratch", "scratch_size", "keep_downloads", "quiet",
            "as_json")  # fmt: skip


@click.command(
    "run-task",
    epilog="\b\nExamples:\n  fp8convert run-task plan.json --index 0 --count 8\n"
    '  fp8convert run-task plan.json --index "$SLURM_ARRAY_TASK_ID" --count 8\n'
    "  fp8convert run-task plan.json --index 0 --count 8 --scratch /local --scratch-size 50GB",
)
@PLAN_ARGUMENT
@click.option("--index", type=click.IntRange(0), required=True, help="Of this worker, from 0.")
@click.option("--count", type=click.IntRange(1), required=True, help="Of all workers.")
def run_task_command(
    plan: str,
    index: int,
    count: int,
    *,
    workers: int | None,
    memory: int,
    io: str,
    scratch: str | None,
    scratch_size: int | None,
    keep_downloads: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the tasks INDEX, INDEX + COUNT, INDEX + 2 COUNT ... of a plan: those of one worker.

    What the run has finished already stays. Run again, here or elsewhere, it goes on where it
    stopped; that two machines run the same does no harm.
    """
    if index >= count:
        raise click.UsageError(f"--index {index}: with --count {count}, expected 0 to {count - 1}")
    from fp8convert.distributed import numbers, replanned, work
    from fp8convert.settings import Settings

    downloads = scratch_of(scratch, scratch_size, keep_downloads)
    with Meter(quiet) as meter:
        settings = Settings(workers or 0, memory, io, progress=meter, scratch=downloads)
        planned = replanned(plan)
        mine = numbers(len(planned.job.plan.tasks), index, count)
        begun = time.monotonic()
        with telling_what_is_left(planned.job):
            done = work(planned, mine, settings)
    seconds = time.monotonic() - begun
    if as_json:
        share = {"index": index, "count": count, "numbers": [*mine]}
        click.echo(json.dumps(_facts(planned, done, share, seconds), indent=1))
    elif not quiet:
        click.echo(_said(planned, done, seconds))


run_task_command.params += params_of("to-bf16", _RUNNING)


def _facts(planned: Planned, done: Work, share: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "plan": planned.file.plan,
        "run": planned.file.run,
        "target": str(planned.job.target),
        "already_done": done.manifest is not None,
        "tasks": len(planned.job.plan.tasks),
        **share,
        "done": len(done.records) - done.there,
        "there": done.there,
        "files": [{"name": r.file, "size": r.size, "sha256": r.sha256} for r in done.records],
        "seconds": round(seconds, 3),
    }


def _said(planned: Planned, done: Work, seconds: float) -> str:
    if done.manifest:
        return f"already done: {planned.job.target} is finished, by this very plan"
    new, every = len(done.records) - done.there, len(planned.job.plan.tasks)
    nbytes = sum(r.size for r in done.records)
    there = f", {done.there:,} were there already" if done.there else ""
    return (
        f"{len(done.records):,} of {every:,} tasks are this worker's, {human(nbytes)}: {new:,} done"
        f"{there}, in {seconds:.1f} s"
    )
