"""A checkpoint as a model sees it: by the model's names, and codes where a GEMM can use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..checkpoint import Checkpoint, TensorSpec
from .weights import Blocks

# Of E2M1, by code; bit 3 is the sign. The low nibble of a byte comes first.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


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
        if (block := _block(spec)) is None:
            return None
        codes, scales = (self.checkpoint.part(stored, 0, rows), self.checkpoint.part(stored, 1))
        values = _e4m3(codes) if spec.dtype == "F8_E4M3" else _fp4(codes, len(codes))
        grid = tuple(-(-n // of) for n, of in zip(spec.shape, block, strict=True))
        lo, hi = rows.start // block[0], -(-rows.stop // block[0])
        return Blocks(values, _float32(scales).reshape(grid)[lo:hi], block)


def _block(spec: TensorSpec) -> tuple[int, int] | None:
    said = spec.codec
    block = None
    if said["codec"] == "fp8-block" and said["element"] == "e4m3fn":
        block = said["block"]
    elif said["codec"] == "fp4-block" and said["global"] == "none":
        block = [1, said["group"]]
    if block is None or len(spec.shape) != 2 or block[0] is None or block[1] not in (32, 128):
        return None
    return block[0], block[1]


def _e4m3(codes: Any) -> Any:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()


def _fp4(codes: Any, rows: int) -> Any:
    """Two elements a byte, the low nibble first."""
    octets = codes.view(np.uint8)
    return FP4[np.stack([octets & 15, octets >> 4], -1).reshape(rows, -1)]


def _float32(scales: Any) -> Any:
    """Stored scales as float32; exponents (E8M0) and BF16 come as integers."""
    if scales.dtype == np.uint8:
        return np.exp2(scales.astype(np.float32) - 127)
    if scales.dtype == np.uint16:
        return (scales.astype(np.uint32) << 16).view(np.float32)
    return scales.astype(np.float32)
