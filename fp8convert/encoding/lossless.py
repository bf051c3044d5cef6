"""Where a weight need not be rounded anew: its bytes are copied, or its scales are kept.

Whether the result is exact is not taken from here: it is measured, by decoding what was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..codecs.base import Codec
from ..codecs.blocks import Blocks
from ..codecs.fp4_block import Fp4Block
from ..codecs.fp8_block import Int8Block
from ..codecs.packed_int import PackedInt
from ..codecs.raw import Raw
from ..codecs.scales import E8M0, PLAIN
from ..codecs.window import whole_codec
from ..schemes.weight import Weight
from .carried import Copied, CopiedCodes, CopiedShape, Floats
from .encoder import Encoding, nested
from .targets import Target

# The elements whose values, all of them, are values of the other.
WITHIN = {
    "e4m3fn": ("e4m3fn", "e2m1", "e2m1-unsigned-zero"),
    "e2m1": ("e2m1", "e2m1-unsigned-zero"),
    "int8": ("int8", "uint4"),  # uint4: stored plus 8
    "uint4": ("uint4",),
}


class Way(NamedTuple):
    """How weights that share a scale become coded: all of them in the same way.

    ``copied``: their bytes are; else by an :class:`Encoder` with these fields, where ``precision``
    is the dtype that their scales are rounded to.
    """

    copied: bool
    inherit: bool = False
    whole: str = ""
    precision: str = "BF16"


def way(weights: Sequence[Weight], to: Target, powers: bool) -> Way:
    """The way of ``weights``, which share a scale if ``to`` has such.

    ``powers``: the source declares its scales to be powers of two, which is checked when they are
    read.
    """
    if all(_is_copy(w, to, powers) for w in weights):
        return Way(copied=True)
    inherit = all(_inherits(w, to) for w in weights)
    whole = ""
    if to.shares:
        by_powers = all(_by_powers(w, to) for w in weights)
        whole = "source" if inherit else "power" if by_powers else "amax"
    dtypes = {to.precision(w) for w in weights}
    return Way(False, inherit, whole, dtypes.pop() if len(dtypes) == 1 else "F32")


def encoding(
    weight: Weight, to: Target, search: bool, how: Way, members: tuple[Weight, ...]
) -> Encoding:
    """How ``weight`` is encoded; ``members`` share its one scale, if the scheme has one."""
    parts = to.parts(weight)
    search = search and not how.inherit
    encoder = to.encoder(how.precision, parts[1].dtype, search, how.inherit, how.whole)
    return Encoding(encoder, parts, members if how.whole in ("amax", "power") else ())


def copied(weight: Weight, piece: Weight, to: Target) -> Iterator[tuple[Weight, str]]:
    """What is written of a ``piece`` of ``weight`` (or all of it) where bytes are copied: tensors
    as weights of their own, and their dtypes."""
    codes, scales, *rest = to.parts(piece)
    codec = piece.codec
    assert isinstance(codec, Blocks)
    yield Weight(codes.name, CopiedCodes(codec, codes.shape), piece.parts), codes.dtype
    source = piece.parts[1]._replace(shape=scales.shape)  # [o] is [o, 1]
    powers = to.scheme == "fp8-block-ue8m0" and source.dtype not in E8M0
    how: Codec = Floats(powers) if scales.dtype == "F32" else Copied()
    yield Weight(scales.name, how, (source,)), scales.dtype
    for part, source in zip(rest, weight.parts[2:], strict=True):
        shape = isinstance(codec, PackedInt)  # else a global scale
        how = CopiedShape(weight.shape, piece.shape) if shape else Copied()
        yield Weight(part.name, how, (source._replace(shape=part.shape),)), part.dtype


def _is_copy(weight: Weight, to: Target, powers: bool) -> bool:
    """Whether ``weight`` has the codec and grid of ``to``, and scales that its dtype holds."""
    if not _same(weight.codec, to):
        return False
    scales, wanted = weight.parts[1].dtype, to.parts(weight)[1].dtype
    if to.scheme == "fp8-block-ue8m0" and scales not in E8M0 and not powers:
        return False
    same = {scales, wanted} <= set(E8M0) or scales == wanted
    return same or (wanted == "F32" and scales in (*PLAIN, *E8M0))


def _same(source: Codec, to: Target) -> bool:
    wanted = to.codec
    if isinstance(source, Fp4Block) and isinstance(wanted, Fp4Block):
        return replace(source, signed_zero=True) == wanted  # -0.0 is 0.0
    return source == wanted


def _inherits(weight: Weight, to: Target) -> bool:
    """Whether the source's own scales, each around whole blocks of the target, will do."""
    codec, source, wanted = weight.codec, whole_codec(weight.codec), to.codec
    if not (isinstance(codec, Blocks) and isinstance(source, Blocks)) or _zeros(source):
        return False
    if to.scheme == "fp8-tensor":
        return False  # a tensor's one scale is its partners' as well
    if source.element.name not in WITHIN.get(wanted.element.name, ()):
        return False
    shape = weight.shape
    blocks = codec.block_of(shape), codec.phase, wanted.block_of(shape), shape
    if not all(nested(*axis) for axis in zip(*blocks, strict=True)):
        return False
    scales, kept = weight.parts[1].dtype, to.parts(weight)[1].dtype
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
    return codec.element.name in WITHIN.get(to.codec.element.name, ())


def decodable(weight: Weight) -> Weight:
    """``weight`` with a codec that decodes it to float32, also if it is stored plainly."""
    return weight._replace(codec=Floats()) if isinstance(weight.codec, Raw) else weight
