"""How a stored tensor is carried over that is not decoded from codes: copied, or as float32.

Codecs of the plan's own making: no scheme finds them in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..codecs.base import Codec, Findings, Grid, Rect, Span, Stored
from ..codecs.elements import ELEMENTS
from ..codecs.raw import Raw
from ..codecs.scales import WIDTHS, to_float32
from ..header import numel

if TYPE_CHECKING:
    from ..codecs.base import Array, Bytes


@dataclass(frozen=True)
class Floats(Codec):
    """One part, its values exactly as float32; ``target`` is always F32.

    ``scales``: "positive" or "any" if they are scales, so that one that is not finite, or has the
    wrong sign, is damage; with ``powers`` one that is not a power of two as well.
    """

    scales: str = ""
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
        damage = scale_damage(out, self.scales, self.powers) if self.scales else None
        return Findings(damage=damage)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "floats"}``."""
        return {"codec": self.name}


@dataclass(frozen=True)
class Copied(Raw):
    """A part that is copied. ``code`` is the element of codes, ``scales`` the sign of scales
    ("positive" or "any"), if they are such: what no correct checkpoint has is damage."""

    code: str = ""
    scales: str = ""

    name = "copied"
    rule = "bytes copied"

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Copy, and look."""
        from .. import kernels

        super().decode(parts, rect, data, out, target)
        if self.code and kernels.load().has_odd_code(ELEMENTS[self.code], data[0]):
            return Findings(damage=f"a NaN code among its bytes {rect.r0:,} to {rect.r1 - 1:,}")
        if not self.scales:
            return Findings()
        return Findings(damage=scale_damage(to_float32(data[0], parts[0].dtype), self.scales))

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "copied", "element": ..., "scales": ...}``."""
        return {"codec": self.name, "element": self.code, "scales": self.scales}


def scale_damage(scales: Array, sign: str, powers: bool = False) -> str | None:
    """Why no correct checkpoint has these float32 ``scales``, or None. Over zeros they may be 0."""
    import numpy as np

    fine, wanted = np.isfinite(scales), "a finite number"
    if sign == "positive":
        fine &= scales >= 0
        wanted = "a finite number above 0"
    if powers:
        fine &= (scales.view(np.uint32) & np.uint32(0x7FFFFF)) == 0
        wanted = "a power of two, as the config says (scale_fmt)"
    return None if fine.all() else f"scale {scales[~fine][0]}, expected {wanted}"
