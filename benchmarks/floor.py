"""Disk floor: ``to-bf16`` against moving the same bytes by direct I/O without computing.

The floor is the least time in which any converter could end on this disk; what is above it is
decoding, hashing, planning and publishing that did not overlap. Both sides fsync every file, and
neither finds the source in the page cache: the floor would not read it from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import fp8convert

from . import inputs
from .bare_io import Setting, floor
from .children import Child
from .children import fp8convert as command
from .common import MIB, Bound, Env, Report, Values, alternate, clear, timed

BOUND, PEAK = Bound(at_most=1.15), Bound(at_most=600)  # MiB
QUICK = (Setting(8, 4 * MIB), Setting(8, 8 * MIB))
SETTINGS = (*QUICK, Setting(4, 8 * MIB), Setting(12, 8 * MIB), Setting(16, 4 * MIB))
TRIALS = 3


def run(env: Env, report: Report) -> None:
    """The small sample as it is, in many shards, and rewritten as one file."""
    many = inputs.sample(env, "small")
    warm(env)
    compare(env, report, many)
    compare(env, report, inputs.merged(env, many))


def warm(env: Env) -> None:
    """Load NumPy and the compiled kernels: the bound is on a call in a warm process."""
    fp8convert.to_bf16(inputs.sample(env, "tiny"), env.fresh())


def compare(env: Env, report: Report, source: Path, settings: Sequence[Setting] = SETTINGS) -> None:
    """Convert ``source`` by call and by command, beside the floor of its bytes."""
    files, target = inputs.shards(source), env.fresh()
    fp8convert.to_bf16(source, target)
    sizes = [f.stat().st_size for f in target.iterdir()]
    best = _best(env, files, sizes, settings)
    runs: list[Child] = []
    found = alternate(
        {
            "floor": lambda: floor(files, env.fresh(), sizes, best),
            "call": lambda: _call(inputs.evicted(source), env.fresh()),
            "command": lambda: _command(inputs.evicted(source), env.fresh(), runs),
        },
        env.repeats,
    )
    clear(target)
    what = f"{source.name}, {len(files)} shard(s), {_gb(files, sizes):.2f} GB moved"
    _report(report, what, f"floor: direct I/O, {best}", found)
    label = "fp8convert to-bf16, default settings"
    cpu = Values(f"{label}, of all cores", [r.cpu for r in runs])
    report.figure(f"{what}: CPU time of the command", cpu)
    peak = Values(label, [r.peak / MIB for r in runs], "MiB")
    report.figure(f"{what}: peak memory of the command", peak, PEAK)


def _report(report: Report, what: str, label: str, found: dict[str, tuple[float, ...]]) -> None:
    bottom = Values(label, found["floor"])
    call = Values("fp8convert.to_bf16() in a warm process", found["call"])
    report.ratio(f"{what}: the call against the floor", call, bottom, BOUND)
    whole = Values("fp8convert to-bf16, the whole command", found["command"])
    report.ratio(f"{what}: the command against the floor", whole, bottom)


def _command(source: Path, target: Path, runs: list[Child]) -> float:
    runs.append(command("to-bf16", source, target, "--quiet"))
    return runs[-1].seconds


def _call(source: Path, target: Path) -> float:
    return timed(lambda: fp8convert.to_bf16(source, target))


def _best(
    env: Env, files: Sequence[Path], sizes: Sequence[int], among: Sequence[Setting]
) -> Setting:
    """The setting with which this disk is fastest, so that the floor is a strong one."""
    settings = {str(s): s for s in (QUICK if env.quick else among)}
    sides = {name: lambda s=s: floor(files, env.fresh(), sizes, s) for name, s in settings.items()}
    found = alternate(sides, 1 if env.quick else TRIALS)
    for name, seconds in found.items():
        print(f"  (floor with {name}: {median(seconds):.2f} s)", flush=True)
    return settings[min(found, key=lambda name: median(found[name]))]


def _gb(files: Sequence[Path], sizes: Sequence[int]) -> float:
    return (sum(f.stat().st_size for f in files) + sum(sizes)) / 1e9
