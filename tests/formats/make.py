"""Seeded ingredients: codes that use a whole format, scales with full mantissas, bystanders."""

from __future__ import annotations

import zlib

import torch

from .case import Tensors
from .formulas import TABLES

E4M3 = torch.float8_e4m3fn
E8M0 = torch.float8_e8m0fnu


def generator(seed: str) -> torch.Generator:
    """A generator of its own for every name, so that cases do not depend on their order."""
    return torch.Generator().manual_seed(zlib.crc32(seed.encode()))


def integers(seed: str, low: int, high: int, *shape: int) -> torch.Tensor:
    """Integers in [low, high), every one of them first, in order, as far as there is room."""
    out = torch.randint(low, high, shape, generator=generator(seed)).reshape(-1)
    room = min(high - low, out.numel())
    out[:room] = torch.arange(low, low + room)
    return out.reshape(shape)


def codes(seed: str, *shape: int, dtype: torch.dtype = E4M3) -> torch.Tensor:
    """8-bit float codes: every finite one of the format, then random finite ones."""
    raw = integers(seed, 0, 256, *shape)
    raw[~TABLES[dtype][raw].isfinite()] = 1
    return raw.to(torch.uint8).view(dtype)


def small_codes(seed: str, *shape: int, dtype: torch.dtype = E4M3) -> torch.Tensor:
    """Codes of magnitude below 2, which stay finite under a scale of 2**127."""
    raw = codes(seed, *shape, dtype=dtype).view(torch.uint8).clone()
    raw[TABLES[dtype][raw.long()].abs() >= 2] = 1
    return raw.view(dtype)


def scales(seed: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Positive scales around 1e-3 with full mantissas."""
    return (torch.rand(shape, generator=generator(seed)) * 1e-3 + 1e-5).to(dtype)


def powers(seed: str, *shape: int, low: int = 100, high: int = 136) -> torch.Tensor:
    """E8M0 bytes as U8; the first is 0, the scale 2**-127."""
    out = torch.randint(low, high, shape, generator=generator(seed)).to(torch.uint8)
    out.reshape(-1)[0] = 0
    return out


def number(seed: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One positive scale, 0-d."""
    return scales(seed, 1, dtype=dtype)[0].clone()


def bf16(seed: str, *shape: int) -> torch.Tensor:
    """An unquantized weight."""
    return torch.randn(shape, generator=generator(seed)).to(torch.bfloat16)


def f32(seed: str, *shape: int) -> torch.Tensor:
    """An F32 tensor that must stay F32."""
    return torch.randn(shape, generator=generator(seed))


def bystanders(width: int = 32) -> Tensors:
    """Tensors of a Hugging Face checkpoint that are not quantized: BF16, an F32 bias, an I64 table.

    The table holds numbers above 2**24, and the bias full mantissas: a cast would show.
    """
    table = integers("table", 0, 1 << 40, 4, 3)
    table[0, 0] = (1 << 40) + 1
    return {
        "lm_head.weight": bf16("head", 8, width),
        "model.embed_tokens.weight": bf16("embed", 8, width),
        "model.layers.0.input_layernorm.weight": bf16("norm", width),
        "model.layers.0.mlp.gate.e_score_correction_bias": f32("bias", 4),
        "model.layers.0.mlp.gate.hash_table": table,
    }
