"""What the converting commands share: options of the engine, progress, summary, plan."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError, UsageError

from .elsewhere import (
    EXECUTOR_OPTIONS,
    PUSH_NAMES,
    PUSH_OPTIONS,
    SCRATCH_OPTIONS,
    push_of,
    scratch_of,
    taken,
)  # fmt: skip
from .progress import Meter
from .sizes import KeepOrSize, Size
from .summary import print_done, print_json, print_plan

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest
    from fp8convert.hub.push import Push
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
    *SCRATCH_OPTIONS,
    *PUSH_OPTIONS,
    *EXECUTOR_OPTIONS,
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
    executor: str,
    **options: Any,
) -> Manifest | None:
    """Plan and run; ``make`` takes the other options, ``summary`` prints what was done.

    None if it was a dry run.
    """
    from fp8convert.convert import prepare
    from fp8convert.settings import Settings

    scratch = scratch_of(**taken(options, "scratch", "scratch_size", "keep_downloads"))
    pushing = taken(options, *PUSH_NAMES)
    with Meter(quiet) as meter:
        push = push_of(**pushing, progress=lambda n, of: meter.show("sending", "sent", n, of))
        settings = Settings(workers or 0, memory, io, progress=meter, scratch=scratch)
        job = prepare(source, target, make(**options))
        if not quiet:
            announce(job)
        job.fitted(settings)  # or refuse here
        if dry_run:
            print_plan(job, settings, as_json, push)
            return None
        begun = time.monotonic()
        with telling_what_is_left(job):
            manifest = _executed(executor, job, settings, push)
    seconds = time.monotonic() - begun
    if as_json:
        print_json(job, manifest, seconds)
    elif not quiet:
        print_done(job, manifest, seconds, summary)
    return manifest


def announce(job: Job) -> None:
    """What a user wants to hear before the work begins."""
    for remark in job.catalogue.folder.remarks:
        click.echo(f"note: {remark}", err=True)
    for warning in job.plan.warnings:
        click.echo(f"warning: {warning}", err=True)


def _executed(executor: str, job: Job, settings: Settings, push: Push | None) -> Manifest:
    if executor != "local":
        from fp8convert import executors

        # Ray prints on stdout which nodes were lost, and there is where the outcome goes.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return executors.run(executor, job, settings, push)
    from fp8convert.convert import execute

    return execute(job, settings, push)


def one(name: str, argument: Any, flag: str, value: Any) -> Any:
    """What was given, as an argument or by the ``flag`` of a published script; one of them is."""
    if (argument is None) == (value is None):
        raise click.UsageError(f"give {name} once: as an argument or with {flag}")
    return value if argument is None else argument


@contextlib.contextmanager
def telling_what_is_left(job: Job) -> Iterator[None]:
    """An error that ends the work of ``job`` says where that is."""
    try:
        yield
    except (TargetError, UsageError):
        raise  # nothing was begun: what is there may be another run's, still at work
    except (Fp8ConvertError, KeyboardInterrupt) as e:
        raise _with_what_is_left(e, job) from e


def _with_what_is_left(error: BaseException, job: Job) -> Fp8ConvertError:
    """The error, and where the unfinished work is; said once the progress bar is closed."""
    stopped = error if isinstance(error, Fp8ConvertError) else ResumableError("interrupted")
    left = job.stage.left()
    if left is None:
        return stopped
    waiting = job.downloads
    if waiting is not None and waiting.is_dir():
        left += f", downloads in {waiting}"
    return type(stopped)(f"{stopped}\nUnfinished work is in {left} (remove it to give up).")
