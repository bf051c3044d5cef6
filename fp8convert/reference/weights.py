"""Weights of a checkpoint, or of one rank of it, decoded when a step asks for them.

Matrices are read in bands of rows and used band by band, so memory does not depend on their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import FormatError, SchemeError, shown
from .groups import Alone, Group, all_reduce
from .numerics import block_matmul, checked_device, dtype_of, quantized

BAND_ELEMENTS = 1 << 22  # decoded at once: 16 MiB of float32, which caches still hold
BAND_ROWS = 128  # bands begin on a block's edge


class Blocks(NamedTuple):
    """Coded rows: values without their scales [r, i], float32; scales [ceil(r / block[0]), ...]."""

    values: Any
    scales: Any
    block: tuple[int, int]


class Source(Protocol):
    """Where weights come from: a :class:`~fp8convert.checkpoint.Checkpoint`, or names mapped on it.

    ``read`` gives decoded rows; ``blocks`` the codes of rows, where a GEMM can use them as they
    are, else None.
    """

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def coded(self, name: str) -> bool: ...

    def read(self, name: str, rows: slice | None = None) -> Any: ...

    def blocks(self, name: str, rows: slice) -> Blocks | None: ...


@dataclass(frozen=True)
class Fault:
    """A deliberate one: the scale of a block of ``name`` is multiplied by ``factor``."""

    name: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    factor: float


class Weights:
    """Weights by name, and the products a model takes of them.

    ``compute`` is one of COMPUTES; ``power_of_two`` says how FP8 activations are scaled. On a rank
    the matrices are its share: ``whole`` of a product is what the unsharded matrix has.
    """

    def __init__(
        self,
        source: Source,
        compute: str = "bf16",
        device: str = "cpu",
        group: Group | None = None,
        power_of_two: bool = False,
    ) -> None:
        self.source, self.compute, self.device = source, compute, checked_device(device)
        self.group: Group = group or Alone()
        self.power_of_two = power_of_two
        self.dtype = dtype_of(compute)
        self.fault: Fault | None = None
        self.used: set[str] = set()
        self.largest_band = self.bytes_decoded = 0

    def has(self, name: str) -> bool:
        """Whether there is such a weight (on this rank)."""
        return name in self.source

    def shape(self, name: str) -> tuple[int, ...]:
        """Its decoded shape (on this rank); SchemeError if it is missing."""
        if name not in self.source:
            on = f" on rank {self.group.rank}" if self.group.size > 1 else ""
            raise SchemeError(f"weight {shown(name)} is missing{on}, the model needs it")
        return self.source.shape(name)

    def get(self, name: str, shape: tuple[int, ...] | None = None, exact: bool = False) -> Tensor:
        """All of a small weight, or of a matrix that is used as one: float32, integers as int64.

        ``exact``: a float32 matrix that a model has in float32 in every compute mode.
        """
        found = self.shape(name)
        if shape is not None and found != shape:
            raise _wrong_shape(name, found, str(list(shape)))
        return self._band(name, 0, found[0] if found else 1, exact)

    def maybe(self, name: str) -> Tensor | None:
        """As :meth:`get`; None if there is no such weight."""
        return self.get(name) if self.has(name) else None

    def check_rows(self, name: str, rows: int, cut: bool = False) -> None:
        """FormatError unless a matrix has ``rows`` or, where it is ``cut``, a rank's share."""
        found = self._matrix(name)
        least = -(-rows // self.group.size) if cut else rows
        if not least <= found[0] <= rows:
            share = "" if least == rows else f", of which {least} or more on this rank"
            raise _wrong_shape(name, found, f"{rows} rows{share}")

    def embed(self, name: str, ids: Tensor, vocabulary: int, hidden: int = 0) -> Tensor:
        """Rows ``ids`` [b, l] of a table, [b, l, h]; only these are read. ``hidden`` is h, if that
        is known."""
        rows, width = self._matrix(name)
        if rows * self.group.size < vocabulary:
            raise _wrong_shape(name, (rows, width), f"{vocabulary} rows on all ranks")
        if hidden and width != hidden:
            raise _wrong_shape(name, (rows, width), f"{hidden} columns")
        cut = rows < vocabulary
        unique, places = torch.unique(ids, return_inverse=True)
        found = torch.zeros(len(unique), width, device=self.device)
        for n, row in enumerate((unique - (self.group.rank * rows if cut else 0)).tolist()):
            if 0 <= row < rows:
                found[n] = self._band(name, row, row + 1)[0]
        table = all_reduce(found, self.group) if cut else found
        return table[places].to(self.dtype)

    def linear(
        self, x: Tensor, module: str, whole: int = 0, rows: int = 0, bias: bool | None = None
    ) -> Tensor:
        """``x @ weight.T + bias`` [..., o], rounded.

        Where ``x`` [..., i] has fewer channels than ``whole``, its ranks' products are summed.
        ``rows`` is how many the unsharded weight has, if that is known, and ``bias`` whether there
        is one. SchemeError if one is missing or should not be; FormatError for a wrong shape.
        """
        name = f"{module}.weight"
        if rows:
            self.check_rows(name, rows, cut=not whole)
        out = self.product(x, name)
        if x.shape[-1] < whole:
            out = all_reduce(out, self.group) / copies(self.group.size, x.shape[-1], whole)
        added = self._bias(f"{module}.bias", out.shape[-1], bias)
        return (out if added is None else out + added).to(self.dtype)

    def logits(self, x: Tensor, name: str, vocabulary: int) -> Tensor:
        """``x @ table.T`` [..., v] of all ranks, in float32."""
        out = self.product(x, name)
        if out.shape[-1] < vocabulary:
            out = torch.cat(list(self.group.gather(out)), -1)
        if out.shape[-1] < vocabulary:
            raise _wrong_shape(name, self.shape(name), f"{vocabulary} rows on all ranks")
        return out[..., :vocabulary]

    def product(self, x: Tensor, name: str) -> Tensor:
        """``x @ weight.T`` [..., o] of this rank alone, in float32: a band of rows at a time."""
        rows, columns = self._matrix(name)
        if columns != x.shape[-1]:
            raise _wrong_shape(name, (rows, columns), f"{x.shape[-1]} columns")
        flat = x.reshape(-1, columns)
        wide = flat.float()
        acts: tuple[Tensor, Tensor] | None = None
        out = torch.empty(len(flat), rows, device=self.device)
        step = max(BAND_ROWS, BAND_ELEMENTS // columns // BAND_ROWS * BAND_ROWS)
        for lo in range(0, rows, step):
            hi = min(rows, lo + step)
            blocks = self._blocks(name, lo, hi) if self.compute == "fp8" else None
            if blocks is None:
                out[:, lo:hi] = wide @ self._band(name, lo, hi).T
            else:
                acts = acts or quantized(flat, self.power_of_two)
                values, scales, block = blocks
                out[:, lo:hi] = block_matmul(*acts, values, scales, block)
        return out.view(*x.shape[:-1], rows)

    def _matrix(self, name: str) -> tuple[int, int]:
        shape = self.shape(name)
        if len(shape) != 2:
            raise _wrong_shape(name, shape, "a matrix")
        return shape[0], shape[1]

    def _bias(self, name: str, length: int, wanted: bool | None) -> Tensor | None:
        if wanted is None:
            wanted = self.has(name)
        if not wanted and self.has(name):
            raise SchemeError(f"weight {shown(name)} is there, but the model has no such bias")
        return self.get(name, (length,)) if wanted else None

    def _band(self, name: str, lo: int, hi: int, exact: bool = False) -> Tensor:
        """Rows of a weight as the compute dtype has them, in float32 and memory of torch's own:
        bits of a product may depend on how its factors are aligned."""
        self.used.add(name)
        array = self.source.read(name, slice(lo, hi) if self.source.shape(name) else None)
        band = torch.from_numpy(array).to(self.device)
        self._count(band)
        if not band.is_floating_point():
            return band.long()
        if self.fault and self.fault.name == name:
            band = band.float() * self._factors(self.fault, lo, band)
        whole = exact or self.compute == "fp32" or band.dim() < 2
        if self.source.coded(name) or not whole:
            band = band.to(torch.bfloat16)
        return band.to(torch.float32, copy=True)

    def _blocks(self, name: str, lo: int, hi: int) -> tuple[Tensor, Tensor, tuple[int, int]] | None:
        found = self.source.blocks(name, slice(lo, hi))
        if found is None:
            return None
        self.used.add(name)
        values, scales = (torch.from_numpy(a).to(self.device) for a in found[:2])
        self._count(values)
        if self.fault and self.fault.name == name:
            values = values * self._factors(self.fault, lo, values)
        return values, scales, found.block

    def _count(self, band: Tensor) -> None:
        self.largest_band = max(self.largest_band, band.nbytes)
        self.bytes_decoded += band.nbytes

    def _factors(self, fault: Fault, lo: int, band: Tensor) -> Tensor:
        factors = torch.ones_like(band, dtype=torch.float32)
        first, last = (max(0, row - lo) for row in fault.rows)
        factors[first:last, slice(*fault.columns)] = fault.factor
        return factors


def copies(ranks: int, columns: int, whole: int) -> int:
    """How often ``whole`` columns are there, if each of ``ranks`` has ``columns`` of them."""
    return max(1, ranks * columns // whole)


def _wrong_shape(name: str, found: Sequence[int], expected: str) -> FormatError:
    return FormatError(f"weight {shown(name)} is {list(found)}, expected {expected}")
