"""What the bits of low-precision elements mean, from the formats' own definitions.

e4m3fn: Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433, table 1. e2m1 and
e8m0: OCP Microscaling Formats (MX) v1.0, sections 5.3.3 and 5.4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = (*E2M1, *(-x for x in E2M1))  # code 8 is -0.0


@cache
def e4m3_values() -> Array:
    """float32 value of each e4m3fn code: s eeee mmm, bias 7, no infinity, NaN at 0x7F and 0xFF."""
    return np.array([_e4m3_value(code) for code in range(256)], np.float32)


def _e4m3_value(code: int) -> float:
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return float(sign * mantissa * 2.0**-9)
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))


@cache
def e8m0_values() -> Array:
    """float32 value of each e8m0 byte: 2**(byte - 127), NaN at 255."""
    values = [2.0 ** (byte - 127) for byte in range(255)]
    return np.array([*values, float("nan")], np.float32)


def to_e4m3(x: Array) -> Array:
    """The nearest e4m3fn code of each value; magnitudes up to 448, never NaN."""
    return _nearest(x, e4m3_values()[:0x7F].astype(np.float64), 0x80)


def to_e2m1(x: Array) -> Array:
    """The nearest e2m1 code of each value; small negative values become code 8."""
    return _nearest(x, np.array(E2M1), 8)


def _nearest(x: Array, magnitudes: Array, sign: int) -> Array:
    code = np.searchsorted((magnitudes[1:] + magnitudes[:-1]) / 2, np.abs(x))
    return np.asarray(code | np.where(x < 0, sign, 0), np.uint8)


def to_bf16(x: Array) -> Array:
    """BF16 bits of finite float32 values, round to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits >> 16  # in place from here on: twice as fast as one expression
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


@cache
def code_values(fill: str) -> Array:
    """float32 values of each byte of codes: one, or two (seen as a uint64), low nibble first."""
    if fill in ("codes", "e4m3"):
        return e4m3_values().view(np.uint32)
    nibbles = np.array(NIBBLES[fill], np.float32)
    low, high = np.arange(256) & 15, np.arange(256) >> 4
    return np.stack([nibbles[low], nibbles[high]], axis=1).view(np.uint64)[:, 0]


# Value of each 4-bit code, by the fill of the tensor that holds them.
NIBBLES: dict[str, tuple[float, ...]] = {
    "e2m1": E2M1_VALUES,
    "e2m1, one zero": (*E2M1, 0.0, *E2M1_VALUES[9:]),  # DeepSeek's own table: code 8 is +0.0
    "int4": tuple(float(q - 8) for q in range(16)),  # stored with 8 added
}


def as_float32(bits: Array, dtype: str) -> Array:
    """The values of scales of one stored dtype; U8 holds e8m0 bytes."""
    return SCALES[dtype](bits)


SCALES: dict[str, Callable[[Array], Array]] = {
    "F32": lambda bits: bits,
    "BF16": lambda bits: (bits.astype(np.uint32) << 16).view(np.float32),
    "F8_E4M3": lambda bits: e4m3_values().take(bits),
    "F8_E8M0": lambda bits: e8m0_values().take(bits),
    "U8": lambda bits: e8m0_values().take(bits),
}
