"""What the converting commands share: options of the engine, progress, summary, plan."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError

from .progress import Meter
from .sizes import KeepOrSize, Size, human

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest
    from fp8convert.options import Options
    from fp8convert.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--workers", type=click.IntRange(1), help="Threads.  [default: from the cores]"),
    click.option("--memory", type=Size(), default="512MiB", show_default=True,
                 help="Bound on the whole process's peak memory."),
    click.option("--io", type=click.Choice(["auto", "direct", "buffered"]), default="auto",
                 show_default=True, help="How files are read and written."),
    click.option("--max-shard-size", type=KeepOrSize(), default="keep", show_default=True,
                 help="Keep the source's shards, or cut new ones of at most SIZE."),
    click.option("--dry-run", is_flag=True, help="Print the plan; write nothing."),
    click.option("--strict", is_flag=True, help="Refuse warnings and overflowing products too."),
    click.option("--checksum", type=click.Choice(["sha256", "none"]), default="sha256",
                 show_default=True, help="Sums for the manifest, taken while writing."),
    click.option("--copy-code", is_flag=True, help="Copy the repository's .py files as well."),
    click.option("--quiet", is_flag=True, help="No progress, no summary."),
    click.option("--json", "as_json", is_flag=True, help="Summary (or plan) as JSON on stdout."),
)  # fmt: skip


def engine_options(command: Command) -> Command:
    """The options that every converting command has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def convert(
    source: str,
    target: str,
    make: Callable[..., Options],
    summary: Callable[[Job, Manifest], None],
    *,
    workers: int | None,
    memory: int,
    io: str,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> Manifest | None:
    """Plan and run; ``make`` takes the other options, ``summary`` prints what was done.

    None if it was a dry run.
    """
    from fp8convert.convert import execute, prepare
    from fp8convert.settings import Settings

    with Meter(quiet) as meter:
        settings = Settings(workers or 0, memory, io, progress=meter)
        job = prepare(source, target, make(**options))
        if not quiet:
            for warning in job.plan.warnings:
                click.echo(f"warning: {warning}", err=True)
        settings.fitted(job.plan.needs)  # or refuse here
        if dry_run:
            _print_plan(job, settings, as_json)
            return None
        begun = time.monotonic()
        try:
            manifest = execute(job, settings)
        except TargetError:
            raise  # the state there may be another run's, still at work
        except (Fp8ConvertError, KeyboardInterrupt) as e:
            raise _with_what_is_left(e, job) from e
    seconds = time.monotonic() - begun
    if as_json:
        _print_json(job, manifest, seconds)
    elif not quiet:
        _print_done(job, manifest, seconds, summary)
    return manifest


def one(name: str, argument: Any, flag: str, value: Any) -> Any:
    """What was given, as an argument or by the ``flag`` of a published script; one of them is."""
    if (argument is None) == (value is None):
        raise click.UsageError(f"give {name} once: as an argument or with {flag}")
    return value if argument is None else argument


def _with_what_is_left(error: BaseException, job: Job) -> Fp8ConvertError:
    """The error, and where the unfinished work is; said once the progress bar is closed."""
    stopped = error if isinstance(error, Fp8ConvertError) else ResumableError("interrupted")
    state = job.target.with_name(f".{job.target.name}.fp8convert")
    if not state.exists():
        return stopped
    return type(stopped)(f"{stopped}\nUnfinished work is in {state} (remove it to give up).")


def _print_plan(job: Job, settings: Settings, as_json: bool) -> None:
    from fp8convert.report import counts

    plan = job.plan
    fitted = settings.fitted(plan.needs)
    facts = {
        "target": str(job.target),
        "disk_needed": plan.disk_needed,
        "disk_free": job.disk_free,
        "peak_memory": fitted.peak_memory,
        "workers": fitted.threads,
    }
    if as_json:
        click.echo(json.dumps({**facts, **plan.to_dict()}, indent=1))
        return
    click.echo(f"plan         {plan.id}")
    click.echo(f"bytes in     {plan.bytes_in:,} ({human(plan.bytes_in)})")
    click.echo(f"bytes out    {plan.bytes_out:,} ({human(plan.bytes_out)})")
    enough = "" if job.disk_free >= plan.disk_needed else "  NOT ENOUGH"
    click.echo(f"disk needed  {human(plan.disk_needed)}, free {human(job.disk_free)}{enough}")
    click.echo(f"peak memory  {fitted.peak_memory >> 20} MiB, {fitted.threads} workers")
    click.echo(f"weights      {_counted(counts(plan))}")
    for note in plan.notes:
        click.echo(f"note         {note}")
    click.echo(f"tasks        {len(plan.tasks)}")
    for task in plan.tasks:
        click.echo(f"  {task.file}  {len(task.items):,} tensors, {human(task.size)}")


def _counted(found: dict[str, int]) -> str:
    """``156 encoded, 12 copied, 0 decoded; 18 tensors kept``: what a plan will do."""
    done = [f"{n:,} {key.removeprefix('weights_')}" for key, n in found.items() if "weights" in key]
    return f"{', '.join(done)}; {found['tensors_kept']:,} tensors kept"


def _print_json(job: Job, manifest: Manifest, seconds: float) -> None:
    facts = {
        "target": str(manifest.path),
        "already_done": manifest.already_done,
        "bytes_in": job.plan.bytes_in,
        "bytes_out": job.plan.bytes_out,
        "seconds": None if manifest.already_done else round(seconds, 3),
    }
    click.echo(json.dumps({**facts, **manifest.data}, indent=1))


def _print_done(
    job: Job, manifest: Manifest, seconds: float, summary: Callable[[Job, Manifest], None]
) -> None:
    if manifest.already_done:
        click.echo(f"already done: {manifest.path} is finished, by this very plan")
        return
    summary(job, manifest)
    rate = (job.plan.bytes_in + job.plan.bytes_out) / seconds
    click.echo(
        f"{human(job.plan.bytes_in)} read, {human(job.plan.bytes_out)} written in "
        f"{seconds:.1f} s ({human(rate)}/s)"
    )
    overflowed = manifest.data["overflowed"]
    if overflowed:
        click.echo(
            f"warning: {sum(overflowed.values()):,} products overflowed, in {len(overflowed)} "
            "weights listed in manifest.json"
        )
    click.echo(f"done: {manifest.path}")
