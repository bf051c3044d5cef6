"""What codecs share whose codes lie column by column of the decoded weight.

A rectangle's bytes are then many short runs. They are brought into row-major order a bounded number
of rows at a time and decoded as every other codec does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .base import Codec, Stored

if TYPE_CHECKING:
    from .base import Array


BAND = 1 << 20  # elements turned at a time, a byte each: more calls cost, and more misses the cache


class Transposed(Codec):
    """A coded weight whose parts give a rectangle many runs of bytes at a stride, not one."""

    coded = True

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """``target``."""
        return target


def bands(rows: int, columns: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Rows ``[r0, r1)``, ``multiple`` or as many more of it as BAND elements hold."""
    step = max(BAND // max(columns, 1) // multiple, 1) * multiple
    for r in range(0, rows, step):
        yield r, min(r + step, rows)


def nibbles(words: Array, bits: int) -> Array:
    """uint8 [..., bytes] of words -> uint8 [..., codes], the lowest bits first."""
    import numpy as np

    if bits == 8:
        return words
    pairs: Array = np.stack([words & 15, words >> 4], -1)
    return pairs.reshape(*words.shape[:-1], 2 * words.shape[-1])
