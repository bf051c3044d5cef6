"""Oracles that share no code with the package: the safetensors library, torch, plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open

Tensors = dict[str, torch.Tensor]


def load(folder: Path) -> Tensors:
    """Every tensor of every shard of ``folder``, through the safetensors library."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                assert name not in found, f"{name} is in two shards"
                found[name] = shard.get_tensor(name)
    return found


def e4m3fn(code: int) -> float:
    """A code as the format's table has it: s eeee mmm, bias 7; no infinity, NaN is S.1111.111."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 0xF, code & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return math.nan
    magnitude = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2 ** (exponent - 7)
    return -magnitude if sign else magnitude


def dequantize(
    codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, block: int = 128
) -> torch.Tensor:
    """A plain loop over blocks: float32(code) * scale in float32, then one rounding to ``dtype``.

    ``codes`` [o, i] F8_E4M3, ``scales`` F32 [ceil(o/block), ceil(i/block)].
    """
    table = torch.tensor([e4m3fn(c) for c in range(256)], dtype=torch.float32)
    values = table[codes.view(torch.uint8).long()]
    out = torch.empty_like(values)
    for i in range(scales.shape[0]):
        for k in range(scales.shape[1]):
            at = (slice(i * block, (i + 1) * block), slice(k * block, (k + 1) * block))
            out[at] = values[at] * scales[i, k]
    return out.to(dtype)


def dequantize_all(tensors: Tensors, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """What a checkpoint in DeepSeek-V3's FP8 layout must become."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float8_e4m3fn:
            out[name] = dequantize(tensor, tensors[name + "_scale_inv"], dtype)
        elif not name.endswith("_scale_inv"):
            out[name] = tensor
    return out


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same dtype, shape and bytes (so -0.0 is not 0.0, and NaN is NaN)."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


def differing(ours: Tensors, expected: Tensors) -> list[str]:
    """Names missing, extra, or different in a byte."""
    names = ours.keys() | expected.keys()
    return sorted(
        n
        for n in names
        if n not in ours or n not in expected or not same_bytes(ours[n], expected[n])
    )
