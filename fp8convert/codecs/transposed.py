"""What codecs share whose codes lie column by column of the decoded weight.

A rectangle's bytes are then many short runs. They are brought into row-major order a bounded number
of rows at a time and decoded as every other codec does it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SchemeError, shown
from ..header import numel
from .base import Codec, Findings, Grid, Rect, Span, Stored
from .slices import resized

if TYPE_CHECKING:
    from .base import Array, Bytes


BAND = 1 << 20  # elements turned at a time, a byte each: more calls cost, and more misses the cache


class Transposed(Codec):
    """A coded weight whose parts give a rectangle many runs of bytes at a stride, not one."""

    coded = True

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """``target``."""
        return target

    @abstractmethod
    def cut_at_steps(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Transposed, tuple[Stored, ...]]:
        """As :meth:`cut`, at multiples of the step and at ends only."""

    def cut(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Codec, tuple[Stored, ...]]:
        """At steps, or an :class:`Excerpt` of such a slice."""
        shape = self.shape(parts)
        return _cut(self, tuple(parts), (0,) * len(shape), shape, axis, begin, end)


@dataclass(frozen=True)
class Excerpt(Transposed):
    """Elements ``[begin, begin + size)`` along each axis of a weight of ``of``: a slice that cuts
    through its groups or words. Places in messages are those of ``of``.

    It is read, not written: what keeps such a slice must be decoded, or encoded anew.
    """

    of: Transposed
    begin: tuple[int, ...]
    size: tuple[int, ...]

    name = "excerpt"
    rule = "as the codec of the whole weight"

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of the codec."""
        return self.of.roles

    def check(self, parts: Sequence[Stored]) -> str | None:
        """As the codec."""
        return self.of.check(parts)

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """Smaller than the codec's."""
        return self.size

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut as the codec, though blocks may end elsewhere."""
        rows, columns = numel(self.size[:-1]), self.size[-1]
        period = self.size[-2] if len(self.size) > 2 else 0
        return self.of.grid(parts)._replace(rows=rows, columns=columns, period=period)

    def _place(self, parts: Sequence[Stored], rect: Rect) -> Rect:
        """``rect`` in the weight that the parts make."""
        (*_, top, left), high = self.begin, self.size[-2]
        expert, r0 = divmod(rect.r0, high)
        down = expert * self.of.shape(parts)[-2] + top + r0 - rect.r0
        return Rect(rect.r0 + down, rect.r1 + down, rect.c0 + left, rect.c1 + left)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """As the codec."""
        return self.of.spans(parts, self._place(parts, rect))

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """As the codec."""
        return self.of.decode(parts, self._place(parts, rect), data, out, target)

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """An excerpt is no form to be stored."""
        return 0

    def cut_at_steps(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Transposed, tuple[Stored, ...]]:
        """At ends: itself."""
        return self, tuple(parts)

    def cut(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Codec, tuple[Stored, ...]]:
        """A smaller excerpt."""
        return _cut(self.of, tuple(parts), self.begin, self.size, axis, begin, end)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "excerpt", "of": {...}, "begin": [0, 32], "size": [64, 720]}``."""
        facts = {"begin": list(self.begin), "size": list(self.size)}
        return {"codec": self.name, "of": self.of.to_dict(), **facts}


def _cut(
    of: Transposed, parts: tuple[Stored, ...], at: tuple[int, ...], size: tuple[int, ...],
    axis: int, begin: int, end: int,
) -> tuple[Codec, tuple[Stored, ...]]:  # fmt: skip
    """The slice ``[begin, end)`` of what begins ``at`` a place in a weight of ``of``."""
    first, last, whole = at[axis] + begin, at[axis] + end, of.shape(parts)[axis]
    unit = of.grid(parts).unit if axis == len(size) - 1 else 1
    if first % unit or last % unit:
        raise SchemeError(
            f"{shown(parts[0].name)}: columns cannot be cut at {begin} and {end}, expected "
            f"multiples of {unit}, the codes in a word"
        )
    step = of.step(parts, axis)
    lo, hi = first - first % step, min(-(-last // step) * step, whole)
    if (lo, hi) != (0, whole):
        of, parts = of.cut_at_steps(parts, axis, lo, hi)
    at, size = resized(at, axis, first - lo), resized(size, axis, end - begin)
    return (of if of.shape(parts) == size else Excerpt(of, at, size)), parts


def bands(rows: int, columns: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Rows ``[r0, r1)``, ``multiple`` or as many more of it as BAND elements hold."""
    step = max(BAND // max(columns, 1) // multiple, 1) * multiple
    for r in range(0, rows, step):
        yield r, min(r + step, rows)


def nibbles(words: Array, bits: int) -> Array:
    """uint8 [..., bytes] of words -> uint8 [..., codes], the lowest bits first."""
    import numpy as np

    if bits == 8:
        return words
    pairs: Array = np.stack([words & 15, words >> 4], -1)
    return pairs.reshape(*words.shape[:-1], 2 * words.shape[-1])
