"""Integers of four or eight bits packed along a row into I32 words, a scale per group of a row.

compressed-tensors ``pack-quantized``: ``codes`` I32 [o, i * bits / 32], the first element in the
lowest bits, stored plus 2**(bits - 1); ``scales`` [o, i / group] ([o, 1] for whole rows); ``zeros``
I32, stored the same way but packed along *columns*: [ceil(o * bits / 32), i / group]; ``groups``
I32 [i], the group of each column where they were reordered; ``shape``, two integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..dtypes import DTYPES
from .base import Findings, Rect, Span, Stored
from .blocks import Blocks, fits, grid_cut, group_mismatch, mismatch
from .coded import Coded
from .elements import ELEMENTS, Element
from .grouped import by_column, group_damage
from .scales import PLAIN
from .slices import sliced

if TYPE_CHECKING:
    from .base import Array, Bytes

PARTS = ("zeros", "groups", "shape")


@dataclass(frozen=True)
class PackedInt(Blocks):
    """``group`` columns share a scale (None: a whole row); ``extra`` says which PARTS there are.

    ``total``: groups of the whole row, where this is a slice of reordered columns: they may be in
    any of them.
    """

    bits: int
    group: int | None
    extra: tuple[str, ...] = ()
    total: int = 0

    name = "packed-int"
    rule = "(float32(code) - zero point) * scale in float32, then one rounding to nearest even"

    @property
    def roles(self) -> tuple[str, ...]:
        """Codes, scales, and what else there is."""
        return ("codes", "scales", *self.extra)

    @property
    def element(self) -> Element:
        """Unsigned; a symmetric weight has the zero point 2**(bits - 1)."""
        return ELEMENTS[f"uint{self.bits}"]

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """One row, one group."""
        return 1, self.group or max(shape[-1], 1)

    def _extra(self, parts: Sequence[Stored], role: str) -> Stored | None:
        return parts[2 + self.extra.index(role)] if role in self.extra else None

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Words of codes; whole groups; zero points and groups of the right shape."""
        codes, scales = parts[:2]
        if codes.dtype != "I32" or len(codes.shape) != 2:
            return f"codes are {codes.dtype} {list(codes.shape)}, expected I32 with two axes"
        rows, columns = self.shape(parts)
        group = None if self.total else self.group
        if group and (wrong := group_mismatch(columns, group, self.unit)):
            return wrong
        want = (rows, self.total or (columns // group if group else 1))
        if scales.dtype not in PLAIN or not fits(scales, want):
            why = f"for rows of {columns} codes in groups of {self.group or 'all'}"
            return mismatch("scales", scales, PLAIN, want, why)
        zeros, groups = self._extra(parts, "zeros"), self._extra(parts, "groups")
        packed = (-(-rows * self.bits // 32), want[1])
        if zeros and (zeros.dtype, zeros.shape) != ("I32", packed):
            return mismatch("zero points", zeros, ("I32",), packed, "packed along columns")
        if groups and (groups.dtype, groups.shape) != ("I32", (columns,)):
            return mismatch("groups of columns", groups, ("I32",), (columns,), "(g_idx)")
        whole = self._extra(parts, "shape")
        if whole and (whole.dtype not in ("I32", "I64") or whole.shape != (2,)):
            return mismatch("the shape", whole, ("I32", "I64"), (2,), "[rows, columns]")
        return None

    def other_spans(
        self, parts: Sequence[Stored], rect: Rect, origin: int, count: int
    ) -> tuple[Span, ...]:
        """Whole rows of words that hold the zero points of the rows; all of the other parts."""
        found = []
        for role, p in zip(self.extra, parts[2:], strict=True):
            if role == "zeros":
                width, per = 4 * p.shape[1], 32 // self.bits
                found.append(Span(rect.r0 // per * width, -(-rect.r1 // per) * width))
            else:
                found.append(Span(0, p.end - p.begin))
        return tuple(found)

    def decode_piece(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], piece: Coded, out: Array,
        target: str,
    ) -> Findings:  # fmt: skip
        """As :class:`Blocks`; where columns were reordered, with a scale for each of them."""
        groups = self._extra(parts, "groups")
        if not groups:
            return super().decode_piece(parts, rect, data, piece, out, target)
        group_of = data[parts.index(groups)].view("int32")
        if wrong := group_damage(group_of, piece.scales.shape[1]):
            return Findings(damage=wrong)
        one = piece._replace(block=(1, 1), phase=0, left=0)
        return by_column(self.element, one, group_of[rect.c0 : rect.c1], out, target)

    def odd(self, parts: Sequence[Stored], data: Sequence[Bytes]) -> str | None:
        """A shape that is stored, and is not that of the codes."""
        whole = self._extra(parts, "shape")
        if not whole:
            return None
        kind = "int32" if whole.dtype == "I32" else "int64"
        said, held = data[parts.index(whole)].view(kind).tolist(), list(self.shape(parts))
        if said == held:
            return None
        return f"its shape tensor says {said}, the packed codes hold {held}"

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """As :class:`Blocks`; a reordered row needs all of its scales."""
        codes, scales, *rest = super().spans(parts, rect)
        if "groups" in self.extra:
            width = DTYPES[parts[1].dtype].bits // 8 * (parts[1].shape[1])
            scales = Span(rect.r0 * width, rect.r1 * width)
        return codes, scales, *rest

    def grids(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]
    ) -> tuple[Array, Array]:
        """Scales and zero points."""
        import numpy as np

        scales, _ = super().grids(parts, rect, data)
        zeros = self._extra(parts, "zeros")
        if zeros is None:
            return scales, np.full_like(scales, 1 << self.bits - 1)
        per, groups = 32 // self.bits, zeros.shape[1]
        words = data[parts.index(zeros)].reshape(-1, groups, 4)  # [words, groups, bytes]
        codes = np.stack([words & 15, words >> 4], -1) if self.bits == 4 else words[..., None]
        by_row = codes.reshape(-1, groups, per).transpose(0, 2, 1).reshape(-1, groups)
        first = rect.r0 % per
        found = by_row[first : first + rect.r1 - rect.r0].astype(np.float32)
        if self.group and rect.r1 - rect.r0 == 1 and "groups" not in self.extra:
            # one row may be cut: the groups of its columns
            found = found[:, rect.c0 // self.group : -(-rect.c1 // self.group)]
        return scales, found.reshape(-1)

    def steps(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Whole words: of zero points down the rows, of codes along them; and whole groups, but for
        reordered columns, which may be in any."""
        per = 32 // self.bits
        whole = None if "groups" in self.extra else self.group
        return (per if "zeros" in self.extra else 1), whole or per

    def around(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Blocks, tuple[Stored, ...]]:
        """Without the shape, which is another. A slice of reordered columns has all scales."""
        extra = tuple(role for role in self.extra if role != "shape")
        total = parts[1].shape[1] if axis and "groups" in extra else self.total
        shape, named = self.shape(parts), zip(self.roles[1:], parts[1:], strict=True)
        cut = tuple(
            self._around(role, part, shape, axis, begin, end)
            for role, part in named
            if role != "shape"
        )
        return replace(self, extra=extra, total=total), cut

    def _around(
        self, role: str, part: Stored, shape: tuple[int, ...], axis: int, begin: int, end: int
    ) -> Stored:
        if role == "groups":
            return sliced(part, 0, begin, end) if axis else part
        if axis and "groups" in self.extra:
            return part
        if role == "zeros" and not axis:
            per = 32 // self.bits
            return sliced(part, 0, begin // per, -(-end // per))
        return grid_cut(part, shape, self.block_of(shape), axis, begin, end)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "packed-int", "bits": 4, "group": 32, "extra": [...]}``."""
        facts = {"bits": self.bits, "group": self.group, "extra": list(self.extra)}
        return {"codec": self.name, **facts, **({"total": self.total} if self.total else {})}
