"""DeepSeek-V4: sibling ``.scale`` names, FP8 blocks beside I8-packed MXFP4 experts.

Names and dtypes as in transformers' deepseek_v4 conversion mapping and the released
``inference/model.py``; V4.1's 1x32 embedding tables as in NeMo AutoModel's deepseek_v41 adapter.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import make
from .case import Builder, Case, Tensors
from .formulas import E2M1_DEEPSEEK, by_block, exponents, nibbles, pack_nibbles, values

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "compress_ratios": [0, 4, 0],
    "expert_dtype": "fp4",
    "hc_mult": 4,
    "hidden_size": 256,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 128,
    "n_routed_experts": 2,
    "num_hash_layers": 1,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 1,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "torch_dtype": "bfloat16",
}


def dense(
    builder: Builder,
    module: str,
    rows: int,
    columns: int,
    block: tuple[int, int] = (128, 128),
    scale_dtype: torch.dtype = make.E8M0,
) -> None:
    """An FP8 linear layer with power-of-two scales."""
    weight = make.codes(module, rows, columns)
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    power = make.powers(module, *grid)
    scale = exponents(power)
    stored = power.view(make.E8M0) if scale_dtype == make.E8M0 else scale.to(scale_dtype)
    builder.code(
        f"{module}.weight",
        {f"{module}.weight": weight, f"{module}.scale": stored},
        by_block(values(weight), scale, block),
    )


def expert(builder: Builder, module: str, rows: int, columns: int) -> None:
    """An MXFP4 expert: I8 [o, i/2], F8_E8M0 [o, i/32]; code 8 is +0.0 in DeepSeek's own table."""
    code = make.integers(module, 0, 16, rows, columns)
    power = make.powers(module, rows, columns // 32)
    packed = pack_nibbles(code).view(torch.int8)
    value = by_block(E2M1_DEEPSEEK[nibbles(packed)], exponents(power), (1, 32))
    builder.code(
        f"{module}.weight",
        {f"{module}.weight": packed, f"{module}.scale": power.view(make.E8M0)},
        value,
    )


def globals_and_layer(layer: str, hash_table: bool) -> Tensors:
    """The tensors that are not quantized, among them names that end in ``scale``."""
    out = {
        "embed.weight": make.bf16("embed", 8, 256),
        "head.weight": make.bf16("head", 8, 256),
        "norm.weight": make.bf16("norm", 256),
        "hc_head_fn": make.f32("hc_head_fn", 4, 64),
        "hc_head_base": make.f32("hc_head_base", 4),
        "hc_head_scale": make.f32("hc_head_scale", 1),
        f"{layer}.attn_norm.weight": make.bf16(layer, 256),
        f"{layer}.hc_attn_fn": make.f32(layer + "fn", 24, 64),
        f"{layer}.hc_attn_scale": make.f32(layer + "scale", 3),
        f"{layer}.attn.attn_sink": make.f32(layer + "sink", 4),
        f"{layer}.attn.compressor.ape": make.f32(layer + "ape", 4, 16),
        f"{layer}.attn.q_l2_clip.scale": make.f32(layer + "clip", 1),
        f"{layer}.ffn.gate.weight": make.bf16(layer + "gate", 2, 256),
    }
    if hash_table:
        out[f"{layer}.ffn.gate.tid2eid"] = make.integers(layer, 0, 1 << 33, 8, 2)
    else:
        out[f"{layer}.ffn.gate.bias"] = make.f32(layer + "gate.bias", 2)
    return out


def flash() -> Case:
    """F8_E8M0 scales everywhere, packed experts."""
    builder = Builder()
    builder.keep_all(globals_and_layer("layers.0", hash_table=True))
    builder.keep_all(globals_and_layer("layers.1", hash_table=False))
    for module, rows, columns in (
        ("layers.0.attn.wq_a", 128, 256),
        ("layers.0.attn.wkv", 256, 128),
        ("layers.1.attn.indexer.wq_b", 128, 128),
        ("layers.1.ffn.shared_experts.w1", 128, 256),
        ("mtp.0.e_proj", 256, 256),
    ):
        dense(builder, module, rows, columns)
    for number in range(2):
        expert(builder, f"layers.1.ffn.experts.{number}.w1", 128, 256)
        expert(builder, f"layers.1.ffn.experts.{number}.w2", 64, 128)
    expert(builder, "mtp.0.ffn.experts.0.w3", 1, 64)
    return builder.case("deepseek-v4/flash", CONFIG, "transformers Fp8Dequantize", shards=3)


def base() -> Case:
    """V4-*-Base: F32 scales that are powers of two, experts FP8; here with a ragged edge."""
    builder = Builder()
    builder.keep_all(globals_and_layer("layers.0", hash_table=False))
    for module, rows, columns in (
        ("layers.0.attn.wq_a", 192, 200),
        ("layers.0.ffn.shared_experts.w2", 256, 128),
        ("layers.0.ffn.experts.0.w1", 128, 256),
        ("layers.0.ffn.experts.1.w2", 256, 128),
    ):
        dense(builder, module, rows, columns, scale_dtype=torch.float32)
    config = CONFIG | {"expert_dtype": "fp8"}
    return builder.case("deepseek-v4/base", config, "plain loop over blocks")


def v41() -> Case:
    """Blocks of 32x32, packed experts, an embedding table with a scale per 1x32 (undeclared)."""
    builder = Builder()
    builder.keep_all(globals_and_layer("layers.0", hash_table=False))
    dense(builder, "layers.0.attn.wq_a", 96, 160, (32, 32))
    dense(builder, "layers.0.attn.wo_b", 40, 72, (32, 32))
    dense(builder, "layers.0.engram.wkv", 64, 64, (32, 32))
    dense(builder, "layers.0.engram.embed", 75, 256, (1, 32))
    expert(builder, "layers.0.ffn.experts.0.w1", 48, 160)
    quantization = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [32, 32],
        "scale_fmt": "ue8m0",
        "expert_dtype": "fp4",
    }
    text = {"hidden_size": 160, "model_type": "deepseek_v41_text", "num_hidden_layers": 1}
    config = {
        "architectures": ["DeepseekV41ForConditionalGeneration"],
        "model_type": "deepseek_v41",
        "quantization_config": quantization,
        "text_config": text,
    }
    return builder.case("deepseek-v4/v41", config, "plain loop over blocks")


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    return [flash(), base(), v41()]
