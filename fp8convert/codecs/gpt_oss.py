"""gpt-oss experts: MXFP4 blocks of each *output* row, decoded to [experts, in, out].

``codes`` U8 [experts, out, in / 32, 16], two e2m1 codes a byte, the even one in the low nibble;
``scales`` U8 [experts, out, in / 32], E8M0. The decoded weight is transposed, [experts, in, out],
as transformers keeps it (``integrations/mxfp4.py``, ``convert_moe_packed_tensors``): gate and up
stay interleaved along ``out``. Code 8 is -0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .base import Findings, Grid, Rect, Span, Stored, runs
from .blocks import mismatch
from .coded import Coded, decode_matrix
from .elements import ELEMENTS
from .scales import E8M0, to_float32
from .slices import sliced
from .transposed import Transposed, bands

if TYPE_CHECKING:
    from .base import Array, Bytes

GROUP, PAIRS = 32, 16  # codes and bytes that share a scale


@dataclass(frozen=True)
class GptOss(Transposed):
    """No options: the format has none."""

    name = "mxfp4-transposed"
    rule = "float32(code) * 2**(scale - 127) in float32, then one rounding to nearest even"
    roles = ("codes", "scales")

    def check(self, parts: Sequence[Stored]) -> str | None:
        """U8 blocks of 16 bytes with four axes, and an exponent for each block."""
        codes, scales = parts
        if codes.dtype != "U8" or len(codes.shape) != 4 or codes.shape[3] != PAIRS:
            return (
                f"blocks are {codes.dtype} {list(codes.shape)}, "
                "expected U8 [experts, out, in / 32, 16]"
            )
        if scales.dtype not in E8M0 or scales.shape != codes.shape[:3]:
            return mismatch("scales", scales, E8M0[::-1], codes.shape[:3], "as the blocks")
        return None

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """[experts, in, out]."""
        experts, out, groups, _ = parts[0].shape
        return experts, GROUP * groups, out

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut at groups of 32 rows within an expert, and between any columns."""
        experts, rows, columns = self.shape(parts)
        return Grid(experts * rows, columns, GROUP, 1, rows)

    def _place(self, parts: Sequence[Stored], rect: Rect) -> tuple[int, int, int]:
        """Expert, and its rows [r0, r1)."""
        rows = self.shape(parts)[1]
        expert, r0 = divmod(rect.r0, rows)
        return expert, r0, r0 + rect.r1 - rect.r0

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """From each of the columns a run of codes, and one of scales."""
        _, out, groups, _ = parts[0].shape
        expert, r0, r1 = self._place(parts, rect)
        first, count = expert * out + rect.c0, rect.c1 - rect.c0
        b0, b1, g0, g1 = r0 // 2, -(-r1 // 2), r0 // GROUP, -(-r1 // GROUP)
        row = PAIRS * groups
        return (
            runs(first * row + b0, b1 - b0, count, row),
            runs(first * groups + g0, g1 - g0, count, groups),
        )

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Transpose a band of codes, then one product per element, rounded once."""
        import numpy as np

        from .. import kernels

        expert, r0, r1 = self._place(parts, rect)
        columns, total = rect.c1 - rect.c0, Findings()
        packed = data[0].reshape(columns, -1)  # [columns, rows / 2]
        values = to_float32(data[1], parts[1].dtype).reshape(columns, -1)
        scales = np.ascontiguousarray(values.T)  # [groups, columns]
        to, skip = out.reshape(r1 - r0, columns), r0 % 2
        for a, b in bands(r1 - r0 + skip, columns, 16):  # counted from the first byte
            codes = np.empty((-(-(b - a) // 2) * 2, columns), np.uint8)
            kernels.load().transpose_nibbles(packed[:, a // 2 : -(-b // 2)], codes)
            lead = skip if a == 0 else 0
            top = r0 - skip + a + lead
            g0, g1 = top // GROUP - r0 // GROUP, -(-(r0 - skip + b) // GROUP) - r0 // GROUP
            piece = Coded(
                codes[lead : b - a], scales[g0:g1], None, (GROUP, 1),
                phase=top % GROUP, row=top, column=rect.c0, expert=expert,
            )  # fmt: skip
            at = a + lead - skip
            total.add(decode_matrix(ONE_A_BYTE, piece, to[at : b - skip], target))
        return total

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """Groups of inputs; between any experts and outputs."""
        return GROUP if axis == 1 else 1

    def cut_at_steps(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Transposed, tuple[Stored, ...]]:
        """Both parts alike."""
        if axis == 1:
            begin, end = begin // GROUP, end // GROUP
        return self, tuple(sliced(p, (0, 2, 1)[axis], begin, end) for p in parts)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "mxfp4-transposed", "group": 32}``."""
        return {"codec": self.name, "group": GROUP}


ONE_A_BYTE = ELEMENTS["e2m1-bytes"]
