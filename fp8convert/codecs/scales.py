"""Stored scales as float32 values, exactly, whatever dtype a checkpoint keeps them in.

E8M0 (OCP MX v1.0): byte b is 2**(b - 127), 255 is NaN; many checkpoints keep it in U8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .elements import ELEMENTS

if TYPE_CHECKING:
    from .base import Array, Bytes

E8M0 = ("F8_E8M0", "U8")
WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "U8": 1}
PLAIN = ("F32", "BF16", "F16")  # what a scale that is an ordinary number is kept in


def to_float32(raw: Bytes, dtype: str) -> Array:
    """float32 [n] of the scales in ``raw`` (bytes, little-endian)."""
    import numpy as np

    from ..kernels import plain

    if dtype == "F32":
        return np.frombuffer(raw.tobytes(), "<f4")
    if dtype == "F16":
        return np.frombuffer(raw.tobytes(), "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(raw.tobytes(), "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return plain.table(ELEMENTS["e4m3fn"])[raw]
    return _e8m0()[raw]


def from_float32(values: Array, dtype: str) -> Bytes:
    """The bytes that :func:`to_float32` reads as ``values``, which ``dtype`` must hold exactly."""
    import numpy as np

    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == "F32":
        return flat.view(np.uint8)
    if dtype == "F16":
        return flat.astype("<f2").view(np.uint8)
    if dtype == "BF16":
        return (flat.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    if dtype == "F8_E4M3":  # positive: exponent and mantissa bits, rebiased; or whole steps
        normal = (flat.view(np.uint32) >> 20) - np.uint32(127 - 7 << 3)
        codes: Bytes = np.where(flat < 2.0**-6, flat * np.float32(2**9), normal).astype(np.uint8)
        return codes
    return (flat.view(np.uint32) >> 23).astype(np.uint8)  # a power of two from 2**-126 on


def _e8m0() -> Array:
    import numpy as np

    exponents = np.arange(256, dtype=np.uint32)
    bits = exponents << 23
    bits[0] = 1 << 22  # 2**-127, a float32 subnormal
    bits[255] = 0x7FC00000
    return bits.view(np.float32)
