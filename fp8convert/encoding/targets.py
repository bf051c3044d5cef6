"""The schemes that can be written: which codec, which rule, which tensors, which config.

Sources: DeepSeek-V3 ``README_WEIGHTS.md`` (weight_scale_inv) and V4's ``.scale``; for the rest
compressed-tensors. docs/quantize.md says which engine takes which.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..codecs.blocks import Blocks
from ..codecs.fp4_block import Fp4Block
from ..codecs.fp8_block import Fp8Block, Int8Block, grid_shape
from ..codecs.packed_int import PackedInt
from ..codecs.raw import Raw
from ..codecs.window import whole_codec
from ..configout import compressed_config, native_fp8
from ..header import numel
from ..options import BLOCKS, SCALE_DTYPES, Quantize
from ..schemes.weight import Weight
from .encoder import Encoder, Part
from .rules import Amax, Local, MxPower, PowerUp, Rule

FP8, INT8, INT4 = 448.0, 127.5, 7.5  # divisors of amax: the largest code, or half a step beyond
OCTAVE = tuple(1 + k / 16 for k in range(1, 16))  # a float's errors repeat from there on
CLIPS = tuple(1 - k / 40 for k in range(1, 15))
OWN = ""  # a dtype: the weight's own


class Form(NamedTuple):
    """How a scheme is kept: a codec of what the options say, and the rule for a weight's dtype.

    ``codes``, ``scales`` and ``rest`` are suffix and dtype of tensors (``rest`` also the shape),
    ``per`` how many codes lie in an element.
    """

    codec: Callable[[Target], Blocks]
    rule: Callable[[str], Rule]
    codes: tuple[str, str] = ("", "F8_E4M3")
    per: int = 1
    scales: tuple[str, str] = ("_scale", "F32")
    rest: tuple[tuple[str, str, tuple[int, ...]], ...] = ()


FORMS = {
    "fp8-block": Form(lambda t: Fp8Block(t.block), lambda d: Amax(FP8, "F32", "F32", OCTAVE)),
    "fp8-block-ue8m0": Form(lambda t: Fp8Block(t.block), lambda d: PowerUp(FP8)),
    "fp8-channel": Form(lambda t: Fp8Block((1, None)), lambda d: Amax(FP8, d, "F32", OCTAVE)),
    "fp8-tensor": Form(lambda t: Fp8Block((None, None)), lambda d: Amax(FP8, d, "F32", OCTAVE)),
    "int8-channel": Form(
        lambda t: Int8Block((1, None)), lambda d: Amax(INT8, d, "F32", CLIPS), ("", "I8")
    ),
    "int4-group": Form(
        lambda t: PackedInt(4, t.group, ("shape",)),
        lambda d: Amax(INT4, d, d, CLIPS),
        ("_packed", "I32"),
        8,
        ("_scale", OWN),
        (("_shape", "I64", (2,)),),
    ),
    "nvfp4": Form(
        lambda t: Fp4Block(16, "divide"),
        Local,
        ("_packed", "U8"),
        2,
        ("_scale", "F8_E4M3"),
        (("_global_scale", "F32", (1,)),),
    ),
    "mxfp4": Form(
        lambda t: Fp4Block(32), lambda d: MxPower(6.0, 2), ("_packed", "U8"), 2, ("_scale", "U8")
    ),
    "mxfp8": Form(lambda t: Fp8Block((1, 32)), lambda d: MxPower(FP8, 8), scales=("_scale", "U8")),
}


@dataclass(frozen=True)
class Target:
    """A scheme with its options, for a model of dtype ``model``.

    ``sibling``: scales are named ``X.scale``, as V4's are.
    """

    scheme: str
    block: tuple[int, int] = (128, 128)
    group: int = 128
    scale_dtype: str = "F32"
    sibling: bool = False
    model: str = "BF16"

    @property
    def native(self) -> bool:
        """Whether the config says ``quant_method: fp8`` (else compressed-tensors)."""
        return self.scheme in BLOCKS

    @property
    def shares(self) -> bool:
        """Whether a tensor has a scale of its own, which partners share."""
        return self.scheme in ("fp8-tensor", "nvfp4")

    @cached_property
    def codec(self) -> Blocks:
        """What decodes it."""
        return FORMS[self.scheme].codec(self)

    @functools.cache  # noqa: B019 - few targets, and a weight's encoder is one of few objects
    def encoder(
        self, precision: str, stored: str, search: bool, inherit: bool, whole: str
    ) -> Encoder:
        """For a weight of dtype ``precision``; see :class:`Encoder` for the rest."""
        rule = FORMS[self.scheme].rule(precision)
        return Encoder(self.codec, rule, stored, search, inherit, whole)

    def misfit(self, weight: Weight) -> str | None:
        """Why the codec cannot hold ``weight``, or None."""
        shape = weight.shape
        if len(shape) != 2:
            return f"it has {len(shape)} axes, and the scheme takes matrices"
        if not numel(shape):
            return "it is empty"
        group = self.whole_groups
        if group and shape[1] % group:
            return f"its {shape[1]} columns do not divide into groups of {group}"
        return None

    @cached_property
    def whole_groups(self) -> int | None:
        """Columns of the groups that rows must divide into; None if any row will do."""
        codec = self.codec
        if isinstance(codec, Fp4Block | PackedInt):
            return codec.group
        return codec.block[1] if isinstance(codec, Fp8Block) and not self.native else None

    def parts(self, weight: Weight) -> tuple[Part, ...]:
        """The tensors of ``weight``, codes first."""
        form, (o, i) = FORMS[self.scheme], weight.shape
        block = self.codec.block_of((o, i))
        grid = (1,) if self.scheme == "fp8-tensor" else grid_shape((o, i), block)
        dtype = form.scales[1] or self.precision(weight)
        scale = f"{weight.name}{form.scales[0]}"
        if self.native:
            module, dtype = weight.name.rpartition(".")[0], self.scale_dtype
            scale = f"{module}.scale" if self.sibling else f"{weight.name}_scale_inv"
        return (
            Part(f"{weight.name}{form.codes[0]}", form.codes[1], (o, i // form.per)),
            Part(scale, dtype, grid),
            *(Part(f"{weight.name}{suffix}", kind, shape) for suffix, kind, shape in form.rest),
        )

    def precision(self, weight: Weight) -> str:
        """The dtype of ``weight`` as the model has it.

        Packed integers keep their scales in that dtype, so there they say what it is.
        """
        codec = whole_codec(weight.codec)
        if isinstance(codec, Raw):
            return weight.parts[0].dtype
        return weight.parts[1].dtype if isinstance(codec, PackedInt) else self.model

    def config(self, ignored: Sequence[str]) -> dict[str, Any]:
        """The ``quantization_config``; ``ignored`` are modules that are not encoded."""
        if self.native:
            form = "ue8m0" if self.scheme == "fp8-block-ue8m0" else None
            return native_fp8(self.block, form, ignored)
        group = self.group if self.scheme == "int4-group" else None
        return compressed_config(self.scheme, group, ignored)


def target(options: Quantize, sibling: bool, model: str) -> Target:
    """What ``options`` ask for; the rest as :class:`Target` has it."""
    return Target(
        options.scheme,
        options.block or (128, 128),
        options.group or 128,
        SCALE_DTYPES[options.scale_dtype or "f32"],
        sibling,
        model,
    )
