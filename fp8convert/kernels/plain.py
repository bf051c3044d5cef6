"""Plain NumPy twins of the compiled kernels: the fallback, and the oracle of their tests.

Slow (about 0.1 G elements/s) and written for the reader: look the code up, subtract the zero point,
multiply, round.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codecs.elements import ELEMENTS, Element
from .plain_encode import difference, encode, measure, squared_error, widen

Array = npt.NDArray[Any]
ROWS, COLUMNS = 64, 4096  # per step: the float32 temporaries stay small; even


@functools.cache
def table(element: Element) -> Array:
    """float32 value of each code of ``element``."""
    return np.array([element.value(c) for c in range(1 << element.bits)], np.float32)


def round_bf16(values: Array) -> Array:
    """float32 [...] -> bfloat16 bits as uint16, to nearest even; every NaN becomes 0x7FC0."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    kept: Array = np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))
    return kept


def unpacked(packed: Array) -> Array:
    """uint8 [r, c/2] -> uint8 [r, c] of four-bit codes, the low nibble first."""
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes


def decode(
    element: Element,
    codes: Array,
    scales: Array,
    zeros: Array | None,
    phase: int,
    block: tuple[int, int],
    out: Array,
    checked: bool = False,
) -> None:
    """Decode ``codes`` uint8 [r, c] ([r, c/2] if four bits wide) into ``out`` [r, c].

    ``scales`` and ``zeros`` (none for floats) are float32 [ceil((phase + r) / br), ceil(c / bc)];
    ``phase`` is how far into its block the first row lies. ``out`` is float32, or uint16 for
    bfloat16 bits: ``(float32(code) - zero) * scale`` in float32, rounded once. ``checked`` says
    that no code is odd; here it makes no difference.
    """
    (rows, columns), (br, bc) = out.shape, block
    narrow = 8 // element.bits
    for r0 in range(0, rows, ROWS):
        for c0 in range(0, columns, COLUMNS):
            part = codes[r0 : r0 + ROWS, c0 // narrow : (c0 + COLUMNS) // narrow]
            part = unpacked(part) if element.bits == 4 else part
            at = np.ix_(
                (phase + r0 + np.arange(part.shape[0])) // br,
                (c0 + np.arange(part.shape[1])) // bc,
            )
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                value = table(element)[part]
                product = (value if zeros is None else value - zeros[at]) * scales[at]
            rounded = round_bf16(product) if out.dtype == np.uint16 else product
            out[r0 : r0 + ROWS, c0 : c0 + COLUMNS] = rounded


def decode_columns(
    element: Element, codes: Array, scales: Array, zeros: Array, group_of: Array, out: Array
) -> None:
    """As :func:`decode`, scales and zeros [r, groups], column ``c`` in group ``group_of[c]``."""
    for r in range(0, out.shape[0], ROWS):
        rows = slice(r, r + ROWS)
        factor, offset = scales[rows][:, group_of], zeros[rows][:, group_of]
        decode(element, codes[rows], factor, offset, 0, (1, 1), out[rows])


def transposed(matrix: Array) -> Array:
    """A contiguous [c, r] of [r, c]."""
    return np.ascontiguousarray(matrix.T)


def has_odd_code(element: Element, codes: Array) -> bool:
    """Whether a code of uint8 [n] is one that no weight has (NaN, infinity)."""
    if element.odd is None:
        return False
    flip, mask, limit = map(np.uint8, element.odd)
    return bool(np.any(((codes ^ flip) & mask) >= limit))


def transpose_nibbles(packed: Array, out: Array) -> None:
    """uint8 [n, b] -> ``out`` uint8 [2b, n]: rows 2k, 2k + 1 are column k's low, high nibbles."""
    out[0::2] = (packed & 15).T
    out[1::2] = (packed >> 4).T


__all__ = [
    "ELEMENTS",
    "decode",
    "difference",
    "encode",
    "has_odd_code",
    "measure",
    "round_bf16",
    "squared_error",
    "table",
    "transpose_nibbles",
    "transposed",
    "widen",
]
