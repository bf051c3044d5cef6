"""What each codec's stored parts say of a box of the weight: plain readings of published formats.

Every block-scaled format comes down to one sentence (:class:`Codes`): which code an element has,
and which row and column of a small grid has its scale and zero point. The sources are those of
docs/formats.md: DeepSeek-V3's ``README_WEIGHTS.md``, OCP MX v1.0, compressed-tensors' compressors,
ModelOpt's export, AutoGPTQ, AutoAWQ, transformers' ``integrations/mxfp4.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, shown
from . import loops
from .numbers import Array, as_float32, values
from .stored import Box, Files, Place, Shape

Facts = Mapping[str, Any]  # a codec's ``to_dict()``
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the outputs in a word, from its lowest bits up


class Codes(NamedTuple):
    """``(values[codes[i, j]] - zeros[down[i], across[j]]) * scales[down[i], across[j]]``.

    ``codes`` uint8 [r, c], one a byte; ``element`` names their format; ``scales`` and ``zeros``
    are float32 [R, C]; ``down`` [r] and ``across`` [c] are int64.
    """

    codes: Array
    element: str
    scales: Array
    zeros: Array
    down: Array
    across: Array

    @property
    def arrays(self) -> tuple[Array, ...]:
        """As the loops take them."""
        found = (self.codes, values(self.element), self.zeros, self.scales, self.down, self.across)
        return tuple(map(sound, found))

    def numbers(self) -> Array:
        """float32 [r, c]."""
        out = np.empty(self.codes.shape, np.float32)
        loops.products(*self.arrays, out)
        return out


class Part(NamedTuple):
    """A stored part of a weight, to be read."""

    files: Files
    place: Place

    def __call__(self, *box: tuple[int, int]) -> Array:
        return self.files.read(self.place, box)

    def floats(self, *box: tuple[int, int]) -> Array:
        """As float32."""
        return as_float32(self(*box), self.place.dtype)

    @property
    def all(self) -> Array:
        """All of a small one, as float32 [n]."""
        return as_float32(self.files.read(self.place), self.place.dtype).reshape(-1)


def sound(array: Array) -> Array:
    """Aligned and in row-major order: a file may have neither."""
    return np.require(array, requirements=["C", "A"])


def decode(files: Files, facts: Facts, places: tuple[Place, ...], shape: Shape, box: Box) -> Codes:
    """The codes of ``box`` of a coded weight of ``shape``: one matrix, or rows of one expert's.

    ``places`` are in the order of the codec's roles. KeyError if no decoder knows the codec;
    DataError if an element has no scale.
    """
    parts = tuple(Part(files, place) for place in places)
    with np.errstate(all="ignore"):
        found = DECODERS[facts["codec"]](facts, parts, shape, box)
    groups = found.scales.shape[1]
    if found.across.size and not 0 <= found.across.min() <= found.across.max() < groups:
        raise DataError(
            f"{shown(places[0].name)}: columns in groups {found.across.min()} to "
            f"{found.across.max()}, expected 0 to {groups - 1}"
        )
    return found


def blocks(facts: Facts, parts: tuple[Part, ...], shape: Shape, box: Box) -> Codes:
    """8-bit codes, a scale for every block of [rows, columns]; null is the whole axis."""
    (r0, r1), (c0, c1) = box[-2:]
    br, bc = (size or n for size, n in zip(facts["block"], shape[-2:], strict=True))
    codes = parts[0](*box).reshape(r1 - r0, c1 - c0).view(np.uint8)
    at = (*box[:-2], (r0 // br, -(-r1 // br)), (c0 // bc, -(-c1 // bc)))
    scales = _grid(parts[1], at)
    zeros = _grid(parts[2], at) if facts.get("zero_points") else np.zeros_like(scales)
    down, across = np.arange(r0, r1) // br - r0 // br, np.arange(c0, c1) // bc - c0 // bc
    return Codes(codes, facts["element"], scales, zeros, down, across)


def _grid(part: Part, box: Box) -> Array:
    """A box of a grid of scales, [R, C]. Its ones may be left out or spread: [o] and [] for [o, 1]
    and [1, 1]; ModelOpt writes [down, 1, across, 1]."""
    shape, (down, across) = part.place.shape, box[-2:]
    if len(shape) == 4 and len(box) == 2:
        found = part.floats(down, (0, 1), across, (0, 1))
    elif all(n == 1 for n in shape):
        found = part.all
    else:
        found = part.floats(*box[: len(shape)])
    return found.reshape(down[1] - down[0], across[1] - across[0])


def nibbles(packed: Array) -> Array:
    """uint8 [..., n] -> [..., 2n]: the even element in the low half of each byte."""
    out = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    out[..., 0::2], out[..., 1::2] = packed & 0xF, packed >> 4
    return out


def fp4(facts: Facts, parts: tuple[Part, ...], shape: Shape, box: Box) -> Codes:
    """e2m1, two a byte; a scale for each group of a row, combined first with that of the tensor."""
    (r0, r1), (c0, c1), group = *box[-2:], facts["group"]
    packed = parts[0](*box[:-1], (c0 // 2, -(-c1 // 2))).view(np.uint8).reshape(r1 - r0, -1)
    codes = nibbles(packed)[:, c0 % 2 :][:, : c1 - c0]
    scales = parts[1].floats(*box[:-1], (c0 // group, -(-c1 // group))).reshape(r1 - r0, -1)
    if facts["global"] == "multiply":
        scales = scales * parts[2].all
    elif facts["global"] == "divide":
        scales = scales / parts[2].all
    element = "e2m1" if facts["signed_zero"] else "e2m1-unsigned-zero"
    across = np.arange(c0, c1) // group - c0 // group
    return Codes(codes, element, scales, np.zeros_like(scales), np.arange(r1 - r0), across)


def fields(words: Array, bits: int, axis: int) -> Array:
    """uint8: the unsigned fields of I32 ``words``, the lowest first, along ``axis``."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    apart = np.expand_dims(words.view(np.uint32), axis + 1)
    shape = [1] * apart.ndim
    shape[axis + 1] = len(shifts)
    found = (apart >> shifts.reshape(shape) & np.uint32((1 << bits) - 1)).astype(np.uint8)
    sizes = list(words.shape)
    sizes[axis] *= len(shifts)
    out: Array = found.reshape(sizes)
    return out


def packed_int(facts: Facts, parts: tuple[Part, ...], shape: Shape, box: Box) -> Codes:
    """compressed-tensors' pack-quantized: codes packed along a row, zero points down the rows."""
    (r0, r1), (c0, c1) = box
    bits, group, named = facts["bits"], facts["group"] or shape[1], dict(
        zip(facts["extra"], parts[2:], strict=True)
    )  # fmt: skip
    per = 32 // bits
    words = parts[0]((r0, r1), (c0 // per, -(-c1 // per)))
    codes = fields(words, bits, 1)[:, c0 % per :][:, : c1 - c0]
    g0, g1 = c0 // group, -(-c1 // group)
    across = np.arange(c0, c1) // group - g0
    if "groups" in named:
        g0, g1 = 0, -(-shape[1] // group)
        across = named["groups"]((c0, c1)).astype(np.int64)
    scales = _grid(parts[1], ((r0, r1), (g0, g1)))
    zeros = np.full_like(scales, 1 << bits - 1)
    if "zeros" in named:
        stored = fields(named["zeros"]((r0 // per, -(-r1 // per)), (g0, g1)), bits, 0)
        zeros = stored[r0 % per :][: r1 - r0].astype(np.float32)
    return Codes(codes, f"uint{bits}", scales, zeros, np.arange(r1 - r0), across)


def gptq(facts: Facts, parts: tuple[Part, ...], shape: Shape, box: Box) -> Codes:
    """Words of inputs [in / per, out], zero points packed along the outputs; turned round here."""
    (r0, r1), (c0, c1) = box
    bits, group = facts["bits"], facts["group"]
    per, every = 32 // bits, (0, parts[1].place.shape[0])
    words = parts[0]((c0 // per, -(-c1 // per)), (r0, r1))
    codes = fields(words, bits, 0)[c0 % per :][: c1 - c0].T
    scales = parts[1].floats(every, (r0, r1)).T
    stored = fields(parts[2](every, (r0 // per, -(-r1 // per))), bits, 1)
    zeros = stored[:, r0 % per :][:, : r1 - r0].T.astype(np.float32) + facts["zeros_minus_one"]
    across = np.arange(c0, c1) // group
    if facts["g_idx"]:
        across = parts[3]((c0, c1)).astype(np.int64)
    return Codes(codes, f"uint{bits}", scales, zeros, np.arange(r1 - r0), across)


def awq(facts: Facts, parts: tuple[Part, ...], shape: Shape, box: Box) -> Codes:
    """Words of outputs [in, out / 8] in an order of their own; turned round here."""
    (r0, r1), (c0, c1), group = *box, facts["group"]
    w0, w1, skip = r0 // 8, -(-r1 // 8), r0 % 8

    def outputs(words: Array) -> Array:
        mixed = fields(words, 4, 1).reshape(len(words), -1, 8)
        straight = np.empty_like(mixed)
        straight[:, :, AWQ_ORDER] = mixed
        turned: Array = straight.reshape(len(words), -1)[:, skip:][:, : r1 - r0].T
        return turned

    at = (c0 // group, -(-c1 // group))
    scales = parts[1].floats(at, (r0, r1)).T
    zeros = np.full_like(scales, 8)
    if facts["zero_points"]:
        zeros = outputs(parts[2](at, (w0, w1))).astype(np.float32)
    codes = outputs(parts[0]((c0, c1), (w0, w1)))
    across = np.arange(c0, c1) // group - at[0]
    return Codes(codes, "uint4", scales, zeros, np.arange(r1 - r0), across)


def gpt_oss(facts: Facts, parts: tuple[Part, ...], shape: Shape, box: Box) -> Codes:
    """Blocks [experts, out, in / 32, 16] of each output; the weight is [experts, in, out]."""
    expert, (r0, r1), outputs = box
    groups = (r0 // 32, -(-r1 // 32))
    packed = parts[0](expert, outputs, groups, (0, 16))[0]
    by_output = nibbles(packed).reshape(len(packed), -1)[:, r0 % 32 :][:, : r1 - r0]
    scales = parts[1].floats(expert, outputs, groups)[0].T
    down, across = np.arange(r0, r1) // 32 - groups[0], np.arange(len(packed))
    return Codes(by_output.T, "e2m1", scales, np.zeros_like(scales), down, across)


DECODERS: dict[str, Callable[[Facts, tuple[Part, ...], Shape, Box], Codes]] = {
    "fp8-block": blocks,
    "int8-block": blocks,
    "fp4-block": fp4,
    "packed-int": packed_int,
    "gptq": gptq,
    "awq": awq,
    "mxfp4-transposed": gpt_oss,
}
