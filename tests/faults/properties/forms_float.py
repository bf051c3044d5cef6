"""8-bit floats in every form, as strategies."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...sharded.forms import compressed, fp8_config
from .codings import (
    E4M3,
    TABLES,
    Coded,
    Form,
    Kinds,
    Rng,
    as_part,
    by_magnitude,
    floats,
    grid_of,
    integers,
    product,
    spread,
)

BLOCKS = ((128, 128), (64, 64), (32, 32), (1, 128), (1, 32), (128, 1), (48, 80), (3, 7))
FMT = {
    "F8_E4M3": ("e4m3", "float8_e4m3fn"), "F8_E5M2": ("e5m2", "float8_e5m2"),
    "F8_E4M3FNUZ": ("e4m3fnuz",), "F8_E5M2FNUZ": ("e5m2fnuz",),
}  # fmt: skip
SCALE_TAGS = ("F32", "BF16", "F16", "F8_E8M0", "U8")


def eight_bits(
    module: str, rng: Rng, rows: int, columns: int, kinds: Kinds, *, tag: str = E4M3,
    block: tuple[int, int] = (0, 0), scale_tag: str = "F32", leaf: str = "weight_scale_inv",
    shape: tuple[int, ...] | None = None,
) -> Coded:  # fmt: skip
    """8-bit floats, ``block`` to a scale, 0 for the whole axis; ``shape`` is that of the grid."""
    block = (block[0] or rows, block[1] or columns)
    grid = grid_of(block, rows, columns)
    code = integers(rng, kinds.codes, by_magnitude(TABLES[tag]), (rows, columns)).astype(np.uint8)
    raw, scale = floats(rng, kinds.scales, scale_tag, grid)
    name = f"{module}.weight"
    parts = {name: as_part(tag, code), f"{module}.{leaf}": as_part(scale_tag, raw)}
    if shape is not None:
        parts[f"{module}.{leaf}"] = as_part(scale_tag, raw.reshape(shape))
    value = product(TABLES[tag][code], spread(scale, block, (rows, columns)))
    return Coded(name, parts, name, f"{module}.{leaf}", value)


@st.composite
def native(draw: st.DrawFn) -> Form:
    """``quant_method: fp8`` with a block."""
    block = draw(st.sampled_from(BLOCKS) | st.tuples(st.integers(1, 140), st.integers(1, 140)))
    tag, scale_tag = draw(st.sampled_from(list(FMT))), draw(st.sampled_from(SCALE_TAGS))
    leaf = draw(st.sampled_from(["weight_scale_inv", "weight_scale", "scale"]))
    said = fp8_config(None) | {"weight_block_size": list(block), "activation_scheme": "dynamic"}
    if draw(st.booleans()):
        said["fmt"] = draw(st.sampled_from(FMT[tag]))

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        return eight_bits(module, rng, rows, columns, kinds, tag=tag, block=block,
                          scale_tag=scale_tag, leaf=leaf)  # fmt: skip

    return Form(f"fp8 {tag} {scale_tag} {block} {leaf}", said, code)


@st.composite
def whole(draw: st.DrawFn) -> Form:
    """``quant_method: fp8`` without a block: one scale, or one a row, in any legal shape."""
    by_row = draw(st.booleans())
    flat = draw(st.booleans())
    scale_tag = draw(st.sampled_from(SCALE_TAGS[:3]))
    leaf = draw(st.sampled_from(["weight_scale_inv", "weight_scale", "qscale_weight"]))

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        shape: tuple[int, ...] = (rows,) if by_row else () if flat else (1,)
        if by_row and not flat:
            shape = (rows, 1)
        block = (1, 0) if by_row else (0, 0)
        return eight_bits(module, rng, rows, columns, kinds, block=block, scale_tag=scale_tag,
                          leaf=leaf, shape=shape)  # fmt: skip

    return Form(f"fp8 {'row' if by_row else 'tensor'} {scale_tag} {leaf}", fp8_config(None), code)


@st.composite
def ct_floats(draw: st.DrawFn) -> Form:
    """compressed-tensors' FP8: a tensor, a channel, a block or a group to a scale; MXFP8."""
    strategy = draw(st.sampled_from(["tensor", "channel", "block", "group", "mx"]))
    scale_tag = "U8" if strategy == "mx" else draw(st.sampled_from(SCALE_TAGS[:3]))
    size = 32 if strategy == "mx" else draw(st.sampled_from([8, 32, 64]))
    block = {"tensor": (0, 0), "channel": (1, 0), "block": (128, 128)}.get(strategy, (1, size))
    more: dict[str, Any] = {"group_size": size} if strategy in ("group", "mx") else {}
    if strategy == "block":
        more["block_structure"] = [128, 128]
    named = {"mx": "mxfp8-quantized"}.get(strategy, draw(st.sampled_from(
        ["float-quantized", "naive-quantized"])))  # fmt: skip
    said = {"mx": "group"}.get(strategy, strategy)

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        shape = (1,) if strategy == "tensor" else None
        return eight_bits(module, rng, rows, columns, kinds, block=block, scale_tag=scale_tag,
                          leaf="weight_scale", shape=shape)  # fmt: skip

    declared = compressed(named, num_bits=8, type="float", strategy=said, **more)
    return Form(f"ct {strategy} {scale_tag}", declared, code, (1, block[1] if more else 1))


@st.composite
def modelopt(draw: st.DrawFn) -> Form:
    """ModelOpt's FP8: a tensor, a row, a block [down, 1, across, 1] or 32 of a row to a scale."""
    algo = draw(st.sampled_from(["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8"]))
    block = {"FP8": (0, 0), "FP8_PB_WO": (128, 128), "MXFP8": (1, 32)}.get(algo, (1, 0))
    scale_tag = "U8" if algo == "MXFP8" else "F32"

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        down, across = grid_of((block[0] or rows, block[1] or columns), rows, columns)
        shape = {"FP8": (), "FP8_PB_WO": (down, 1, across, 1), "MXFP8": (down, across)}.get(
            algo, (rows,)
        )
        return eight_bits(module, rng, rows, columns, kinds, block=block, scale_tag=scale_tag,
                          leaf="weight_scale", shape=shape)  # fmt: skip

    said = {"quant_algo": algo, "quant_method": "modelopt", "ignore": []}
    return Form(f"modelopt {algo}", said, code, (1, 32 if algo == "MXFP8" else 1))


@st.composite
def experts(draw: st.DrawFn) -> Form:
    """Three matrices in one tensor, a grid of blocks for each."""
    block = draw(st.sampled_from(BLOCKS))
    scale_tag = draw(st.sampled_from(SCALE_TAGS[:4]))

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        each = [eight_bits(module, rng, rows, columns, kinds, block=block, scale_tag=scale_tag)
                for _ in range(3)]  # fmt: skip
        name = f"{module}.experts.gate_up_proj"
        parts = {}
        for leaf, of in (("", "codes"), ("_scale_inv", "scale")):
            found = [one.parts[getattr(one, of)] for one in each]
            tag, shape, _ = found[0]
            parts[name + leaf] = (tag, (3, *shape), b"".join(data for _, _, data in found))
        value = np.stack([one.value for one in each])
        return Coded(name, parts, name, f"{name}_scale_inv", value)

    said = fp8_config(None) | {"weight_block_size": list(block), "activation_scheme": "dynamic"}
    return Form(f"fp8 experts {scale_tag} {block}", said, code)
