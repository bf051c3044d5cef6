"""Every scheme's plain rule as torch computes it: codes and scales of a float32 matrix.

The formulas are those of the scheme's definition; what torch has no dtype for, four-bit codes, is
bucketed and packed by compressed-tensors' own functions, as llm-compressor does it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

E4M3, E2M1 = 448.0, 6.0
LEAST = 2.0**-126


class Made(NamedTuple):
    """Codes as they are stored, and the scales that they are multiplied by, as float32."""

    codes: Tensor
    scales: Tensor


Encode = Callable[[Tensor], Made]


def _blocks(x: Tensor, block: tuple[int, int]) -> Tensor:
    """[o, i] as [o/br, br, i/bc, bc]."""
    (rows, columns), (br, bc) = x.shape, block
    return x.reshape(rows // br, br, columns // bc, bc)


def _groups(x: Tensor, size: int) -> Tensor:
    """[o, i] as [o, i/size, size]."""
    return x.reshape(x.shape[0], -1, size)


def _amax(x: Tensor) -> Tensor:
    return x.abs().amax((1, 3), keepdim=True)


def _bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


def _e4m3(x: Tensor, s: Tensor, shape: torch.Size) -> Made:
    codes = (x / s).clamp(-E4M3, E4M3).to(torch.float8_e4m3fn)
    return Made(codes.reshape(shape), s.squeeze(3).squeeze(1))


def fp8(block: tuple[int | None, int | None], scale: str = "F32") -> Encode:
    """e4m3 in blocks (None: all); ``scale`` F32, BF16 or "power", the next power of two."""

    def encode(w: Tensor) -> Made:
        x = _blocks(w, (block[0] or w.shape[0], block[1] or w.shape[1]))
        s = (_amax(x) / E4M3).clamp(min=LEAST)
        s = _bf16(s) if scale == "BF16" else s
        s = torch.exp2(torch.ceil(torch.log2(s))) if scale == "power" else s
        return _e4m3(x, s, w.shape)

    return encode


def int8(w: Tensor) -> Made:
    """A scale a row."""
    s = _bf16(w.abs().amax(1, keepdim=True) / 127.5)
    return Made((w / s).round().clamp(-128, 127).to(torch.int8), s)


def int4(group: int) -> Encode:
    """Packed into I32, stored plus 8."""
    helpers: Any = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")

    def encode(w: Tensor) -> Made:
        x = _groups(w, group)
        s = _bf16(x.abs().amax(2, keepdim=True) / 7.5)
        codes = (x / s).round().clamp(-8, 7).to(torch.int8).reshape(w.shape)
        return Made(helpers.pack_to_int32(codes, 4), s.squeeze(2))

    return encode


def _e2m1(x: Tensor, s: Tensor, shape: torch.Size) -> Tensor:
    cast: Any = importlib.import_module("compressed_tensors.quantization.utils.fp4_utils")
    pack: Any = importlib.import_module("compressed_tensors.compressors.nvfp4.helpers")
    values = cast.cast_to_fp4((x / s[..., None]).clamp(-E2M1, E2M1))
    packed: Tensor = pack.pack_fp4_to_uint8(values.reshape(shape))
    return packed


def nvfp4(w: Tensor) -> Made:
    """Groups of 16 with an e4m3 scale, under one F32 scale."""
    x = _groups(w, 16)
    top = x.abs().amax(2)
    whole = _bf16(_bf16(1 / top.amax()) * (E2M1 * E4M3))
    local = (whole * _bf16(top / E2M1)).clamp(2.0**-9, E4M3).to(torch.float8_e4m3fn).float()
    s = local / whole
    return Made(_e2m1(x, s, w.shape), s)


def _mx_scales(x: Tensor, emax: int) -> Tensor:
    """Powers of two around amax; the exponent is raised where rounding to e2m1 would."""
    bits = x.abs().amax(2).view(torch.int32)
    exponent = ((bits + 0x200000) >> 23) - emax
    return (exponent.clamp(1, 254) << 23).view(torch.float32)


def mxfp4(w: Tensor) -> Made:
    """Groups of 32 with a power of two."""
    x = _groups(w, 32)
    s = _mx_scales(x, 2)
    return Made(_e2m1(x, s, w.shape), s)


def mxfp8(w: Tensor) -> Made:
    """Groups of 32 with a power of two."""
    x = _groups(w, 32)
    s = _mx_scales(x, 8)
    codes = (x / s[..., None]).clamp(-E4M3, E4M3).to(torch.float8_e4m3fn)
    return Made(codes.reshape(w.shape), s)


PEERS: dict[str, Encode] = {
    "fp8-block": fp8((128, 128)),
    "fp8-block-ue8m0": fp8((128, 128), "power"),
    "fp8-channel": fp8((1, None), "BF16"),
    "fp8-tensor": fp8((None, None), "BF16"),
    "int8-channel": int8,
    "int4-group": int4(128),
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
    "mxfp8": mxfp8,
}
