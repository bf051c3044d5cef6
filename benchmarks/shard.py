"""Shard: ``shard-for-tp`` against the disk floor and the published algorithm, and plans of V3.

The small sample for 8 ranks, as a whole command each: ours, which also hashes what it writes; the
published algorithm, which holds all ranks in memory; and the floor, the same bytes moved by direct
I/O. Each ends when all of it is on the disk; the published algorithm is also timed until it ends,
with its output in the page cache. Every tensor of both outputs is compared by bytes. Then how much
is read from the disk for 16 ranks; and the time to plan all of V3.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fp8convert.convert import prepare
from fp8convert.options import ShardForTp

from . import inputs
from .bare_io import Setting, floor
from .children import Child, child
from .children import fp8convert as command
from .common import MIB, Bound, Env, Report, Values, alternate, clear, timed
from .floor import QUICK
from .peers import same_bytes, sync_all

RANKS = 8
FLOOR, PEER, PEAK = Bound(at_most=1.2), Bound(at_least=3), Bound(at_most=600)  # MiB
PLAN, READ = Bound(at_most=5), Bound(at_most=1.25)
SETTING = Setting(8, 8 * MIB)
PLANS = (8, 16, 32)


def run(env: Env, report: Report) -> None:
    """The bounds of a cut for tensor-parallel ranks."""
    source = inputs.sample(env, "small")
    _speed(env, report, source)
    _reading(env, report, source)
    for layout in ("deepseek", "hf"):
        for ranks in PLANS:
            _plan(env, report, layout, ranks)


def _ours(source: Path, target: Path, *more: str) -> Child:
    return command("shard-for-tp", source, target, "--tp", str(RANKS), "--quiet", *more)


def _published(source: Path, target: Path) -> Child:
    config = json.loads((source / "config.json").read_text())
    numbers = (RANKS, config["n_routed_experts"], config["num_hidden_layers"])
    return child([sys.executable, "-m", "benchmarks.ram_shard", str(source), str(target),
                  *map(str, numbers)])  # fmt: skip


def _speed(env: Env, report: Report, source: Path) -> None:
    ours, theirs = env.fresh("ours"), env.fresh("theirs")
    _ours(source, ours)
    _published(source, theirs)
    report.fact("tensors of both outputs", *_compared(ours, theirs))
    files = inputs.shards(source)
    sizes = [f.stat().st_size for f in ours.iterdir()]
    clear(ours)
    clear(theirs)
    runs: dict[str, list[Child]] = {
        name: [] for name in ("ours", "ours cached", "peer", "peer cold")
    }
    synced: dict[str, list[float]] = {"peer": [], "peer cold": []}

    def turn(name: str, found: Child) -> float:
        runs[name].append(found)
        return found.seconds

    def published(name: str, source: Path) -> float:
        target = env.fresh()
        seconds = turn(name, _published(source, target))
        synced[name].append(seconds + timed(lambda: sync_all(target)))
        return seconds

    setting = min(QUICK, key=lambda s: floor(files, env.fresh(), sizes, s))
    found = alternate(
        {
            "floor": lambda: floor(files, env.fresh(), sizes, setting),
            "ours": lambda: turn("ours", _ours(inputs.evicted(source), env.fresh())),
            "peer cold": lambda: published("peer cold", inputs.evicted(source)),
            "peer": lambda: published("peer", inputs.cached(source)),
            "ours cached": lambda: turn("ours cached", _ours(inputs.cached(source), env.fresh())),
        },
        env.repeats,
    )
    clear(env.fresh())
    _judged(report, found, synced, setting)
    peaks = {n: Values(n, [r.peak / MIB for r in of], "MiB") for n, of in runs.items()}
    report.figure("peak memory of the command", peaks["ours"], PEAK)
    report.figure("peak memory of the published algorithm", peaks["peer"])


def _judged(
    report: Report,
    found: dict[str, tuple[float, ...]],
    synced: dict[str, list[float]],
    setting: Setting,
) -> None:
    label, other = f"fp8convert shard-for-tp --tp {RANKS}", "the published algorithm"
    cold = Values(f"{label}, nothing cached", found["ours"])
    cached = Values(f"{label}, source in the page cache", found["ours cached"])
    bottom = Values(f"floor: direct I/O, {setting}", found["floor"])
    report.ratio("the command against the floor of its bytes", cold, bottom, FLOOR)
    for name, mine in (("peer cold", cold), ("peer", cached)):
        peer = Values(f"{other}, until all is on the disk", synced[name])
        report.ratio(f"{other} against the command ({mine.label})", peer, mine, PEER)
    alone = Values(f"{other}, until it ends, source in the page cache", found["peer"])
    report.ratio(f"{other} until it ends, against the command", alone, cached)


def _compared(ours: Path, theirs: Path) -> tuple[bool, str]:
    """Whether every file of ranks holds the same tensors, dtypes, shapes and bytes."""
    count, differing = 0, []
    for rank in range(RANKS):
        name = f"model{rank}-mp{RANKS}.safetensors"
        a, b = ({e.name: e for e in inputs.entries(of / name)} for of in (ours, theirs))
        count += len(a)
        for key in sorted(a.keys() | b.keys()):
            one, two = a.get(key), b.get(key)
            same = one and two and (one.dtype, one.shape) == (two.dtype, two.shape)
            if not (same and one and two and same_bytes(
                ours / name, one.begin, theirs / name, two.begin, one.end - one.begin
            )):  # fmt: skip
                differing.append(f"{name}: {key}")
    return not differing, f"{count:,} tensors, differing: {differing[:4] or 'none'}"


def _reading(env: Env, report: Report, source: Path) -> None:
    """What a run reads from the disk, for up to 16 ranks and both ways with experts."""
    held = sum(f.stat().st_size for f in inputs.shards(source))
    for ranks, more in ((16, ("--mtp", "keep")), (16, ("--layout", "hf", "--misaligned", "bf16",
                                                       "--experts", "cut"))):  # fmt: skip
        target = env.fresh()
        before = _read_bytes()
        command("shard-for-tp", inputs.evicted(source), target, "--tp", str(ranks), "--quiet",
                "--misaligned", "bf16", *more)  # fmt: skip
        read = _read_bytes() - before
        clear(target)
        found = Values(f"shard-for-tp --tp {ranks} {' '.join(more)}", [read / held], "x")
        report.figure("bytes read from the disk, of the source's", found, READ)


def _read_bytes() -> int:
    """By the children of this process that have ended, from disks."""
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock * 512


def _plan(env: Env, report: Report, layout: str, ranks: int) -> None:
    source = inputs.sample(env, "full")
    options = ShardForTp(tp=ranks, layout=layout, misaligned="error" if ranks <= 16 else "bf16")
    seconds = [timed(lambda: prepare(source, env.fresh(), options)) for _ in range(3)]
    label = f"prepare(), layout {layout}, {options.misaligned} if misaligned"
    report.figure(f"plan of all of V3 for {ranks} ranks", Values(label, seconds), PLAN)
