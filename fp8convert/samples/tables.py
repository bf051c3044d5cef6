"""The tables that values are drawn from: 65,536 equally likely ones for each fill.

Weights come out normal with sigma 0.02, or close to it: each kind of scale suits its codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .elements import to_bf16, to_e2m1, to_e4m3

MAX_CODE = 448.0
SIGMA = 0.02
MEAN_SCALE = SIGMA * 4 / MAX_CODE  # codes reach 448 at 4.2 sigma
BYTE_SIGMA = 2.1  # of e2m1 codes, which reach 6 at 2.9 sigma
INT4_SIGMA = 3.0
BELOW = "below "  # "below 256": integers from 0 to 255

Array = NDArray[Any]


@cache
def table(fill: str) -> Array:
    """The 65,536 values that tensors of one kind are drawn from: codes, scales, matrix, ..."""
    if fill.startswith(BELOW):
        return np.arange(65536, dtype=np.int64) % int(fill.removeprefix(BELOW))
    return FILLS[fill](_normal(65536))


@cache
def _normal(count: int) -> Array:
    """Equally likely values of the normal distribution, in order."""
    return np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


def _codes(z: Array) -> Array:
    return to_e4m3(z * (MAX_CODE / z.max()))


def _every_code(z: Array) -> Array:
    """As _codes, which has no zero and few small ones: one code in 64 is any finite one."""
    codes = _codes(z)
    finite = [code for code in range(256) if code & 0x7F != 0x7F]
    codes[::64] = np.resize(np.array(finite, np.uint8), 1024)
    return codes


def _two(codes: Array) -> Array:
    """Bytes of two 4-bit codes each, every pair of the 256 given ones."""
    both = codes[:, None] << 4 | codes[None, :]
    return np.asarray(both.reshape(-1), np.uint8)


def _two_e2m1(z: Array) -> Array:
    return _two(to_e2m1(BYTE_SIGMA * _normal(256)))


def _two_int4(z: Array) -> Array:
    q = np.clip(np.rint(INT4_SIGMA * _normal(256)), -8, 7)
    return _two(np.asarray(q + 8, np.uint8))


def _e8m0(code_sigma: float) -> Callable[[Array], Array]:
    """Powers of two around the scale that makes weights of sigma 0.02: six or so exponents."""
    middle = np.log2(SIGMA / code_sigma)
    return lambda z: np.asarray(np.rint(127 + middle + 0.6 * z), np.uint8)


def _nvfp4(z: Array) -> Array:
    """e4m3 scales that are mostly large, as the per-tensor scale brings the largest to 448."""
    scales = np.minimum(160 * np.exp(0.25 * z), MAX_CODE)
    scales[::4096] = np.arange(1, 17) * 2.0**-9  # blocks of next to nothing: subnormals too
    return to_e4m3(scales)


def _log_normal(mean: float) -> Callable[[Array], Array]:
    return lambda z: np.asarray(mean * np.exp(0.25 * z), np.float32)


def _normal_f32(mean: float, sigma: float) -> Callable[[Array], Array]:
    return lambda z: np.asarray(mean + sigma * z, np.float32)


def _bf16(of: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda z: to_bf16(of(z))


FILLS: dict[str, Callable[[Array], Array]] = {
    "codes": _codes,
    "e4m3": _every_code,
    "e2m1": _two_e2m1,
    "e2m1, one zero": _two_e2m1,
    "int4": _two_int4,
    "scales": _log_normal(MEAN_SCALE),
    "bf16 scales": _bf16(_log_normal(MEAN_SCALE)),
    "int4 scales": _bf16(_log_normal(SIGMA / INT4_SIGMA)),
    "e4m3 exponents": _e8m0(MAX_CODE / 4),
    "e2m1 exponents": _e8m0(BYTE_SIGMA),
    "nvfp4 scales": _nvfp4,
    "nvfp4 tensor scale": _log_normal(SIGMA / BYTE_SIGMA / 160),
    "input scale": _log_normal(0.004),
    "bf16 input scale": _bf16(_log_normal(0.02)),
    "matrix": _bf16(_normal_f32(0, SIGMA)),
    "norm": _bf16(_normal_f32(1, 0.05)),
    "bias": _normal_f32(0, 0.01),
    "gain": _normal_f32(1, 0.05),
}
