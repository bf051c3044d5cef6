"""What a converting command prints: its plan, and what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .sizes import human

if TYPE_CHECKING:
    from fp8convert.convert import Job, Manifest
    from fp8convert.hub.push import Push, Pushed
    from fp8convert.settings import Settings


def print_plan(job: Job, settings: Settings, as_json: bool, push: Push | None = None) -> None:
    from fp8convert.report import counts
    from fp8convert.space import room_for

    plan = job.plan
    needed = plan.disk_needed
    if push:
        from fp8convert.hub.paced import most_at_once
        from fp8convert.hub.shipper import uploadable

        uploadable(job, push)
        needed = min(needed, most_at_once(plan)) if push.drop else needed
    fitted = job.fitted(settings)
    scratch, free_there, shared = room_for(job, fitted.scratch)
    facts: dict[str, Any] = {
        "target": str(job.target),
        "disk_needed": needed,
        "disk_free": job.disk_free,
        "scratch": scratch,
        "peak_memory": fitted.peak_memory,
        "workers": fitted.threads,
        **({"push_to_hub": push.place} if push else {}),
    }
    if as_json:
        click.echo(json.dumps({**facts, **plan.to_dict()}, indent=1))
        return
    click.echo(f"plan         {plan.id}")
    click.echo(f"bytes in     {plan.bytes_in:,} ({human(plan.bytes_in)})")
    click.echo(f"bytes out    {plan.bytes_out:,} ({human(plan.bytes_out)})")
    free = facts["disk_free"]
    if free is not None:
        enough = "" if free >= needed + scratch * shared else "  NOT ENOUGH"
        click.echo(f"disk needed  {human(needed)}, free {human(free)}{enough}")
    if scratch:
        enough = "" if shared or free_there >= scratch else "  NOT ENOUGH"
        where = f"in {fitted.scratch.folder}, free {human(free_there)}"
        click.echo(f"scratch      {human(scratch)} {where}{enough}")
    click.echo(f"peak memory  {fitted.peak_memory >> 20} MiB, {fitted.threads} workers")
    click.echo(f"weights      {_counted(counts(plan))}")
    for note in plan.notes:
        click.echo(f"note         {note}")
    if push:
        click.echo(f"upload to    {push.place}")
    click.echo(f"tasks        {len(plan.tasks)}")
    for task in plan.tasks:
        click.echo(f"  {task.file}  {len(task.items):,} tensors, {human(task.size)}")


def _counted(found: dict[str, int]) -> str:
    """``156 encoded, 12 copied, 0 decoded; 18 tensors kept``: what a plan will do."""
    done = [f"{n:,} {key.removeprefix('weights_')}" for key, n in found.items() if "weights" in key]
    return f"{', '.join(done)}; {found['tensors_kept']:,} tensors kept"


def print_json(job: Job, manifest: Manifest, seconds: float | None) -> None:
    facts = {
        "target": str(manifest.path),
        "already_done": manifest.already_done,
        "bytes_in": job.plan.bytes_in,
        "bytes_out": job.plan.bytes_out,
        "seconds": None if manifest.already_done or seconds is None else round(seconds, 3),
    }
    pushed = {"pushed": manifest.pushed.to_dict()} if manifest.pushed else {}
    click.echo(json.dumps({**facts, **pushed, **manifest.data}, indent=1))


def print_done(
    job: Job, manifest: Manifest, seconds: float | None, summary: Callable[[Job, Manifest], None]
) -> None:
    """``seconds`` of the whole work, if one process has done it."""
    if manifest.already_done:
        click.echo(f"already done: {manifest.path} is finished, by this very plan")
    else:
        _print_work(job, manifest, seconds, summary)
    if manifest.pushed:
        _print_pushed(manifest.pushed)


def _print_pushed(pushed: Pushed) -> None:
    done = "already there" if pushed.already else "uploaded"
    click.echo(f"{done}: {pushed.url}, commit {pushed.commit}")
    if pushed.dropped:
        click.echo(
            f"{pushed.dropped} weight files are there only: to verify, download the repository"
        )


def _print_work(
    job: Job, manifest: Manifest, seconds: float | None, summary: Callable[[Job, Manifest], None]
) -> None:
    summary(job, manifest)
    bytes_in, bytes_out = job.plan.bytes_in, job.plan.bytes_out
    rate = f" in {seconds:.1f} s ({human((bytes_in + bytes_out) / seconds)}/s)" if seconds else ""
    click.echo(f"{human(bytes_in)} read, {human(bytes_out)} written{rate}")
    overflowed = manifest.data["overflowed"]
    if overflowed:
        click.echo(
            f"warning: {sum(overflowed.values()):,} products overflowed, in {len(overflowed)} "
            "weights listed in manifest.json"
        )
    click.echo(f"done: {manifest.path}")
