"""Element formats as tables of float32, and stored scales as float32, from the published formulas.

Sources: "FP8 Formats for Deep Learning" (arXiv 2209.05433), the FNUZ forms of arXiv 2206.02915, OCP
Microscaling Formats v1.0 (e2m1, e8m0).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NAN, INFINITE = np.float32("nan"), np.float32("inf")
CLIPPED = 5 / 3  # see limits()


def small_floats(exponent_bits: int, mantissa_bits: int, bias: int) -> Array:
    """float32 [2 ** bits]: every code as sign, exponent and mantissa, without special codes.

    A mantissa is a whole number of steps; a step doubles with the exponent, but for the first two
    exponents, which share theirs.
    """
    steps = np.arange(1 << mantissa_bits)
    rows = [
        np.ldexp(steps + ((e > 0) << mantissa_bits), max(e, 1) - bias - mantissa_bits)
        for e in range(1 << exponent_bits)
    ]
    positive = np.concatenate(rows).astype(np.float32)
    return np.concatenate([positive, -positive])


@functools.cache
def values(element: str) -> Array:
    """float32 [256]: what each code of a format stands for; 4-bit ones have 16 codes and zeros.

    ``element`` is a name of :data:`fp8convert.codecs.elements.ELEMENTS`.
    """
    table = np.zeros(256, np.float32)
    if element == "e4m3fn":  # no infinity; all ones is NaN
        table[:] = small_floats(4, 3, 7)
        table[[0x7F, 0xFF]] = NAN
    elif element == "e5m2":  # as IEEE 754 has it
        table[:] = small_floats(5, 2, 15)
        table[[0x7C, 0xFC]] = INFINITE, -INFINITE
        table[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = NAN
    elif element in ("e4m3fnuz", "e5m2fnuz"):  # NaN in place of -0
        table[:] = small_floats(4, 3, 8) if element == "e4m3fnuz" else small_floats(5, 2, 16)
        table[0x80] = NAN
    elif element.startswith("e2m1"):
        table[:16] = small_floats(2, 1, 1)
        if element == "e2m1-unsigned-zero":
            table[8] = 0.0
    elif element == "int8":
        table[:] = np.arange(256, dtype=np.uint8).view(np.int8)
    elif element in ("uint4", "uint8"):
        count = 16 if element == "uint4" else 256
        table[:count] = np.arange(count)
    else:
        raise KeyError(element)
    table.flags.writeable = False
    return table


@functools.cache
def limits(element: str) -> tuple[Array, Array]:
    """float32 [256] twice: how far above and below the value of a code, in units of the scale, the
    numbers may lie that it is the nearest code of.

    That is half the gap to the next value. The largest code also stands for what is clipped: a
    search for scales may halve one (powers of two) or take 0.65 of it (integers), and OCP's rule
    for powers of two leaves a third above the largest e2m1, in all at most 8/3 of its value.
    """
    table = values(element)
    codes = 16 if element.startswith("e2m1") or element == "uint4" else 256
    known = np.unique(table[:codes][np.isfinite(table[:codes])])
    half = np.diff(known) / 2
    clipped = (known[-1] - known[0]) / 2 * CLIPPED
    above, below = np.append(half, clipped), np.append(clipped, half)
    at = np.searchsorted(known, np.where(np.isfinite(table), table, 0))
    return above[at].astype(np.float32), below[at].astype(np.float32)


def as_float32(stored: Array, dtype: str) -> Array:
    """Stored numbers, as :mod:`.stored` gives them, as float32 of the same shape, exactly.

    Of a scale the dtypes F32, BF16, F16, F8_E4M3, and exponents F8_E8M0, also kept as U8.
    """
    if dtype == "F32":
        return stored
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        numbers: Array = values("e4m3fn")[stored]
        return numbers
    if dtype in ("F8_E8M0", "U8"):
        powers = np.ldexp(np.float32(1), stored.astype(np.int32) - 127)
        exponents: Array = np.where(stored == 255, NAN, powers)
        return exponents
    return stored.astype(np.float32)  # F16, I8


def to_bfloat16(numbers: Array) -> Array:
    """float32 rounded to BF16, nearest even, as uint16: what :mod:`.loops` does for each number."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    half = (bits >> 16 & 1) + 0x7FFF
    rounded: Array = ((bits + half) >> 16).astype(np.uint16)
    return rounded
