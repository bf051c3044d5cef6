"""Codes of DST that are not SRC's: each must be the nearest to SRC's number that its scale allows.

What a number may be off by is said by its own scale.

- Half the gap between the code's value and the next, times the scale: more, and another code was
  nearer. For e4m3 that is at most 1/16 of the number, for integers half of the scale. The largest
  code also stands for what a search for scales clips (:func:`.numbers.limits`).
- SLACK of the number itself: other tools divide in BF16, which rounds quotient and scale by 2**-9
  each, and so takes a number that lies near the middle for its other side.
- Integer codes that no manifest of ours names (GPTQ, AWQ, llm-compressor) need not be the nearest:
  their encoders make up for one code's error by others. There the root mean square of what the
  numbers of a scale are off by is at most STEPS; rounding alone gives 0.29 of a
  step, error carried on whole to the next column 0.6 at most, a scale that is wrong by two 0.87 or
  more where numbers are normal. (Where a few are far larger than the rest it may be less.)

So a scale that is wrong by a factor of two, which puts every number off by half of itself or more,
shows in one block; and a grid of scales that is shifted by one shows where two neighbours differ by
more than SLACK.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import shown
from . import loops
from .comparing import Found, Unit, codes_of, numbers_of
from .decoders import Codes, sound
from .numbers import Array, limits
from .sides import Held
from .stored import Box, Files, coordinates, shifted

SLACK = 2.0**-7
STEPS = 0.7


@dataclass(frozen=True)
class Requantized(Unit):
    """Codes of DST, encoded from what SRC has. ``exact``: the manifest says that no number
    changed; ``free``: the codes need not be the nearest."""

    held: Held
    box: Box
    source: Held
    exact: bool
    free: bool

    def compare(self, dst: Files, src: Files) -> Found:
        """See the module."""
        whole = shifted(self.box, self.held.axis, self.held.begin)
        codes = codes_of(dst, self.held, self.box)
        wanted = numbers_of(src, self.source, whole)
        numbers = codes.numbers()
        above, below = limits(codes.element)
        slack = SLACK
        if self.exact:
            above, below, slack = np.zeros_like(above), np.zeros_like(below), 0.0
        wrong, first, squares, power, most = loops.misfits(
            numbers, wanted, sound(codes.codes), above, below, sound(codes.scales),
            codes.down, codes.across, slack,
        )  # fmt: skip
        text = self._words(codes, numbers, wanted, first, whole) if wrong else ""
        if self.free and math.isfinite(squares):
            wrong, text = self._blocks(codes, numbers, wanted, whole)
        return Found(wrong, text, squares, power, most, numbers.size)

    def _words(self, codes: Codes, numbers: Array, wanted: Array, first: int, whole: Box) -> str:
        i, j = np.unravel_index(first, numbers.shape)
        code, scale = codes.codes[i, j], codes.scales[codes.down[i], codes.across[j]]
        width = 1 if codes.element.startswith(("e2m1", "uint4")) else 2
        at, rule = coordinates(whole, first), "exact" if self.exact else "within half a step"
        return (
            f"{shown(self.weight)[1:-1]} {at}: is {numbers[i, j]:.6g} (code {code:#0{width + 2}x}, "
            f"scale {scale:.6g}), expected {wanted[i, j]:.6g} ({_hex(wanted[i, j])}) {rule}"
        )

    def _blocks(self, codes: Codes, numbers: Array, wanted: Array, whole: Box) -> tuple[int, str]:
        """Blocks whose numbers are off by more than STEPS steps, as a root mean square."""
        order = np.argsort(codes.across, kind="stable")  # columns may be in any group
        off = np.square(numbers.astype(np.float64) - wanted)[:, order]
        step = np.abs(codes.scales[codes.down][:, codes.across[order]]).astype(np.float64)
        rows, columns = _starts(codes.down), _starts(codes.across[order])
        error, limit = (
            np.add.reduceat(np.add.reduceat(a, rows, 0), columns, 1)
            for a in (off, np.square(STEPS * step))
        )
        bad = np.argwhere(~(error <= limit))
        if not len(bad):
            return 0, ""
        r, c = rows[bad[0][0]], columns[bad[0][1]]
        mine = codes.across[order] == codes.across[order[c]]
        worst = int(order[np.argmax(np.where(mine, off[r], -1))])
        text = self._words(codes, numbers, wanted, int(r) * numbers.shape[1] + worst, whole)
        return len(bad), f"{text}; of its block the root mean square is beyond {STEPS} of a step"


def _starts(sorted_: Array) -> Array:
    """Where another number begins."""
    return np.flatnonzero(np.diff(sorted_, prepend=-1))


def _hex(number: np.floating) -> str:
    return f"{np.float32(number).view(np.uint32):#010x}"
