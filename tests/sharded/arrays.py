"""Stored tensors as NumPy arrays of their bytes' width: cut, joined, padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..quantized.oracle import Part
from ..quantized.readers import Stored

Array = npt.NDArray[Any]
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


def words(part: Part) -> Array:
    """Every element as an unsigned integer of its width."""
    tag, shape, data = part
    return np.frombuffer(data, f"<u{WIDTHS[tag]}").reshape(shape)


def part(tag: str, array: Array) -> Part:
    """The inverse of :func:`words`, of any array of that width."""
    assert array.itemsize == WIDTHS[tag], tag
    return tag, tuple(array.shape), np.ascontiguousarray(array).tobytes()


def cut(whole: Part, axis: int, begin: int, end: int) -> Part:
    """Entries ``[begin, end)`` along ``axis``."""
    array = words(whole)
    assert 0 <= begin < end <= array.shape[axis], (whole[:2], axis, begin, end)
    return part(whole[0], array[(slice(None),) * axis + (slice(begin, end),)])


def joined(pieces: Sequence[Part], axis: int) -> Part:
    """The inverse of cutting."""
    assert len({p[0] for p in pieces}) == 1
    return part(pieces[0][0], np.concatenate([words(p) for p in pieces], axis=axis))


def padded(whole: Part, rows: int) -> Part:
    """Zeros behind, up to so many rows."""
    array = words(whole)
    zeros = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return part(whole[0], np.concatenate([array, zeros]))


def nbytes(tensors: Stored) -> int:
    """Of all tensors."""
    return sum(len(data) for _, _, data in tensors.values())
