"""A weight as schemes find it, and the tensors beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..codecs.base import Codec, Stored

Tensors = Mapping[str, Stored]


class Weight(NamedTuple):
    """A named full-precision tensor and the stored tensors that encode it, in codec role order.

    ``dropped`` belong to the codes alone (activation scales) and mean nothing once it is decoded.
    """

    name: str
    codec: Codec
    parts: tuple[Stored, ...]
    dropped: tuple[Stored, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The decoded shape."""
        return self.codec.shape(self.parts)

    def out_dtype(self, target: str) -> str:
        """The dtype it is written with when coded weights become ``target``."""
        return self.codec.out_dtype(self.parts, target)


def leaf_of(t: Stored) -> str:
    """The last part of its name."""
    return t.name.rpartition(".")[2]


def module_of(t: Stored) -> str:
    """Its name without the last part, with the dot; "" if there is none."""
    return t.name[: len(t.name) - len(leaf_of(t))]


def beside(t: Stored, tensors: Tensors, leaves: Sequence[str]) -> tuple[Stored, ...]:
    """The tensors of the same module as ``t`` that are named so and are there."""
    module = module_of(t)
    return tuple(found for leaf in leaves if (found := tensors.get(module + leaf)) is not None)
