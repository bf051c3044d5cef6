"""What a weight is encoded to: a codec, the rule of its scales, and the tensors it is kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..codecs.blocks import Blocks
from ..codecs.fp4_block import Fp4Block
from ..codecs.packed_int import PackedInt
from ..dtypes import DTYPES
from ..header import numel
from ..schemes.weight import Weight
from .rules import ZERO, Local, Rule, power_up

if TYPE_CHECKING:
    from ..codecs.base import Array


class Part(NamedTuple):
    """One stored tensor of an encoded weight."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return numel(self.shape) * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True)
class Encoder:
    """``codec`` reads what ``rule`` and the kernels make; ``stored`` is the dtype of scales.

    ``inherit``: every block takes the scale of the source's block around it, which gives the
    source's values again. ``whole`` is where the one scale of a tensor comes from, if it has one:
    "amax" of it and its partners, "power" of two of that, or the "source"'s own; "" if it has none.
    """

    codec: Blocks
    rule: Rule
    stored: str
    search: bool = False
    inherit: bool = False
    whole: str = ""

    @property
    def zero(self) -> float:
        """The zero point of all codes: packed integers are stored plus half their range."""
        return float(1 << self.codec.bits - 1) if isinstance(self.codec, PackedInt) else 0.0

    @property
    def one_scale(self) -> bool:
        """Whether the tensor's one scale is the only one."""
        return bool(self.whole) and not self.two_levels

    @property
    def two_levels(self) -> bool:
        """Whether each block has a scale besides the tensor's (NVFP4)."""
        return isinstance(self.codec, Fp4Block) and self.codec.combine != "none"

    def block_of(self, shape: tuple[int, ...], rows: int) -> tuple[int, int]:
        """Rows and columns of a block, within a piece of ``rows`` rows."""
        return (rows, shape[-1]) if self.one_scale else self.codec.block_of(shape)

    def row_step(self, shape: tuple[int, ...]) -> int:
        """Rows that only together say what their scales are."""
        return 1 if self.one_scale else self.codec.block_of(shape)[0]

    def tensor_scale(self, top: float) -> float:
        """The one scale of a tensor whose largest magnitude is ``top``, where it is measured."""
        import numpy as np

        if isinstance(self.rule, Local):
            return self.rule.power_whole(top) if self.whole == "power" else self.rule.whole(top)
        if not top:
            return ZERO
        value = np.array([top], np.float32)
        if self.whole == "power":
            return float(power_up(value / np.float32(self.codec.element.largest))[0])
        return float(self.rule.plain(value, 1.0)[0])

    def tensor_scales(self, top: float) -> list[float]:
        """The scales that are tried for a tensor, the plain one first."""
        import numpy as np

        plain = self.tensor_scale(top)
        if not (self.search and self.one_scale and top):
            return [plain]
        return [plain, *(float(s[0]) for s in self.rule.others(np.array([plain], np.float32)))]

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the codec, the rule in words, and how it is applied."""
        facts = {"rule": self.rule.words, "scales": self.stored, "search": self.search}
        return {**self.codec.to_dict(), **facts, "inherit": self.inherit, "whole": self.whole}


@dataclass(frozen=True)
class Encoding:
    """One weight's encoder, the tensors it gives, codes first, and who shares its one scale."""

    encoder: Encoder
    parts: tuple[Part, ...]
    members: tuple[Weight, ...] = ()  # measured for it, itself among them; () if it has none

    @property
    def shared(self) -> str:
        """What names the scale that all members share."""
        return self.members[0].name

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        members = [w.name for w in self.members]
        return {**self.encoder.to_dict(), "members": members}


def nested(source: int, phase: int, block: int, size: int) -> bool:
    """Whether each block of ``block`` along an axis of ``size`` lies within one of ``source``.

    The first begins ``phase`` into one of those.
    """
    edges = range(source - phase, size, source)
    return all(edge % block == 0 for edge in edges[:2])  # the others are as far apart


def covering(scales: Array, source: tuple[int, int], phase: tuple[int, int],
             block: tuple[int, int], shape: tuple[int, int]) -> Array:  # fmt: skip
    """The source's scale around each block: float32 [blocks down, blocks across] of ``shape``.

    ``source`` is the source's block, ``phase`` how far into it the first row and the first column
    lie; blocks of ``block`` begin there.
    """
    import numpy as np

    rows, columns = (
        (at + np.arange(-(-n // b)) * b) // of
        for of, at, b, n in zip(source, phase, block, shape, strict=True)
    )
    found: Array = scales[np.ix_(rows, columns)]
    return found
