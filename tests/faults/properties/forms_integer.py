"""Integers in every form, as strategies: compressed-tensors, AWQ and GPTQ."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...formats.awq import ORDER
from ...sharded.forms import compressed
from .codings import (
    Coded,
    Form,
    Kinds,
    Rng,
    as_part,
    floats,
    grid_of,
    integers,
    product,
    spread,
    words,
)
from .forms_float import SCALE_TAGS


@st.composite
def ct_ints(draw: st.DrawFn) -> Form:
    """compressed-tensors' integers, in bytes or words, with zero points or without."""
    in_words, asymmetric = draw(st.booleans()), draw(st.booleans())
    bits = draw(st.sampled_from([4, 8])) if in_words else 8
    size = draw(st.sampled_from([0, 32, 64]))
    tensor = not in_words and not size and draw(st.booleans())
    scale_tag = draw(st.sampled_from(SCALE_TAGS[:3]))
    strategy = "group" if size else "tensor" if tensor else "channel"
    more = {"group_size": size} if size else {}
    said = compressed(
        "pack-quantized" if in_words else "int-quantized",
        **{"num_bits": bits, "type": "int", "strategy": strategy, **more},
    )
    said["config_groups"]["group_0"]["weights"]["symmetric"] = not asymmetric
    half = 1 << bits - 1
    legal = np.array(sorted(range(-half, half), key=abs))

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        block = (rows if tensor else 1, size or columns)
        grid = (1,) if tensor else grid_of(block, rows, columns)
        signed = integers(rng, kinds.codes, legal, (rows, columns))
        raw, scale = floats(rng, kinds.scales, scale_tag, grid)
        zero = integers(rng, "all", legal, grid) if asymmetric else np.zeros(grid, np.int64)
        at = f"{module}.weight"
        parts = {f"{at}_scale": as_part(scale_tag, raw)}
        codes = f"{at}_packed" if in_words else at
        if in_words:
            parts[codes] = words(signed + half, bits)
            parts[f"{at}_shape"] = as_part("I64", np.array([rows, columns], np.int64))
            stored = words((zero + half).T, bits)
            raw_zero = np.frombuffer(stored[2], np.uint32).reshape(stored[1]).T
            stored = as_part("I32", np.ascontiguousarray(raw_zero))
        else:
            parts[codes] = as_part("I8", signed.astype(np.int8))
            stored = as_part("I8", zero.astype(np.int8))
        if asymmetric:
            parts[f"{at}_zero_point"] = stored
        flat = grid if len(grid) == 2 else (1, 1)
        wide = spread(scale.reshape(flat), block, (rows, columns))
        centred = signed - spread(zero.reshape(flat).astype(np.float32), block, (rows, columns))
        return Coded(at, parts, codes, f"{at}_scale", product(centred.astype(np.float32), wide))

    step = size or (32 // bits if in_words else 1)
    id = f"ct int{bits} {strategy} {'words' if in_words else 'bytes'} {scale_tag}"
    return Form(id + (" zeros" if asymmetric else ""), said, code, (1, step), signed=True)


@st.composite
def turned(draw: st.DrawFn) -> Form:
    """AWQ and GPTQ: stored input by output."""
    awq, group = draw(st.booleans()), draw(st.sampled_from([32, 64, 128]))
    bits = 4 if awq else draw(st.sampled_from([4, 8]))
    first, mixed = draw(st.booleans()), draw(st.booleans())
    scale_tag = draw(st.sampled_from(["F16", "BF16"]))

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        grid = (columns // group, rows)
        q = integers(rng, kinds.codes, np.arange(1 << bits), (columns, rows))
        low = 1 if first and not awq else 0  # the first format of GPTQ stores one less
        z = integers(rng, "all", np.arange(low, 1 << bits), grid)
        raw, scale = floats(rng, kinds.scales, scale_tag, grid)
        of = np.arange(columns) // group
        if mixed and not awq:
            of = rng.permutation(of)
        parts: dict[str, Any] = {f"{module}.scales": as_part(scale_tag, raw)}
        if awq:
            order = np.arange(rows).reshape(-1, 8)[:, ORDER].reshape(-1)
            parts[f"{module}.qweight"] = words(q[:, order], 4)
            parts[f"{module}.qzeros"] = words(z[:, order], 4)
        else:
            down = words(q.T, bits)
            raw_q = np.frombuffer(down[2], np.uint32).reshape(down[1]).T
            parts[f"{module}.qweight"] = as_part("I32", np.ascontiguousarray(raw_q))
            parts[f"{module}.qzeros"] = words(z - low, bits)
            parts[f"{module}.g_idx"] = as_part("I32", of.astype(np.int32))
        value = product((q - z[of]).astype(np.float32), scale[of])
        name = f"{module}.weight"
        value = np.ascontiguousarray(value.T)
        return Coded(name, parts, f"{module}.qweight", f"{module}.scales", value)

    said: dict[str, Any] = {"bits": bits, "group_size": group}
    if awq:
        said |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
    else:
        said |= {"quant_method": "gptq", "desc_act": mixed, "sym": False,
                 "checkpoint_format": "gptq" if first else "gptq_v2"}  # fmt: skip
    return Form(f"{'awq' if awq else 'gptq'} {bits} {group} {scale_tag}", said, code, (8, group),
                signed=True)  # fmt: skip
