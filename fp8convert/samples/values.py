"""Random tensors that look like trained ones, and a plain decoder for the unquantized twin.

Each tensor has its own stream of 16-bit numbers, seeded by (seed, stream name) alone; a number
indexes a table of 65,536 equally likely values. The decoder here shares nothing with the
project's codecs: the twin is evidence about them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8convert.header import numel

from .elements import as_float32, code_values, to_bf16
from .spec import Stored
from .tables import table

__all__ = ["pieces", "table"]

CHUNK = 1 << 16  # numbers drawn at a time: stays in the cache
BAND = 1 << 18  # elements made at a time, at least: bounds memory to tens of MB
STEP = 128  # rows of a band: a multiple of this, so that no block of scales is cut

Array = NDArray[Any]


def pieces(tensor: Stored, seed: int) -> Iterator[Array]:
    """The values of ``tensor`` in file order, in bands of whole rows; BF16 as uint16 bits."""
    if tensor.fill == "decoded":
        yield from _decoded(tensor, seed)
    elif tensor.fill == "shape":
        yield np.array(tensor.of, np.int32)
    else:
        rows = numel(tensor.shape[:-1])
        yield from _drawn(tensor, seed, rows, _band(rows, tensor.nbytes))


def _band(rows: int, items: int) -> int:
    """Rows of a band: as many as hold BAND items, in whole steps."""
    return max(1, BAND * rows // max(1, STEP * items)) * STEP


def _drawn(tensor: Stored, seed: int, rows: int, band: int) -> Iterator[Array]:
    """The tensor as ``rows`` rows of its table's items (bytes of packed codes), in bands."""
    digest = hashlib.sha256(f"{seed}/{tensor.stream}".encode()).digest()
    source = np.random.SFC64(int.from_bytes(digest[:16], "little"))
    values = table(tensor.fill)
    columns = tensor.nbytes // values.itemsize // max(1, rows)
    for top in range(0, rows, band):
        height = min(band, rows - top)
        yield _draw(source, values, height * columns).reshape(height, columns)


def _draw(source: np.random.SFC64, values: Array, count: int) -> Array:
    out = np.empty(count, values.dtype)
    for start in range(0, count, CHUNK):
        part = out[start : start + CHUNK]
        raw: Array = source.random_raw(-(-part.size // 4))  # a 64-bit number is four indices
        # "clip" writes straight to out; no 16-bit index is out of range
        values.take(raw.view(np.uint16)[: part.size], out=part, mode="clip")
    return out


def _decoded(tensor: Stored, seed: int) -> Iterator[Array]:
    """BF16 bits of code * scale: one float32 multiply, one rounding.

    Several scales are multiplied first, in float32. A turned tensor is made matrix by matrix.
    """
    codes, *scales = tensor.parts
    rows, columns = numel(tensor.of[:-1]), tensor.of[-1]
    band = tensor.of[-2] if tensor.turned else _band(rows, rows * columns)
    block = next((s.block for s in scales if s.block), None)
    scale = reduce(np.multiply, (_scale(s, seed) for s in scales))
    values = code_values(codes.fill)
    top = 0
    for bits in _drawn(codes, seed, rows, band):
        decoded = values.take(bits).view(np.float32)
        decoded *= _spread(scale, block, top, decoded.shape)
        out = to_bf16(decoded)
        yield np.ascontiguousarray(out.T) if tensor.turned else out
        top += len(bits)


def _scale(part: Stored, seed: int) -> Array:
    """All the scales of a weight as float32 [rows of blocks, blocks in a row], or 0-d."""
    rows = numel(part.shape[:-1])
    bits = np.concatenate([*_drawn(part, seed, rows, _band(rows, part.nbytes))])
    values = as_float32(bits, part.dtype)
    return values if part.shape else values.reshape(())


def _spread(scale: Array, block: tuple[int, int] | None, top: int, shape: tuple[int, ...]) -> Array:
    """The scale of every element of a band that begins at row ``top``, a block boundary."""
    if block is None:
        return scale
    (down, across), (rows, columns) = block, shape
    block_rows = scale[top // down : -(-(top + rows) // down)]
    wide = np.repeat(block_rows, across, axis=1)[:, :columns]
    # the last block is cut to the edge
    return wide if down == 1 else np.repeat(wide, down, axis=0)[:rows]
