"""``fp8convert inspect``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fp8convert.errors import shown

from .progress import Meter
from .sizes import human

if TYPE_CHECKING:
    from fp8convert.inspection import Report


COUNTS = ("weights", "parameters", "parts", "example")


@click.command(
    "inspect",
    epilog="\b\nExamples:\n  fp8convert inspect DeepSeek-V3\n"
    "  fp8convert inspect DeepSeek-V3 --json | jq .parameters\n"
    "  fp8convert inspect hf://deepseek-ai/DeepSeek-V3",
)
@click.argument("src")
@click.option("--json", "as_json", is_flag=True, help="The whole report as JSON.")
@click.pass_context
def inspect_command(ctx: click.Context, src: str, as_json: bool) -> None:
    """Say what the checkpoint SRC is, from its headers alone: a folder, hf://org/name[@revision],
    s3://BUCKET/KEY or gs://BUCKET/KEY.

    Exit code 1 if something bars its conversion.
    """
    from fp8convert.inspection import inspect

    with Meter(quiet=False):
        report = inspect(src)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report)
    if report.problems:
        ctx.exit(1)


def _words(facts: dict[str, Any]) -> str:
    """``fp8-block element e4m3fn, block [128, 128]``: the name, then each fact."""
    name, *rest = facts.items()
    return f"{name[1]} " + ", ".join(f"{k} {v}" for k, v in rest)


def _print(report: Report) -> None:
    rows = [
        ("checkpoint", report.path if report.path.isprintable() else shown(report.path)),
        ("family", f"{report.family} ({report.architecture})"),
        ("scheme", _words(report.scheme)),
        ("declared", report.declared),
        ("parameters", f"{report.parameters:,}"),
        (
            "tensors",
            f"{report.tensors:,} stored, {report.weights:,} weights, "
            f"{report.coded_weights:,} of them coded",
        ),
        ("bytes", f"{report.bytes:,} ({human(report.bytes)}) in {report.shards} shards"),
        ("by dtype", ", ".join(f"{d} {human(n)}" for d, n in report.bytes_by_dtype.items())),
        ("layers", f"{report.layers}, MTP layers: {report.mtp_layers or 'none'}"),
    ]
    for label, text in rows:
        click.echo(f"{label:<11} {text}")
    for codec in report.codecs:
        facts = {k: v for k, v in codec.items() if k not in COUNTS}
        words = _words(facts)
        click.echo(f"  {codec['weights']:>7,} weights {words}: {' + '.join(codec['parts'])}")
    for group, counts in report.groups.items():
        click.echo(f"  {group:<16} {counts['weights']:>7,} weights {counts['parameters']:>17,}")
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
    for problem in report.problems[:20]:
        click.echo(f"problem: {problem}")
    if len(report.problems) > 20:
        click.echo(f"problem: and {len(report.problems) - 20} more")
