"""Stored tensors, whole or over the files of ranks, read by the safetensors library.

Its torch form maps a file and gives views of it, so a part that is not looked at is not read. A
box is a range [begin, end) along each axis.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from ..dtypes import DTYPES
from . import mapped
from .numbers import Array

Box = tuple[tuple[int, int], ...]
Shape = tuple[int, ...]

MAPPED = 32 << 20  # bytes looked at before files are mapped anew: their pages count as memory


class Leaf(NamedTuple):
    """One tensor of one file below the folder; ``rank`` None if there are no ranks."""

    file: str
    name: str
    dtype: str
    shape: Shape
    rank: int | None = None

    @property
    def held(self) -> Shape:
        """The shape of its array: F4 is two values a byte."""
        return (*self.shape[:-1], self.shape[-1] // 2) if self.dtype == "F4" else self.shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].bits // 8


class Piece(NamedTuple):
    """``[begin, end)`` of a tensor along its axis, the same in all ``copies``; what these have
    beyond that is padding."""

    begin: int
    end: int
    copies: tuple[Leaf, ...]


class Place(NamedTuple):
    """Where a tensor is: in one piece, or in several along ``axis``.

    ``value``: the whole has these integers instead of what the ranks have (shape of a weight).
    """

    name: str
    dtype: str
    shape: Shape
    pieces: tuple[Piece, ...]
    axis: int | None = None
    value: tuple[int, ...] | None = None

    @property
    def held(self) -> Shape:
        """The shape of its array."""
        return Leaf("", "", self.dtype, self.shape).held

    @property
    def leaves(self) -> list[Leaf]:
        """All of it, copies too."""
        return [leaf for piece in self.pieces for leaf in piece.copies]


class Files:
    """Arrays of the tensors of a folder; for one thread."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = root
        self._open: dict[str, Any] = {}
        self._seen = 0

    def leaf(self, leaf: Leaf, box: Box) -> Array:
        """A box of a tensor: 16-bit floats as uint16 (F16 as float16), 8-bit ones as uint8."""
        part = np.asarray(self._whole(leaf)[_slices(box)])
        self._seen += part.nbytes
        return part

    def read(self, place: Place, box: Box | None = None) -> Array:
        """The same, of the first copy of every piece; all of it without ``box``."""
        box = tuple((0, n) for n in place.held) if box is None else box
        if place.axis is None:
            return self.leaf(place.pieces[0].copies[0], box)
        lo, hi = box[place.axis]
        found = []
        for piece in place.pieces:
            begin, end = max(lo, piece.begin), min(hi, piece.end)
            if begin < end:
                within = (begin - piece.begin, end - piece.begin)
                found.append(self.leaf(piece.copies[0], with_axis(box, place.axis, within)))
        return found[0] if len(found) == 1 else np.concatenate(found, place.axis)

    def close(self) -> None:
        """Let go of all files; arrays that are still in use keep theirs."""
        for handle in self._open.values():
            handle.__exit__(None, None, None)
        self._open.clear()
        self._seen = 0

    def _whole(self, leaf: Leaf) -> Array:
        if self._seen > MAPPED:
            self.close()
        if leaf.file not in self._open:
            path = os.path.join(self.root, leaf.file)
            self._open[leaf.file] = mapped.opened(path).__enter__()
        with mapped.reading(os.path.join(self.root, leaf.file)):
            tensor = self._open[leaf.file].get_tensor(leaf.name)
        raw: Array = tensor.reshape(-1).view(torch.uint8).numpy()
        return raw.view(numpy_type(leaf.dtype)).reshape(leaf.held)


def numpy_type(dtype: str) -> str:
    """The type of the arrays; BOOL as uint8, so that any byte compares."""
    return "uint8" if dtype in ("F4", "BOOL") else str(DTYPES[dtype].numpy)


def boxes(shape: Shape, limit: int, alone: int = 0) -> Iterator[Box]:
    """All of ``shape`` in row-major order, at most ``limit`` elements each; the first ``alone``
    axes one at a time."""
    axis = next(
        (a for a in range(alone, len(shape)) if math.prod(shape[a + 1 :]) <= limit), len(shape) - 1
    )
    if not shape:
        yield ()
        return
    step = max(limit // max(math.prod(shape[axis + 1 :]), 1), 1)
    rest = tuple((0, n) for n in shape[axis + 1 :])
    for before in itertools.product(*map(range, shape[:axis])):
        for lo in range(0, shape[axis], step):
            at = tuple((i, i + 1) for i in before)
            yield (*at, (lo, min(lo + step, shape[axis])), *rest)


def with_axis(box: Box, axis: int, along: tuple[int, int]) -> Box:
    """``box`` with another range along ``axis``."""
    return (*box[:axis], along, *box[axis + 1 :])


def shifted(box: Box, axis: int | None, by: int) -> Box:
    """``box`` moved along ``axis``."""
    if axis is None:
        return box
    lo, hi = box[axis]
    return with_axis(box, axis, (lo + by, hi + by))


def size(box: Box) -> int:
    """Elements of ``box``."""
    return math.prod(hi - lo for lo, hi in box)


def coordinates(box: Box, flat: int) -> list[int]:
    """Of element number ``flat`` of ``box``, in the tensor."""
    lengths = [hi - lo for lo, hi in box]
    return [lo + int(i) for (lo, _), i in zip(box, np.unravel_index(flat, lengths), strict=True)]


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(lo, hi) for lo, hi in box)
