"""AutoAWQ (GEMM): four-bit integers packed along the *output* axis, decoded to [out, in].

``codes`` I32 [in, out / 8], ``scales`` F16 [in / group, out], ``zeros`` I32 [in / group, out / 8].
From the lowest bits up a word holds the outputs 0 2 4 6 1 3 5 7 of its eight. Source: AutoAWQ
``awq/modules/linear/gemm.py`` and ``awq/utils/packing_utils.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .base import Findings, Grid, Rect, Span, Stored, runs
from .blocks import group_mismatch, mismatch
from .coded import Coded, decode_matrix
from .elements import ELEMENTS
from .scales import PLAIN, WIDTHS, to_float32
from .slices import sliced
from .transposed import Transposed, bands, nibbles

if TYPE_CHECKING:
    from .base import Array, Bytes

PER = 8  # codes in a word
PLACE = [0, 4, 1, 5, 2, 6, 3, 7]  # of each output among the nibbles of its word


@dataclass(frozen=True)
class Awq(Transposed):
    """``group`` inputs share a scale and a zero point; without ``zero_points`` that is 8."""

    group: int
    zero_points: bool = True

    name = "awq"
    rule = "(float32(code) - zero point) * scale in float32, then one rounding to nearest even"

    @property
    def roles(self) -> tuple[str, ...]:
        """Codes, scales, and zero points if there are any."""
        return ("codes", "scales", "zeros") if self.zero_points else ("codes", "scales")

    def check(self, parts: Sequence[Stored]) -> str | None:
        """I32 words; whole groups of inputs."""
        codes, scales = parts[:2]
        if codes.dtype != "I32" or len(codes.shape) != 2:
            return f"codes are {codes.dtype} {list(codes.shape)}, expected I32 with two axes"
        outputs, inputs = self.shape(parts)
        if wrong := group_mismatch(inputs, self.group, 1):
            return wrong
        groups, why = inputs // self.group, f"for {inputs} inputs in groups of {self.group}"
        if scales.dtype not in PLAIN or scales.shape != (groups, outputs):
            return mismatch("scales", scales, PLAIN[::-1], (groups, outputs), why)
        zeros = parts[2] if self.zero_points else None
        if zeros and (zeros.dtype, zeros.shape) != ("I32", (groups, outputs // PER)):
            return mismatch("zero points", zeros, ("I32",), (groups, outputs // PER), why)
        return None

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """[out, in]."""
        inputs, words = parts[0].shape
        return words * PER, inputs

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut at words of eight rows, and at groups within a row."""
        rows, columns = self.shape(parts)
        return Grid(rows, columns, PER, self.group)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """A run of words from each input; of scales and zero points from each group it is in."""
        outputs, words = self.shape(parts)[0], parts[0].shape[1]
        width, w0, w1 = WIDTHS[parts[1].dtype], rect.r0 // PER, -(-rect.r1 // PER)
        g0, g1 = rect.c0 // self.group, -(-rect.c1 // self.group)
        found = (
            runs(4 * (rect.c0 * words + w0), 4 * (w1 - w0), rect.c1 - rect.c0, 4 * words),
            runs(
                width * (g0 * outputs + rect.r0), width * (rect.r1 - rect.r0), g1 - g0,
                width * outputs,
            ),
            runs(4 * (g0 * words + w0), 4 * (w1 - w0), g1 - g0, 4 * words),
        )  # fmt: skip
        return found if self.zero_points else found[:2]

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Transpose a band of codes, then one product per element, rounded once."""
        import numpy as np

        from .. import kernels

        height, width, skip = rect.r1 - rect.r0, rect.c1 - rect.c0, rect.r0 % PER
        packed = data[0].reshape(width, -1)  # [in, bytes]
        scales = to_float32(data[1], parts[1].dtype).reshape(-1, height)
        groups = scales.shape[0]
        zeros = np.full_like(scales, 8)
        if self.zero_points:
            stored = nibbles(data[2].reshape(groups, -1), 4).reshape(groups, -1, PER)[:, :, PLACE]
            zeros = stored.reshape(groups, -1)[:, skip : skip + height].astype(np.float32)
        to, total = out.reshape(height, width), Findings()
        for a, b in bands(skip + height, width, 2 * PER):
            mixed = np.empty((-(-(b - a) // PER) * PER, width), np.uint8)
            kernels.load().transpose_nibbles(packed[:, a // 2 : a // 2 + len(mixed) // 2], mixed)
            codes = mixed.reshape(-1, PER, width)[:, PLACE].reshape(-1, width)
            lead = skip if a == 0 else 0
            rows = slice(a + lead - skip, b - skip)
            piece = Coded(
                codes[lead : b - a],
                np.ascontiguousarray(scales[:, rows].T),
                np.ascontiguousarray(zeros[:, rows].T),
                (1, self.group), row=rect.r0 + rows.start, column=rect.c0,
                left=rect.c0 % self.group,
            )  # fmt: skip
            total.add(decode_matrix(ELEMENTS["uint8"], piece, to[rows], target))
        return total

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """Words of outputs; groups of inputs, anywhere if there is only one."""
        whole = self.group == parts[0].shape[0]
        return (1 if whole else self.group) if axis else PER

    def cut_at_steps(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Transposed, tuple[Stored, ...]]:
        """Rows of all parts along inputs, columns of all along outputs."""
        codes, scales, *zeros = parts
        if axis == 0:
            packed = (sliced(p, 1, begin // PER, end // PER) for p in (codes, *zeros))
            codes, *zeros = packed
            return self, (codes, sliced(scales, 1, begin, end), *zeros)
        codes, group = sliced(codes, 0, begin, end), self.group
        if group == parts[0].shape[0]:
            return replace(self, group=end - begin), (codes, scales, *zeros)
        cut = (sliced(p, 0, begin // group, end // group) for p in (scales, *zeros))
        return self, (codes, *cut)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "awq", "bits": 4, "group": 128}``."""
        facts = {"bits": 4, "group": self.group, "zero_points": self.zero_points}
        return {"codec": self.name, **facts}
