"""MiniMax in MXFP8: e4m3 codes with one e8m0 scale for each 32 inputs, stored as U8.

The scales are those of MiniMaxAI/MiniMax-M3-MXFP8, as transformers' "mxfp8" quantizer reads them
(quantizers/auto.py): ``weight_scale_inv`` U8 [out, in / 32], 2**(byte - 127). The model itself is
MiniMax-M2, whose config.json and names this follows: M3 is a vision model with a text part that
differs from M2 in attention, not in how weights are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .spec import PLAIN, Part, Sample, Storage, Weight, chosen, decoder, plain
from .tokenizer import small_files

PUBLISHED: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 200034,
    "eos_token_id": 200020,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "model_type": "minimax_m2",
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "partial_rotary_factor": 0.5,
        "rope_theta": 5000000.0,
        "rope_type": "default",
    },
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "tie_word_embeddings": False,
    "transformers_version": "5.0.0.dev0",
    "use_cache": True,
    "vocab_size": 200064,
}
TINY: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 64,
    "hidden_size": 224,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_local_experts": 16,
    "vocab_size": 1024,
}
SMALL: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_hidden_layers": 3,
    "num_local_experts": 64,
    "vocab_size": 16384,
}
# size -> (changed fields, bytes that close a shard)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 1_000_000),
    "small": (SMALL, 180_000_000),
}
MXFP8 = Storage(
    Part("", "F8_E4M3", "e4m3"), (Part(".weight_scale_inv", "U8", "e4m3 exponents", (1, 32)),)
)
STORAGES = {**PLAIN, "router": plain("F32", "bias"), "linear": MXFP8}


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny or small. Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("minimax-m3", SIZES, size)
    config = PUBLISHED | changed
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "ignored_layers": [*_plain_modules(config["num_hidden_layers"])],
        "quant_method": "mxfp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [1, 32],
    }
    return Sample(config, tuple(decoder(config, _layer)), STORAGES, small_files(), shard_bytes)


def _plain_modules(layers: int) -> Iterator[str]:
    yield from ("lm_head", "model.embed_tokens")
    for n in range(layers):
        yield f"model.layers.{n}.block_sparse_moe.gate"


def _layer(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, width, experts = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
    yield Weight(f"{at}input_layernorm.weight", (hidden,), "norm")
    yield from _attention(f"{at}self_attn.", c)
    yield Weight(f"{at}post_attention_layernorm.weight", (hidden,), "norm")
    yield Weight(f"{at}block_sparse_moe.gate.weight", (experts, hidden), "router")
    yield Weight(f"{at}block_sparse_moe.e_score_correction_bias", (experts,), "bias")
    for expert in range(experts):
        name = f"{at}block_sparse_moe.experts.{expert}."
        yield Weight(f"{name}w1.weight", (width, hidden), "linear")
        yield Weight(f"{name}w2.weight", (hidden, width), "linear")
        yield Weight(f"{name}w3.weight", (width, hidden), "linear")


def _attention(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, head = c["hidden_size"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    yield Weight(f"{at}q_proj.weight", (heads, hidden), "linear")
    yield Weight(f"{at}k_proj.weight", (kv_heads, hidden), "linear")
    yield Weight(f"{at}v_proj.weight", (kv_heads, hidden), "linear")
    yield Weight(f"{at}o_proj.weight", (hidden, heads), "linear")
    yield Weight(f"{at}q_norm.weight", (heads,), "norm")
    yield Weight(f"{at}k_norm.weight", (kv_heads,), "norm")
