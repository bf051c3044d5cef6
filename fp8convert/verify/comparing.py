"""Units of comparison: a box of a weight of DST, read, held against what SRC says it should be.

What a code may be off by, where DST was encoded anew (:class:`Requantized`), is said by its own
scale: it must be the nearest code, or the number differs by more than half a step.

- ``float``, ``int`` and four-bit codes: half the gap to the neighbouring value, times the scale;
  the largest code also stands for what a search for scales clips (:func:`.numbers.limits`).
- SLACK of the number itself: other tools divide in BF16, which rounds quotient and scale by 2**-9
  each, and so takes a number that lies near the middle for its other side.
- Integer codes that no manifest of ours names (GPTQ, AWQ, llm-compressor) need not be the nearest:
  their encoders make up for one code's error by others. There the root mean square of what
  every 128 x 128 tile is off by is at most a step (four times what rounding alone gives).

So a scale that is wrong by a factor of two puts every number off by half of itself at least, 8
times the half step of e4m3 (1/16), and a grid of scales that is shifted by one shows as soon as two
neighbours differ by more than SLACK.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import shown
from . import loops
from .decoders import Codes, decode, sound
from .numbers import Array, as_float32, limits, to_bfloat16, values
from .sides import Held
from .stored import Box, Files, Leaf, Piece, Place, Shape, coordinates, shifted

SLACK = 2.0**-7
TILE = 128
STEPS = 1.0  # of a tile of codes that need not be the nearest


class Found(NamedTuple):
    """Of one unit: how many elements are wrong, words for the first, and sums of the errors."""

    wrong: int = 0
    first: str = ""
    squares: float = 0.0
    power: float = 0.0
    most: float = 0.0
    measured: int = 0  # elements


@dataclass(frozen=True)
class Unit:
    """Of ``weight``; ``nbytes`` of DST."""

    weight: str
    nbytes: int

    def compare(self, dst: Files, src: Files) -> Found:
        """Read and compare."""
        raise NotImplementedError


@dataclass(frozen=True)
class _OfLeaf(Unit):
    """A ``box`` of one file's tensor, which is ``piece`` of ``place``."""

    place: Place
    piece: Piece
    leaf: Leaf
    box: Box

    @property
    def whole(self) -> Box:
        """The box in the whole tensor."""
        return shifted(self.box, self.place.axis, self.piece.begin)

    def differing(self, stored: Array, wanted: Array, wrong: Array | None = None) -> Found:
        """Of arrays of the stored dtype. ``wrong`` are the places, if not all that differ."""
        if wrong is None:
            if np.array_equal(stored, wanted):
                return Found()
            wrong = stored != wanted
        flat = np.flatnonzero(wrong)
        if not len(flat):
            return Found()
        at, dtype = coordinates(self.whole, int(flat[0])), self.place.dtype
        is_, want = (said(dtype, a.reshape(-1)[flat[0]]) for a in (stored, wanted))
        return Found(len(flat), f"{self.where(at)}: is {is_}, expected {want}")

    def where(self, at: list[int]) -> str:
        """``model.norm.weight [5]``; on which rank, if there are several."""
        rank = "" if self.leaf.rank is None else f" on rank {self.leaf.rank}"
        return f"{shown(self.place.name)[1:-1]} {at}{rank}"


@dataclass(frozen=True)
class Bytes(_OfLeaf):
    """Stored in both checkpoints in the same way: the bytes are the same."""

    source: Place

    def compare(self, dst: Files, src: Files) -> Found:
        """See the class."""
        stored = _bits(dst.leaf(self.leaf, self.box))
        return self.differing(stored, _bits(src.read(self.source, self.whole)))


@dataclass(frozen=True)
class Copies(_OfLeaf):
    """The same on several ranks."""

    def compare(self, dst: Files, src: Files) -> Found:
        """See the class."""
        stored = _bits(dst.leaf(self.leaf, self.box))
        return self.differing(stored, _bits(dst.leaf(self.piece.copies[0], self.box)))


@dataclass(frozen=True)
class Padding(_OfLeaf):
    """Zeros, from element ``after`` of the axis on; ``box`` counts from there."""

    after: int

    @property
    def whole(self) -> Box:
        """In the rank's file: the whole has none."""
        return shifted(self.box, self.place.axis, self.after)

    def compare(self, dst: Files, src: Files) -> Found:
        """See the class."""
        stored = _bits(dst.leaf(self.leaf, self.whole))
        return self.differing(stored, np.zeros_like(stored))

    def where(self, at: list[int]) -> str:
        """Says that it is padding."""
        return f"{super().where(at)}, padding"


@dataclass(frozen=True)
class Decoded(_OfLeaf):
    """BF16, F16 or F32 of a source of codes: one product, rounded once."""

    source: Held

    def compare(self, dst: Files, src: Files) -> Found:
        """See the class."""
        codes = _codes(src, self.source, self.whole)
        stored = dst.leaf(self.leaf, self.box).reshape(codes.codes.shape)
        if self.place.dtype == "BF16":
            wrong, first = loops.bf16_differences(*codes.arrays, sound(stored))
            if not wrong:
                return Found()
            found = self.differing(stored, to_bfloat16(codes.numbers()), _one(stored, first))
            return found._replace(wrong=wrong)
        with np.errstate(over="ignore", under="ignore"):
            wanted = codes.numbers().astype(np.float32 if self.place.dtype == "F32" else np.float16)
        differ = _bits(stored) != _bits(wanted)
        return self.differing(stored, wanted, differ & ~(np.isnan(stored) & np.isnan(wanted)))


@dataclass(frozen=True)
class ShapeOf(Unit):
    """The shape of a weight as a tensor: on each rank that of the rank's own part."""

    place: Place
    codes: Place
    shape: Shape

    def __init__(self, weight: str, place: Place, codes: Place, shape: Shape) -> None:
        nbytes = sum(leaf.nbytes for leaf in place.leaves)
        for name, value in (("weight", weight), ("nbytes", nbytes), ("place", place),
                            ("codes", codes), ("shape", shape)):  # fmt: skip
            object.__setattr__(self, name, value)

    def compare(self, dst: Files, src: Files) -> Found:
        """See the class."""
        per = self.shape[-1] // max(self.codes.shape[-1], 1)
        own = {leaf.rank: leaf.shape for leaf in self.codes.leaves}
        for leaf in self.place.leaves:
            found = dst.leaf(leaf, tuple((0, n) for n in leaf.shape)).tolist()
            rows, columns = own.get(leaf.rank, self.codes.shape)
            if found != [rows, columns * per]:
                rank = "" if leaf.rank is None else f" on rank {leaf.rank}"
                text = f"{shown(self.place.name)[1:-1]}{rank}: is {found}"
                return Found(1, f"{text}, expected {[rows, columns * per]}")
        return Found()


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
        codes, wanted = _codes(dst, self.held, self.box), _numbers(src, self.source, whole)
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
            wrong, text = self._tiles(codes, numbers, wanted, whole)
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

    def _tiles(self, codes: Codes, numbers: Array, wanted: Array, whole: Box) -> tuple[int, str]:
        """Tiles whose numbers are off by more than STEPS steps, as a root mean square."""
        steps = np.abs(codes.scales[codes.down][:, codes.across]).astype(np.float64)
        off = np.square(numbers.astype(np.float64) - wanted)
        rows, columns = (np.arange(0, n, TILE) for n in numbers.shape)
        error, limit = (
            np.add.reduceat(np.add.reduceat(a, rows, 0), columns, 1)
            for a in (off, np.square(STEPS * steps))
        )
        bad = np.argwhere(~(error <= limit))
        if not len(bad):
            return 0, ""
        r, c = (int(n) * TILE for n in bad[0])
        tile = (slice(r, r + TILE), slice(c, c + TILE))
        place = int(np.argmax(off[tile]))
        i, j = np.unravel_index(place, off[tile].shape)
        flat = (r + int(i)) * numbers.shape[1] + c + int(j)
        text = self._words(codes, numbers, wanted, flat, whole)
        return len(bad), f"{text}; of its tile the root mean square is beyond a step"


def _codes(files: Files, held: Held, box: Box) -> Codes:
    return decode(files, held.codec.to_dict(), held.parts, held.shape, box)


def _numbers(files: Files, held: Held, box: Box) -> Array:
    """float32 [r, c], whether in codes or not."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if held.coded:
            return _codes(files, held, box).numbers()
        stored = as_float32(files.read(held.parts[0], box), held.parts[0].dtype)
    return sound(stored.reshape(-1, stored.shape[-1]))


def _bits(array: Array) -> Array:
    """Floats as unsigned integers of the same bits."""
    return sound(array).view(f"u{array.dtype.itemsize}")


def _one(like: Array, place: int) -> Array:
    found = np.zeros(like.shape, bool)
    found.reshape(-1)[place] = True
    return found


def said(dtype: str, stored: np.generic) -> str:
    """One element, as a number and as bits: ``0.0131 (0x3c57)``."""
    one = np.array([stored])
    bits = one.view(f"u{one.dtype.itemsize}")
    if dtype in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"):
        number = values(dtype.lower().replace("f8_", "") + ("fn" if dtype == "F8_E4M3" else ""))
        text = f"{number[bits[0]]:.6g}"
    elif dtype in ("F16", "F32", "F64"):
        text = f"{bits.view(f'f{one.dtype.itemsize}')[0]:.6g}"
    elif dtype in ("BF16", "F8_E8M0"):
        text = f"{as_float32(bits, dtype)[0]:.6g}"
    else:
        text = f"{one[0]}"
    return f"{text} ({bits[0]:#0{2 * one.dtype.itemsize + 2}x})"


def _hex(number: np.floating) -> str:
    return f"{np.float32(number).view(np.uint32):#010x}"
