"""Quantize: the command against llm-compressor's, every scheme of both, and peak memory.

Whole processes, as a user starts them, on 1.5 GB of BF16 that the page cache holds; both have run
before, so that compiled code and libraries are cached too. The peer's bare call, as its own process
timed it, and its whole command until its files are on the disk, as ours are when it ends, are shown
beside them. Outputs are deleted, and the deletion committed, between turns.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from . import quantize_inputs, quantize_peer
from .children import Child, fp8convert
from .common import MIB, Bound, Env, Report, Values, alternate, clear, timed
from .inputs import cached
from .quantize_inputs import Model
from .quantize_peer import Peer, Ran

BOUND, FREE, PEAK = Bound(at_least=3), Bound(), Bound(at_most=600)  # x, x, MiB
BOUNDED = ("fp8-block", "nvfp4")
TURNS = 3  # of the schemes without a bound
OURS = "fp8convert quantize, whole command"
TABLE = ("scheme", "ours, s", "llm-compressor, s", "x", "its bare call, s", "x", "MiB", "its MiB")


@dataclass
class Runs:
    """All turns of one scheme, in order."""

    ours: list[Child] = field(default_factory=list)
    peer: list[Ran] = field(default_factory=list)
    synced: list[float] = field(default_factory=list)  # the peer's command and then fsync, seconds


def run(env: Env, report: Report) -> None:
    """Each scheme, then all of them as a table."""
    few = quantize_inputs.FEW if env.quick else quantize_inputs.LAYERS
    model = quantize_inputs.dense(env, few)
    peer = quantize_peer.find(report)
    if peer:
        peer.quantize(model, env.fresh("theirs"), quantize_peer.SCHEMES["fp8-block"])
    rows = [_scheme(env, report, model, peer, scheme) for scheme in quantize_peer.SCHEMES]
    for name in ("ours", "theirs"):
        clear(env.data / "scratch" / name)
    _table([TABLE, tuple("---" for _ in TABLE), *rows])


def _scheme(
    env: Env, report: Report, model: Model, peer: Peer | None, scheme: str
) -> tuple[str, ...]:
    """Measure one scheme; its row of the table."""
    runs, bounded = Runs(), scheme in BOUNDED
    sides = {"ours": lambda: _ours(env, model, scheme, runs)}
    if peer:
        sides["peer"] = lambda: _theirs(env, model, peer, scheme, runs)
    sides["ours"]()  # compiles the scheme's kernels where they are not cached yet
    runs.ours.clear()
    alternate(sides, env.repeats if bounded else min(env.repeats, TURNS))
    _report(report, f"{scheme}, {model.label}", runs, BOUND if bounded else FREE)
    return _row(scheme, runs)


def _ours(env: Env, model: Model, scheme: str, runs: Runs) -> float:
    source, target = cached(model.folder), env.fresh("ours")
    runs.ours.append(fp8convert("quantize", source, target, "--scheme", scheme, "--quiet"))
    return runs.ours[-1].seconds


def _theirs(env: Env, model: Model, peer: Peer, scheme: str, runs: Runs) -> float:
    cached(model.folder)
    target = env.fresh("theirs")
    ran = peer.quantize(model, target, quantize_peer.SCHEMES[scheme])
    runs.peer.append(ran)
    runs.synced.append(ran.whole.seconds + timed(lambda: _sync(target)))
    return ran.whole.seconds


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _report(report: Report, what: str, runs: Runs, bound: Bound) -> None:
    ours = Values(OURS, [r.seconds for r in runs.ours])
    if runs.peer:
        theirs = {
            "whole command": [r.whole.seconds for r in runs.peer],
            "bare call": [r.call for r in runs.peer],
            "whole command until on the disk": runs.synced,
        }
        for label, seconds in theirs.items():
            values = Values(f"llm-compressor, {label}", seconds)
            held = bound if label == "whole command" else FREE
            report.ratio(f"{what}: llm-compressor's {label} against ours", values, ours, held)
        peaks = [r.whole.peak / MIB for r in runs.peer]
        report.figure(f"{what}: peak memory", Values("llm-compressor", peaks, "MiB"))
    else:
        report.figure(f"{what}: ours alone", ours)
    peaks = [r.peak / MIB for r in runs.ours]
    report.figure(f"{what}: peak memory", Values(OURS, peaks, "MiB"), PEAK)


def _row(scheme: str, runs: Runs) -> tuple[str, ...]:
    ours, peak = [r.seconds for r in runs.ours], max(r.peak for r in runs.ours) / MIB
    if not runs.peer:
        return scheme, _seconds(ours), *("not run",) * 4, f"{peak:.0f}", "not run"
    columns = []
    for theirs in ([r.whole.seconds for r in runs.peer], [r.call for r in runs.peer]):
        ratio = median(a / b for a, b in zip(theirs, ours, strict=True))
        columns += [_seconds(theirs), f"{ratio:.1f}"]
    other = max(r.whole.peak for r in runs.peer) / MIB
    name = f"{scheme}, {quantize_peer.SCHEMES[scheme]}"
    return name, _seconds(ours), *columns, f"{peak:.0f}", f"{other:.0f}"


def _seconds(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _table(rows: list[tuple[str, ...]]) -> None:
    print()
    for row in rows:
        print(f"  | {' | '.join(row)} |", flush=True)
