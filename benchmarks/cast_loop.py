"""What most people run: DeepSeek-V3's ``fp8_cast_bf16.py``, with torch on the CPU for its kernel.

Shard after shard is loaded whole; each one-byte weight is decoded with its ``weight_scale_inv``,
which may be in another shard; the two shards loaded last stay in memory; one file out per shard.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .inputs import INDEX

BLOCK = 128
KEPT = 2
Tensors = dict[str, torch.Tensor]


class Loaded:
    """The shards loaded last."""

    def __init__(self, source: Path, weight_map: dict[str, str]) -> None:
        self.source, self.weight_map = source, weight_map
        self.files: dict[str, Tensors] = {}

    def file(self, name: str) -> Tensors:
        """All tensors of one shard."""
        if name not in self.files:
            self.files[name] = load_file(self.source / name)
        return self.files[name]

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, wherever it is."""
        return self.file(self.weight_map[name])[name]

    def trim(self) -> None:
        """Forget all but the last shards, as the script does."""
        while len(self.files) > KEPT:
            del self.files[next(iter(self.files))]


def cast(source: Path, target: Path) -> None:
    """Convert ``source`` into the new folder ``target``."""
    index = json.loads((source / INDEX).read_text())
    loaded = Loaded(source, index["weight_map"])
    target.mkdir()
    for name in sorted(set(index["weight_map"].values())):
        save_file(_decoded(loaded, name), target / name)
        loaded.trim()
    plain = {k: v for k, v in index["weight_map"].items() if not k.endswith("_scale_inv")}
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": plain}, indent=2))


def _decoded(loaded: Loaded, file: str) -> Tensors:
    found: Tensors = {}
    for name, weight in loaded.file(file).items():
        if name.endswith("_scale_inv"):
            continue
        coded = weight.element_size() == 1
        found[name] = dequantize(weight, loaded.tensor(f"{name}_scale_inv")) if coded else weight
    return found


def dequantize(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``weight`` [o, i] times ``scales`` [ceil(o / 128), ceil(i / 128)], as BF16."""
    rows, columns = weight.shape
    wide = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return (weight.float() * wide).to(torch.bfloat16)
