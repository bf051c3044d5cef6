"""Codes with a scale for each block, as numbers: products, damage, overflow; for every codec."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .base import Findings
from .elements import Element

if TYPE_CHECKING:
    from .base import Array

SCRATCH = 1 << 18  # elements
LARGEST = {"BF16": 3.3895313892515355e38, "F16": 65504.0, "F32": 3.4028234663852886e38}


class Coded(NamedTuple):
    """A piece of a weight as a kernel takes it: codes [r, c], their scales and zero points.

    ``scales`` and ``zeros`` are float32 [blocks down, blocks across]; ``phase`` and ``left`` are
    how far into its block the first row and the first column lie; ``row``, ``column`` and
    ``expert`` (if there are several) say where in the weight it is, for messages.
    """

    codes: Array
    scales: Array
    zeros: Array | None
    block: tuple[int, int]
    phase: int = 0
    row: int = 0
    column: int = 0
    expert: int | None = None
    left: int = 0

    @property
    def where(self) -> str:
        """Words for a message."""
        return "" if self.expert is None else f"expert {self.expert}, "

    @property
    def first_block(self) -> tuple[int, int]:
        """Row and column of the first block: number 0 is the weight's first, whole or not."""
        (br, bc), down, across = self.block, self.row - self.phase, self.column - self.left
        return -(-down // br), -(-across // bc)


def decode_matrix(element: Element, p: Coded, out: Array, target: str) -> Findings:
    """One float32 product per element, rounded once to ``target``; ``out`` is [r, c]."""
    import numpy as np

    found = Findings(damage=damage_of(element, p))
    checked = found.damage is None
    if p.left and p.scales.shape[1] > 1:
        for rows, part in _from_an_edge(p, out.shape):
            _decode(element, part, out[rows], target, checked)
    else:
        _decode(element, p, out, target, checked)
    reach = element.largest + (0.0 if p.zeros is None else float(np.abs(p.zeros).max(initial=0.0)))
    with np.errstate(over="ignore", invalid="ignore"):
        top = float(np.abs(p.scales).max(initial=0.0)) * reach
    if not top <= LARGEST[target]:
        found.overflowed = count_infinite(out, target)
    return found


def _from_an_edge(p: Coded, shape: tuple[int, ...]) -> Iterator[tuple[slice, Coded]]:
    """``p`` [r, c] in narrower blocks, so that its first column begins one.

    A bounded number of rows at a time, as there may be a block for every element.
    """
    import numpy as np

    (br, bc), (rows, columns) = p.block, shape
    width = math.gcd(bc, p.left)
    of = (p.left + np.arange(0, columns, width)) // bc  # the block that each narrower one is from
    step = max(SCRATCH // len(of), 1)
    for b in range(0, p.scales.shape[0], step):
        at = slice(max(b * br - p.phase, 0), min((b + step) * br - p.phase, rows))
        scales = p.scales[b : b + step].take(of, axis=1)
        zeros = None if p.zeros is None else p.zeros[b : b + step].take(of, axis=1)
        yield at, Coded(p.codes[at], scales, zeros, (br, width), 0 if b else p.phase)


def _decode(element: Element, p: Coded, out: Array, target: str, checked: bool) -> None:
    from .. import kernels

    if target == "F16":
        _decode_f16(element, p, out)
    else:
        kernels.load().decode(element, p.codes, p.scales, p.zeros, p.phase, p.block, out, checked)


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
        row, column = p.first_block
        where = f"{p.where}block row {row + i}, column {column + k}"
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
    columns = slice(max(k * bc - p.left, 0), (k + 1) * bc - p.left)
    codes = p.codes[rows]
    codes = plain.unpacked(codes) if element.bits == 4 else codes
    values = plain.table(element)[codes[:, columns]]
    zero = 0.0 if p.zeros is None else p.zeros[i, k]
    return bool((values == zero).all())


def count_infinite(out: Array, target: str) -> int:
    """Infinite elements of decoded ``out``."""
    import numpy as np

    if target == "BF16":
        return int(np.count_nonzero((out & np.uint16(0x7FFF)) == 0x7F80))
    return int(np.count_nonzero(np.isinf(out)))
