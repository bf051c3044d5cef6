"""A checkpoint as a model sees it: by the model's names, and codes where a GEMM can use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import kernels
from ..checkpoint import Checkpoint, TensorSpec
from ..codecs.elements import ELEMENTS, Element
from ..codecs.scales import to_float32
from .weights import BAND_ROWS, Blocks

GROUPS = (32, 128)  # channels that share a scale: the activations' 128, or a part of them
# Dtypes that scales are kept in, by what they are read as; BF16 is read as float32.
SCALES = {"float32": "F32", "float16": "F16", "uint8": "F8_E8M0"}


class Named:
    """``checkpoint`` with ``rename`` from the model's names to the file's. See weights.Source."""

    def __init__(self, checkpoint: Checkpoint, rename: Callable[[str], str] = str) -> None:
        self.checkpoint, self._rename = checkpoint, rename

    def __contains__(self, name: str) -> bool:
        return self._rename(name) in self.checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        """Decoded."""
        return self.checkpoint.shape(self._rename(name))

    def coded(self, name: str) -> bool:
        """Whether it is stored in codes."""
        return self.checkpoint.coded(self._rename(name))

    def read(self, name: str, rows: slice | None = None) -> Any:
        """Decoded rows, before any rounding to BF16."""
        return self.checkpoint.read(self._rename(name), rows)

    def blocks(self, name: str, rows: slice) -> Blocks | None:
        """Codes and scales of rows, which begin on a block's edge.

        None unless it is a matrix of E4M3 or MXFP4 with blocks of 32 or 128 channels.
        """
        stored = self._rename(name)
        spec = self.checkpoint.spec(stored)
        if (found := _coding(spec)) is None:
            return None
        element, block = found
        codes, scales = (self.checkpoint.part(stored, 0, rows), self.checkpoint.part(stored, 1))
        values = np.empty((len(codes), spec.shape[1]), np.float32)
        one = np.ones((1, 1), np.float32)
        kernels.load().decode(element, codes.view(np.uint8), one, None, 0, values.shape, values)
        grid = tuple(-(-n // of) for n, of in zip(spec.shape, block, strict=True))
        lo, hi = rows.start // block[0], -(-rows.stop // block[0])
        return Blocks(values, _float32(scales).reshape(grid)[lo:hi], block)


def _coding(spec: TensorSpec) -> tuple[Element, tuple[int, int]] | None:
    """The element and the block of what a block-wise GEMM takes."""
    said, element, block = spec.codec, ELEMENTS["e2m1"], None
    if said["codec"] == "fp8-block" and said["element"] == "e4m3fn":
        element, block = ELEMENTS["e4m3fn"], said["block"]
    elif said["codec"] == "fp4-block" and said["global"] == "none":
        block = [1, said["group"]]
    if block is None or len(spec.shape) != 2 or block[1] not in GROUPS:
        return None
    fits = block[0] is not None and BAND_ROWS % block[0] == 0
    return (element, (block[0], block[1])) if fits else None


def _float32(scales: Any) -> Any:
    found = to_float32(scales.reshape(-1).view(np.uint8), SCALES[scales.dtype.name])
    return np.array(found)  # which may be written to, as torch wants it
