"""``fp8convert to-bf16``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError

from .progress import Meter
from .sizes import KeepOrSize, Size, human

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest
    from fp8convert.settings import Settings


@click.command(
    "to-bf16",
    epilog="\b\nExamples:\n  fp8convert to-bf16 DeepSeek-V3 DeepSeek-V3-bf16\n"
    "  fp8convert to-bf16 DeepSeek-V3 DeepSeek-V3-bf16 --dry-run\n"
    "  fp8convert to-bf16 SRC DST --max-shard-size 5GB --dtype float16",
)
@click.argument("src", required=False)
@click.argument("dst", required=False)
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]),
              default="bfloat16", show_default=True, help="Of the decoded weights.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), help="Threads.  [default: from the cores]")
@click.option("--memory", type=Size(), default="512MiB", show_default=True,
              help="Bound on the whole process's peak memory.")  # fmt: skip
@click.option("--io", type=click.Choice(["auto", "direct", "buffered"]), default="auto",
              show_default=True, help="How files are read and written.")  # fmt: skip
@click.option("--max-shard-size", type=KeepOrSize(), default="keep", show_default=True,
              help="Keep the source's shards, or cut new ones of at most SIZE.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@click.option("--strict", is_flag=True, help="Refuse warnings and overflowing products too.")
@click.option("--checksum", type=click.Choice(["sha256", "none"]), default="sha256",
              show_default=True, help="Sums for the manifest, taken while writing.")  # fmt: skip
@click.option("--copy-code", is_flag=True, help="Copy the repository's .py files as well.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
@click.option("--json", "as_json", is_flag=True, help="Summary (or plan) as JSON on stdout.")
@click.option("--input-fp8-hf-path", metavar="SRC", help="SRC, as the published script has it.")
@click.option("--output-bf16-hf-path", metavar="DST", help="DST, as the published script has it.")
def to_bf16_command(
    src: str | None,
    dst: str | None,
    input_fp8_hf_path: str | None,
    output_bf16_hf_path: str | None,
    **options: Any,
) -> None:
    """Convert the low-precision checkpoint folder SRC into a BF16 one at DST.

    DST appears whole or not at all. After an interruption the same command goes on where it
    stopped; on a finished DST it says so.
    """
    source = _one("SRC", src, "--input-fp8-hf-path", input_fp8_hf_path)
    target = _one("DST", dst, "--output-bf16-hf-path", output_bf16_hf_path)
    _convert(source, target, **options)


def _one(name: str, argument: str | None, flag: str, value: str | None) -> str:
    if (argument is None) == (value is None):
        raise click.UsageError(f"give {name} once: as an argument or with {flag}")
    return argument or value or ""


def _convert(
    source: str,
    target: str,
    *,
    workers: int | None,
    memory: int,
    io: str,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from fp8convert.convert import execute, prepare
    from fp8convert.plan import Options
    from fp8convert.settings import Settings

    with Meter(quiet) as meter:
        settings = Settings(workers or 0, memory, io, progress=meter)
        job = prepare(source, target, Options(**options))
        if not quiet:
            for warning in job.plan.warnings:
                click.echo(f"warning: {warning}", err=True)
        if dry_run:
            _print_plan(job, settings, as_json)
            return
        begun = time.monotonic()
        try:
            manifest = execute(job, settings)
        except TargetError:
            raise  # the state there may be another run's, still at work
        except (Fp8ConvertError, KeyboardInterrupt) as e:
            raise _with_what_is_left(e, job) from e
    _print_summary(job, manifest, time.monotonic() - begun, quiet, as_json)


def _with_what_is_left(error: BaseException, job: Job) -> Fp8ConvertError:
    """The error, and where the unfinished work is; said once the progress bar is closed."""
    stopped = error if isinstance(error, Fp8ConvertError) else ResumableError("interrupted")
    state = job.target.with_name(f".{job.target.name}.fp8convert")
    if not state.exists():
        return stopped
    return type(stopped)(f"{stopped}\nUnfinished work is in {state} (remove it to give up).")


def _print_plan(job: Job, settings: Settings, as_json: bool) -> None:
    plan = job.plan
    facts = {
        "target": str(job.target),
        "disk_needed": plan.bytes_out,
        "disk_free": job.disk_free,
        "peak_memory": settings.peak_memory,
        "workers": settings.threads,
    }
    if as_json:
        click.echo(json.dumps({**facts, **plan.to_dict()}, indent=1))
        return
    click.echo(f"plan         {plan.id}")
    click.echo(f"bytes in     {plan.bytes_in:,} ({human(plan.bytes_in)})")
    click.echo(f"bytes out    {plan.bytes_out:,} ({human(plan.bytes_out)})")
    enough = "" if job.disk_free >= plan.bytes_out else "  NOT ENOUGH"
    click.echo(f"disk needed  {human(plan.bytes_out)}, free {human(job.disk_free)}{enough}")
    click.echo(f"peak memory  {settings.peak_memory >> 20} MiB, {settings.threads} workers")
    click.echo(f"tasks        {len(plan.tasks)}")
    for task in plan.tasks:
        click.echo(f"  {task.file}  {len(task.items):,} tensors, {human(task.size)}")


def _print_summary(
    job: Job, manifest: Manifest, seconds: float, quiet: bool, as_json: bool
) -> None:
    data = manifest.data
    rate = (job.plan.bytes_in + job.plan.bytes_out) / seconds
    overflowed = sum(data["overflowed"].values())
    if as_json:
        facts = {
            "target": str(manifest.path),
            "already_done": manifest.already_done,
            "bytes_in": job.plan.bytes_in,
            "bytes_out": job.plan.bytes_out,
            "seconds": None if manifest.already_done else round(seconds, 3),
        }
        click.echo(json.dumps({**facts, **data}, indent=1))
    elif manifest.already_done and not quiet:
        click.echo(f"already done: {manifest.path} is finished, by this very plan")
    elif not quiet:
        click.echo(
            f"{data['weights_decoded']:,} weights decoded to {job.plan.options.dtype}, "
            f"{data['tensors_kept']:,} tensors kept, {data['parts_dropped']:,} scales dropped"
        )
        click.echo(
            f"{human(job.plan.bytes_in)} read, {human(job.plan.bytes_out)} written in "
            f"{seconds:.1f} s ({human(rate)}/s)"
        )
        if overflowed:
            click.echo(
                f"warning: {overflowed:,} products overflowed, in {len(data['overflowed'])} "
                "weights listed in manifest.json"
            )
        click.echo(f"done: {manifest.path}")
