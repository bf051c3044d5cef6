"""``fp8convert finalize``: the end of a conversion that many machines have worked on."""

from __future__ import annotations

import click

from .conversion import telling_what_is_left
from .planned import PLAN_ARGUMENT, params_of, summary_of
from .progress import Meter
from .summary import print_done, print_json


@click.command(
    "finalize", epilog="\b\nExamples:\n  fp8convert finalize plan.json", short_help="End it."
)
@PLAN_ARGUMENT
def finalize_command(plan: str, *, quiet: bool, as_json: bool) -> None:
    """End the run of a plan, once all of its tasks are done: the target appears.

    While tasks are missing, or workers are still at work, it is refused, and nothing is changed.
    """
    from fp8convert.distributed import complete, replanned

    with Meter(quiet):
        planned = replanned(plan)
    with telling_what_is_left(planned.job):
        manifest = complete(planned)
    if as_json:
        print_json(planned.job, manifest, None)
    elif not quiet:
        print_done(planned.job, manifest, None, summary_of(planned.file.command))


finalize_command.params += params_of("to-bf16", ("quiet", "as_json"))
