"""How a stored tensor is carried over that is not decoded from codes: copied, or as float32.

Codecs of the plan's own making: no scheme finds them in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..codecs.base import Codec, Findings, Grid, Rect, Span, Stored
from ..codecs.blocks import Blocks
from ..codecs.raw import Raw
from ..codecs.scales import WIDTHS, to_float32
from ..dtypes import DTYPES
from ..header import numel

if TYPE_CHECKING:
    from ..codecs.base import Array, Bytes


@dataclass(frozen=True)
class Floats(Codec):
    """One part, its values exactly as float32; ``target`` is always F32.

    ``powers``: one that is not a power of two is damage.
    """

    powers: bool = False

    name = "floats"
    rule = "float32(value), exactly"
    roles = ("data",)
    coded = True

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Any dtype whose values float32 has."""
        known = parts[0].dtype in WIDTHS
        return None if known else f"it is {parts[0].dtype}, expected one of {', '.join(WIDTHS)}"

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """The stored shape."""
        return parts[0].shape

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """F32."""
        return "F32"

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut anywhere."""
        shape = parts[0].shape or (1,)
        return Grid(numel(shape[:-1]), shape[-1], 1, 1)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The elements' own bytes."""
        width, columns = WIDTHS[parts[0].dtype], self.grid(parts).columns
        first = rect.r0 * columns + rect.c0
        count = (rect.r1 - rect.r0) * (rect.c1 - rect.c0)
        return (Span(first * width, (first + count) * width),)

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Widen."""
        import numpy as np

        from .. import kernels

        dtype = parts[0].dtype
        if dtype == "BF16":
            halves = data[0].view("<u2")  # anywhere in a file
            halves = halves if halves.flags.aligned else halves.copy()
            kernels.load().widen(halves, out.view(np.uint32))
        elif dtype in ("F16", "F32"):
            out[:] = data[0].view("<f2" if dtype == "F16" else "<f4")
        else:
            out[:] = to_float32(data[0], dtype)
        odd = (np.frexp(out)[0] != 0.5) & (out != 0)  # 0 over codes that are all zero
        if not self.powers or not odd.any():
            return Findings()
        wanted = "a power of two, as the config says (scale_fmt)"
        return Findings(damage=f"scale {out[odd][0]}, expected {wanted}")

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "floats"}``."""
        return {"codec": self.name}


@dataclass(frozen=True)
class Copied(Raw):
    """A part that is copied."""

    name = "copied"
    rule = "bytes copied"

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "copied"}``."""
        return {"codec": self.name}


@dataclass(frozen=True)
class CopiedShape(Raw):
    """The shape that packed integers carry, which must be ``expected``; written as I64 [2]."""

    expected: tuple[int, ...] = ()

    name = "copied-shape"
    rule = "integers kept"

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Widen, and look."""
        out[:] = data[0].view("<i4" if parts[0].dtype == "I32" else "<i8")
        held = list(self.expected[rect.r0 : rect.r1])
        return Findings(damage=None if out.tolist() == held else f"{out.tolist()}, expected {held}")

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "copied-shape", "expected": [o, i]}``."""
        return {"codec": self.name, "expected": list(self.expected)}


@dataclass(frozen=True)
class CopiedCodes(Codec):
    """Codes that are copied: the first part of a weight of ``codec``, under ``stored``'s shape.

    All parts are read, and what would be damage in decoding is damage here. Seen as bytes.
    """

    codec: Blocks
    stored: tuple[int, ...]

    name = "copied-codes"
    rule = "codes copied; damage as in decoding"
    coded = False

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of the codec."""
        return self.codec.roles

    def check(self, parts: Sequence[Stored]) -> str | None:
        """As the codec."""
        return self.codec.check(parts)

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """Of the codes as they are written."""
        return self.stored

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """That of the codes."""
        return parts[0].dtype

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """The codec's, in bytes; cut at whole elements."""
        found, unit = self.codec.grid(parts), self.codec.unit
        width = max(DTYPES[parts[0].dtype].bits // 8, 1)
        step = max(found.column_step // unit, 1)
        return found._replace(columns=found.columns // unit, column_step=step, unit=width)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """As the codec."""
        return self.codec.spans(parts, self._wide(rect))

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Copy, and look."""
        out.view("uint8")[:] = data[0]
        return Findings(damage=self.codec.damage(parts, self._wide(rect), data))

    def _wide(self, rect: Rect) -> Rect:
        unit = self.codec.unit
        return rect._replace(c0=rect.c0 * unit, c1=rect.c1 * unit)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "copied-codes", "of": {...}}``."""
        return {"codec": self.name, "of": self.codec.to_dict()}


CARRIED = (Floats, Copied, CopiedShape, CopiedCodes)
