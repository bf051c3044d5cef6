"""``fp8convert verify``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fp8convert.errors import EXIT_DIFFERENT, shown

from .progress import Meter
from .reports import check_place, write

if TYPE_CHECKING:
    from fp8convert.verify import Report

    _FloatType = click.ParamType[float]  # generic since click 8.3 only
else:
    _FloatType = click.ParamType

READING = {"sums": "sums taken", "values": "values read", "weights": "weights compared"}


class Fraction(_FloatType):
    """Above 0, at most 1: ``0.05``, or ``5%``."""

    name = "FRACTION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As a float; anything else is a usage error."""
        text = str(value).strip()
        try:
            found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            found = 0.0
        if not 0 < found <= 1:
            self.fail(
                f"{value!r} is not a fraction above 0 and at most 1, such as 0.05", param, ctx
            )
        return found


@click.command(
    "verify",
    epilog="\b\nExamples:\n  fp8convert verify DeepSeek-V3-bf16\n"
    "  fp8convert verify DeepSeek-V3-bf16 --against DeepSeek-V3\n"
    "  fp8convert verify DeepSeek-V3-mp16 --against DeepSeek-V3 --sample 0.05\n"
    "  fp8convert verify DST --against SRC --junit reports/verify.xml --quiet",
)
@click.argument("dst")
@click.option("--against", metavar="SRC", help="The checkpoint that DST was made from.")
@click.option("--sample", type=Fraction(), default=1.0, metavar="FRACTION",
              help="Read that part of every tensor's rows only.  [default: all]")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Which part a sample is.")
@click.option("--workers", type=click.IntRange(1), help="Threads.  [default: from the cores]")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON on stdout.")
@click.option("--junit", metavar="FILE", help="Write the report there as JUnit XML.")
@click.option("--quiet", is_flag=True, help="No progress, no table.")
@click.pass_context
def verify_command(
    ctx: click.Context, dst: str, against: str | None, as_json: bool, junit: str | None,
    quiet: bool, sample: float, seed: int, workers: int | None,
) -> None:  # fmt: skip
    """Check the checkpoint folder DST: its sums, headers, index, scales, values and config.

    With --against, every tensor is derived again from the source by code that converts nothing,
    and compared. DST may be any tool's output; what cannot be checked is said to be not checked.

    Exit codes: 0 all checks pass; 3 a check failed; 1 it cannot be done, as SRC cannot be read;
    2 usage; 75 interrupted, or no memory left.
    """
    place = check_place("--junit", junit)
    from fp8convert.verify import verify
    from fp8convert.verify.mapped import Watch, watched

    folders = [dst] if against is None else [dst, against]
    with watched(Watch(folders)), Meter(quiet) as meter:
        report = verify(
            dst, against, sample, seed, workers,
            progress=lambda what, n, of: meter.show(what, READING[what], n, of),
        )  # fmt: skip
    if place is not None:
        write("--junit", place, _junit(report))
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    elif not quiet:
        for line in report.lines():
            click.echo(line)
    if not report.passed:
        ctx.exit(EXIT_DIFFERENT)


def _junit(report: Report) -> str:
    from fp8convert.junit import junit

    return junit(f"fp8convert verify {shown(report.path)[1:-1]}", report.cases())
