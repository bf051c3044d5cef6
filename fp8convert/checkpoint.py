"""A checkpoint as an array library sees it: names, specs and decoded arrays, in any format.

Reads a tensor, or some rows of it, at a time; nothing is cached.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import schemes
from .catalogue import Catalogue, open_catalogue
from .codecs.base import Rect
from .codecs.raw import Raw
from .dtypes import DTYPES
from .errors import SchemeError, UsageError, shown
from .pieces import Source, joined, sources
from .schemes.weight import Weight

if TYPE_CHECKING:
    from .codecs.base import Array, Bytes


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One weight: decoded ``shape``; ``dtype`` as stored; ``codec`` as JSON; its stored parts."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    codec: dict[str, Any]
    parts: tuple[str, ...]


class Checkpoint:
    """See :func:`open_checkpoint`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.config = catalogue.config
        self.bytes_read = 0  # of tensors, so far
        self.scheme = schemes.detect(catalogue.declared, catalogue.tensors)
        reading = self.scheme.read(catalogue.tensors, catalogue.shard_names)
        if reading.problems:
            raise SchemeError("\n".join(reading.problems[:8]))
        self._weights = {w.name: w for w in reading.weights}

    def names(self) -> list[str]:
        """Names of all weights (scales are not weights), in stored order."""
        return list(self._weights)

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """The decoded shape; KeyError if there is no such weight."""
        return self._weights[name].shape

    def coded(self, name: str) -> bool:
        """Whether it is stored in codes."""
        return self._weights[name].codec.coded

    def spec(self, name: str) -> TensorSpec:
        """What ``name`` is; KeyError if there is no such weight."""
        w = self._weights[name]
        parts = tuple(p.name for p in w.parts)
        return TensorSpec(name, w.shape, w.parts[0].dtype, w.codec.to_dict(), parts)

    def read(self, name: str, rows: slice | None = None) -> Array:
        """The decoded weight, or its rows ``rows`` (of the first axis, step 1).

        Coded weights and BF16 come as float32 (exactly the value before any rounding to BF16);
        every other dtype as it is stored. KeyError if there is no such weight; FormatError if
        the file changed since it was opened.
        """
        return self._read(self._weights[name], rows)

    def part(self, name: str, number: int, rows: slice | None = None) -> Array:
        """A stored part of ``name``, or its rows, as it is in the file: 8-bit floats as uint8, and
        so are FP4, two in each."""
        stored = self._weights[name].parts[number]
        if stored.dtype == "F4":
            *lead, last = stored.shape
            stored = stored._replace(dtype="U8", shape=(*lead, last // 2))
        return self._read(Weight(stored.name, Raw(), (stored,)), rows)

    def _read(self, w: Weight, rows: slice | None) -> Array:
        import numpy as np

        lo, hi = _rows(rows, w.shape, w.name)
        shape = (hi - lo, *w.shape[1:]) if w.shape else ()
        dtype = DTYPES[w.out_dtype("F32")]
        if dtype.numpy is None:
            raise UsageError(f"{shown(w.name)} is {dtype.tag}, which has no NumPy type")
        out = np.empty(shape, dtype.numpy)
        if out.size:
            self._decode(w, lo, hi, out.reshape(-1))
        if dtype.tag == "BF16":
            return (out.astype(np.uint32) << 16).view(np.float32)
        return out

    def _decode(self, w: Weight, lo: int, hi: int, out: Array) -> None:
        grid = w.codec.grid(w.parts)
        per_row = grid.rows * grid.columns // (w.shape[0] if w.shape else 1) // grid.columns
        at = 0
        for rect in grid.split(Rect(lo * per_row, hi * per_row, 0, grid.columns)):
            spans = w.codec.spans(w.parts, rect)
            data = [
                joined(p, s, [self._bytes(source) for source in sources(p, s)])
                for p, s in zip(w.parts, spans, strict=True)
            ]
            end = at + (rect.r1 - rect.r0) * grid.columns
            w.codec.decode(w.parts, rect, data, out[at:end], "F32")
            at = end

    def _bytes(self, source: Source) -> Bytes:
        import numpy as np

        if source.shard < 0:
            return np.full(source.nbytes, ~source.shard, np.uint8)
        s = self.catalogue.shards[source.shard]
        file = self.catalogue.folder.opened(s, "buffered")
        data = np.empty(source.nbytes, np.uint8)
        try:
            if source.times > 1:
                file.gather(data.data, source.begin, source.times, source.stride)
            else:
                file.read(data.data, source.begin, source.end)
        finally:
            file.close()
        self.bytes_read += source.nbytes
        return data


def _rows(rows: slice | None, shape: tuple[int, ...], name: str) -> tuple[int, int]:
    if rows is None:
        return 0, shape[0] if shape else 1
    if not shape:
        raise UsageError(f"{shown(name)} is a scalar, it has no rows")
    lo, hi, step = rows.indices(shape[0])
    if step != 1:
        raise UsageError(f"rows of {shown(name)} with step {step}, expected 1")
    return lo, max(lo, hi)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open the checkpoint folder ``path`` for reading decoded arrays.

    Raises FormatError or SchemeError (both Fp8ConvertError) if it is not a sound checkpoint.
    """
    return Checkpoint(open_catalogue(path))
