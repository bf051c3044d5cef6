"""Units of comparison: a box of a weight of DST, read, held against what SRC says it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import shown
from . import loops
from .decoders import Codes, decode, sound
from .numbers import Array, as_float32, to_bfloat16, values
from .sides import Held
from .stored import Box, Files, Leaf, Piece, Place, Shape, coordinates, shifted


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
        codes = codes_of(src, self.source, self.whole)
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


def codes_of(files: Files, held: Held, box: Box) -> Codes:
    """The codes of a box of a coded weight."""
    return decode(files, held.codec.to_dict(), held.parts, held.shape, box)


def numbers_of(files: Files, held: Held, box: Box) -> Array:
    """float32 [r, c], whether in codes or not."""
    if held.coded:
        return codes_of(files, held, box).numbers()
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
