"""Plain NumPy twins of the ``encode`` kernels: the fallback, and the oracle of their tests.

Matrices x and y are float32 [r, c], C-contiguous. They lie in blocks of ``block`` = (br, bc), with
one cell of a grid [ceil((phase + r) / br), ceil(c / bc)] each; ``phase`` is how far into its block
the first row lies. Blocks at an edge hold only the elements that exist.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codecs.elements import Element

Array = npt.NDArray[Any]
ROWS = 64  # per step: the temporaries stay small
LANES = 64  # in which difference sums


def _steps(rows: int, phase: int, br: int) -> Iterator[tuple[slice, Array]]:
    """Rows of one step, and the row of blocks in which each lies."""
    for r in range(0, rows, ROWS):
        end = min(r + ROWS, rows)
        yield slice(r, end), (phase + np.arange(r, end)) // br


def widen(halves: Array, out: Array) -> None:
    """uint16 [n] of bfloat16 bits -> uint32 [n], those of the same values in float32."""
    np.left_shift(halves, 16, out=out, dtype=np.uint32)


def measure(x: Array, phase: int, block: tuple[int, int], top: Array, bits: Array) -> None:
    """Largest magnitude and mantissa bits used, as float32 bits, into two uint32 grids.

    ``top`` is raised to the largest ``bits & 0x7FFFFFFF`` of each block: NaN and infinity show as
    0x7F800000 or more. ``bits`` is OR-ed with the mantissa bits of each element. Both accumulate
    over the calls that bring a block's rows.
    """
    if not x.size:
        return
    starts = np.arange(0, x.shape[1], block[1])
    for step, bands in _steps(x.shape[0], phase, block[0]):
        words = x[step].view(np.uint32)
        tops = np.maximum.reduceat(words & np.uint32(0x7FFFFFFF), starts, axis=1)
        used = np.bitwise_or.reduceat(words & np.uint32(0x7FFFFF), starts, axis=1)
        for row, band in enumerate(bands):
            np.maximum(top[band], tops[row], out=top[band])
            np.bitwise_or(bits[band], used[row], out=bits[band])


def whole_range(element: Element) -> tuple[int, int]:
    """Lowest and highest value of an integer ``element``."""
    low = -(1 << element.bits - 1) if element.signed else 0
    return low, low + (1 << element.bits) - 1


@functools.cache
def _midpoints(element: Element) -> Array:
    """float64 [n - 1]: the middle between each two neighbours of ``element``'s n magnitudes."""
    values = np.array([element.value(code) for code in range(1 << element.width - 1)])
    values = values[np.isfinite(values)]
    middles: Array = (values[:-1] + values[1:]) / 2  # exact
    return middles


def has_minus_zero(element: Element) -> bool:
    """Whether the code of a float with only the sign bit is -0.0: it is NaN in a FNUZ format."""
    value = element.value(1 << element.width - 1)
    return value == 0.0 and math.copysign(1.0, value) < 0.0


def _float_codes(element: Element, ratio: Array) -> Array:
    """The nearest code of each float32, the even one of two as near; beyond the largest: that."""
    middles, magnitude = _midpoints(element), np.abs(ratio).astype(np.float64)
    below = np.searchsorted(middles, magnitude, "left")  # a code is how many middles lie below it
    above = np.searchsorted(middles, magnitude, "right")  # one more on a middle
    codes = np.where(below % 2, above, below)
    negative = np.signbit(ratio) & (has_minus_zero(element) | (codes != 0))
    signed: Array = codes | negative.astype(np.int64) << element.width - 1
    return signed


def _whole_codes(element: Element, ratio: Array, zero: float) -> Array:
    whole: Array = np.clip(np.rint(ratio) + np.float32(zero), *whole_range(element))
    return whole.astype(np.int64)


def encode(
    element: Element,
    x: Array,
    scales: Array,
    zero: float,
    phase: int,
    block: tuple[int, int],
    out: Array,
) -> None:
    """Encode ``x``, which is finite, into ``out`` uint8 [r, c] ([r, c/2] if four bits wide).

    ``scales`` is a float32 grid: finite, above 0 for a float, not 0 for an integer. With x / scale
    one float32 division, a float's code is the nearest of clamp(x / scale, -largest, largest),
    ties to even, the sign kept if the result is zero (where the format has a negative zero); an
    integer's is clamp(round(x / scale) + zero, lowest, highest), ties to even, ``zero`` whole and
    in the element's range (or 0). Of two codes in a byte, the even column's is the low nibble.
    """
    columns = np.arange(x.shape[1]) // block[1]
    for step, bands in _steps(x.shape[0], phase, block[0]):
        with np.errstate(over="ignore", under="ignore"):
            ratio = x[step] / scales[np.ix_(bands, columns)]
        if element.is_float:
            codes = _float_codes(element, ratio).astype(np.uint8)
        else:
            codes = _whole_codes(element, ratio, zero).astype(np.uint8)
        out[step] = codes[:, 0::2] | codes[:, 1::2] << 4 if element.bits == 4 else codes


def squared_error(x: Array, y: Array, phase: int, block: tuple[int, int], out: Array) -> None:
    """Add the sum of (x - y)**2 over each block to ``out``, a float64 grid; x and y finite.

    All in float64, in this order, which makes the result the same everywhere, however a block's
    rows are shared out to calls: row by row, sixteen columns of a block at a time, from its first
    (zeros after its last); the sixteen by neighbours (0 + 1, 2 + 3, ..., then again); each such
    sum to ``out``.
    """
    at = np.arange(x.shape[1])
    per = -(-block[1] // 16)  # sixteens of a block
    padded = at // block[1] * per * 16 + at % block[1]
    owner = np.arange(out.shape[1]).repeat(per)
    for step, bands in _steps(x.shape[0], phase, block[0]):
        terms = np.zeros((len(bands), 16 * len(owner)))
        terms[:, padded] = (x[step].astype(np.float64) - y[step]) ** 2
        for _ in range(4):
            terms = terms[:, 0::2] + terms[:, 1::2]
        for row, band in enumerate(bands):
            np.add.at(out[band], owner, terms[row])  # in order


def _into_lanes(terms: Array, lanes: Array) -> None:
    """Add float64 [n] to ``lanes`` in turn, from the first, again and again."""
    rows = np.zeros((-(-terms.size // LANES), LANES))
    rows.reshape(-1)[: terms.size] = terms
    for row in rows:
        lanes += row


def difference(x: Array, y: Array) -> tuple[float, float, float]:
    """Largest abs(x - y), sum of (x - y)**2, sum of x**2; x and y finite.

    All in float64, in this order, which makes the result the same everywhere: each LANES-th
    element from each of the first, in turn; then these LANES sums, in turn.
    """
    x, y = x.reshape(-1), y.reshape(-1)
    largest, errors, squares = 0.0, np.zeros(LANES), np.zeros(LANES)
    for lo in range(0, x.size, LANES * 4096):
        value = x[lo : lo + LANES * 4096].astype(np.float64)
        d = value - y[lo : lo + LANES * 4096]
        largest = max(largest, float(np.abs(d).max()))
        _into_lanes(d * d, errors)
        _into_lanes(value * value, squares)
    error, square = (float(np.add.accumulate(lanes)[-1]) for lanes in (errors, squares))
    return largest, error, square
