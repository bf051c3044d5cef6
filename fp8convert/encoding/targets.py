"""The schemes that can be written: which codec, which rule, which tensors, which config.

Sources: DeepSeek-V3 ``README_WEIGHTS.md`` (weight_scale_inv) and V4's ``.scale``; for the rest
compressed-tensors. docs/quantize.md says which engine takes which.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..codecs.blocks import Blocks
from ..codecs.fp4_block import Fp4Block
from ..codecs.fp8_block import Fp8Block, Int8Block, grid_shape
from ..codecs.packed_int import PackedInt
from ..codecs.raw import Raw
from ..configout import compressed_config, native_fp8
from ..header import numel
from ..options import BLOCKS, SCALE_DTYPES, Quantize
from ..schemes.weight import Weight
from .encoder import Encoder, Part
from .rules import Amax, Local, MxPower, PowerUp, Rule

FP8, INT8, INT4 = 448.0, 127.5, 7.5  # divisors of amax: the largest code, or half a step beyond
OCTAVE = tuple(1 + k / 16 for k in range(1, 16))  # a float's errors repeat from there on
CLIPS = tuple(1 - k / 40 for k in range(1, 15))
MX, NV = 32, 16


@dataclass(frozen=True)
class Target:
    """A scheme with its options; ``sibling``: scales are named ``X.scale``, as V4's are."""

    scheme: str
    block: tuple[int, int] = (128, 128)
    group: int = 128
    scale_dtype: str = "F32"
    sibling: bool = False

    @property
    def native(self) -> bool:
        """Whether the config says ``quant_method: fp8`` (else compressed-tensors)."""
        return self.scheme in BLOCKS

    @property
    def one_scale(self) -> bool:
        """Whether partners share a scale of the whole tensor."""
        return self.scheme in ("fp8-tensor", "nvfp4")

    @cached_property
    def codec(self) -> Blocks:
        """What decodes it."""
        name = self.scheme
        if self.native:
            return Fp8Block(self.block)
        if name == "int4-group":
            return PackedInt(4, self.group, ("shape",))
        return {
            "fp8-channel": Fp8Block((1, None)),
            "fp8-tensor": Fp8Block((None, None)),
            "int8-channel": Int8Block((1, None)),
            "nvfp4": Fp4Block(NV, "divide"),
            "mxfp4": Fp4Block(MX),
            "mxfp8": Fp8Block((1, MX)),
        }[name]

    @functools.cache  # noqa: B019 - few targets, and a weight's encoder is one of few objects
    def encoder(
        self, precision: str, stored: str, search: bool, inherit: bool, whole: str
    ) -> Encoder:
        """For a weight of dtype ``precision``; see :class:`Encoder` for the rest."""
        return Encoder(self.codec, self._rule(precision), stored, search, inherit, whole)

    def _rule(self, precision: str) -> Rule:
        name = self.scheme
        if name == "int4-group":
            return Amax(INT4, precision, precision, CLIPS)
        return {
            "fp8-block": Amax(FP8, "F32", "F32", OCTAVE),
            "fp8-block-ue8m0": PowerUp(FP8),
            "fp8-channel": Amax(FP8, precision, "F32", OCTAVE),
            "fp8-tensor": Amax(FP8, precision, "F32", OCTAVE),
            "int8-channel": Amax(INT8, precision, "F32", CLIPS),
            "nvfp4": Local(precision),
            "mxfp4": MxPower(6.0, 2),
            "mxfp8": MxPower(FP8, 8),
        }[name]

    def misfit(self, weight: Weight) -> str | None:
        """Why the codec cannot hold ``weight``, or None."""
        shape = weight.shape
        if len(shape) != 2:
            return f"it has {len(shape)} axes, and the scheme takes matrices"
        if not numel(shape):
            return "it is empty"
        group = {"int4-group": self.group, "nvfp4": NV, "mxfp4": MX, "mxfp8": MX}.get(self.scheme)
        if group and shape[1] % group:
            return f"its {shape[1]} columns do not divide into groups of {group}"
        return None

    def parts(self, weight: Weight) -> tuple[Part, ...]:
        """The tensors of ``weight``, codes first."""
        name, (o, i) = weight.name, weight.shape
        if self.native:
            inverse = f"{name.rpartition('.')[0]}.scale" if self.sibling else f"{name}_scale_inv"
            grid = grid_shape((o, i), self.block)
            return Part(name, "F8_E4M3", (o, i)), Part(inverse, self.scale_dtype, grid)
        scale, packed = f"{name}_scale", f"{name}_packed"
        if self.scheme == "int4-group":
            return (
                Part(packed, "I32", (o, i // 8)),
                Part(scale, precision(weight), (o, i // self.group)),
                Part(f"{name}_shape", "I64", (2,)),
            )
        if self.scheme == "nvfp4":
            return (
                Part(packed, "U8", (o, i // 2)),
                Part(scale, "F8_E4M3", (o, i // NV)),
                Part(f"{name}_global_scale", "F32", (1,)),
            )
        if self.scheme == "mxfp4":
            return Part(packed, "U8", (o, i // 2)), Part(scale, "U8", (o, i // MX))
        codes = "I8" if self.scheme == "int8-channel" else "F8_E4M3"
        if self.scheme == "mxfp8":
            return Part(name, codes, (o, i)), Part(scale, "U8", (o, i // MX))
        count = (1,) if self.scheme == "fp8-tensor" else (o, 1)
        return Part(name, codes, (o, i)), Part(scale, "F32", count)

    def config(self, ignored: Sequence[str]) -> dict[str, Any]:
        """The ``quantization_config``; ``ignored`` are modules that are not encoded."""
        if self.native:
            form = "ue8m0" if self.scheme == "fp8-block-ue8m0" else None
            return native_fp8(self.block, form, ignored)
        group = self.group if self.scheme == "int4-group" else None
        return compressed_config(self.scheme, group, ignored)


def precision(weight: Weight) -> str:
    """The dtype of ``weight`` as a model has it: where it is coded BF16, unless scales are F16.

    Packed integers keep their scales in the model's dtype, so there they say what it is.
    """
    codec = weight.codec
    if isinstance(codec, Raw):
        return weight.parts[0].dtype
    scales = weight.parts[codec.roles.index("scales")].dtype
    return scales if scales == "F16" or isinstance(codec, PackedInt) else "BF16"


def target(options: Quantize, sibling: bool) -> Target:
    """What ``options`` ask for."""
    return Target(
        options.scheme,
        options.block or (128, 128),
        options.group or 128,
        SCALE_DTYPES[options.scale_dtype or "f32"],
        sibling,
    )
