"""``quant_method: fp8``: every shape and dtype of ``weight_scale_inv`` seen in the wild.

The scale multiplies, despite its name: DeepSeek-V3 README_WEIGHTS.md and ``inference/kernel.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from . import make
from .case import Builder, Case
from .formulas import by_block, exponents, values

RAGGED = ((300, 200), (130, 260), (1, 256), (192, 1), (64, 40), (128, 128))
LAYER = "model.layers.0"


def config(block: Iterable[int] | None = (128, 128), **more: Any) -> dict[str, Any]:
    """A config.json with this weight_block_size."""
    quantization = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": None if block is None else list(block),
    } | more
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 256,
        "model_type": "qwen3",
        "num_hidden_layers": 1,
        "quantization_config": {k: v for k, v in quantization.items() if v != "absent"},
        "torch_dtype": "bfloat16",
    }


def blocks(
    id: str,
    config: dict[str, Any],
    scale_dtype: torch.dtype,
    block: tuple[int, int] = (128, 128),
    shapes: Iterable[tuple[int, int]] = RAGGED,
    code_dtype: torch.dtype = make.E4M3,
    power_of_two: bool = False,
) -> Case:
    """A layer of matrices of these shapes."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    for number, (rows, columns) in enumerate(shapes):
        name = f"{LAYER}.mlp.experts.{number}.up_proj.weight"
        weight = make.codes(name, rows, columns, dtype=code_dtype)
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if scale_dtype in (torch.uint8, make.E8M0):
            power = make.powers(name, *grid)
            stored, scale = power.view(scale_dtype), exponents(power)
        elif power_of_two:
            stored = scale = exponents(make.powers(name, *grid))
        else:
            stored = make.scales(name, *grid, dtype=scale_dtype)
            scale = stored.to(torch.float32)
        builder.code(
            name,
            {name: weight, f"{name}_scale_inv": stored},
            by_block(values(weight), scale, block),
        )
    if scale_dtype in (torch.uint8, make.E8M0):
        name = f"{LAYER}.self_attn.o_proj.weight"
        weight = make.small_codes(name, 32, 64, dtype=code_dtype)
        grid = (-(-32 // block[0]), -(-64 // block[1]))
        top = torch.full(grid, 254, dtype=torch.uint8)
        builder.code(
            name,
            {name: weight, f"{name}_scale_inv": top.view(scale_dtype)},
            by_block(values(weight), exponents(top), block),
        )
    return builder.case(f"fp8/{id}", config, "plain loop over blocks")


def whole(id: str, config: dict[str, Any], scale_name: str, kind: str) -> Case:
    """One scale for a matrix, 0-d or [1], or one for every row, [out, 1]."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    for number, (rows, columns) in enumerate(((24, 40), (7, 129), (1, 256), (33, 1))):
        module = f"{LAYER}.self_attn.proj_{number}"
        weight = make.codes(module, rows, columns)
        shape = {"0-d": (), "1": (1,), "channel": (rows, 1)}[kind]
        dtype = torch.float32 if number % 2 else torch.bfloat16
        scale = make.scales(module, *shape, dtype=dtype)
        parts = {f"{module}.weight": weight, f"{module}.{scale_name}": scale}
        if scale_name == "weight_scale":
            parts[f"{module}.input_scale"] = make.number(module + "input")
        wide = scale.to(torch.float32)
        rowwise = [
            values(weight[r]) * (wide[r] if kind == "channel" else wide) for r in range(rows)
        ]
        builder.code(f"{module}.weight", parts, torch.stack(rowwise))
    return builder.case(f"fp8/{id}", config, "torch's float8 dtypes, one product")


def fused() -> Case:
    """3-D experts as transformers' FP8Experts holds them: a grid of blocks for every expert.

    192 rows and 3 experts: one matrix of 576 rows would have 5 rows of blocks, not 3 x 2.
    """
    builder = Builder()
    builder.keep_all(make.bystanders())
    for leaf, rows, columns in (("gate_up_proj", 192, 160), ("down_proj", 160, 96)):
        name = f"{LAYER}.mlp.experts.{leaf}"
        weight = make.codes(name, 3, rows, columns)
        scale = make.scales(name, 3, -(-rows // 128), -(-columns // 128))
        value = torch.stack([by_block(values(weight[e]), scale[e], (128, 128)) for e in range(3)])
        builder.code(name, {name: weight, f"{name}_scale_inv": scale}, value)
    return builder.case("fp8/fused-experts", config(), "plain loop over experts and blocks")


def _with_scale(builder: Builder, name: str, weight: torch.Tensor, scale: float) -> None:
    factor = torch.full((1, 1), scale)
    value = by_block(values(weight), factor, (128, 128))
    builder.code(name, {name: weight, f"{name}_scale_inv": factor}, value)


def extremes() -> Case:
    """F32 scales whose products reach the ends of BF16: subnormals, zero, nearly the largest."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    for number, scale in enumerate((1.3 * 2.0**-126, 3e-45, 7.5e35, 1.0)):
        name = f"{LAYER}.mlp.experts.{number}.up_proj.weight"
        _with_scale(builder, name, make.codes(name, 16, 128), scale)
    return builder.case("fp8/f32-extremes", config(), "torch's float8 dtypes, one product")


def overflow() -> Case:
    """Not in :func:`cases`: products beyond BF16, in F32 already (1) or by the rounding (0)."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    for number, scale in enumerate((3.398e38 / 448, 1e36)):
        name = f"{LAYER}.mlp.experts.{number}.up_proj.weight"
        _with_scale(builder, name, make.codes(name, 16, 128), scale)
    return builder.case("fp8/overflow", config(), "torch's float8 dtypes, one product")


def zero_blocks() -> Case:
    """Not in :func:`cases`: a scale of 0 over codes that are all 0 decodes to zeros."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    name = f"{LAYER}.mlp.up_proj.weight"
    _with_scale(builder, name, torch.zeros(16, 128, dtype=torch.uint8).view(make.E4M3), 0.0)
    return builder.case("fp8/zero-block", config(), "one product")


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    f32, aligned = torch.float32, ((96, 160), (64, 32), (32, 256))
    static = {"activation_scheme": "static", "fmt": "absent"}
    fnuz = [
        blocks(f"{fmt}-f32", config(fmt=fmt), f32, shapes=((150, 140), (16, 256)), code_dtype=dtype)
        for fmt, dtype in (
            ("e5m2", torch.float8_e5m2),
            ("e4m3fnuz", torch.float8_e4m3fnuz),
            ("e5m2fnuz", torch.float8_e5m2fnuz),
        )
    ]
    return [
        blocks("f32-128x128", config(), f32),
        blocks("f32-ue8m0", config(scale_fmt="ue8m0"), f32, power_of_two=True),
        blocks("bf16-128x128", config(fmt="absent"), torch.bfloat16),
        blocks("f16-128x128", config(fmt="float8_e4m3fn"), torch.float16),
        blocks("e8m0-128x128", config(scale_fmt="ue8m0"), make.E8M0),
        blocks("e8m0-32x32", config((32, 32)), make.E8M0, (32, 32), ((96, 160), (33, 70))),
        blocks("e8m0-1x32", config((1, 32)), make.E8M0, (1, 32), aligned),
        blocks("u8-1x32", config((1, 32), fmt="absent"), torch.uint8, (1, 32), aligned),
        blocks("u8-1x32-ragged", config((1, 32)), torch.uint8, (1, 32), ((8, 40), (3, 257))),
        *fnuz,
        whole("per-tensor-0d", config(None, **static), "weight_scale_inv", "0-d"),
        whole("per-tensor-1", config(None, **static), "weight_scale_inv", "1"),
        whole("per-channel", config(None), "weight_scale_inv", "channel"),
        whole("per-tensor-weight-scale", config(None, **static), "weight_scale", "0-d"),
        fused(),
        extremes(),
    ]
