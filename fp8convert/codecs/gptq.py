"""GPTQ: integers packed along the *input* axis, stored transposed, decoded to [out, in].

``codes`` I32 [in * bits / 32, out], the first input in the lowest bits; ``scales`` F16 [groups,
out]; ``zeros`` I32 [groups, out * bits / 32], packed along ``out``, in the first version of the
format stored minus one; ``groups`` I32 [in], the group of each input. Source: AutoGPTQ
``qlinear_cuda.py``; GPTQModel for version 2. Scales below 0 occur (AutoRound's full-range rule).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .base import Findings, Grid, Rect, Span, Stored, runs
from .blocks import group_mismatch, mismatch
from .coded import Coded, decode_matrix
from .elements import ELEMENTS
from .grouped import by_column, group_damage
from .scales import PLAIN, WIDTHS, to_float32
from .slices import sliced
from .transposed import Transposed, bands, nibbles

if TYPE_CHECKING:
    from .base import Array, Bytes


@dataclass(frozen=True)
class Gptq(Transposed):
    """``group`` inputs share a scale; ``minus_one``: zero points are stored less one (version 1).

    ``reordered``: there is a fourth part, ``groups``; ``in_order``: it may only say i // group.

    A slice of inputs keeps the numbers of their groups in the whole weight, as engines have it:
    it begins with input ``first``, and has all ``total`` groups where inputs may be in any.
    """

    bits: int
    group: int
    minus_one: bool
    reordered: bool = False
    in_order: bool = False
    first: int = 0
    total: int = 0

    name = "gptq"
    rule = "(float32(code) - zero point) * scale in float32, then one rounding to nearest even"

    @property
    def roles(self) -> tuple[str, ...]:
        """Codes, scales, zero points, and the groups if inputs may be reordered."""
        named = ("codes", "scales", "zeros")
        return (*named, "groups") if self.reordered else named

    @property
    def per(self) -> int:
        """Codes in a word."""
        return 32 // self.bits

    def check(self, parts: Sequence[Stored]) -> str | None:
        """I32 words; as many groups as inputs need; outputs that fill words of zero points."""
        codes, scales, zeros = parts[:3]
        if codes.dtype != "I32" or len(codes.shape) != 2:
            return f"codes are {codes.dtype} {list(codes.shape)}, expected I32 with two axes"
        outputs, inputs = self.shape(parts)
        if not self.total and (wrong := group_mismatch(inputs, self.group, self.per)):
            return wrong
        if outputs % self.per:
            return f"{outputs} outputs do not fill words of {self.per} zero points"
        groups = self.total or inputs // self.group
        if scales.dtype not in PLAIN or scales.shape != (groups, outputs):
            why = f"for {inputs} inputs in groups of {self.group}"
            return mismatch("scales", scales, PLAIN[::-1], (groups, outputs), why)
        want = (groups, outputs // self.per)
        if (zeros.dtype, zeros.shape) != ("I32", want):
            return mismatch("zero points", zeros, ("I32",), want, "packed along the outputs")
        if self.reordered and (parts[3].dtype, parts[3].shape) != ("I32", (inputs,)):
            return mismatch("groups of inputs", parts[3], ("I32",), (inputs,), "(g_idx)")
        return None

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """[out, in]."""
        words, outputs = parts[0].shape
        return outputs, words * self.per

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut between any rows, and at groups within a row."""
        rows, columns = self.shape(parts)
        return Grid(rows, columns, 1, self.group, 0, self.per)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """A run of words from each word row; of scales and zero points from each group."""
        (words, outputs), (groups, zero_words) = parts[0].shape, parts[2].shape
        width, w0, w1 = WIDTHS[parts[1].dtype], rect.c0 // self.per, rect.c1 // self.per
        z0, z1 = rect.r0 // self.per, -(-rect.r1 // self.per)
        found = (
            runs(4 * (w0 * outputs + rect.r0), 4 * (rect.r1 - rect.r0), w1 - w0, 4 * outputs),
            runs(width * rect.r0, width * (rect.r1 - rect.r0), groups, width * outputs),
            runs(4 * z0, 4 * (z1 - z0), groups, 4 * zero_words),
        )
        return (*found, Span(0, 4 * words * self.per)) if self.reordered else found

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Transpose a band of words, then one product per element, rounded once."""
        import numpy as np

        from .. import kernels

        height, width, groups = rect.r1 - rect.r0, rect.c1 - rect.c0, parts[2].shape[0]
        words = data[0].view("<u4").reshape(-1, height)  # [in / per, rows]
        scales = to_float32(data[1], parts[1].dtype).reshape(groups, height)
        stored = nibbles(data[2].reshape(groups, -1), self.bits)
        stored = stored[:, rect.r0 % self.per :][:, :height]
        if self.minus_one and (stored == (1 << self.bits) - 1).any():
            return Findings(damage=AMBIGUOUS.format((1 << self.bits) - 1))
        zeros = stored.astype(np.float32) + np.float32(self.minus_one)
        held = 0 if self.total else self.first // self.group  # the first group that is here
        inputs = np.arange(self.first + rect.c0, self.first + rect.c1, dtype=np.int32)
        group_of = inputs // self.group
        if self.reordered:
            group_of = data[3].view("<i4")[rect.c0 : rect.c1]
        if wrong := group_damage(group_of, groups, held):
            return Findings(damage=wrong)
        regular = bool((group_of == inputs // self.group).all())
        if self.in_order and not regular:
            return Findings(damage=NOT_IN_ORDER)
        to, total = out.reshape(height, width), Findings()
        for a, b in bands(height, width, 1):
            packed, by_row, zeros_by_row = (
                kernels.load().transposed(m[:, a:b]) for m in (words, scales, zeros)
            )
            piece = Coded(
                packed.view(np.uint8), by_row, zeros_by_row, (1, 1), row=rect.r0 + a, column=rect.c0
            )
            element = ELEMENTS[f"uint{self.bits}"]
            if regular:
                total.add(decode_matrix(element, self._regular(piece, held), to[a:b], target))
            else:
                total.add(by_column(element, piece, group_of, to[a:b], target))
        return total

    def _regular(self, piece: Coded, held: int) -> Coded:
        """``piece``, whose columns lie in groups in their order; group ``held`` is its first."""
        first = self.first + piece.column
        last = first + piece.codes.shape[1] * 8 // self.bits
        at = slice(first // self.group - held, -(-last // self.group) - held)
        assert piece.zeros is not None
        return piece._replace(
            scales=piece.scales[:, at], zeros=piece.zeros[:, at], block=(1, self.group),
            left=first % self.group,
        )  # fmt: skip

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """Words of outputs, and groups of inputs; words of those if there is but one group, or if
        they may be in any."""
        free = self._mixed or self._is_one(parts)
        return self.per if axis == 0 or free else self.group

    @property
    def _mixed(self) -> bool:
        """Whether an input may be in any group."""
        return self.reordered and not self.in_order

    def _is_one(self, parts: Sequence[Stored]) -> bool:
        """Whether the whole weight has but one group."""
        return not self.first and self.group == parts[0].shape[0] * self.per

    def cut_at_steps(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Transposed, tuple[Stored, ...]]:
        """Of outputs the columns of all parts; of inputs rows."""
        codes, scales, zeros, *groups = parts
        lo, hi = begin // self.per, end // self.per
        if axis == 0:
            scales, zeros = sliced(scales, 1, begin, end), sliced(zeros, 1, lo, hi)
            return self, (sliced(codes, 1, begin, end), scales, zeros, *groups)
        codes, groups = sliced(codes, 0, lo, hi), [sliced(g, 0, begin, end) for g in groups]
        of = self
        if self._mixed:
            of = replace(self, first=self.first + begin, total=zeros.shape[0])
        elif self._is_one(parts):
            of = replace(self, group=end - begin)
        else:
            lo, hi = begin // self.group, end // self.group
            scales, zeros = sliced(scales, 0, lo, hi), sliced(zeros, 0, lo, hi)
            of = replace(self, first=self.first + begin) if self.reordered else self
        return of, (codes, scales, zeros, *groups)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "gptq", "bits": 4, "group": 128, ...}``."""
        facts = {"bits": self.bits, "group": self.group, "zeros_minus_one": self.minus_one}
        slice_of = {"first": self.first, "total": self.total} if self.first or self.total else {}
        order = {"g_idx": self.reordered, "in_order": self.in_order}
        return {"codec": self.name, **facts, **order, **slice_of}


NOT_IN_ORDER = (
    "its g_idx reorders inputs, but desc_act is false: readers that believe the one and those that "
    "believe the other disagree"
)
AMBIGUOUS = (
    "a zero point is stored as {}, which stands for 0 or for one more than it can hold, "
    "and readers of this version of the format disagree"
)
