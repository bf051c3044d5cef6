"""How a stored tensor is carried over that is not decoded from codes: copied, repeated, as float32.

Codecs of the plan's own making: no scheme finds them in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..codecs.base import Codec, Findings, Grid, Rect, Span, Stored
from ..codecs.blocks import Blocks, fits, mismatch
from ..codecs.raw import Raw
from ..codecs.scales import WIDTHS, to_float32
from ..codecs.slices import sliced
from ..dtypes import DTYPES
from ..header import numel
from .encoder import nested

if TYPE_CHECKING:
    from ..codecs.base import Array, Bytes


@dataclass(frozen=True)
class Floats(Codec):
    """One part, its values exactly as float32; ``target`` is always F32.

    ``powers``: one that is not a power of two is damage.
    """

    powers: bool = False

    name = "floats"
    rule = "float32(value), exactly"
    roles = ("data",)
    coded = True

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Any dtype whose values float32 has."""
        known = parts[0].dtype in WIDTHS
        return None if known else f"it is {parts[0].dtype}, expected one of {', '.join(WIDTHS)}"

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """The stored shape."""
        return parts[0].shape

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """F32."""
        return "F32"

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut anywhere."""
        shape = parts[0].shape or (1,)
        return Grid(numel(shape[:-1]), shape[-1], 1, 1)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The elements' own bytes."""
        width, columns = WIDTHS[parts[0].dtype], self.grid(parts).columns
        first = rect.r0 * columns + rect.c0
        count = (rect.r1 - rect.r0) * (rect.c1 - rect.c0)
        return (Span(first * width, (first + count) * width),)

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Widen."""
        import numpy as np

        from .. import kernels

        dtype = parts[0].dtype
        if dtype == "BF16":
            halves = data[0].view("<u2")  # anywhere in a file
            halves = halves if halves.flags.aligned else halves.copy()
            kernels.load().widen(halves, out.view(np.uint32))
        elif dtype in ("F16", "F32"):
            out[:] = data[0].view("<f2" if dtype == "F16" else "<f4")
        else:
            out[:] = to_float32(data[0], dtype)
        odd = (np.frexp(out)[0] != 0.5) & (out != 0)  # 0 over codes that are all zero
        if not self.powers or not odd.any():
            return Findings()
        wanted = "a power of two, as the config says (scale_fmt)"
        return Findings(damage=f"scale {out[odd][0]}, expected {wanted}")

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """Anywhere."""
        return 1

    def cut(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Codec, tuple[Stored, ...]]:
        """A slice of the part."""
        return self, (sliced(parts[0], axis, begin, end),)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "floats"}``."""
        return {"codec": self.name}


@dataclass(frozen=True)
class Copied(Raw):
    """A part that is copied."""

    name = "copied"
    rule = "bytes copied"

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "copied"}``."""
        return {"codec": self.name}


@dataclass(frozen=True)
class CopiedShape(Raw):
    """The shape that packed integers carry, which must be ``expected``; ``written`` in its place
    is the shape of a slice, if that is what they are. Both have two integers.
    """

    expected: tuple[int, ...] = ()
    written: tuple[int, ...] | None = None

    name = "copied-shape"
    rule = "integers kept"

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Widen, and look."""
        found = data[0].view("<i4" if parts[0].dtype == "I32" else "<i8")
        rows, said = slice(rect.r0, rect.r1), found.tolist()
        out[:] = found if self.written is None else self.written[rows]
        held = list(self.expected[rows])
        return Findings(damage=None if said == held else f"{said}, expected {held}")

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "copied-shape", "expected": [o, i]}``."""
        written = {} if self.written is None else {"written": list(self.written)}
        return {"codec": self.name, "expected": list(self.expected), **written}


@dataclass(frozen=True)
class CopiedCodes(Codec):
    """Codes that are copied: the first part of a weight of ``codec``, under ``stored``'s shape.

    All parts are read, and what would be damage in decoding is damage here. Seen as bytes.
    """

    codec: Blocks
    stored: tuple[int, ...]

    name = "copied-codes"
    rule = "codes copied; damage as in decoding"
    coded = False

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of the codec."""
        return self.codec.roles

    def check(self, parts: Sequence[Stored]) -> str | None:
        """As the codec."""
        return self.codec.check(parts)

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """Of the codes as they are written."""
        return self.stored

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """That of the codes."""
        return parts[0].dtype

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """The codec's, in bytes; cut at whole elements."""
        found, unit = self.codec.grid(parts), self.codec.unit
        width = max(DTYPES[parts[0].dtype].bits // 8, 1)
        step = max(found.column_step // unit, 1)
        return found._replace(columns=found.columns // unit, column_step=step, unit=width)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """As the codec."""
        return self.codec.spans(parts, self._wide(rect))

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Copy, and look."""
        out.view("uint8")[:] = data[0]
        return Findings(damage=self.codec.damage(parts, self._wide(rect), data))

    def _wide(self, rect: Rect) -> Rect:
        unit = self.codec.unit
        return rect._replace(c0=rect.c0 * unit, c1=rect.c1 * unit)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "copied-codes", "of": {...}}``."""
        return {"codec": self.name, "of": self.codec.to_dict()}


@dataclass(frozen=True)
class Repeated(Codec):
    """Scales of blocks of ``block``, each copied for all the smaller blocks ``to`` within it.

    They are for a slice [.., o, i] of ``shape``, which begins ``phase`` into the first block; the
    part has the scales of the blocks around it.
    """

    block: tuple[int, int]
    to: tuple[int, int]
    phase: tuple[int, int]
    size: tuple[int, ...]

    name = "repeated"
    rule = "bytes repeated"
    roles = ("scales",)
    coded = False

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Smaller blocks lie within larger ones; there is a scale for each of those."""
        axes = list(zip(self.block, self.phase, self.to, self.size[-2:], strict=True))
        if not all(nested(*axis) for axis in axes):
            return (
                f"blocks of {list(self.to)} are not within those of {list(self.block)}, where "
                f"{list(self.size)} begins {list(self.phase)} into one"
            )
        if not fits(parts[0], want := self._held):
            why = f"for {list(self.size)} in blocks of {list(self.block)}"
            return mismatch("scales", parts[0], (parts[0].dtype,), want, why)
        return None

    @property
    def _held(self) -> tuple[int, ...]:
        """[.., blocks down, blocks across]."""
        axes = zip(self.block, self.phase, self.size[-2:], strict=True)
        return (*self.size[:-2], *(-(-(at + n) // b) for b, at, n in axes))

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """[.., smaller blocks down, smaller blocks across]."""
        counts = (-(-n // b) for n, b in zip(self.size[-2:], self.to, strict=True))
        return (*self.size[:-2], *counts)

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """The stored dtype."""
        return parts[0].dtype

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut anywhere."""
        shape = self.shape(parts)
        return Grid(numel(shape[:-1]), shape[-1], 1, 1, shape[-2] if len(shape) > 2 else 0)

    def _rows(self, parts: Sequence[Stored], rect: Rect) -> tuple[int, range, range]:
        """The expert that ``rect`` is in, its rows there, and the rows of scales around those."""
        (of, _), (to, _), (at, _) = self.block, self.to, self.phase
        expert, r0 = divmod(rect.r0, self.shape(parts)[-2])
        rows = range(r0, r0 + rect.r1 - rect.r0)
        return expert, rows, range((at + r0 * to) // of, (at + rows[-1] * to) // of + 1)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """Whole rows of scales."""
        expert, _, around = self._rows(parts, rect)
        *_, down, across = self._held
        row = across * DTYPES[parts[0].dtype].bits // 8
        return (Span((expert * down + around.start) * row, (expert * down + around.stop) * row),)

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Copy each to all of its places."""
        import numpy as np

        _, rows, around = self._rows(parts, rect)
        held = data[0].reshape(len(around), self._held[-1], -1)  # bytes of a scale last
        down, across = (
            (at + np.arange(which.start, which.stop) * to) // of
            for of, at, to, which in zip(
                self.block, self.phase, self.to, (rows, range(rect.c0, rect.c1)), strict=True
            )
        )
        out.view("uint8")[:] = held[np.ix_(down - around.start, across)].reshape(-1)
        return Findings()

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "repeated", "block": [128, 128], "to": [96, 128], ...}``."""
        facts = {"block": self.block, "to": self.to, "phase": self.phase, "size": self.size}
        return {"codec": self.name, **{key: list(value) for key, value in facts.items()}}


CARRIED = (Floats, Copied, CopiedShape, CopiedCodes, Repeated)
