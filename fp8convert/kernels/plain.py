"""Plain NumPy twins of the compiled kernels: the fallback, and the oracle of their tests.

Slow (about 0.1 G elements/s) and written for the reader: look the code up, multiply, round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ROWS, COLUMNS = 64, 4096  # per step: the float32 temporaries stay small


def e4m3_value(code: int) -> float:
    """One e4m3fn code as the published formula has it: s eeee mmm, bias 7, NaN at 0x7F and 0xFF."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))


E4M3 = np.array([e4m3_value(c) for c in range(256)], np.float32)


def round_bf16(values: Array) -> Array:
    """float32 [...] -> bfloat16 bits as uint16, to nearest even; every NaN becomes 0x7FC0."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    kept: Array = np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))
    return kept


def e4m3_blocks(
    codes: Array, scales: Array, phase: int, block: tuple[int, int], out: Array
) -> None:
    """Decode ``codes`` uint8 [r, c] with ``scales`` float32 [ceil((phase+r)/br), ceil(c/bc)].

    ``out`` [r, c] is float32, or uint16 for bfloat16 bits; each element is one float32 product,
    rounded once. ``phase`` is how far into its block the first row lies.
    """
    br, bc = block
    for r0 in range(0, codes.shape[0], ROWS):
        for c0 in range(0, codes.shape[1], COLUMNS):
            at = (slice(r0, r0 + ROWS), slice(c0, c0 + COLUMNS))
            part = codes[at]
            rows = (phase + r0 + np.arange(part.shape[0])) // br
            columns = (c0 + np.arange(part.shape[1])) // bc
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                product = E4M3[part] * scales[np.ix_(rows, columns)]
            out[at] = round_bf16(product) if out.dtype == np.uint16 else product


def has_nan_code(codes: Array) -> bool:
    """Whether any e4m3 code of uint8 [n] is NaN (0x7F or 0xFF)."""
    return bool(np.any((codes & np.uint8(0x7F)) == 0x7F))
