"""Four-bit floats (e2m1), two a byte along a row, one scale per group of a row: MXFP4 and NVFP4.

``codes`` U8 or I8 [o, i/2] (or [experts, o, i/2]), the even element in the low nibble; ``scales``
[o, i/group], E8M0 per 32 (OCP MX v1.0) or e4m3 per 16 (NVFP4); NVFP4 adds ``global``, one float32
for the tensor, that ModelOpt multiplies and compressed-tensors divides by.

The two scales are combined first, in float32, with its rounding; then one product with the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Rect, Stored
from .blocks import Blocks, group_mismatch, mismatch
from .elements import ELEMENTS, Element
from .scales import E8M0, to_float32

if TYPE_CHECKING:
    from .base import Array, Bytes

GLOBAL = (("F32", ()), ("F32", (1,)))


@dataclass(frozen=True)
class Fp4Block(Blocks):
    """``group`` columns share a scale; ``combine`` says what the global scale does to it: "none",
    "multiply" or "divide" (the scale is divided by it).

    ``signed_zero``: code 8 is -0.0, as OCP has it; DeepSeek's own table has +0.0.
    """

    group: int
    combine: str = "none"
    signed_zero: bool = True

    name = "fp4-block"
    rule = (
        "scale = float32(scale) [* or / global scale, in float32]; "
        "float32(code) * scale in float32, then one rounding to nearest even"
    )

    @property
    def roles(self) -> tuple[str, ...]:
        """Codes, scales, and the global scale if there is one."""
        return ("codes", "scales") if self.combine == "none" else ("codes", "scales", "global")

    @property
    def element(self) -> Element:
        """e2m1, with the zero that the format has."""
        return ELEMENTS["e2m1" if self.signed_zero else "e2m1-unsigned-zero"]

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """One row, one group."""
        return 1, self.group

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Bytes of two codes; a scale for every whole group; a single F32 global scale."""
        codes, scales = parts[:2]
        if codes.dtype not in ("U8", "I8", "F4") or len(codes.shape) not in (2, 3):
            return f"codes are {codes.dtype} {list(codes.shape)}, expected U8 or I8 with two axes"
        *lead, columns = self.shape(parts)
        if wrong := group_mismatch(columns, self.group, self.unit):
            return wrong
        wanted = ("F8_E4M3",) if self.combine != "none" else E8M0
        want = (*lead, columns // self.group)
        if scales.dtype not in wanted or scales.shape != want:
            why = f"for {columns} codes a row in groups of {self.group}"
            return mismatch("scales", scales, wanted, want, why)
        return self._check_global(parts)

    def _check_global(self, parts: Sequence[Stored]) -> str | None:
        if self.combine != "none" and (parts[2].dtype, parts[2].shape) not in GLOBAL:
            return mismatch("the global scale", parts[2], ("F32",), (), "or [1]")
        return None

    def grids(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]
    ) -> tuple[Array, Array | None]:
        """Scales, combined with the global one."""
        import numpy as np

        scales, _ = super().grids(parts, rect, data)
        if self.combine == "none":
            return scales, None
        whole = to_float32(data[2], "F32")
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            return (scales * whole if self.combine == "multiply" else scales / whole), None

    def odd(self, parts: Sequence[Stored], data: Sequence[Bytes]) -> str | None:
        """A global scale that is not sound."""
        whole = 1.0 if self.combine == "none" else float(to_float32(data[2], "F32")[0])
        if 0 < whole < float("inf"):
            return None
        return f"global scale {whole}, expected a finite number above 0"

    def steps(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Groups are whole also where a row has only one."""
        return 1, self.group

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "fp4-block", "group": 32, "global": ..., "signed_zero": ...}``."""
        facts = {"group": self.group, "global": self.combine, "signed_zero": self.signed_zero}
        return {"codec": self.name, **facts}
