"""The three loops that take time, as one would write them down; numba compiles them.

All take a weight's piece as :class:`.decoders.Codes` has it: number [i, j] is
``(values[codes[i, j]] - zeros[down[i], across[j]]) * scales[down[i], across[j]]``, a difference and
a product in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import numbaoptions
from .numbers import Array

numbaoptions.check()
import numba  # noqa: E402


def jit(function: Callable[..., Any]) -> Any:
    """Compiled on its first call, without the GIL; kept on disk where that is possible."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder of a cache can be written
        return numba.njit(nogil=True)(function)


@jit
def spread(of: Array, across: Array, out: Array) -> None:
    """Of each column its block's scale or zero point."""
    for j in range(len(across)):
        out[j] = of[across[j]]


@jit
def row(codes: Array, values: Array, zeros: Array, scales: Array, out: Array) -> None:
    """The numbers of one row."""
    for j in range(len(codes)):
        out[j] = (values[codes[j]] - zeros[j]) * scales[j]


@jit
def products(
    codes: Array, values: Array, zeros: Array, scales: Array, down: Array, across: Array, out: Array
) -> None:
    """All numbers, into ``out``, float32 [r, c]."""
    zero, scale = np.empty(len(across), np.float32), np.empty(len(across), np.float32)
    for i in range(len(down)):
        if i == 0 or down[i] != down[i - 1]:
            spread(zeros[down[i]], across, zero)
            spread(scales[down[i]], across, scale)
        row(codes[i], values, zero, scale, out[i])


@jit
def bf16_differences(
    codes: Array, values: Array, zeros: Array, scales: Array, down: Array, across: Array,
    stored: Array,
) -> tuple[int, int]:  # fmt: skip
    """How many of ``stored``, BF16 [r, c], are not the number rounded to nearest even, and the
    place of the first in row-major order, or -1."""
    count, first, columns = 0, -1, len(across)
    zero, scale = np.empty(columns, np.float32), np.empty(columns, np.float32)
    numbers = np.empty(columns, np.float32)
    bits = numbers.view(np.uint32)
    for i in range(len(down)):
        if i == 0 or down[i] != down[i - 1]:
            spread(zeros[down[i]], across, zero)
            spread(scales[down[i]], across, scale)
        row(codes[i], values, zero, scale, numbers)
        wrong = 0
        for j in range(columns):
            half = (bits[j] >> np.uint32(16) & np.uint32(1)) + np.uint32(0x7FFF)
            wrong += np.uint16((bits[j] + half) >> np.uint32(16)) != stored[i, j]
        if wrong:  # rare: look again, with care for NaN, which has many forms
            for j in range(columns):
                half = (bits[j] >> np.uint32(16) & np.uint32(1)) + np.uint32(0x7FFF)
                nan = np.isnan(numbers[j]) and stored[i, j] & 0x7FFF > 0x7F80
                if np.uint16((bits[j] + half) >> np.uint32(16)) != stored[i, j] and not nan:
                    count += 1
                    first = i * columns + j if first < 0 else first
    return count, first


@jit
def misfits(
    numbers: Array, wanted: Array, codes: Array, above: Array, below: Array, scales: Array,
    down: Array, across: Array, slack: float,
) -> tuple[int, int, float, float, float]:  # fmt: skip
    """Of ``numbers`` and what was ``wanted``, both [r, c]: how many codes are not the nearest, the
    place of the first or -1, the sums of squared differences and of squares, the largest
    difference. See :func:`.numbers.limits`; ``slack`` is a part of what was wanted."""
    count, first, squares, power, most = 0, -1, 0.0, 0.0, 0.0
    scale = np.empty(len(across), np.float32)
    for i in range(len(down)):
        if i == 0 or down[i] != down[i - 1]:
            spread(scales[down[i]], across, scale)
        for j in range(len(across)):
            want = np.float64(wanted[i, j])
            off = want - np.float64(numbers[i, j])
            side = above if (off > 0) == (scale[j] > 0) else below
            limit = side[codes[i, j]] * abs(np.float64(scale[j])) + abs(want) * slack
            if not abs(off) <= limit:
                count += 1
                first = i * len(across) + j if first < 0 else first
            squares += off * off
            power += want * want
            most = max(most, abs(off))
    return count, first, squares, power, most
