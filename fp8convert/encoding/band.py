"""Encoding a group of whole blocks: measure, choose scales, encode, and decode again to compare.

Works on float32 chunks of at most CHUNK elements, so that memory does not grow with the tensor:
where the rows that share scales do not fit into one, each pass decodes them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..codecs.base import Rect
from ..codecs.coded import Coded, decode_matrix
from ..codecs.scales import from_float32, to_float32
from . import rules
from .encoder import Encoder

if TYPE_CHECKING:
    from ..codecs.base import Array, Bytes

CHUNK = 1 << 19  # elements, at most, but one row at least
GRIDS, TRIED = 48, 48  # bytes of arrays a block; more where scales are tried
INFINITE = 0x7F800000  # float32 magnitude bits from here on are infinite or NaN


class UnfitError(ValueError):
    """A value that cannot be encoded."""


class Loaded(NamedTuple):
    """Rows of a weight as float32 [r, c], and, to inherit, the source's scales around blocks."""

    x: Array
    inherited: Array | None = None
    whole: float | None = None  # the source's own, as the target keeps it


class Errors(NamedTuple):
    """How far what is written is from the source."""

    top: float = 0.0  # largest magnitude of a difference
    squares: float = 0.0  # sum of squared differences
    power: float = 0.0  # sum of the source's squares


class Encoded(NamedTuple):
    """The stored scales of the group's blocks, and the errors made."""

    scales: Bytes
    whole: float
    errors: Errors


class Bench:
    """A worker's scratch: a chunk as float32, its codes, and those as float32 again."""

    def __init__(self, elements: int) -> None:
        import numpy as np

        self._x, self._y = (np.empty(elements, np.float32) for _ in range(2))
        self._codes = np.empty(elements, np.uint8)

    def x(self, rows: int, columns: int) -> Array:
        """[rows, columns] for the source."""
        return self._x[: rows * columns].reshape(rows, columns)

    def y(self, rows: int, columns: int) -> Array:
        """[rows, columns] for what was encoded."""
        return self._y[: rows * columns].reshape(rows, columns)

    def codes(self, rows: int, nbytes: int) -> Bytes:
        """[rows, nbytes] for codes that are only tried."""
        return self._codes[: rows * nbytes].reshape(rows, nbytes)


class Group:
    """Rows ``[r0, r1)`` of a weight [.., columns] that hold whole blocks, in chunks.

    ``load(k)`` decodes chunk ``k``; loading the same one again costs nothing.
    """

    def __init__(
        self, encoder: Encoder, shape: tuple[int, ...], chunks: Sequence[Rect],
        load: Callable[[int], Loaded], bench: Bench,
    ) -> None:  # fmt: skip
        from .. import kernels

        self.encoder, self.chunks, self.load, self.bench = encoder, chunks, load, bench
        self.r0, self.r1, self.columns = chunks[0].r0, chunks[-1].r1, shape[-1]
        self.block = encoder.block_of(shape, self.r1 - self.r0)
        br, bc = self.block
        self.grid = (-(-(self.r1 - self.r0) // br), -(-self.columns // bc))
        self._kernels = kernels.load()

    def _each(self) -> Iterator[tuple[int, Loaded, slice, int]]:
        """Every chunk, the rows of the grid it touches, and its phase in the first of them."""
        br = self.block[0]
        for k, rect in enumerate(self.chunks):
            first, last = rect.r0 - self.r0, rect.r1 - self.r0
            yield k, self.load(k), slice(first // br, -(-last // br)), first % br

    def measure(self) -> tuple[Array, Array]:
        """The largest magnitude of each block, and which mantissa bits its elements have."""
        import numpy as np

        top, bits = np.zeros((2, *self.grid), np.uint32)
        for k, loaded, at, phase in self._each():
            self._kernels.measure(loaded.x, phase, self.block, top[at], bits[at])
            self._check_finite(k, loaded.x, top[at])
        return top.view(np.float32), bits

    def _check_finite(self, k: int, x: Array, top: Array) -> None:
        import numpy as np

        if (top >= INFINITE).any():
            row, column = np.argwhere(~np.isfinite(x))[0]
            where = f"row {self.chunks[k].r0 + row}, column {column}"
            raise UnfitError(f"{x[row, column]} at {where}, expected finite values")

    def top(self) -> float:
        """The largest magnitude of all."""
        import numpy as np

        top, bits = np.zeros((2, 1, 1), np.uint32)
        for k, loaded, _, _ in self._each():
            self._kernels.measure(loaded.x, 0, loaded.x.shape, top, bits)
            self._check_finite(k, loaded.x, top)
        return float(top.view(np.float32)[0, 0])

    def squares(self, scale: float) -> float:
        """The squared error that one scale for all makes."""
        import numpy as np

        found = self._squares(np.full(self.grid, scale, np.float32), scale)
        return math.fsum(found.reshape(-1))

    def encode(self, whole: float, out: Bytes) -> Encoded:
        """Codes into ``out``; ``whole`` is the tensor's scale, if it has one."""
        scales, whole = self._scales(whole)
        raw = from_float32(scales, self.encoder.stored)
        kept = to_float32(raw, self.encoder.stored).reshape(self.grid)  # as a reader has them
        found = self._write(self.encoder.rule.effective(kept, whole), out)
        return Encoded(raw, whole, found)

    def _scales(self, whole: float) -> tuple[Array, float]:
        import numpy as np

        if self.encoder.one_scale:
            return np.full(self.grid, whole, np.float32), whole
        if self.encoder.inherit:
            return self._inherited(whole)
        top, bits = self.measure()
        zero = top == 0
        plain = self.encoder.rule.plain(np.where(zero, np.float32(1.0), top), whole)
        candidates = self._candidates(plain, top, bits, whole)
        best = self._best(plain, candidates, whole) if candidates else plain
        return np.where(zero, np.float32(rules.ZERO), best), whole

    def _inherited(self, whole: float) -> tuple[Array, float]:
        import numpy as np

        scales = np.empty(self.grid, np.float32)
        for _, loaded, at, _ in self._each():
            assert loaded.inherited is not None
            scales[at] = loaded.inherited
            whole = whole if loaded.whole is None else loaded.whole
        held = self.encoder.rule.held(scales, whole)
        return np.where(held == 0, np.float32(rules.ZERO), held), whole

    def _candidates(self, plain: Array, top: Array, bits: Array, whole: float) -> list[Array]:
        """Scales worth trying beside the plain ones: the search's, and an exact power of two."""
        import numpy as np

        found = self.encoder.rule.others(plain) if self.encoder.search else []
        element = self.encoder.codec.element
        if element.mantissa is None:
            return found
        short = (bits & np.uint32((1 << 23 - element.mantissa) - 1)) == 0
        if not (short & (top > 0)).any():
            return found
        fine = rules.power_up(np.where(top > 0, top / np.float32(element.largest), np.float32(1.0)))
        power = self.encoder.rule.held(fine, whole)
        power = np.where(short & (top > 0), power, plain)
        return found if np.array_equal(power, plain) else [*found, power]

    def _best(self, plain: Array, candidates: list[Array], whole: float) -> Array:
        """Of each block the scale of least squared error; the plain one where none is less."""
        import numpy as np

        best, least = plain, self._squares(plain, whole)
        for scales in candidates:
            squares = self._squares(scales, whole)
            best = np.where(squares < least, scales, best)
            np.minimum(squares, least, out=least)
        return best

    def _squares(self, scales: Array, whole: float) -> Array:
        """The squared error that ``scales`` make in each block: float64."""
        import numpy as np

        found = np.zeros(self.grid, np.float64)
        effective = self.encoder.rule.effective(scales, whole)
        for _, loaded, at, phase in self._each():
            rows, columns = loaded.x.shape
            codes = self.bench.codes(rows, columns * self.encoder.codec.element.bits // 8)
            y = self._round_trip(loaded.x, effective[at], phase, codes)
            self._kernels.squared_error(loaded.x, y, phase, self.block, found[at])
        return found

    def _write(self, effective: Array, out: Bytes) -> Errors:
        errors = []
        base = self.chunks[0].r0
        codes = out.reshape(self.r1 - self.r0, -1)
        for k, loaded, at, phase in self._each():
            rect = self.chunks[k]
            rows = codes[rect.r0 - base : rect.r1 - base]
            y = self._round_trip(loaded.x, effective[at], phase, rows)
            errors.append(Errors(*self._kernels.difference(loaded.x, y)))
            self._check_sound(rect, errors[-1])
        return joined(errors)

    def _check_sound(self, rect: Rect, found: Errors) -> None:
        """Rounding to the nearest of values that include 0 is never farther off than 0 is."""
        if not found.squares <= found.power * (1 + 1e-9):
            raise UnfitError(
                f"rows {rect.r0} to {rect.r1 - 1} do not decode to what was encoded: squared error "
                f"{found.squares:.6g} of {found.power:.6g} (products beyond float32?)"
            )

    def _round_trip(self, x: Array, effective: Array, phase: int, codes: Bytes) -> Array:
        """Encode ``x`` into ``codes``, and what they decode to."""
        import numpy as np

        encoder = self.encoder
        element, y = encoder.codec.element, self.bench.y(*x.shape)
        self._kernels.encode(element, x, effective, encoder.zero, phase, self.block, codes)
        zeros = np.full_like(effective, encoder.zero) if encoder.zero else None
        decode_matrix(element, Coded(codes, effective, zeros, self.block, phase), y, "F32")
        return y


def joined(errors: Sequence[Errors]) -> Errors:
    """Of all pieces together; sums do not depend on the order."""
    return Errors(
        max((e.top for e in errors), default=0.0),
        math.fsum(e.squares for e in errors),
        math.fsum(e.power for e in errors),
    )
