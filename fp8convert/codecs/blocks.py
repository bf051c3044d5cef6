"""What codecs share whose codes are in row-major order with a grid of scales: spans, stacks, cuts.

The codecs whose codes are stored transposed are in :mod:`.transposed`; all end in :mod:`.coded`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..dtypes import DTYPES
from ..errors import SchemeError, shown
from ..header import numel
from .base import Codec, Findings, Grid, Rect, Span, Stored
from .coded import Coded, damage_of, decode_matrix
from .elements import Element
from .scales import WIDTHS, to_float32
from .slices import sliced

if TYPE_CHECKING:
    from .base import Array, Bytes


class Blocks(Codec):
    """Codes in row-major order [o, i] or [experts, o, i], a scale per block of each matrix.

    ``parts`` are codes, scales, and whatever a codec adds. Each expert has block rows of its own,
    and a rectangle lies within one.
    """

    coded = True

    @property
    @abstractmethod
    def element(self) -> Element:
        """The format of a code."""

    @abstractmethod
    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the decoded ``shape`` that share a scale."""

    def grids(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]
    ) -> tuple[Array, Array | None]:
        """Scales and zero points, float32 [n], from the bytes of the spans of ``rect``."""
        return to_float32(data[1], parts[1].dtype), None

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """That of the codes, unpacked."""
        *lead, columns = parts[0].shape
        return (*lead, columns * DTYPES[parts[0].dtype].bits // self.element.bits)

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """``target``."""
        return target

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut on block boundaries, within each expert."""
        shape = self.shape(parts)
        br, bc = self.block_of(shape)
        rows, columns = numel(shape[:-1]), shape[-1]
        return Grid(rows, columns, br, bc, shape[-2] if len(shape) > 2 else 0, self.unit)

    @property
    def phase(self) -> tuple[int, int]:
        """How far into its block the weight begins, down and across."""
        return 0, 0

    @property
    def unit(self) -> int:
        """Columns that lie in one byte."""
        return 8 // self.element.bits

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The codes of ``rect``, every row of scales it touches, and what the codec adds."""
        shape = self.shape(parts)
        (br, bc), columns = self.block_of(shape), shape[-1]
        across, down = -(-columns // bc), -(-shape[-2] // br)
        expert, r0 = divmod(rect.r0, shape[-2])
        b0, b1 = r0 // br, -(-(r0 + rect.r1 - rect.r0) // br)
        k0, k1 = (0, across) if b1 - b0 > 1 else (rect.c0 // bc, -(-rect.c1 // bc))
        width, origin = WIDTHS[parts[1].dtype], (expert * down + b0) * across + k0
        count = (b1 - b0 - 1) * across + k1 - k0
        scales = Span(width * origin, width * (origin + count))
        codes = self.codes_span(rect, columns)
        return codes, scales, *self.other_spans(parts, rect, origin, count)

    def codes_span(self, rect: Rect, columns: int) -> Span:
        """Of the codes of ``rect`` in rows of ``columns``."""
        first = (rect.r0 * columns + rect.c0) // self.unit
        return Span(first, first + (rect.r1 - rect.r0) * (rect.c1 - rect.c0) // self.unit)

    def other_spans(
        self, parts: Sequence[Stored], rect: Rect, origin: int, count: int
    ) -> tuple[Span, ...]:
        """Of the parts after the scales; ``count`` scales from number ``origin`` are read."""
        return tuple(Span(0, p.end - p.begin) for p in parts[2:])

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """One product per element, rounded once."""
        to = out.reshape(rect.r1 - rect.r0, rect.c1 - rect.c0)
        found = self.decode_piece(parts, rect, data, self.piece(parts, rect, data), to, target)
        found.damage = self.odd(parts, data) or found.damage
        return found

    def decode_piece(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], piece: Coded, out: Array,
        target: str,
    ) -> Findings:  # fmt: skip
        """Decode ``piece``, which is what :meth:`piece` gives, into ``out`` [r, c]."""
        return decode_matrix(self.element, piece, out, target)

    def damage(self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]) -> str | None:
        """Why no correct checkpoint has this, as decoding would say; or None."""
        return self.odd(parts, data) or damage_of(self.element, self.piece(parts, rect, data))

    def odd(self, parts: Sequence[Stored], data: Sequence[Bytes]) -> str | None:
        """Damage of parts that are there once for the whole weight, or None."""
        return None

    def piece(self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]) -> Coded:
        """The codes of ``rect`` and what belongs to them."""
        shape = self.shape(parts)
        block, high = self.block_of(shape), shape[-2]
        height, width = rect.r1 - rect.r0, rect.c1 - rect.c0
        expert, r0 = divmod(rect.r0, high)
        scales, zeros = self.grids(parts, rect, data)
        down = -(-(r0 + height) // block[0]) - r0 // block[0]
        return Coded(
            data[0].reshape(height, width // self.unit),
            scales.reshape(down, -1),
            None if zeros is None else zeros.reshape(down, -1),
            block,
            phase=r0 % block[0],
            row=r0,
            column=rect.c0,
            expert=expert if len(shape) > 2 else None,
            left=rect.c0 % block[1],
        )

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """Between experts, and between blocks."""
        shape = self.shape(parts)
        at = axis - len(shape) + 2
        return 1 if at < 0 else self.steps(shape)[at]

    def steps(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """:meth:`step` for rows and columns of ``shape``; 1 where one scale is for all of them."""
        (br, bc), (rows, columns) = self.block_of(shape), shape[-2:]
        return (br if br < rows else 1), (bc if bc < columns else self.unit)

    def cut(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Codec, tuple[Stored, ...]]:
        """Whole blocks, or a :class:`.window.Window` of a matrix."""
        shape = self.shape(parts)
        size, at = shape[axis], axis - len(shape) + 2
        if begin == 0 and end == size:
            return self, tuple(parts)
        step = 1 if at < 0 else self.steps(shape)[at]
        skip = begin % step
        codec, kept = self.around(parts, axis, begin - skip, end)
        codes = self.codes_cut(parts[0], axis, begin, end)
        if not skip and (end % step == 0 or end == size):
            return codec, (codes, *kept)
        if len(shape) > 2:
            raise SchemeError(
                f"{shown(parts[0].name)}: axis {axis} of a stack of matrices cannot be cut at "
                f"{begin} and {end}, expected multiples of {step}, where blocks end"
            )
        from .window import Window

        return Window(codec, *((skip, 0) if at == 0 else (0, skip))), (codes, *kept)

    def codes_cut(self, codes: Stored, axis: int, begin: int, end: int) -> Stored:
        """``[begin, end)`` of the codes, which several may share an element of."""
        if axis != len(codes.shape) - 1:
            return sliced(codes, axis, begin, end)
        per = DTYPES[codes.dtype].bits // self.element.bits
        least = max(per, self.unit)
        if begin % least or end % least:
            raise SchemeError(
                f"{shown(codes.name)}: columns cannot be cut at {begin} and {end}, expected "
                f"multiples of {least}, the codes in a byte or word"
            )
        return sliced(codes, axis, begin // per, end // per)

    def around(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Blocks, tuple[Stored, ...]]:
        """Codec and parts, but for the codes, of the blocks around ``[begin, end)``.

        ``begin`` is a legal cut; ``end`` may be any.
        """
        shape = self.shape(parts)
        return self, (grid_cut(parts[1], shape, self.block_of(shape), axis, begin, end), *parts[2:])


def grid_cut(
    grid: Stored, shape: tuple[int, ...], block: tuple[int, int], axis: int, begin: int, end: int
) -> Stored:
    """Of a ``grid`` as :func:`fits` has it the blocks around ``[begin, end)`` of ``shape``.

    The same object where one block is as long as the axis.
    """
    at = axis - len(shape) + 2
    size = 1 if at < 0 else block[at]
    if at >= 0 and size >= shape[axis]:
        return grid
    along = 2 * axis if len(shape) == 2 and len(grid.shape) == 4 else axis  # ModelOpt
    return sliced(grid, along, begin // size, -(-end // size))


def group_mismatch(columns: int, group: int, unit: int) -> str | None:
    """Why rows of ``columns`` codes, ``unit`` of them in a byte or word, have no such groups."""
    if columns % group:
        return f"rows of {columns} codes do not divide into groups of {group}"
    if group % unit and group != columns:
        return f"groups of {group} codes end within a byte or word of {unit}"
    return None


def fits(stored: Stored, grid: tuple[int, ...]) -> bool:
    """Whether a tensor of scales has the shape of ``grid`` [..., blocks down, blocks across].

    Trailing ones may be absent ([o] for [o, 1], [] for [1, 1]); ModelOpt writes [down, 1, across,
    1]; one scale for all may have any number of ones.
    """
    shape, short = stored.shape, grid
    forms = [grid, (grid[-2], 1, grid[-1], 1)] if len(grid) == 2 else [grid]
    while short and short[-1] == 1:
        short = short[:-1]
        forms.append(short)
    return shape in forms or (numel(grid) == 1 and set(shape) <= {1})


def mismatch(what: str, stored: Stored, dtypes: Sequence[str], shape: object, why: str) -> str:
    """``scales are F32 [4, 2], expected F32 [5, 2] for codes ...``."""
    wanted = " or ".join(dtypes)
    return (
        f"{what} {shown(stored.name)} are {stored.dtype} {list(stored.shape)}, "
        f"expected {wanted} {list(shape) if isinstance(shape, tuple) else shape} {why}"
    )
