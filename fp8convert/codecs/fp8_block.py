"""Eight-bit codes, float or integer, with one scale per block, row, or matrix.

``codes`` [o, i] or [experts, o, i]; ``scales`` [ceil(o / br), ceil(i / bc)] for each matrix,
multipliers. The last blocks of a ragged axis are cut off, not padded. Sources: DeepSeek-V3
``README_WEIGHTS.md`` (F32 scales per 128 x 128), OCP MX v1.0 (E8M0 per 1 x 32), compressed-tensors
``float-quantized`` and ``int-quantized`` (per row or matrix; zero points), ModelOpt FP8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Rect, Span, Stored
from .blocks import Blocks, fits, grid_cut, mismatch
from .elements import BY_DTYPE, ELEMENTS, Element
from .scales import E8M0, PLAIN

if TYPE_CHECKING:
    from .base import Array, Bytes

Block = tuple[int | None, int | None]


def grid_shape(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """[..., blocks down, blocks across]; None in ``block`` is the whole axis."""
    counts = (-(-n // (b or max(n, 1))) for n, b in zip(shape[-2:], block, strict=True))
    return (*shape[:-2], *counts)


@dataclass(frozen=True)
class _EightBit(Blocks):
    """``block`` = (rows, columns) that share a scale; None for the whole axis."""

    block: Block
    code: str = "e4m3fn"

    @property
    def element(self) -> Element:
        """By name."""
        return ELEMENTS[self.code]

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """``block`` in numbers, no longer than the axes."""
        (br, bc), rows, columns = self.block, shape[-2] or 1, shape[-1] or 1
        return (br if br and br < rows else rows), (bc if bc and bc < columns else columns)

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Codes of the element's dtype, two or three axes; as many scales as there are blocks."""
        codes, scales = parts[:2]
        wanted = next(d for d, name in BY_DTYPE.items() if name == self.code)
        if codes.dtype != wanted or len(codes.shape) not in (2, 3):
            return (
                f"codes are {codes.dtype} {list(codes.shape)}, expected {wanted} with two axes "
                "(or three, of experts)"
            )
        want = grid_shape(codes.shape, self.block)
        if scales.dtype not in (*PLAIN, *E8M0) or not fits(scales, want):
            block = ", ".join(str(b or "all") for b in self.block)
            why = f"for codes {list(codes.shape)} in blocks of [{block}]"
            return mismatch("scales", scales, (*PLAIN, *E8M0), want, why)
        return None

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """Between experts, and between blocks, also if an axis is shorter than one."""
        at = axis - len(parts[0].shape) + 2
        return (self.block[at] if at >= 0 else None) or super().step(parts, axis)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": ..., "element": "e4m3fn", "block": [br, bc]}``; null is the whole axis."""
        return {"codec": self.name, "element": self.code, "block": list(self.block)}


@dataclass(frozen=True)
class Fp8Block(_EightBit):
    """e4m3fn codes (or e5m2, or the FNUZ forms) with scales."""

    name = "fp8-block"
    rule = "float32(code) * scale in float32, then one rounding to nearest even"
    roles = ("codes", "scales")


@dataclass(frozen=True)
class Int8Block(_EightBit):
    """int8 codes with scales and, if ``zero_points``, an int8 zero point beside each scale."""

    code: str = "int8"
    zero_points: bool = False
    name = "int8-block"
    rule = "(float32(code) - zero point) * scale in float32, then one rounding to nearest even"

    @property
    def roles(self) -> tuple[str, ...]:
        """Codes, scales, and zero points if there are any."""
        return ("codes", "scales", "zeros") if self.zero_points else ("codes", "scales")

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Zero points are I8, and as many as scales."""
        wrong = super().check(parts)
        if wrong is None and self.zero_points:
            want, zeros = grid_shape(parts[0].shape, self.block), parts[2]
            if zeros.dtype != "I8" or not fits(zeros, want):
                return mismatch("zero points", zeros, ("I8",), want, "as the scales")
        return wrong

    def other_spans(
        self, parts: Sequence[Stored], rect: Rect, origin: int, count: int
    ) -> tuple[Span, ...]:
        """Zero points, beside their scales."""
        return (Span(origin, origin + count),) if self.zero_points else ()

    def grids(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]
    ) -> tuple[Array, Array | None]:
        """Scales and zero points."""
        scales, _ = super().grids(parts, rect, data)
        return scales, data[2].view("int8").astype("float32") if self.zero_points else None

    def around(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Blocks, tuple[Stored, ...]]:
        """Zero points are cut as their scales."""
        shape = self.shape(parts)
        cut = (grid_cut(p, shape, self.block_of(shape), axis, begin, end) for p in parts[1:])
        return self, tuple(cut)

    def to_dict(self) -> dict[str, Any]:
        """As the others, and whether there are zero points."""
        return {**super().to_dict(), "zero_points": self.zero_points}
