"""4-bit floats in every form, as strategies."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from ...quantized.oracle import F32
from ...sharded.forms import compressed, fp8_config
from .codings import (
    DEEPSEEK,
    E2M1,
    E4M3,
    TABLES,
    Array,
    Coded,
    Form,
    Kinds,
    Rng,
    as_part,
    by_magnitude,
    floats,
    integers,
    nibbles,
    product,
    spread,
)


def _four_bits(
    rng: Rng, kinds: Kinds, rows: int, columns: int, table: F32 = TABLES[E2M1]
) -> tuple[Array, F32]:
    order = by_magnitude(TABLES[E2M1])
    code = integers(rng, kinds.codes, order, (rows, columns)).astype(np.uint8)
    return nibbles(code), table[code]


@st.composite
def nvfp4(draw: st.DrawFn) -> Form:
    """NVFP4, of compressed-tensors (the global scale divides) or ModelOpt (it multiplies)."""
    divides = draw(st.booleans())

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        raw, numbers = _four_bits(rng, kinds, rows, columns)
        local = integers(rng, "all", np.arange(1, 127), (rows, columns // 16)).astype(np.uint8)
        top = rng.uniform(1, 2) * 2.0 ** int(rng.integers(-8, 9))
        whole = np.array(top, np.float32)
        at = f"{module}.weight"
        codes = f"{at}_packed" if divides else at
        parts = {codes: as_part("U8", raw), f"{at}_scale": as_part(E4M3, local)}
        second = f"{at}_global_scale" if divides else f"{at}_scale_2"
        parts[second] = as_part("F32", whole.reshape(1) if divides else whole)
        scale = TABLES[E4M3][local]
        scale = scale / whole if divides else scale * whole
        value = product(numbers, spread(scale, (1, 16), (rows, columns)))
        return Coded(at, parts, codes, f"{at}_scale", value)

    said = compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group",
                      group_size=16)  # fmt: skip
    modelopt = {"quant_algo": "NVFP4", "quant_method": "modelopt", "group_size": 16, "ignore": []}
    return Form("ct nvfp4" if divides else "modelopt nvfp4", said if divides else modelopt, code,
                (1, 16))  # fmt: skip


@st.composite
def mxfp4(draw: st.DrawFn) -> Form:
    """MXFP4, of compressed-tensors or of DeepSeek V4's experts."""
    deepseek = draw(st.booleans())

    def code(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
        table = DEEPSEEK if deepseek else TABLES[E2M1]
        raw, numbers = _four_bits(rng, kinds, rows, columns, table)
        byte, scale = floats(rng, kinds.scales, "U8", (rows, columns // 32))
        at = f"{module}.weight"
        codes, scales = (at, f"{module}.scale") if deepseek else (f"{at}_packed", f"{at}_scale")
        parts = {codes: as_part("I8" if deepseek else "U8", raw),
                 scales: as_part("F8_E8M0" if deepseek else "U8", byte)}  # fmt: skip
        value = product(numbers, spread(scale, (1, 32), (rows, columns)))
        return Coded(at, parts, codes, scales, value)

    said = compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group",
                      group_size=32)  # fmt: skip
    v4 = fp8_config(128, fmt="e4m3", scale_fmt="ue8m0")
    return Form("v4 mxfp4" if deepseek else "ct mxfp4", v4 if deepseek else said, code, (1, 32))


def _gpt_oss(module: str, rng: Rng, rows: int, columns: int, kinds: Kinds) -> Coded:
    """Two experts, decoded to [E, in, out]."""
    name = f"{module}.experts.down_proj"
    order = by_magnitude(TABLES[E2M1])
    code = integers(rng, kinds.codes, order, (2, rows, columns // 32, 32)).astype(np.uint8)
    byte, scale = floats(rng, kinds.scales, "U8", (2, rows, columns // 32))
    value = product(TABLES[E2M1][code], scale[..., None]).reshape(2, rows, columns)
    parts = {f"{name}_blocks": as_part("U8", nibbles(code)), f"{name}_scales": as_part("U8", byte)}
    turned = np.ascontiguousarray(value.swapaxes(1, 2))
    return Coded(name, parts, f"{name}_blocks", f"{name}_scales", turned)


GPT_OSS = Form("gpt-oss", {"quant_method": "mxfp4"}, _gpt_oss, (1, 32))
