"""Weights that are held in memory, where a test needs no files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fp8convert.reference.weights import Blocks, Weights


class Held:
    """A source (see ``weights.Source``) of tensors; ``codes`` are the names stored in codes."""

    def __init__(self, tensors: dict[str, Tensor], *codes: str) -> None:
        self.tensors, self.codes = tensors, codes
        self.reads: list[tuple[str, slice | None]] = []

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def coded(self, name: str) -> bool:
        return name in self.codes

    def read(self, name: str, rows: slice | None = None) -> Any:
        self.reads.append((name, rows))
        found = self.tensors[name]
        return (found if rows is None else found[rows]).numpy().copy()

    def blocks(self, name: str, rows: slice) -> Blocks | None:
        return None


def weights(tensors: dict[str, Tensor], compute: str = "fp32", **options: Any) -> Weights:
    """Of tensors that are not coded."""
    return Weights(Held(tensors), compute, **options)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
