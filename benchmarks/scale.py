"""Scale: planning and inspecting a checkpoint of 92,000 tensors, as whole commands.

The ``full`` sample has every header of a published 689 GB checkpoint; its data is holes, and
neither command reads any. Time and peak memory are those of the process, start-up included.
"""

from __future__ import annotations

from . import inputs
from .children import fp8convert
from .common import MIB, Bound, Env, Report, Values

SECONDS, MEMORY = Bound(at_most=3), Bound(at_most=400)


def run(env: Env, report: Report) -> None:
    """Both commands."""
    source, target = inputs.sample(env, "full"), env.fresh()
    _measure(env, report, "to-bf16", str(source), str(target), "--dry-run")
    _measure(env, report, "inspect", str(source), "--json")


def _measure(env: Env, report: Report, command: str, *arguments: str) -> None:
    runs = [fp8convert(command, *arguments) for _ in range(env.repeats)]
    options = [a for a in arguments if a.startswith("--")]
    label = " ".join(["fp8convert", command, "full", *options])
    report.figure(f"{command}: wall time", Values(label, [r.seconds for r in runs]), SECONDS)
    peaks = [r.peak / MIB for r in runs]
    report.figure(f"{command}: peak memory", Values(label, peaks, "MiB"), MEMORY)
