"""DeepSeek-V3 as NVIDIA ModelOpt stores it in NVFP4: dense MLPs and all experts, not attention.

Sources: config.json and hf_quant_config.json of nvidia/DeepSeek-V3-0324-NVFP4, tensors of
nvidia/DeepSeek-R1-0528-FP4. Codes are e2m1, two a byte; each 16 inputs have an e4m3 scale, which
is multiplied by a float32 scale of the whole weight; ``input_scale`` is for activations. Weights
that run fused share the last two. config.json does not mention quantization; the MTP layer has
none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from . import deepseek_v3
from .spec import PLAIN, Part, Sample, Storage, Weight, chosen, plain
from .tokenizer import small_files

PUBLISHED: dict[str, Any] = {
    key: value for key, value in deepseek_v3.PUBLISHED.items() if key != "quantization_config"
}
TINY: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "hidden_size": 192,
    "intermediate_size": 528,  # 33 groups
    "kv_lora_rank": 128,
    "moe_intermediate_size": 176,
    "n_group": 4,
    "n_routed_experts": 16,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "topk_group": 2,
    "vocab_size": 1024,
}
SMALL: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 4,
    "num_key_value_heads": 16,
    "q_lora_rank": 768,
    "vocab_size": 16384,
}
# size -> (changed fields, bytes that close a shard)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 2_000_000),
    "small": (SMALL, 160_000_000),
}
NVFP4 = Storage(
    Part("", "U8", "e2m1", (1, 2)),
    (
        Part(".weight_scale", "F8_E4M3", "nvfp4 scales", (1, 16)),
        Part(".weight_scale_2", "F32", "nvfp4 tensor scale", None, shared=True),
    ),
    (Part(".input_scale", "F32", "input scale", None, shared=True),),
)
BF16 = plain("BF16", "matrix")
STORAGES = {**PLAIN, "linear": BF16, "mlp": NVFP4, "expert": NVFP4}


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny or small. Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("modelopt-nvfp4", SIZES, size)
    config = PUBLISHED | changed
    quantization = {
        "producer": {"name": "modelopt", "version": "0.27.0"},
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": 16,
            "exclude_modules": [*_plain_modules(config)],
        },
    }
    return Sample(
        config,
        tuple(_model(config)),
        STORAGES,
        small_files(),
        shard_bytes,
        coded_files={"hf_quant_config.json": json.dumps(quantization, indent=4) + "\n"},
    )


def _model(c: dict[str, Any]) -> Iterator[Weight]:
    """DeepSeek-V3's weights; those of the MTP layer are all plain."""
    mtp = tuple(_mtp_layers(c))
    for weight in deepseek_v3.model(c):
        coded = weight.kind in ("mlp", "expert") and weight.name.startswith(mtp)
        yield replace(weight, kind="linear") if coded else weight


def _mtp_layers(c: dict[str, Any]) -> Iterator[str]:
    layers = c["num_hidden_layers"]
    for n in range(layers, layers + c["num_nextn_predict_layers"]):
        yield f"model.layers.{n}."


def _plain_modules(c: dict[str, Any]) -> Iterator[str]:
    """Patterns with a trailing star, as ModelOpt writes them."""
    yield from ("lm_head", "model.embed_tokens", "model.norm")
    for n in range(c["num_hidden_layers"]):
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn*"):
            yield f"model.layers.{n}.{name}"
        if n >= c["first_k_dense_replace"]:
            yield f"model.layers.{n}.mlp.gate"
    for layer in _mtp_layers(c):
        yield f"{layer.removesuffix('.')}*"
