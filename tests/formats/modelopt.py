"""NVIDIA ModelOpt: FP8, block FP8, NVFP4, MXFP8, alone and mixed.

``modelopt/torch/quantization/qtensor``: FP8 weight = code * weight_scale; NVFP4 block scale =
float32(e4m3 weight_scale) * weight_scale_2, weight = code * block scale.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import make
from .case import Builder, Case
from .deepseek_v4 import dense, expert
from .formulas import E2M1, by_block, exponents, nibbles, pack_nibbles, values

LAYER = "model.layers.0"
PRODUCER = {"name": "modelopt", "version": "0.31.0"}


def config(quantization: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config.json, with or without a quantization_config."""
    out: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 256,
        "model_type": "qwen3",
        "num_hidden_layers": 1,
        "torch_dtype": "bfloat16",
    }
    return out if quantization is None else out | {"quantization_config": quantization}


def inline(algo: str, bits: int = 8, **more: Any) -> dict[str, Any]:
    """A quantization_config as the unified export writes it."""
    tensor = {"dynamic": False, "num_bits": bits, "type": "float"}
    if bits == 4:
        tensor["group_size"] = 16
    section = {"input_activations": tensor, "weights": tensor, "targets": ["Linear"]}
    return {
        "config_groups": {"group_0": section},
        "ignore": ["lm_head", f"{LAYER}.mlp.gate*"],
        "quant_algo": algo,
        "producer": PRODUCER,
        "quant_method": "modelopt",
    } | more


def sidecar(algo: str, **more: Any) -> dict[str, dict[str, Any]]:
    """hf_quant_config.json."""
    quantization = {
        "quant_algo": algo,
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head"],
    } | more
    return {"hf_quant_config.json": {"producer": PRODUCER, "quantization": quantization}}


def per_tensor(builder: Builder, module: str, rows: int = 24, columns: int = 40) -> None:
    """FP8 with one scale, 0-d, and a static input scale."""
    weight, scale = make.codes(module, rows, columns), make.number(module)
    parts = {
        f"{module}.weight": weight,
        f"{module}.weight_scale": scale,
        f"{module}.input_scale": make.number(module + "in"),
    }
    builder.code(f"{module}.weight", parts, values(weight) * scale)


def per_channel(builder: Builder, module: str, rows: int, columns: int) -> None:
    """FP8_PER_CHANNEL_PER_TOKEN: one scale a row, 1-d [o]."""
    weight, scale = make.codes(module, rows, columns), make.scales(module, rows)
    value = torch.stack([values(weight[r]) * scale[r] for r in range(rows)])
    builder.code(
        f"{module}.weight", {f"{module}.weight": weight, f"{module}.weight_scale": scale}, value
    )


def per_block(builder: Builder, module: str, rows: int, columns: int) -> None:
    """FP8_PB_WO: 128x128 blocks, the scale stored [rows of blocks, 1, columns of blocks, 1]."""
    weight = make.codes(module, rows, columns)
    scale = make.scales(module, -(-rows // 128), -(-columns // 128))
    builder.code(
        f"{module}.weight",
        {f"{module}.weight": weight, f"{module}.weight_scale": scale[:, None, :, None].clone()},
        by_block(values(weight), scale, (128, 128)),
    )


def nvfp4(
    builder: Builder,
    module: str,
    rows: int = 24,
    columns: int = 96,
    second: torch.Tensor | None = None,
) -> None:
    """Packed e2m1, an e4m3 scale for 16 inputs, one F32 scale for all."""
    packed = pack_nibbles(make.integers(module, 0, 16, rows, columns))
    scale = make.codes(module, rows, columns // 16).view(torch.uint8) & 0x7F
    scale[(scale == 0) | (scale == 0x7F)] = 1
    first = scale.view(make.E4M3)
    second = make.number(module) if second is None else second
    parts = {
        f"{module}.weight": packed,
        f"{module}.weight_scale": first,
        f"{module}.weight_scale_2": second,
        f"{module}.input_scale": make.number(module + "in"),
    }
    block = values(first) * second
    builder.code(f"{module}.weight", parts, by_block(E2M1[nibbles(packed)], block, (1, 16)))


def mxfp8(builder: Builder, module: str, rows: int, columns: int) -> None:
    """F8_E4M3 and U8 exponents [o, i/32]."""
    weight, power = make.codes(module, rows, columns), make.powers(module, rows, columns // 32)
    builder.code(
        f"{module}.weight",
        {f"{module}.weight": weight, f"{module}.weight_scale": power},
        by_block(values(weight), exponents(power), (1, 32)),
    )


def kv_scales(builder: Builder) -> None:
    """KV cache scales, where ModelOpt's export puts them."""
    for leaf in ("k", "v"):
        name = f"{LAYER}.self_attn.{leaf}_proj.{leaf}_scale"
        builder.drop({name: make.number(name)})


def _start() -> Builder:
    builder = Builder()
    builder.keep_all(make.bystanders())
    return builder


def fp8_cases() -> list[Case]:
    """FP8 in its forms."""
    oracle = "torch's float8 dtypes, one product"
    builder = _start()
    for leaf in ("q", "k", "v"):
        per_tensor(builder, f"{LAYER}.self_attn.{leaf}_proj")
    kv_scales(builder)
    only_sidecar = builder.case(
        "modelopt/fp8-sidecar", config(), oracle, sidecar("FP8", kv_cache_quant_algo="FP8")
    )

    builder = _start()
    per_tensor(builder, f"{LAYER}.mlp.up_proj", 1, 256)
    per_tensor(builder, f"{LAYER}.mlp.down_proj", 33, 1)
    section = inline("FP8", kv_cache_scheme="FP8")
    del section["quant_method"]  # as ModelOpt 0.31 wrote it
    inside = builder.case("modelopt/fp8-inline", config(section), oracle, sidecar("FP8"))

    builder = _start()
    per_channel(builder, f"{LAYER}.mlp.up_proj", 24, 40)
    per_channel(builder, f"{LAYER}.mlp.down_proj", 7, 129)
    algo = "FP8_PER_CHANNEL_PER_TOKEN"
    channel = builder.case("modelopt/fp8-channel", config(inline(algo)), oracle)

    builder = _start()
    for number, (rows, columns) in enumerate(((256, 128), (192, 200), (1, 128), (300, 130))):
        per_block(builder, f"{LAYER}.mlp.experts.{number}.up_proj", rows, columns)
    block = builder.case(
        "modelopt/fp8-pb-wo", config(), "plain loop over blocks", sidecar("FP8_PB_WO")
    )
    return [only_sidecar, inside, channel, block]


def small_cases() -> list[Case]:
    """NVFP4, MXFP8 and mixtures."""
    builder = _start()
    for leaf, rows, columns in (("up_proj", 24, 96), ("down_proj", 1, 64), ("gate_proj", 9, 16)):
        nvfp4(builder, f"{LAYER}.mlp.experts.0.{leaf}", rows, columns)
    nvfp4(builder, f"{LAYER}.mlp.experts.1.up_proj", second=torch.tensor(2.0**-9))
    kv_scales(builder)
    kv = {"dynamic": False, "num_bits": 8, "type": "float"}
    section = inline("NVFP4", 4, kv_cache_scheme=kv)
    oracle = "ModelOpt's NVFP4QTensor.dequantize as a formula"
    four = builder.case(
        "modelopt/nvfp4",
        config(section),
        oracle,
        sidecar("NVFP4", group_size=16, kv_cache_quant_algo="FP8"),
        shards=3,
    )

    builder = _start()
    for leaf, rows, columns in (("up_proj", 24, 96), ("down_proj", 1, 256)):
        mxfp8(builder, f"{LAYER}.mlp.{leaf}", rows, columns)
    nested = {"quant_method": "modelopt", "quantization": {"quant_algo": "MXFP8"}}
    eight = builder.case("modelopt/mxfp8", config(nested), "plain loop over blocks")

    builder = _start()
    per_tensor(builder, f"{LAYER}.linear_attn.out_proj")
    nvfp4(builder, f"{LAYER}.mlp.experts.0.up_proj")
    nvfp4(builder, f"{LAYER}.mlp.shared_expert.up_proj")
    mxfp8(builder, f"{LAYER}.self_attn.q_proj", 24, 96)
    layers = {
        f"{LAYER}.linear_attn.out_proj": {"quant_algo": "FP8"},
        f"{LAYER}.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        f"{LAYER}.mlp.shared_expert.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
        f"{LAYER}.self_attn.q_proj": {"quant_algo": "MXFP8", "group_size": 32},
    }
    section = inline("MIXED_PRECISION", quantized_layers=layers)
    mixed = builder.case("modelopt/mixed", config(section), oracle)
    return [four, eight, mixed, deepseek_v4()]


def deepseek_v4() -> Case:
    """NVIDIA's DeepSeek-V4: NVFP4 experts beside V4's own forms, declared ``fp8`` all the same."""
    builder = Builder()
    builder.keep_all(
        {
            "embed.weight": make.bf16("embed", 8, 256),
            "head.weight": make.bf16("head", 8, 256),
            "layers.0.attn.attn_sink": make.f32("sink", 4),
            "layers.0.ffn.gate.tid2eid": make.integers("tid2eid", 0, 9, 8, 2),
        }
    )
    dense(builder, "layers.0.attn.wq_a", 128, 256)
    dense(builder, "layers.0.ffn.shared_experts.w1", 128, 128)
    second = make.number("shared by w1 and w3")
    for leaf in ("w1", "w3"):
        nvfp4(builder, f"layers.0.ffn.experts.0.{leaf}", 24, 96, second.clone())
    expert(builder, "mtp.0.ffn.experts.0.w1", 24, 96)
    section = inline(
        "MIXED_PRECISION",
        4,
        activation_scheme="dynamic",
        fmt="e4m3",
        group_size=16,
        ignore=["*.attn.*", "*.ffn.shared_experts.*", "head", "mtp.*"],
        moe_quant_algo="NVFP4",
        quant_method="fp8",
        quantized_layers={"layers.0.ffn.experts": {"group_size": 16, "quant_algo": "NVFP4"}},
        scale_fmt="ue8m0",
        weight_block_size=[128, 128],
    )
    made = config(section) | {"model_type": "deepseek_v4", "expert_dtype": "fp4"}
    return builder.case("modelopt/deepseek-v4-mixed", made, "plain loops over blocks")


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    return [*fp8_cases(), *small_cases()]
