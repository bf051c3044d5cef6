"""Where a weight need not be rounded anew: its bytes are copied, or its scales are kept.

Whether the result is exact is not taken from here: it is measured, by decoding what was written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ..codecs.base import Codec, Stored
from ..codecs.blocks import Blocks
from ..codecs.fp4_block import Fp4Block
from ..codecs.fp8_block import Int8Block
from ..codecs.packed_int import PackedInt
from ..codecs.raw import Raw
from ..codecs.scales import E8M0, PLAIN
from ..schemes.weight import Weight
from .carried import Copied, Floats
from .encoder import Encoding, Part
from .targets import Target, precision

# The elements whose values, all of them, are values of the other.
WITHIN = {
    "e4m3fn": ("e4m3fn", "e2m1", "e2m1-unsigned-zero", "e2m1-bytes"),
    "e2m1": ("e2m1", "e2m1-unsigned-zero", "e2m1-bytes"),
    "int8": ("int8", "uint4"),  # uint4: stored plus 8
    "uint4": ("uint4",),
}


class Copy(NamedTuple):
    """A stored tensor under the name, dtype and shape of a part; ``codec`` copies or widens it."""

    part: Part
    stored: Stored
    codec: Codec


def copies(weight: Weight, to: Target, powers: bool) -> tuple[Copy, ...] | None:
    """How ``weight`` becomes ``to`` without being decoded: same codec, same grid; None if not.

    ``powers``: the source declares its scales to be powers of two, which is checked when they are
    read.
    """
    codec = weight.codec
    if not _same(codec, to):
        return None
    parts = to.parts(weight)
    assert isinstance(codec, Blocks)
    scales, wanted = weight.parts[1].dtype, parts[1].dtype
    if to.scheme == "fp8-block-ue8m0" and scales not in E8M0 and not powers:
        return None
    bits = {scales, wanted} <= set(E8M0) or scales == wanted
    if not bits and not (wanted == "F32" and scales in (*PLAIN, *E8M0)):
        return None
    sign = "positive" if codec.element.is_float else "any"
    same = Copied(scales=sign)
    widened = Floats(sign, powers=to.scheme == "fp8-block-ue8m0" and scales not in E8M0)
    rest = same if to.scheme == "nvfp4" else Copied()  # its global scale, or a shape
    how = (Copied(codec.element.name), widened if wanted == "F32" else same, rest)
    return tuple(map(Copy, parts, weight.parts, how))


def _same(source: Codec, to: Target) -> bool:
    wanted = to.codec
    if isinstance(source, Fp4Block) and isinstance(wanted, Fp4Block):
        return replace(source, signed_zero=True) == wanted  # -0.0 is 0.0
    return source == wanted


def encoding(weight: Weight, to: Target, search: bool, members: tuple[Weight, ...]) -> Encoding:
    """How ``weight`` is encoded; ``members`` share its one scale, if the scheme has one."""
    parts = to.parts(weight)
    stored, whole = parts[1].dtype, ""
    inherit = inherits(weight, to, stored)
    if to.one_scale:
        whole = "source" if inherit else "power" if _by_powers(weight, to) else "amax"
    encoder = to.encoder(precision(weight), stored, search and not inherit, inherit, whole)
    return Encoding(encoder, parts, () if whole == "source" or not whole else members)


def inherits(weight: Weight, to: Target, kept: str) -> bool:
    """Whether the source's own scales, each around whole blocks of the target, will do.

    ``kept`` is the dtype that the target keeps scales in.
    """
    source, wanted = weight.codec, to.codec
    if not isinstance(source, Blocks) or _zeros(source) or to.scheme == "fp8-tensor":
        return False  # a tensor's one scale is its partners' as well
    if source.element.name not in WITHIN.get(wanted.element.name, ()):
        return False
    around = zip(
        source.block_of(weight.shape), wanted.block_of(weight.shape), weight.shape, strict=True
    )
    if not all(s % b == 0 or s >= n for s, b, n in around):
        return False
    scales = weight.parts[1].dtype
    if to.scheme == "nvfp4":
        return isinstance(source, Fp4Block) and source.combine != "none"
    if to.scheme == "fp8-block-ue8m0" or kept in E8M0:
        return scales in E8M0
    if isinstance(source, Fp4Block) and source.combine != "none":
        return kept == "F32"  # the product of two scales
    return kept in ("F32", scales)


def _zeros(source: Blocks) -> bool:
    if isinstance(source, Int8Block):
        return source.zero_points
    return isinstance(source, PackedInt) and bool({"zeros", "groups"} & set(source.extra))


def _by_powers(weight: Weight, to: Target) -> bool:
    """Whether a power of two as the tensor's scale may make it exact: as the source's all are."""
    codec = weight.codec
    if not isinstance(codec, Blocks) or weight.parts[1].dtype not in E8M0:
        return False
    return codec.element.name in WITHIN[to.codec.element.name]


def decodable(weight: Weight) -> Weight:
    """``weight`` with a codec that decodes it to float32, also if it is stored plainly."""
    return weight._replace(codec=Floats()) if isinstance(weight.codec, Raw) else weight


def named(weight: Weight, found: tuple[Copy, ...]) -> Iterator[tuple[Weight, str]]:
    """The copied tensors as weights of their own, and their dtypes."""
    for copy in found:
        stored = copy.stored._replace(shape=copy.part.shape) if _flat(copy) else copy.stored
        yield Weight(copy.part.name, copy.codec, (stored,)), copy.part.dtype


def _flat(copy: Copy) -> bool:
    """Whether the part has the stored elements in the same order, under another shape."""
    return copy.stored.shape != copy.part.shape
