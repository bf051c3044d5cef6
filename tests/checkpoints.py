"""Small hand-made checkpoints, written by the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = Mapping[str, torch.Tensor]

FP8_CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}


def write(folder: Path, shards: Sequence[Tensors], config: Mapping[str, Any] = FP8_CONFIG) -> Path:
    """A checkpoint of these shards, with config and index."""
    folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        save_file(dict(tensors), folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def codes(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Random F8_E4M3 [rows, columns] without NaN codes."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    raw[(raw & 0x7F) == 0x7F] = 0
    return raw.view(torch.float8_e4m3fn)


def scales(rows: int, columns: int, block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """Random positive F32 scales for a [rows, columns] matrix."""
    generator = torch.Generator().manual_seed(rows * 7919 + columns)
    shape = (-(-rows // block[0]), -(-columns // block[1]))
    return torch.rand(shape, generator=generator) * 1e-3 + 1e-5


def pair(name: str, rows: int, columns: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A weight and its scale."""
    return {name: codes(rows, columns, seed), f"{name}_scale_inv": scales(rows, columns)}
