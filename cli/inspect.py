"""``fp8convert inspect``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from fp8convert.errors import shown

from .sizes import human

if TYPE_CHECKING:
    from fp8convert.inspection import Report


@click.command(
    "inspect",
    epilog="\b\nExamples:\n  fp8convert inspect DeepSeek-V3\n"
    "  fp8convert inspect DeepSeek-V3 --json | jq .parameters",
)
@click.argument("src")
@click.option("--json", "as_json", is_flag=True, help="The whole report as JSON.")
@click.pass_context
def inspect_command(ctx: click.Context, src: str, as_json: bool) -> None:
    """Say what the checkpoint folder SRC is, from its headers alone.

    Exit code 1 if something bars its conversion.
    """
    from fp8convert.inspection import inspect

    report = inspect(src)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report)
    if report.problems:
        ctx.exit(1)


def _print(report: Report) -> None:
    scheme = " ".join(str(v) for v in report.scheme.values())
    rows = [
        ("checkpoint", report.path if report.path.isprintable() else shown(report.path)),
        ("family", f"{report.family} ({report.architecture})"),
        ("scheme", scheme),
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
    for group, counts in report.groups.items():
        click.echo(f"  {group:<16} {counts['weights']:>7,} weights {counts['parameters']:>17,}")
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
    for problem in report.problems[:20]:
        click.echo(f"problem: {problem}")
    if len(report.problems) > 20:
        click.echo(f"problem: and {len(report.problems) - 20} more")
