"""How numbers are rounded: float32 within a step, the compute dtype between steps.

``bf16``: weights and activations are BF16, sums float32. ``fp32``: nothing is rounded, but coded
weights are first what ``to-bf16`` would write, so that a checkpoint and its BF16 copy give the same
bits. ``fp8``: as bf16, but where a weight is FP8 or MXFP4 in the file, activations are FP8 too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError, shown

COMPUTES = ("bf16", "fp32", "fp8")
DEVICES = ("cpu", "cuda")
FP8_MAX = 448.0  # of e4m3
GROUP = 128  # channels that share a scale of activations
LEAST_AMAX = 1e-4  # or a token of zeros would divide by zero


def dtype_of(compute: str) -> torch.dtype:
    """What activations are held in between steps. UsageError if there is no such mode."""
    if compute not in COMPUTES:
        raise UsageError(f"compute is {shown(compute)}, expected one of {', '.join(COMPUTES)}")
    return torch.float32 if compute == "fp32" else torch.bfloat16


def checked_device(device: str) -> str:
    """``device``, if it is one and can be used; UsageError otherwise. Its products are float32.

    TF32, where torch has been told to use it, is switched off for the whole process.
    """
    if device not in DEVICES:
        raise UsageError(f"device is {shown(device)}, expected one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is 'cuda', but torch {torch.__version__} finds no CUDA device")
    torch.set_float32_matmul_precision("highest")
    return device


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last axis; float32 within, the dtype of ``x`` out."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normed if weight is None else normed * weight).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor, limit: float = 0.0) -> Tensor:
    """``silu(gate) * up``; with a limit, gate is cut above and up on both sides first."""
    g, u = gate.float(), up.float()
    if limit:
        g, u = g.clamp(max=limit), u.clamp(-limit, limit)
    return (torch.nn.functional.silu(g) * u).to(gate.dtype)


def quantized(x: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """FP8 activations [t, i]: e4m3 values as float32 [t, i], their scales [t, ceil(i / 128)].

    A scale for each token and 128 channels, ``amax / 448``; rounded up to a power of two where
    the checkpoint's scales are (``scale_fmt: ue8m0``). Source: ``act_quant`` of DeepSeek-V3's
    ``inference/kernel.py``.
    """
    t, i = x.shape
    wide = torch.nn.functional.pad(x.float(), (0, -i % GROUP)).view(t, -1, GROUP)
    amax = wide.abs().amax(-1).clamp(min=LEAST_AMAX)
    scale = amax / amax.new_tensor(FP8_MAX)  # CUDA would multiply by the inverse of a plain number
    if power_of_two:
        fraction, exponent = torch.frexp(scale)  # the fraction is in [0.5, 1)
        rounded = torch.ldexp(torch.ones_like(scale), exponent - (fraction == 0.5).int())
        scale = torch.where(scale.isfinite(), rounded, scale)  # infinity stays, and gives NaN
    codes = (wide / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return codes.float().view(t, -1)[:, :i], scale


def block_matmul(
    x: Tensor, x_scale: Tensor, w: Tensor, w_scale: Tensor, block: tuple[int, int]
) -> Tensor:
    """FP8 GEMM [t, o] by blocks of K, float32 sums, each multiplied by both scales as it is added.

    ``x`` [t, i] with scales [t, ceil(i / 128)]; ``w`` [o, i] with scales [ceil(o / block[0]),
    ceil(i / block[1])]; ``block[1]`` divides 128 or is it. Source: ``fp8_gemm`` of the same file.
    """
    rows, columns = block
    scales = w_scale.repeat_interleave(rows, 0)[: len(w)].T.contiguous()  # [i / block[1], o]
    out = x.new_zeros(len(x), len(w))
    for k, start in enumerate(range(0, x.shape[1], columns)):
        part = x[:, start : start + columns] @ w[:, start : start + columns].T
        out += part * x_scale[:, start // GROUP, None] * scales[k]
    return out
