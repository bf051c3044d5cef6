"""``fp8convert parity``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp8convert.errors import EXIT_DIFFERENT, shown

from .progress import LayerMeter
from .reports import check_place, write
from .running import polite, running_options, wanted

if TYPE_CHECKING:
    from fp8convert.reference.groups import Gloo

PROFILES = ("identical", "reduction-order", "requantized")
LENGTH = 32
_THRESHOLDS = (
    ("max_abs", "Largest difference of a logit."),
    ("max_rms", "RMS of the difference, by that of REF."),
    ("max_kl", "Largest KL divergence of a position, in nats."),
    ("max_kl_mean", "Mean KL divergence, in nats."),
    ("min_top1", "Share of positions with the same best token."),
    ("min_top5", "Share of the five best tokens in common."),
)


class Limit(click.FloatRange):
    """A number that others can be held against."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As a float; NaN is beyond any range."""
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return found


def _thresholds(command: Any) -> Any:
    for name, words in reversed(_THRESHOLDS):
        kind = Limit(0, 1 if name.startswith("min") else None)
        command = click.option(f"--{name.replace('_', '-')}", type=kind, help=words)(command)
    return command


@click.command(
    "parity",
    epilog="\b\nExamples:\n"
    "  fp8convert parity DeepSeek-V3 DeepSeek-V3-bf16\n"
    "  fp8convert parity DeepSeek-V3-bf16 DeepSeek-V3-nvfp4 --profile requantized\n"
    "  fp8convert parity DeepSeek-V3 DeepSeek-V3-mp16 --layers 0,3 --report parity.html\n"
    "  torchrun --no-python --nproc-per-node 2 fp8convert parity SRC SRC-mp2",
)
@click.argument("ref")
@click.argument("candidate")
@running_options
@click.option("--profile", type=click.Choice(PROFILES), metavar="PROFILE",
              help=f"{', '.join(PROFILES)}.  [default: by the ranks, see below]")  # fmt: skip
@_thresholds
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
@click.option("--junit", metavar="FILE", help="Write the result there as JUnit XML.")
@click.option("--report", metavar="FILE.html", help="Write a page with plots there.")
@click.option("--quiet", is_flag=True, help="No progress, no summary.")
def parity_command(
    ref: str, candidate: str, as_json: bool, junit: str | None, report: str | None, quiet: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Run REF and CANDIDATE on the same tokens, and judge how far their logits are apart.

    Either is any checkpoint or rank set of a model that the reference forward pass has; they run
    from disk, a layer at a time. Every run ends with a control: a fault is put into CANDIDATE, and
    must be seen. The tokens are by --seed 0 --length 32 unless options say others. The profile is
    identical, or reduction-order if either is a set of several ranks; docs/parity.md has the
    thresholds.

    Exit codes: 0 within the thresholds; 3 beyond them, or the control was not seen; 1 they cannot
    be compared; 2 usage; 75 interrupted.
    """
    polite()
    files = [check_place("--junit", junit), check_place("--report", report)]
    if files[0] and files[1] and files[0].absolute() == files[1].absolute():
        raise click.UsageError("--junit and --report are the same file")
    with _group() as group, LayerMeter(quiet or (group is not None and group.rank > 0)) as meter:
        result = _compared(ref, candidate, group, meter, **options)
    if "heads" in result:  # not in the other processes of torchrun
        try:
            _write(result, *files)
        finally:  # what was found is said even where it cannot be kept
            _say(result, as_json, quiet)
    if result["verdict"] != "pass":
        click.get_current_context().exit(EXIT_DIFFERENT)


def _compared(
    ref: str, candidate: str, group: Gloo | None, meter: LayerMeter, *, compute: str, device: str,
    layers: tuple[int, ...] | None, profile: str | None, tokens: str | None, prompt: str | None,
    seed: int | None, length: int | None, batch: int | None, **own: float | None,
) -> dict[str, Any]:  # fmt: skip
    if tokens is None and prompt is None:
        seed, length = seed or 0, length or LENGTH
    asked = wanted(tokens, prompt, seed, length, batch)
    from fp8convert.parity.compare import Options, compare

    options = Options(asked, compute, device, layers, profile, own, meter)
    return compare(ref, candidate, options, group)


@contextmanager
def _group() -> Iterator[Gloo | None]:
    """The processes that torchrun started, if it did."""
    from fp8convert.reference.ranks import distributed, join

    if not distributed():
        yield None
        return
    group = join()
    try:
        yield group
    finally:
        import torch.distributed as dist

        dist.destroy_process_group()


def _write(result: dict[str, Any], junit: Path | None, report: Path | None) -> None:
    if junit is not None:
        from fp8convert.junit import junit as xml
        from fp8convert.parity.summary import cases

        suite = f"fp8convert parity {shown(result['candidate']['path'])[1:-1]}"
        write("--junit", junit, xml(suite, cases(result)))
    if report is not None:
        from fp8convert.parity.html import report as page

        write("--report", report, page(result))


def _say(result: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from fp8convert.parity.compare import plain
    from fp8convert.parity.summary import lines

    if as_json:
        click.echo(json.dumps(plain(result), indent=1, allow_nan=False))
    elif not quiet:
        for line in lines(result):
            click.echo(line)
