"""Codecs: every form of weight, a whole decode call on one core, against a peer that does the same.

A call takes one tile's stored bytes in memory, checks them for damage and counts overflow, as in a
conversion; the tile is what the engine cuts (8 MiB of output). Peers are libraries that read the
format, or its published formula in torch with one thread, to BF16. All bytes must be equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from fp8convert.codecs.base import Rect, Span
from fp8convert.settings import MAX_TILE

from .codec_cases import Case, Peer, cases
from .common import Bound, Env, Report, Values
from .rates import Side, one_thread, rates

BOUND = Bound(at_least=0.8)  # G elements/s to either
TARGETS = {"BF16": np.uint16, "F32": np.float32}
Array = NDArray[Any]


def run(env: Env, report: Report) -> None:
    """Each case, then all of them as a table."""
    rows = []
    with one_thread():
        for case in cases():
            rows.append((case.title, *_measure(env, report, case)))
    _table(rows)


class Call:
    """One decode call, ready to run."""

    def __init__(self, case: Case, target: str) -> None:
        self.case, self.target = case, target
        grid = case.codec.grid(case.parts)
        fit = min(MAX_TILE // np.dtype(TARGETS[target]).itemsize // grid.columns, grid.rows)
        self.rect = Rect(0, grid.row_cut(0, fit) or fit, 0, grid.columns)
        self.count = self.rect.r1 * grid.columns
        self.out = np.zeros(self.count, TARGETS[target])
        spans = case.codec.spans(case.parts, self.rect)
        self.data = [_run(d, s) for d, s in zip(case.data, spans, strict=True)]

    def __call__(self) -> None:
        """Decode; what is found besides is an error of the benchmark's."""
        case = self.case
        found = case.codec.decode(case.parts, self.rect, self.data, self.out, self.target)
        if found.damage or found.overflowed:
            raise RuntimeError(f"{case.title}: {found}")


def _measure(env: Env, report: Report, case: Case) -> tuple[Values, Values, Values]:
    half, full = Call(case, "BF16"), Call(case, "F32")
    sides: dict[str, tuple[Side, int]] = {
        "to BF16": (half, half.count),
        "to F32": (full, full.count),
        case.peer.label: (case.peer.decode, half.count),
    }
    to_half, to_full, peer = rates(env, sides)
    report.figure(f"{case.title}: to BF16", to_half, BOUND)
    report.figure(f"{case.title}: to F32", to_full, BOUND)
    report.ratio(f"{case.title}: to BF16 against {case.peer.label}", to_half, peer)
    _compare(report, case, half.out, case.peer)
    return to_half, to_full, peer


def _compare(report: Report, case: Case, ours: Array, peer: Peer) -> None:
    theirs = peer.decode().reshape(-1).view(torch.uint16).numpy()
    mine = ours.copy()
    if peer.zeros_differ:
        mine[mine == 0x8000] = 0
        theirs = np.where(theirs == 0x8000, np.uint16(0), theirs)
    same = "values (-0.0 is 0.0 here)" if peer.zeros_differ else "bytes"
    differing = int(np.count_nonzero(mine != theirs))
    detail = f"{differing:,} of {mine.size:,} elements differ from {peer.label}"
    report.fact(f"{case.title}: {same}", not differing, detail)


def _run(data: Array, span: Span) -> Array:
    """The bytes of ``span``, its runs joined."""
    runs = as_strided(
        data[span.begin :], (span.times, span.end - span.begin), (span.stride, 1), writeable=False
    )
    return np.ascontiguousarray(runs).reshape(-1)


def _table(rows: list[tuple[str, Values, Values, Values]]) -> None:
    print(f"\n  {'G elements/s, median':<40} {'BF16':>7} {'F32':>7} {'peer':>7}")
    for title, *sides in rows:
        figures = " ".join(f"{np.median(side.values):7.3f}" for side in sides)
        print(f"  {title:<40} {figures}  {sides[-1].label}", flush=True)
