"""Mistral's FP8: one scale a matrix and a static activation scale.

transformers' FP8Linear has ``weight_scale_inv`` 0-d and ``activation_scale`` 0-d where
``weight_block_size`` is null; its quantizer renames Mistral's own ``.qscale_weight``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import make
from .case import Builder, Case
from .formulas import values

QUANTIZATION: dict[str, Any] = {
    "activation_scheme": "static",
    "dequantize": False,
    "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    "quant_method": "fp8",
    "weight_block_size": None,
}
CONFIG: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 64,
    "model_type": "ministral3",
    "num_hidden_layers": 1,
    "quantization_config": QUANTIZATION,
}


def _linear(builder: Builder, module: str, scale: str, activation: str, dtype: Any) -> None:
    weight = make.codes(module, 24, 64)
    factor = make.number(module, dtype)
    builder.code(
        f"{module}.weight",
        {
            f"{module}.weight": weight,
            f"{module}.{scale}": factor,
            f"{module}.{activation}": make.number(module + activation, dtype),
        },
        values(weight) * factor.to(torch.float32),
    )


def hugging_face() -> Case:
    """``weight_scale_inv`` and ``activation_scale``, 0-d, BF16 or F32."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    for leaf, dtype in (("q_proj", torch.bfloat16), ("o_proj", torch.float32)):
        module = f"model.layers.0.self_attn.{leaf}"
        _linear(builder, module, "weight_scale_inv", "activation_scale", dtype)
    return builder.case("mistral/per-tensor", CONFIG, "torch's float8 dtypes, one product")


def native() -> Case:
    """Mistral's own names: ``qscale_weight`` and ``qscale_act``."""
    builder = Builder()
    builder.keep_all(
        {
            "tok_embeddings.weight": make.bf16("embed", 8, 64),
            "output.weight": make.bf16("head", 8, 64),
            "norm.weight": make.bf16("norm", 64),
            "layers.0.attention_norm.weight": make.bf16("attention_norm", 64),
        }
    )
    for module in ("layers.0.attention.wq", "layers.0.attention.wo", "layers.0.feed_forward.w1"):
        dtype = torch.float32 if module.endswith("w1") else torch.bfloat16
        _linear(builder, module, "qscale_weight", "qscale_act", dtype)
    params = {
        "dim": 64,
        "n_layers": 1,
        "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
    }
    return builder.case(
        "mistral/native",
        CONFIG | {"architectures": ["MistralLarge4ForCausalLM"], "model_type": "mistral4"},
        "torch's float8 dtypes, one product",
        sidecars={"params.json": params},
    )


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    return [hugging_face(), native()]
