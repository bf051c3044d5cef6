"""What is written of a weight: its bytes as they are, or decoded. (``quantizer`` has: encoded.)

A writer is asked for a whole weight or for a slice of one, which is a weight as well; the plans of
all commands are made of its answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from .codecs.base import Codec, Stored
from .codecs.raw import Raw
from .configout import plain_config
from .declared import Config
from .dtypes import DTYPES
from .encoding.carried import CopiedShape
from .encoding.encoder import Part
from .header import numel
from .options import TARGETS
from .plan import Item
from .schemes.weight import Weight

RAW = Raw()


class Writer(ABC):
    """How weights are written."""

    @abstractmethod
    def step(self, weight: Weight, axis: int) -> int:
        """What is written of ``weight`` may be cut at multiples of this along ``axis``, and put
        together again; 0: nowhere."""

    @abstractmethod
    def tensors(self, weight: Weight) -> tuple[Part, ...]:
        """The tensors that are written of the whole ``weight``."""

    @abstractmethod
    def items(self, weight: Weight, piece: Weight) -> tuple[Item, ...]:
        """Those of a ``piece`` of ``weight`` (or all of it), in the same order."""

    @abstractmethod
    def codes(self, weight: Weight) -> bool:
        """Whether ``weight`` is written as codes."""

    @abstractmethod
    def config(self, config: Config) -> Config:
        """config.json of what is written."""


def slice_of(weight: Weight, axis: int, begin: int, end: int) -> Weight:
    """Elements ``[begin, end)`` of ``weight`` along ``axis``; what belongs to its codes alone stays
    with it. SchemeError where its codec cannot be cut."""
    if (begin, end) == (0, weight.shape[axis]):
        return weight
    codec, parts = weight.codec.cut(weight.parts, axis, begin, end)
    return weight._replace(codec=codec, parts=parts)


def whole(weight: Weight, dtype: str) -> Item:
    """``weight`` as one tensor of ``dtype``."""
    return Item(weight, dtype, 0, numel(weight.shape) * DTYPES[dtype].bits // 8)


class Decoded(Writer):
    """Every coded weight as ``dtype`` (bfloat16, ...); others as they are."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.tag = dtype, TARGETS[dtype]

    def step(self, weight: Weight, axis: int) -> int:
        """Anywhere."""
        return 1

    def tensors(self, weight: Weight) -> tuple[Part, ...]:
        """One."""
        return (Part(weight.name, weight.out_dtype(self.tag), weight.shape),)

    def items(self, weight: Weight, piece: Weight) -> tuple[Item, ...]:
        """One."""
        return (whole(piece, piece.out_dtype(self.tag)),)

    def codes(self, weight: Weight) -> bool:
        """None is."""
        return False

    def config(self, config: Config) -> Config:
        """Without a declaration."""
        return plain_config(config, self.dtype)


class Kept(Writer):
    """The stored tensors, byte for byte."""

    def step(self, weight: Weight, axis: int) -> int:
        """Where the codec allows it."""
        return weight.codec.step(weight.parts, axis)

    def tensors(self, weight: Weight) -> tuple[Part, ...]:
        """All that are stored."""
        stored = (*weight.parts, *weight.dropped)
        return tuple(Part(t.name, t.dtype, t.shape) for t in stored)

    def items(self, weight: Weight, piece: Weight) -> tuple[Item, ...]:
        """Slices of them."""
        return tuple(self._items(weight, piece))

    def _items(self, weight: Weight, piece: Weight) -> Iterator[Item]:
        if len(weight.parts) == 1 and not weight.dropped:  # most are
            yield _kept(weight.parts[0].name, piece.parts[0])
            return
        cut = dict(zip(piece.codec.roles, piece.parts, strict=True))
        for role, part in zip(weight.codec.roles, weight.parts, strict=True):
            how = RAW if role in cut else CopiedShape(weight.shape, piece.shape)
            yield _kept(part.name, cut.get(role, part), how)
        for part in weight.dropped:
            yield _kept(part.name, part)

    def codes(self, weight: Weight) -> bool:
        """What is coded."""
        return weight.codec.coded

    def config(self, config: Config) -> Config:
        """As it is."""
        return config


def _kept(name: str, part: Stored, how: Codec = RAW) -> Item:
    return Item(Weight(name, how, (part,)), part.dtype, 0, part.end - part.begin)
