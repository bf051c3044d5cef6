"""The published FP8 step, from its formula: plain loops, and ml_dtypes for the rounding.

DeepSeek-V3 ``inference/kernel.py``: ``act_quant`` scales a token's 128 channels by amax / 448 (at
least 1e-4 / 448; with ``scale_fmt`` ue8m0 the next power of two) and rounds to e4m3; ``fp8_gemm``
adds, for each block of channels, a float32 dot times the scale of the activations times the scale
of the weight's block.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

Array = Any
F32 = np.float32


def act_quant(x: Array, power_of_two: bool) -> tuple[Array, Array]:
    """Values [t, i] and scales [t, ceil(i / 128)] of x [t, i], float32."""
    values, scales = np.zeros_like(x), np.zeros((len(x), -(-x.shape[1] // 128)), F32)
    for token, row in enumerate(x):
        for k in range(scales.shape[1]):
            group = row[k * 128 : (k + 1) * 128]
            scale = F32(max(np.abs(group).max(), F32(1e-4))) / F32(448)
            if power_of_two:
                mantissa, exponent = math.frexp(scale)  # mantissa * 2**exponent, 0.5 <= mantissa
                scale = F32(2.0 ** (exponent - 1 if mantissa == 0.5 else exponent))
            codes = (group / scale).astype(ml_dtypes.float8_e4m3fn)
            values[token, k * 128 : (k + 1) * 128] = codes.astype(F32)
            scales[token, k] = scale
    return values, scales


def gemm(x: Array, x_scale: Array, w: Array, w_scale: Array, block: tuple[int, int]) -> Array:
    """[t, o] of values and scales; the scales of ``w`` are one for each ``block``."""
    out = np.zeros((len(x), len(w)), F32)
    for token in range(len(x)):
        for row in range(len(w)):
            total = F32(0)
            for start in range(0, x.shape[1], block[1]):
                at = slice(start, start + block[1])
                dot = (x[token, at].astype(np.float64) * w[row, at]).sum()
                scale = w_scale[row // block[0], start // block[1]]
                total += F32(dot) * x_scale[token, start // 128] * scale
            out[token, row] = total
    return out
