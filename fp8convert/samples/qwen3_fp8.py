"""Qwen3 mixture of experts in FP8: as DeepSeek-V3's format, but the scales are BF16.

Source: config.json of Qwen/Qwen3-30B-A3B-FP8. Its list of modules that are not quantized names
every norm and router; embeddings are not on it and are not quantized either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .spec import PLAIN, Part, Sample, Storage, Weight, chosen, decoder
from .tokenizer import small_files

PUBLISHED: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# Ragged in both directions: hidden is 1.5 blocks, an expert is 0.75 blocks wide.
TINY: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 64,
    "hidden_size": 192,
    "intermediate_size": 320,
    "max_window_layers": 3,
    "moe_intermediate_size": 96,
    "num_attention_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
SMALL: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_window_layers": 4,
    "num_experts": 64,
    "num_hidden_layers": 4,
    "vocab_size": 16384,
}
# size -> (changed fields, bytes that close a shard)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 1_000_000),
    "small": (SMALL, 160_000_000),
}
FP8 = Storage(
    Part("", "F8_E4M3", "e4m3"), (Part(".weight_scale_inv", "BF16", "bf16 scales", (128, 128)),)
)


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny or small. Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("qwen3-fp8", SIZES, size)
    config = PUBLISHED | changed
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "modules_to_not_convert": [*_plain_modules(config["num_hidden_layers"])],
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    storages = {**PLAIN, "linear": FP8}
    return Sample(config, tuple(decoder(config, _layer)), storages, small_files(), shard_bytes)


def _plain_modules(layers: int) -> Iterator[str]:
    yield "lm_head"
    for n in range(layers):
        for name in ("input_layernorm", "mlp.gate", "post_attention_layernorm"):
            yield f"model.layers.{n}.{name}"


def _layer(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, width, experts = c["hidden_size"], c["moe_intermediate_size"], c["num_experts"]
    yield Weight(f"{at}input_layernorm.weight", (hidden,), "norm")
    yield from _attention(f"{at}self_attn.", c)
    yield Weight(f"{at}post_attention_layernorm.weight", (hidden,), "norm")
    yield Weight(f"{at}mlp.gate.weight", (experts, hidden), "matrix")
    for expert in range(experts):
        yield Weight(f"{at}mlp.experts.{expert}.gate_proj.weight", (width, hidden), "linear")
        yield Weight(f"{at}mlp.experts.{expert}.up_proj.weight", (width, hidden), "linear")
        yield Weight(f"{at}mlp.experts.{expert}.down_proj.weight", (hidden, width), "linear")


def _attention(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, width = c["hidden_size"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    yield Weight(f"{at}q_proj.weight", (heads * width, hidden), "linear")
    yield Weight(f"{at}k_proj.weight", (kv_heads * width, hidden), "linear")
    yield Weight(f"{at}v_proj.weight", (kv_heads * width, hidden), "linear")
    yield Weight(f"{at}o_proj.weight", (hidden, heads * width), "linear")
    yield Weight(f"{at}q_norm.weight", (width,), "norm")
    yield Weight(f"{at}k_norm.weight", (width,), "norm")
