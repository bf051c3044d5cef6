"""Columns whose groups were reordered by activation (GPTQ's ``desc_act``): one scale each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Findings
from .coded import LARGEST, SCRATCH, Coded, count_infinite, decode_matrix
from .elements import Element

if TYPE_CHECKING:
    from .base import Array


def group_damage(group_of: Array, groups: int, first: int = 0) -> str | None:
    """Why ``group_of`` (int32 [columns]) cannot be, with so many groups from ``first`` on."""
    if not group_of.size:
        return None
    low, high, last = int(group_of.min()), int(group_of.max()), first + groups - 1
    if low >= first and high <= last:
        return None
    return f"its columns are in groups {low} to {high}, expected {first} to {last}"


def by_column(element: Element, p: Coded, group_of: Array, out: Array, target: str) -> Findings:
    """Decode ``p`` [r, c], whose scales and zero points are [r, groups], into ``out`` [r, c].

    ``group_of`` [c] is the group of each column. Where a scale is damaged, or F16 wanted, every
    column gets a scale of its own first, a bounded number of rows at a time.
    """
    import numpy as np

    from .. import kernels

    sound = bool((np.isfinite(p.scales) & (p.scales != 0)).all())
    if target != "F16" and p.zeros is not None and sound:
        kernels.load().decode_columns(element, p.codes, p.scales, p.zeros, group_of, out)
        reach = element.largest + float(np.abs(p.zeros).max(initial=0.0))
        over = float(np.abs(p.scales).max(initial=0.0)) * reach > LARGEST[target]
        return Findings(count_infinite(out, target) if over else 0)
    total = Findings()
    step = max(SCRATCH // max(out.shape[1], 1), 1)
    for r in range(0, out.shape[0], step):
        rows = slice(r, r + step)
        zeros = None if p.zeros is None else p.zeros[rows][:, group_of]
        part = p._replace(
            codes=p.codes[rows], scales=p.scales[rows][:, group_of], zeros=zeros, row=p.row + r
        )
        total.add(decode_matrix(element, part, out[rows], target))
    return total
