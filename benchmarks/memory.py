"""Memory: the peak of ``to-bf16`` does not grow with the checkpoint or its largest tensor.

Three inputs at default settings: the small sample, a far larger checkpoint of many shards, and
one huge tensor. The large ones are sparse files of zeros; what is written of them is real. Each
has BF16 weights too: tiles of those fill a worker's read buffer whole, tiles of codes only half.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from . import inputs
from .children import fp8convert
from .common import MIB, Bound, Env, Report, Values, clear

PEAK, SPREAD = Bound(at_most=600), Bound(at_most=1.15)  # MiB; largest peak to smallest
EXPERT = (2048, 7168)
TABLE: inputs.Tensor = ("model.embed_tokens.weight", "BF16", (32768, 7168))
SHARD = 4_000_000_000
OUTPUT = 2.1  # an output's size to its input's, with something to spare


def run(env: Env, report: Report) -> None:
    """Each input once: a peak is not noisy as a time is, and the outputs are large."""
    large, huge = (2, 1) if env.quick else (20, 8)
    sources = [
        inputs.sample(env, "small"),
        inputs.sparse(env, f"sparse-{large}gb", _experts(large * 10**9)),
        inputs.sparse(env, f"sparse-tensor-{huge}gb", _one_tensor(huge * 10**9)),
    ]
    _spread(report, [_measure(env, report, source) for source in sources])


def _spread(report: Report, found: list[float | None]) -> None:
    peaks = [peak for peak in found if peak is not None]
    title = "largest peak against smallest"
    if len(peaks) < len(found):
        report.skip(title, "not every input was converted")
        return
    top, bottom = (Values(f"{f.__name__} of the peaks", [f(peaks)], "MiB") for f in (max, min))
    report.ratio(title, top, bottom, SPREAD)


def _measure(env: Env, report: Report, source: Path) -> float | None:
    """Peak MiB of converting ``source``, or None if the disk cannot take the output."""
    target = env.fresh()
    size = sum(f.stat().st_size for f in inputs.shards(source))
    need, free = int(OUTPUT * size), shutil.disk_usage(target.parent).free
    title = f"{source.name}, {size / 1e9:.2f} GB: peak memory"
    if free < need:
        report.skip(title, f"{need:,} bytes of disk needed, {free:,} free")
        return None
    try:
        peak = fp8convert("to-bf16", source, target, "--quiet").peak / MIB
    finally:
        clear(target)
    report.figure(title, Values("fp8convert to-bf16, default settings", [peak], "MiB"), PEAK)
    return peak


def _experts(nbytes: int) -> list[list[inputs.Tensor]]:
    """Experts of a published shape in shards of SHARD bytes."""
    rows, columns = EXPERT
    names = [
        f"model.layers.{n // 256}.mlp.experts.{n % 256}.up_proj.weight"
        for n in range(nbytes // (rows * columns))
    ]
    each = SHARD // (rows * columns)
    cuts = [names[at : at + each] for at in range(0, len(names), each)]
    coded = [[t for name in cut for t in inputs.coded(name, rows, columns)] for cut in cuts]
    return [[TABLE, *coded[0]], *coded[1:]]


def _one_tensor(nbytes: int) -> list[list[inputs.Tensor]]:
    columns = EXPERT[1]
    rows = nbytes // columns // 128 * 128
    return [[TABLE, *inputs.coded("model.layers.0.mlp.up_proj.weight", rows, columns)]]
