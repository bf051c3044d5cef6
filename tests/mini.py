"""A checkpoint of 100 kB in two shards: small enough to convert hundreds of times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fp8convert import header

BLOCK = 128
# Size and time of a shard, as a job has them; some numbers.
SOURCE = {"model-00001-of-00002.safetensors": {"size": 1, "mtime_ns": 2}}
CUT = 34_000  # max_shard_size that makes three files of it
CODED = {"a.weight": (300, 200), "b.weight": (129, 130), "c.weight": (1, 500)}
RAW = {"norm.weight": ("BF16", (201,)), "bias": ("F32", (7,)), "none": ("F32", (0, 4))}
SHARDS = (  # the scale of a.weight is in the other shard
    ("a.weight", "norm.weight", "none", "c.weight_scale_inv"),
    ("b.weight", "b.weight_scale_inv", "bias", "a.weight_scale_inv", "c.weight"),
)
CONFIG = {
    "architectures": ["Mini"],
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [BLOCK, BLOCK],
    },
}


Tensor = tuple[str, tuple[int, ...], bytes]  # dtype tag, shape, data


def make_mini(folder: Path) -> Path:
    """Write the checkpoint; the same bytes every time."""
    rng = np.random.default_rng(7)
    shards = [{name: _tensor(rng, name) for name in names} for names in SHARDS]
    write_shards(folder, shards, CONFIG)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "LICENSE").write_text("MIT\n")
    return folder


def write_shards(
    folder: Path, shards: Sequence[Mapping[str, Tensor]], config: Mapping[str, Any]
) -> Path:
    """A checkpoint of these shards, with config and index."""
    folder.mkdir(parents=True)
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        rows = [(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()]
        data = b"".join(data for _, _, data in tensors.values())
        (folder / file).write_bytes(header.build(rows, {"format": "pt"}) + data)
        weight_map |= dict.fromkeys(tensors, file)
        total += len(data)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _tensor(rng: np.random.Generator, name: str) -> Tensor:
    if name in RAW:
        dtype, shape = RAW[name]
        width = {"BF16": 2, "F32": 4}[dtype]
        return dtype, shape, rng.bytes(width * int(np.prod(shape)))
    if name in CODED:
        shape = CODED[name]
        codes = rng.integers(0, 127, shape) + 128 * rng.integers(0, 2, shape)  # no NaN
        return "F8_E4M3", shape, codes.astype(np.uint8).tobytes()
    rows, columns = CODED[name.removesuffix("_scale_inv")]
    shape = (-(-rows // BLOCK), -(-columns // BLOCK))
    return "F32", shape, rng.uniform(1e-4, 2, shape).astype("<f4").tobytes()
