"""Scale: planning and inspecting checkpoints of 92,000 and 69,000 tensors, as whole commands.

The ``full`` samples have every header of published checkpoints (DeepSeek-V3, 689 GB; DeepSeek-V4,
160 GB); their data is holes, and neither command reads any. Time and peak memory are those of the
process, start-up included.
"""

from __future__ import annotations

from . import inputs
from .children import fp8convert
from .common import MIB, Bound, Env, Report, Values

SECONDS, MEMORY = Bound(at_most=3), Bound(at_most=400)
FAMILIES = ("deepseek-v3", "deepseek-v4")


def run(env: Env, report: Report) -> None:
    """Both commands, of both."""
    for family in FAMILIES:
        source, target = inputs.sample(env, "full", family), env.fresh()
        measure(env, report, "to-bf16", str(source), str(target), "--dry-run")
        measure(env, report, "inspect", str(source), "--json")


def measure(env: Env, report: Report, command: str, source: str, *arguments: str) -> None:
    """Time and peak memory of one command."""
    runs = [fp8convert(command, source, *arguments) for _ in range(env.repeats)]
    options = [a for a in arguments if a.startswith("--")]
    name = source.rpartition("/")[2]
    label = " ".join(["fp8convert", command, name, *options])
    seconds = Values(label, [r.seconds for r in runs])
    report.figure(f"{name}: {command}: wall time", seconds, SECONDS)
    peaks = Values(label, [r.peak / MIB for r in runs], "MiB")
    report.figure(f"{name}: {command}: peak memory", peaks, MEMORY)
