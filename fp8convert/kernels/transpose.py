"""numba kernels that turn matrices: for codecs whose codes are stored column by column.

NumPy copies a transposed matrix element by element, in the worst order for the cache: these are
three to ten times as fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import plain
from .jit import jit

U8, U64 = np.uint8, np.uint64
LOW, FOUR = U8(15), U8(4)
NIBBLES, ODD_BYTES = U64(0x0F0F0F0F0F0F0F0F), U64(0x00FF00FF00FF00FF)
ODD_PAIRS, LOW_HALF = U64(0x0000FFFF0000FFFF), U64(0x00000000FFFFFFFF)


@jit
def _swap(a: Any, b: Any, mask: Any, shift: Any) -> Any:
    """Exchange the bits ``mask`` << ``shift`` of ``a`` with the bits ``mask`` of ``b``."""
    t = U64(U64(U64(a >> shift) ^ b) & mask)
    return U64(a ^ U64(t << shift)), U64(b ^ t)


@jit
def _eight_bytes(row: Any, b: int) -> Any:
    """A little-endian word; LLVM makes one load of it."""
    word = U64(row[b])
    for k in range(1, 8):
        word |= U64(row[b + k]) << U64(8 * k)
    return word


@jit
def _put_nibbles(out: Any, row: int, k: int, word: Any) -> None:
    out[row, k] = U64(word & NIBBLES)
    out[row + 1, k] = U64(U64(word >> U64(4)) & NIBBLES)


@jit
def _transpose_nibbles(packed: Any, words: Any, out: Any) -> None:
    """Squares of 8 x 8 bytes, turned within eight registers; ``words`` is ``out`` as uint64."""
    rows, columns = packed.shape
    whole_rows, whole_columns = rows // 8 * 8 if words.size else 0, columns // 8 * 8
    for lo in range(0, whole_rows, 64):  # the source rows of a step stay in the cache
        for b in range(0, whole_columns, 8):
            for r in range(lo, min(lo + 64, whole_rows), 8):
                a0, a1 = _eight_bytes(packed[r], b), _eight_bytes(packed[r + 1], b)
                a2, a3 = _eight_bytes(packed[r + 2], b), _eight_bytes(packed[r + 3], b)
                a4, a5 = _eight_bytes(packed[r + 4], b), _eight_bytes(packed[r + 5], b)
                a6, a7 = _eight_bytes(packed[r + 6], b), _eight_bytes(packed[r + 7], b)
                a0, a1 = _swap(a0, a1, ODD_BYTES, U64(8))
                a2, a3 = _swap(a2, a3, ODD_BYTES, U64(8))
                a4, a5 = _swap(a4, a5, ODD_BYTES, U64(8))
                a6, a7 = _swap(a6, a7, ODD_BYTES, U64(8))
                a0, a2 = _swap(a0, a2, ODD_PAIRS, U64(16))
                a1, a3 = _swap(a1, a3, ODD_PAIRS, U64(16))
                a4, a6 = _swap(a4, a6, ODD_PAIRS, U64(16))
                a5, a7 = _swap(a5, a7, ODD_PAIRS, U64(16))
                a0, a4 = _swap(a0, a4, LOW_HALF, U64(32))
                a1, a5 = _swap(a1, a5, LOW_HALF, U64(32))
                a2, a6 = _swap(a2, a6, LOW_HALF, U64(32))
                a3, a7 = _swap(a3, a7, LOW_HALF, U64(32))
                k = r // 8
                _put_nibbles(words, 2 * b, k, a0)
                _put_nibbles(words, 2 * b + 2, k, a1)
                _put_nibbles(words, 2 * b + 4, k, a2)
                _put_nibbles(words, 2 * b + 6, k, a3)
                _put_nibbles(words, 2 * b + 8, k, a4)
                _put_nibbles(words, 2 * b + 10, k, a5)
                _put_nibbles(words, 2 * b + 12, k, a6)
                _put_nibbles(words, 2 * b + 14, k, a7)
    for r in range(rows):
        for b in range(whole_columns if r < whole_rows else 0, columns):
            out[2 * b, r] = packed[r, b] & LOW
            out[2 * b + 1, r] = packed[r, b] >> FOUR


@jit
def _transpose(matrix: Any, out: Any) -> None:
    rows, columns = matrix.shape
    for lo in range(0, rows, 16):
        for c in range(columns):
            for r in range(lo, min(lo + 16, rows)):
                out[c, r] = matrix[r, c]


def transposed(matrix: plain.Array) -> plain.Array:
    """As :func:`plain.transposed`."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    _transpose(matrix, out)
    return out


def transpose_nibbles(packed: plain.Array, out: plain.Array) -> None:
    """As :func:`plain.transpose_nibbles`."""
    words = out.view(np.uint64) if out.shape[1] % 8 == 0 else np.empty((0, 0), np.uint64)
    _transpose_nibbles(packed, words, out)
