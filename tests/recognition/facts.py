"""What a fact is, and the forms in which published checkpoints keep a weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fp8convert.codecs.base import Stored

Json = dict[str, Any]
Part = tuple[str, str, tuple[int, ...]]
"""A stored tensor: name, dtype, shape."""

BITS = {"F8_E4M3": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BF16": 16, "F16": 16}
BITS |= {"F32": 32, "I32": 32, "I64": 64}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@dataclass(frozen=True)
class Row:
    """One weight: the stored tensors that hold it, and what must be made of them.

    ``codec`` is None for a weight that is kept as it is. ``dropped`` are scales of activations.
    """

    name: str
    codec: Json | None
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    dropped: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Fact:
    """A checkpoint. ``cache`` are scales of the KV cache, which belong to no weight."""

    source: str
    scheme: Json
    rows: Sequence[Row]
    config: Json = field(default_factory=dict)
    sidecars: dict[str, Json] = field(default_factory=dict)
    where: str = "config.json: quantization_config"
    cache: tuple[Part, ...] = ()
    warnings: tuple[str, ...] = ()
    """A part of each expected warning."""

    @property
    def coded(self) -> list[Row]:
        """The rows that are decoded."""
        return [r for r in self.rows if r.codec is not None]

    @property
    def parts(self) -> Iterator[Part]:
        """Every stored tensor."""
        for row in self.rows:
            yield from row.parts
            yield from row.dropped
        yield from self.cache


def stored(parts: Iterable[Part]) -> dict[str, Stored]:
    """``parts`` as headers give them, one after another, dealt out over the shards."""
    found: dict[str, Stored] = {}
    ends = [0] * len(SHARDS)
    for number, (name, dtype, shape) in enumerate(parts):
        shard = number % len(SHARDS)
        count = 1
        for n in shape:
            count *= n
        end = ends[shard] + count * BITS[dtype] // 8
        assert name not in found, name
        found[name] = Stored(name, dtype, shape, shard, ends[shard], end)
        ends[shard] = end
    return found


def blocks(n: int, size: int = 128) -> int:
    """Blocks that cover ``n``."""
    return -(-n // size)


# What a codec says of itself.
def fp8(down: int | None, across: int | None) -> Json:
    """Eight-bit floats with a scale per block; None is the whole axis."""
    return {"codec": "fp8-block", "element": "e4m3fn", "block": [down, across]}


def fp4(group: int, combine: str = "none", signed_zero: bool = True) -> Json:
    """Four-bit floats with a scale per group."""
    return {"codec": "fp4-block", "group": group, "global": combine, "signed_zero": signed_zero}


# Rows. ``module`` is the name without its last part.
def raw(name: str, dtype: str, *shape: int) -> Row:
    """Kept as it is."""
    return Row(name, None, shape, ((name, dtype, shape),))


def bf16(name: str, *shape: int) -> Row:
    """Kept as it is."""
    return raw(name, "BF16", *shape)


def block_fp8(
    module: str, *shape: int, scale: str = "F32", leaf: str = "weight_scale_inv", size: int = 128
) -> Row:
    """e4m3 with a scale per ``size`` x ``size`` (of each expert, if there are three axes)."""
    name = f"{module}.weight"
    grid = (*shape[:-2], blocks(shape[-2], size), blocks(shape[-1], size))
    parts = (name, "F8_E4M3", shape), (f"{module}.{leaf}", scale, grid)
    return Row(name, fp8(size, size), shape, parts)


def mx_fp8(module: str, down: int, across: int, scale: str, leaf: str) -> Row:
    """e4m3 with an exponent per 32 of a row."""
    name = f"{module}.weight"
    parts = (
        (name, "F8_E4M3", (down, across)),
        (f"{module}.{leaf}", scale, (down, across // 32)),
    )
    return Row(name, fp8(1, 32), (down, across), parts)


def deepseek_fp4(module: str, down: int, across: int) -> Row:
    """Two e2m1 codes an I8, with an exponent per 32 of a row; code 8 is +0.0."""
    name = f"{module}.weight"
    parts = (
        (name, "I8", (down, across // 2)),
        (f"{module}.scale", "F8_E8M0", (down, across // 32)),
    )
    return Row(name, fp4(32, signed_zero=False), (down, across), parts)


def static_fp8(module: str, down: int, across: int, *leaves: str, dtype: str = "F32") -> Row:
    """e4m3 with one scale, and one for the inputs; ``leaves`` name the two."""
    name = f"{module}.weight"
    scale, inputs = leaves
    parts = (name, "F8_E4M3", (down, across)), (f"{module}.{scale}", dtype, ())
    dropped = ((f"{module}.{inputs}", dtype, ()),)
    return Row(name, fp8(None, None), (down, across), parts, dropped)


def modelopt_fp8(module: str, down: int, across: int) -> Row:
    """ModelOpt's FP8."""
    return static_fp8(module, down, across, "weight_scale", "input_scale")


def mistral_fp8(module: str, down: int, across: int) -> Row:
    """Mistral's FP8, in transformers' names."""
    leaves = "weight_scale_inv", "activation_scale"
    return static_fp8(module, down, across, *leaves, dtype="BF16")


def modelopt_nvfp4(module: str, down: int, across: int, inputs: bool = True) -> Row:
    """e2m1 with an e4m3 per 16, times a scale of the whole."""
    name = f"{module}.weight"
    parts = (
        (name, "U8", (down, across // 2)),
        (f"{module}.weight_scale", "F8_E4M3", (down, across // 16)),
        (f"{module}.weight_scale_2", "F32", ()),
    )
    dropped = ((f"{module}.input_scale", "F32", ()),) if inputs else ()
    return Row(name, fp4(16, "multiply"), (down, across), parts, dropped)


def packed_nvfp4(module: str, down: int, across: int) -> Row:
    """compressed-tensors' NVFP4: the scales are divided by the scale of the whole."""
    name = f"{module}.weight"
    parts = (
        (f"{name}_packed", "U8", (down, across // 2)),
        (f"{name}_scale", "F8_E4M3", (down, across // 16)),
        (f"{name}_global_scale", "F32", (1,)),
    )
    dropped = ((f"{module}.input_global_scale", "F32", (1,)),)
    return Row(name, fp4(16, "divide"), (down, across), parts, dropped)


def packed_mxfp4(module: str, down: int, across: int) -> Row:
    """compressed-tensors' MXFP4: an exponent in U8 per 32."""
    name = f"{module}.weight"
    parts = (
        (f"{name}_packed", "U8", (down, across // 2)),
        (f"{name}_scale", "U8", (down, across // 32)),
    )
    return Row(name, fp4(32), (down, across), parts)


def packed_int4(module: str, down: int, across: int) -> Row:
    """compressed-tensors' INT4: eight codes an I32, a BF16 scale per 32, and the shape."""
    name = f"{module}.weight"
    codec = {"codec": "packed-int", "bits": 4, "group": 32, "extra": ["shape"]}
    parts = (
        (f"{name}_packed", "I32", (down, across // 8)),
        (f"{name}_scale", "BF16", (down, across // 32)),
        (f"{name}_shape", "I32", (2,)),
    )
    return Row(name, codec, (down, across), parts)


def channel_fp8(module: str, down: int, across: int) -> Row:
    """compressed-tensors' FP8 with a scale a row."""
    name = f"{module}.weight"
    parts = (name, "F8_E4M3", (down, across)), (f"{name}_scale", "BF16", (down, 1))
    return Row(name, fp8(1, None), (down, across), parts)


def gpt_oss(name: str, experts: int, down: int, across: int) -> Row:
    """MXFP4 blocks of each output; decoded, inputs come before outputs."""
    parts = (
        (f"{name}_blocks", "U8", (experts, down, across // 32, 16)),
        (f"{name}_scales", "U8", (experts, down, across // 32)),
    )
    codec = {"codec": "mxfp4-transposed", "group": 32}
    return Row(name, codec, (experts, across, down), parts)
