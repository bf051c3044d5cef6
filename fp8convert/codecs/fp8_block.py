"""FP8 with one float32 scale per block: DeepSeek-V3 and everything in its layout.

Source: DeepSeek-V3 ``README_WEIGHTS.md``. ``codes`` F8_E4M3 [o, i]; ``scales`` F32
[ceil(o/br), ceil(i/bc)], multipliers. The last blocks of a ragged axis are cut off, not padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Codec, Findings, Grid, Rect, Span, Stored

if TYPE_CHECKING:
    from .base import Array, Bytes

E4M3_MAX = 448.0
SCRATCH = 1 << 18  # elements
LARGEST = {"BF16": 3.3895313892515355e38, "F16": 65504.0, "F32": 3.4028234663852886e38}


@dataclass(frozen=True)
class Fp8Block(Codec):
    """e4m3fn codes with F32 scales per ``block`` = (rows, columns)."""

    block: tuple[int, int]

    name = "fp8-block"
    rule = "float32(code) * scale in float32, then one rounding to nearest even"
    roles = ("codes", "scales")
    coded = True

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Codes are a 2-D F8_E4M3 matrix; scales are F32 and as many as there are blocks."""
        codes, scales = parts
        if codes.dtype != "F8_E4M3" or len(codes.shape) != 2:
            return f"codes are {codes.dtype} {list(codes.shape)}, expected F8_E4M3 with two axes"
        want = tuple(-(-n // b) for n, b in zip(codes.shape, self.block, strict=True))
        if scales.dtype != "F32" or scales.shape != want:
            return (
                f"scales are {scales.dtype} {list(scales.shape)}, expected F32 {list(want)} "
                f"for codes {list(codes.shape)} in blocks of {list(self.block)}"
            )
        return None

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """[o, i]."""
        return parts[0].shape

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """``target``."""
        return target

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut on block boundaries."""
        rows, columns = parts[0].shape
        return Grid(rows, columns, *self.block)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The codes of ``rect``, and every row of scales that ``rect`` touches."""
        columns, scale_columns = parts[0].shape[1], parts[1].shape[1]
        br, bc = self.block
        b0, b1 = rect.r0 // br, -(-rect.r1 // br)
        k0, k1 = (0, scale_columns) if b1 - b0 > 1 else (rect.c0 // bc, -(-rect.c1 // bc))
        first = rect.r0 * columns + rect.c0
        codes = Span(first, first + (rect.r1 - rect.r0) * (rect.c1 - rect.c0))
        return codes, Span(4 * (b0 * scale_columns + k0), 4 * ((b1 - 1) * scale_columns + k1))

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """One float32 product per element, rounded once to ``target``."""
        import numpy as np

        from .. import kernels

        shape = (rect.r1 - rect.r0, rect.c1 - rect.c0)
        codes = data[0].reshape(shape)
        block_rows = -(-rect.r1 // self.block[0]) - rect.r0 // self.block[0]
        scales = np.frombuffer(data[1].tobytes(), "<f4").reshape(block_rows, -1)
        found = Findings(damage=self._damage(codes, scales, rect))
        phase = rect.r0 % self.block[0]
        if target == "F16":
            self._decode_f16(codes, scales, phase, out.reshape(shape))
        else:
            kernels.load().e4m3_blocks(codes, scales, phase, self.block, out.reshape(shape))
        if float(np.abs(scales).max(initial=0.0)) * E4M3_MAX > LARGEST[target]:
            found.overflowed = _count_infinite(out, target)
        return found

    def _decode_f16(self, codes: Array, scales: Array, phase: int, out: Array) -> None:
        """Through float32, a bounded number of elements at a time."""
        import numpy as np

        from .. import kernels

        (br, bc), (rows, columns) = self.block, codes.shape
        wide = min(columns, max(SCRATCH // bc, 1) * bc)
        high = max(SCRATCH // wide, 1) if wide == columns else 1
        for r in range(0, rows, high):
            top, end = phase + r, phase + min(r + high, rows)
            for c in range(0, columns, wide):
                part = codes[r : r + high, c : c + wide]
                grid = scales[top // br : -(-end // br), c // bc : -(-(c + wide) // bc)]
                product = np.empty(part.shape, np.float32)
                kernels.load().e4m3_blocks(part, grid, top % br, self.block, product)
                with np.errstate(over="ignore", under="ignore"):
                    out[r : r + high, c : c + wide] = product

    def _damage(self, codes: Array, scales: Array, rect: Rect) -> str | None:
        import numpy as np

        from .. import kernels

        if kernels.load().has_nan_code(codes.reshape(-1)):
            row, column = np.argwhere((codes & 0x7F) == 0x7F)[0]
            return f"a NaN code at row {rect.r0 + row}, column {rect.c0 + column}"
        bad = np.argwhere(~(np.isfinite(scales) & (scales > 0)))
        for i, k in bad:
            row, column = rect.r0 // self.block[0] + i, rect.c0 // self.block[1] + k
            where = f"block row {row}, column {column}"
            value = float(scales[i, k])
            if value != 0:
                return f"scale {value} at {where}, expected a finite number above 0"
            if self._block(codes, rect, i, k).any():
                return f"scale 0 at {where}, but the block's codes are not all zero"
        return None

    def _block(self, codes: Array, rect: Rect, i: int, k: int) -> Array:
        br, bc = self.block
        top = max((rect.r0 // br + i) * br - rect.r0, 0)
        bottom = (rect.r0 // br + i + 1) * br - rect.r0
        magnitudes: Array = codes[top:bottom, k * bc : (k + 1) * bc] & 0x7F
        return magnitudes

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "fp8-block", "block": [br, bc]}``."""
        return {"codec": self.name, "block": list(self.block)}


def _count_infinite(out: Array, target: str) -> int:
    import numpy as np

    if target == "BF16":
        return int(np.count_nonzero((out & np.uint16(0x7FFF)) == 0x7F80))
    return int(np.count_nonzero(np.isinf(out)))
