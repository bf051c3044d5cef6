"""Mistral's dense models in FP8: one scale for a whole weight, and one for its input.

Source: config.json of cleman273/affine-devstral, a re-upload of a model with the geometry of
Devstral-2-123B; transformers' integrations/finegrained_fp8.py for the names. ``weight_scale_inv``
(a multiplier) and ``activation_scale`` are 0-d BF16; "weight_block_size" is null.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .spec import PLAIN, Part, Sample, Storage, Weight, chosen, decoder
from .tokenizer import small_files

PUBLISHED: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 12288,
    "initializer_range": 0.02,
    "intermediate_size": 28672,
    "max_position_embeddings": 262144,
    "model_type": "ministral3",
    "num_attention_heads": 96,
    "num_hidden_layers": 88,
    "num_key_value_heads": 8,
    "pad_token_id": 11,
    "quantization_config": {
        "activation_scheme": "static",
        "dequantize": False,
        "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        "quant_method": "fp8",
        "weight_block_size": None,
    },
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "beta_fast": 4.0,
        "beta_slow": 1.0,
        "factor": 64.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
        "original_max_position_embeddings": 4096,
        "llama_4_scaling_beta": 0.0,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
        "type": "yarn",
    },
    "sliding_window": None,
    "tie_word_embeddings": False,
    "transformers_version": "5.0.0.dev0",
    "use_cache": True,
    "vocab_size": 131072,
}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TINY: dict[str, Any] = {
    **TOKENS,
    "head_dim": 64,
    "hidden_size": 288,
    "intermediate_size": 720,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
SMALL: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_hidden_layers": 12,
    "vocab_size": 16384,
}
# size -> (changed fields, bytes that close a shard)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 1_100_000),
    "small": (SMALL, 180_000_000),
}
FP8 = Storage(
    Part("", "F8_E4M3", "e4m3"),
    (Part(".weight_scale_inv", "BF16", "bf16 scales", None),),
    (Part(".activation_scale", "BF16", "bf16 input scale", None),),
)
STORAGES = {**PLAIN, "linear": FP8}


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny or small. Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("mistral-fp8", SIZES, size)
    config = PUBLISHED | changed
    return Sample(config, tuple(decoder(config, _layer)), STORAGES, small_files(), shard_bytes)


def _layer(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, width, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    yield Weight(f"{at}input_layernorm.weight", (hidden,), "norm")
    yield Weight(f"{at}self_attn.q_proj.weight", (heads, hidden), "linear")
    yield Weight(f"{at}self_attn.k_proj.weight", (kv_heads, hidden), "linear")
    yield Weight(f"{at}self_attn.v_proj.weight", (kv_heads, hidden), "linear")
    yield Weight(f"{at}self_attn.o_proj.weight", (hidden, heads), "linear")
    yield Weight(f"{at}post_attention_layernorm.weight", (hidden,), "norm")
    yield Weight(f"{at}mlp.gate_proj.weight", (width, hidden), "linear")
    yield Weight(f"{at}mlp.up_proj.weight", (width, hidden), "linear")
    yield Weight(f"{at}mlp.down_proj.weight", (hidden, width), "linear")
