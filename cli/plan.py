"""``fp8convert plan``: begin a conversion that other machines work on."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
from typing import TYPE_CHECKING, Any

import click

from .conversion import announce, telling_what_is_left
from .planned import COMMANDS, params_of
from .progress import Meter
from .reports import check_place
from .sizes import human

if TYPE_CHECKING:
    from fp8convert.convert import Job
    from fp8convert.planfile import PlanFile

_EXAMPLES = {
    "to-bf16": ("DeepSeek-V3 DeepSeek-V3-bf16", "hf://org/name DST --max-shard-size 5GB"),
    "quantize": ("s3://models/SRC s3://models/DST --scheme nvfp4",),
    "shard-for-tp": ("DeepSeek-V3 DeepSeek-V3-mp16 --tp 16", "SRC DST --tp 8 --layout hf"),
    "unshard": ("DeepSeek-V3-mp16 DeepSeek-V3",),
}  # fmt: skip
_OWN = (
    click.Option(["--out"], required=True, metavar="PLAN.json", help="Where the plan is written."),
    click.Option(["--quiet"], is_flag=True, help="No warnings, no summary."),
    click.Option(["--json", "as_json"], is_flag=True, help="Summary as JSON on stdout."),
)


def _planning(name: str) -> click.Command:
    """``plan NAME``, with those options of the command NAME that decide what is written."""
    fields = dataclasses.fields(COMMANDS[name])
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    params = params_of(name, ["src", "dst", *(f.name for f in fields)], ["src", "dst", *needed])
    examples = [f"fp8convert plan {name} {words} --out plan.json" for words in _EXAMPLES[name]]
    return click.Command(
        name,
        params=[*params, *_OWN],
        callback=functools.partial(_plan, name),
        short_help=f"Begin {name} for many machines.",
        help=f"Plan {name} of SRC to DST, and begin it, for others to work on. Its options are "
        "those of that command; those of a run (--workers, --memory ...) go to run-task.",
        epilog="\b\nExamples:\n  " + "\n  ".join(examples),
    )


def _plan(
    name: str, src: str, dst: str, out: str, quiet: bool, as_json: bool, **options: Any
) -> None:
    check_place("--out", out)
    from fp8convert.convert import prepare
    from fp8convert.distributed import write_plan

    with Meter(quiet):
        job = prepare(src, dst, COMMANDS[name](**options))
    if not quiet:
        announce(job)
    with telling_what_is_left(job):
        file = write_plan(job, out)
    if as_json:
        click.echo(json.dumps(_facts(job, file, out), indent=1))
    elif not quiet:
        _print(_facts(job, file, out))


def _facts(job: Job, file: PlanFile, out: str) -> dict[str, Any]:
    stage, word = job.stage, shlex.quote(out)
    return {
        "plan": file.plan,
        "run": file.run,
        "out": out,
        "target": file.target,
        "already_done": not file.run,
        "tasks": len(file.tasks),
        "tasks_done": len(file.tasks) if not file.run else sum(
            stage.recorded(t) is not None for t in job.plan.tasks
        ),
        "bytes_in": file.bytes_in,
        "bytes_out": file.bytes_out,
        "next": [
            f"fp8convert run-task {word} --index I --count N",
            f"fp8convert finalize {word}",
        ],
    }  # fmt: skip


def _print(facts: dict[str, Any]) -> None:
    done = f", {facts['tasks_done']:,} of them done" if facts["tasks_done"] else ""
    click.echo(f"plan         {facts['plan']}")
    click.echo(f"tasks        {facts['tasks']:,}{done}")
    for way in ("in", "out"):
        nbytes = facts[f"bytes_{way}"]
        click.echo(f"{f'bytes {way}':<13}{nbytes:,} ({human(nbytes)})")
    click.echo(f"written to   {facts['out']}")
    if facts["already_done"]:
        click.echo(f"already done: {facts['target']} is finished, by this very plan")
        return
    work, end = facts["next"]
    click.echo("next, each I from 0 to N-1 once, anywhere that sees the same files; then the end:")
    click.echo(f"  {work}\n  {end}")


plan_command = click.Group(
    "plan",
    commands=[_planning(name) for name in COMMANDS],
    help="Begin a conversion that many machines work on: run-task does some of its tasks, finalize "
    "ends it. DST appears then, whole. docs/distributed.md has Slurm, torchrun, MPI.",
    epilog="\b\nExamples:\n"
    "  fp8convert plan to-bf16 DeepSeek-V3 DeepSeek-V3-bf16 --out plan.json\n"
    "  fp8convert run-task plan.json --index 0 --count 8\n"
    "  fp8convert finalize plan.json",
)
