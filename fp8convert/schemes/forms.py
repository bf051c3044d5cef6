"""Codes and scales as they are stored under one name: what dtypes and shapes say they are.

Shared by the schemes whose codes lie beside their scales. The declared block is held against the
shapes; where a config declares none, the shape of the scales says what they cover.
"""

from __future__ import annotations

from ..codecs.base import Codec, Stored
from ..codecs.blocks import fits
from ..codecs.elements import BY_DTYPE
from ..codecs.fp4_block import Fp4Block
from ..codecs.fp8_block import Block, Fp8Block, grid_shape
from ..codecs.scales import E8M0
from ..errors import shown
from .leftovers import activation_scales
from .weight import Tensors, Weight, beside

MX, NV = 32, 16  # elements a group
WHOLE: Block = (None, None)
ROW: Block = (1, None)


def scale_of(t: Stored, tensors: Tensors) -> Stored | None:
    """The scale of ``t``: ``t_scale_inv`` or ``t_scale``; of ``X.weight`` also ``X.scale``,
    ``X.qscale_weight``.
    """
    for name in (f"{t.name}_scale_inv", f"{t.name}_scale"):
        if name in tensors:
            return tensors[name]
    if t.name.rpartition(".")[2] != "weight":
        return None
    return next(iter(beside(t, tensors, ("scale", "qscale_weight"))), None)


def by_dtype(t: Stored, tensors: Tensors, block: Block | None) -> Weight | str | None:
    """The weight whose codes ``t`` holds beside a scale: FP8, or FP4 packed in bytes.

    ``block`` is the declared one, if any. A string says what does not fit.
    """
    scale = scale_of(t, tensors)
    if t.dtype in BY_DTYPE and t.dtype != "I8":
        if scale is None:
            return None  # said of every FP8 tensor that is left over
        covered = _block(t, scale, block)
        if isinstance(covered, str):
            return covered
        codec: Codec = Fp8Block(covered, BY_DTYPE[t.dtype])
        return Weight(t.name, codec, (t, scale), activation_scales(t, tensors))
    if t.dtype not in ("I8", "U8", "F4") or len(t.shape) < 2 or scale is None:
        return None
    whole = tensors.get(f"{t.name}_scale_2")
    if scale.dtype == "F8_E4M3":
        if whole is None:
            return f"its scales {shown(scale.name)} are F8_E4M3, expected {t.name}_scale_2 beside"
        parts = (t, scale, whole)
        return Weight(t.name, Fp4Block(NV, "multiply"), parts, activation_scales(t, tensors))
    if scale.dtype in E8M0:
        codec = Fp4Block(MX, signed_zero=t.dtype != "I8")  # in I8 only DeepSeek keeps them
        return Weight(t.name, codec, (t, scale), activation_scales(t, tensors))
    return None


def _block(t: Stored, scale: Stored, declared: Block | None) -> Block | str:
    """The block that ``scale`` covers: the declared one, or, if none is, what the shapes say."""
    groups = (*t.shape[:-1], -(-t.shape[-1] // MX)) if t.shape else ()
    if declared is not None or len(t.shape) < 2:
        declared = declared or WHOLE
        same = len(t.shape) > 1 and scale.shape == grid_shape(t.shape, declared)
        if not same and scale.dtype in E8M0 and scale.shape == groups:
            return 1, MX  # an MX table in a checkpoint that declares square blocks
        return declared
    if scale.dtype in E8M0 and scale.shape == groups:
        return 1, MX
    if fits(scale, grid_shape(t.shape, WHOLE)):
        return WHOLE
    if len(scale.shape) == 4 and len(t.shape) == 2:  # ModelOpt's [down, 1, across, 1]
        return 128, 128
    if fits(scale, grid_shape(t.shape, ROW)):
        return ROW
    return (
        f"its scales {shown(scale.name)} are {scale.dtype} {list(scale.shape)} for codes "
        f"{list(t.shape)}: expected one, one a row, or one for every {MX} of a row, since the "
        "config declares no block (weight_block_size)"
    )
