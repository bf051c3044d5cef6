"""Huge: one tensor of 98 GB (DeepSeek-V4.1's engram table) plans, and streams in bounded memory.

[384006168, 256] in e4m3 with an exponent per 32 columns, a sparse file. Planning is measured as a
whole command. Then tiles spread over the tensor, from its first to its last, are given random codes
and scales, and a process of its own decodes them with the engine's workers, buffers and reads; what
it decoded is compared with the formula.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8convert.convert import prepare
from fp8convert.pieces import Source
from fp8convert.settings import Settings
from fp8convert.tile import Tile
from fp8convert.tiles import tiles

from . import inputs
from .children import child
from .common import MIB, Bound, Env, Report, Values
from .scale import measure
from .tile_stream import CODED, spread

PEAK = Bound(at_most=600)  # MiB
ROWS, COLUMNS, BLOCK = 384006168, 256, 32
TILES = 200
TABLE = "layers.0.engram.embed"
TENSORS: list[list[inputs.Tensor]] = [
    [
        (f"{TABLE}.weight", "F8_E4M3", (ROWS, COLUMNS)),
        (f"{TABLE}.scale", "F8_E8M0", (ROWS, COLUMNS // BLOCK)),
        ("layers.0.engram.norm.weight", "BF16", (COLUMNS,)),
    ]
]
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV41ForConditionalGeneration"],
    "model_type": "deepseek_v41",
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [32, 32],
        "scale_fmt": "ue8m0",
        "expert_dtype": "fp4",
    },
    "text_config": {"hidden_size": COLUMNS, "model_type": "deepseek_v41_text"},
}
Array = NDArray[Any]


def run(env: Env, report: Report) -> None:
    """Plan, fill, stream, compare."""
    source = inputs.sparse(env, "engram-table", TENSORS, CONFIG)
    target = env.fresh()
    measure(env, report, "to-bf16", str(source), str(target), "--dry-run")
    count = TILES // 4 if env.quick else TILES
    chosen, expected = _filled(source, target, count)
    runs = [_stream(env, source, target, count) for _ in range(env.repeats)]
    nbytes = sum(t.nbytes for t in chosen)
    what = f"{len(chosen)} tiles of {Settings().tile / MIB:g} MiB, of {ROWS * COLUMNS / 1e9:.1f} GB"
    speed = Values("read and decoded, written bytes", [nbytes / r[0] / 1e9 for r in runs], "GB/s")
    report.figure(f"{what}: speed", speed)
    peak = Values("the process that plans and decodes them", [r[1] / MIB for r in runs], "MiB")
    report.figure(f"{what}: peak memory", peak, PEAK)
    same = all(r[2] == expected for r in runs)
    report.fact(f"{what}: bytes", same, "as code x 2**(exponent - 127) gives them")


def _stream(env: Env, source: Path, target: Path, count: int) -> tuple[float, int, list[str]]:
    """Seconds, peak bytes and the tiles' digests of one process."""
    said = env.data / "scratch" / "tiles.json"
    inputs.evicted(source)
    stream = [sys.executable, "-m", f"{__package__}.tile_stream"]
    done = child([*stream, str(source), str(target), str(count), str(said)])
    found = json.loads(said.read_text())
    said.unlink()
    return found["seconds"], done.peak, found["digests"]


def _filled(source: Path, target: Path, count: int) -> tuple[list[Tile], list[str]]:
    """The chosen tiles, after writing what they decode, and digests of what that must be."""
    job = prepare(source, target)
    shards = [Path(job.catalogue.folder.place) / name for name in job.catalogue.shard_names]
    (task,) = job.plan.tasks
    chosen = spread(tiles(task, Settings().tile), count)
    draw = np.random.default_rng(0)
    digests = []
    for tile in chosen:
        (piece,) = (p for p in tile.pieces if p.item.weight.codec.name == CODED)
        (codes,), (scales,) = (read.sources for read in piece.reads)
        weights = draw.integers(0, 256, codes.nbytes, np.uint8)
        weights[weights & 0x7F == 0x7F] = 1
        powers = draw.integers(100, 137, scales.nbytes, np.uint8)
        for where, data in ((codes, weights), (scales, powers)):
            _put(shards, where, data)
        digests.append(hashlib.sha256(_decoded(weights, powers).data).hexdigest())
    os.sync()
    return chosen, digests


def _put(shards: Sequence[Path], where: Source, data: Array) -> None:
    when = shards[where.shard].stat()
    with shards[where.shard].open("r+b") as file:
        file.seek(where.begin)
        file.write(data.data)
    os.utime(shards[where.shard], ns=(when.st_atime_ns, when.st_mtime_ns))


def _decoded(codes: Array, powers: Array) -> Array:
    """BF16 bits by the published formulas. Four significant bits fit: nothing is rounded."""
    magnitude = np.arange(128)
    exponent, mantissa = magnitude >> 3, magnitude & 7
    normal = np.ldexp(8.0 + mantissa, exponent - 10)
    values = np.where(exponent > 0, normal, np.ldexp(1.0 * mantissa, -9))
    table = np.concatenate([values, -values]).astype(np.float32)
    product = np.ldexp(table[codes].reshape(-1, BLOCK), powers.astype(np.int32)[:, None] - 127)
    bits = product.reshape(-1).view(np.uint32)
    if (bits & 0xFFFF).any():
        raise ValueError("a product needs more bits than BF16 has")
    return (bits >> 16).astype(np.uint16)
