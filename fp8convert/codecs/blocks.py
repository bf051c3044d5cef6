"""What every codec with a grid of scales shares: products, damage, overflow, experts.

``Blocks`` is the contract for codes in row-major order; the codecs whose codes are stored
transposed bring a piece of them into that order and call :func:`decode_matrix` as well.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..dtypes import DTYPES
from ..errors import shown
from ..header import numel
from .base import Codec, Findings, Grid, Rect, Span, Stored
from .elements import Element
from .scales import WIDTHS, to_float32

if TYPE_CHECKING:
    from .base import Array, Bytes

SCRATCH = 1 << 18  # elements
LARGEST = {"BF16": 3.3895313892515355e38, "F16": 65504.0, "F32": 3.4028234663852886e38}


class Coded(NamedTuple):
    """A piece of a weight as a kernel takes it: codes [r, c], their scales and zero points.

    ``scales`` and ``zeros`` are float32 [blocks down, blocks across]; ``phase`` is how far into its
    block the first row lies; ``row``, ``column`` and ``expert`` (if there are several) say where in
    the weight it is, for messages.
    """

    codes: Array
    scales: Array
    zeros: Array | None
    block: tuple[int, int]
    phase: int = 0
    row: int = 0
    column: int = 0
    expert: int | None = None

    @property
    def where(self) -> str:
        """Words for a message."""
        return "" if self.expert is None else f"expert {self.expert}, "


def decode_matrix(element: Element, p: Coded, out: Array, target: str) -> Findings:
    """One float32 product per element, rounded once to ``target``; ``out`` is [r, c]."""
    import numpy as np

    from .. import kernels

    found = Findings(damage=damage_of(element, p))
    if target == "F16":
        _decode_f16(element, p, out)
    else:
        checked = found.damage is None
        kernels.load().decode(element, p.codes, p.scales, p.zeros, p.phase, p.block, out, checked)
    reach = element.largest + (0.0 if p.zeros is None else float(np.abs(p.zeros).max(initial=0.0)))
    with np.errstate(over="ignore", invalid="ignore"):
        top = float(np.abs(p.scales).max(initial=0.0)) * reach
    if not top <= LARGEST[target]:
        found.overflowed = count_infinite(out, target)
    return found


def _decode_f16(element: Element, p: Coded, out: Array) -> None:
    """Through float32, a bounded number of elements at a time."""
    import numpy as np

    from .. import kernels

    (br, bc), (rows, columns) = p.block, out.shape
    narrow = 8 // element.bits
    wide = min(columns, max(SCRATCH // bc, 1) * bc)
    high = max(SCRATCH // wide, 1) if wide == columns else 1
    for r in range(0, rows, high):
        top, end = p.phase + r, p.phase + min(r + high, rows)
        for c in range(0, columns, wide):
            at = (slice(top // br, -(-end // br)), slice(c // bc, -(-(c + wide) // bc)))
            part = p.codes[r : r + high, c // narrow : (c + wide) // narrow]
            zeros = None if p.zeros is None else p.zeros[at]
            product = np.empty(out[r : r + high, c : c + wide].shape, np.float32)
            kernels.load().decode(element, part, p.scales[at], zeros, top % br, p.block, product)
            with np.errstate(over="ignore", under="ignore"):
                out[r : r + high, c : c + wide] = product


def damage_of(element: Element, p: Coded) -> str | None:
    """Why no correct checkpoint has these codes and scales, or None."""
    import numpy as np

    from .. import kernels

    if kernels.load().has_odd_code(element, p.codes.reshape(-1)):
        assert element.odd is not None
        flip, mask, limit = map(np.uint8, element.odd)
        row, column = np.argwhere(((p.codes ^ flip) & mask) >= limit)[0]
        kind = "NaN or infinite" if element.name == "e5m2" else "NaN"
        return f"a {kind} code at {p.where}row {p.row + row}, column {p.column + column}"
    negative = not element.is_float  # AutoRound's full-range rule gives integers such scales
    fine = np.isfinite(p.scales) & ((p.scales != 0) if negative else (p.scales > 0))
    if fine.all():  # argwhere takes as long as the rest where scales are many
        return None
    for i, k in np.argwhere(~fine):
        at = p.row // p.block[0] + i, p.column // p.block[1] + k
        where = f"{p.where}block row {at[0]}, column {at[1]}"
        value = float(p.scales[i, k])
        if value != 0:
            kind = "other than" if negative else "above"
            return f"scale {value} at {where}, expected a finite number {kind} 0"
        if not _all_zero(element, p, i, k):
            return f"scale 0 at {where}, but the block's codes are not all zero"
    return None


def _all_zero(element: Element, p: Coded, i: int, k: int) -> bool:
    from ..kernels import plain

    br, bc = p.block
    rows = slice(max(i * br - p.phase, 0), (i + 1) * br - p.phase)
    codes = p.codes[rows]
    codes = plain.unpacked(codes) if element.bits == 4 else codes
    values = plain.table(element)[codes[:, k * bc : (k + 1) * bc]]
    zero = 0.0 if p.zeros is None else p.zeros[i, k]
    return bool((values == zero).all())


def count_infinite(out: Array, target: str) -> int:
    """Infinite elements of decoded ``out``."""
    import numpy as np

    if target == "BF16":
        return int(np.count_nonzero((out & np.uint16(0x7FFF)) == 0x7F80))
    return int(np.count_nonzero(np.isinf(out)))


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
        first = (rect.r0 * columns + rect.c0) // self.unit
        codes = Span(first, first + (rect.r1 - rect.r0) * (rect.c1 - rect.c0) // self.unit)
        width, origin = WIDTHS[parts[1].dtype], (expert * down + b0) * across + k0
        count = (b1 - b0 - 1) * across + k1 - k0
        scales = Span(width * origin, width * (origin + count))
        return codes, scales, *self.other_spans(parts, rect, origin, count)

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
        return decode_matrix(self.element, self.piece(parts, rect, data), to, target)

    def damage(self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]) -> str | None:
        """Why no correct checkpoint has this, as decoding would say; or None."""
        return damage_of(self.element, self.piece(parts, rect, data))

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
        )


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
