"""gpt-oss: experts of a layer in one tensor each way, in MXFP4, low nibble first.

Source: config.json of openai/gpt-oss-20b. The codes are U8 [experts, out, in / 32, 16] and the
scales one e8m0 byte for each 32 inputs, U8 [experts, out, in / 32]; rows of gate and up alternate.
Unquantized, the model holds the transpose: [experts, in, out].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .spec import PLAIN, Part, Sample, Storage, Weight, chosen, decoder, plain
from .tokenizer import small_files

PUBLISHED: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}
TOKENS = {"eos_token_id": 1, "pad_token_id": 2}
# As published, the widths are odd multiples of 32 (9, 7 and 45 of them).
TINY: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 288,
    "intermediate_size": 224,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "sliding_window": 16,
    "vocab_size": 1024,
}
SMALL: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 1440,
    "intermediate_size": 1440,
    "layer_types": ["sliding_attention", "full_attention"] * 5,
    "num_attention_heads": 32,
    "num_hidden_layers": 10,
    "num_key_value_heads": 4,
    "vocab_size": 16384,
}
# size -> (changed fields, bytes that close a shard)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 1_500_000),
    "small": (SMALL, 250_000_000),
}
MXFP4 = Storage(
    Part("_blocks", "U8", "e2m1", (1, 32), lanes=16),
    (Part("_scales", "U8", "e2m1 exponents", (1, 32)),),
    turned=True,
)
STORAGES = {**PLAIN, "bf16 bias": plain("BF16", "matrix"), "expert": MXFP4}


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny or small. Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("gpt-oss", SIZES, size)
    config = PUBLISHED | changed
    return Sample(
        config,
        tuple(decoder(config, _layer)),
        STORAGES,
        small_files(),
        shard_bytes,
        shard_file="model-{index:05d}-of-{last:05d}.safetensors",  # the published ones start at 0
    )


def _layer(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, width, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    experts = c["num_local_experts"]
    yield Weight(f"{at}input_layernorm.weight", (hidden,), "norm")
    yield from _linear(f"{at}self_attn.q_proj", heads, hidden)
    yield from _linear(f"{at}self_attn.k_proj", kv_heads, hidden)
    yield from _linear(f"{at}self_attn.v_proj", kv_heads, hidden)
    yield from _linear(f"{at}self_attn.o_proj", hidden, heads)
    yield Weight(f"{at}self_attn.sinks", (c["num_attention_heads"],), "bf16 bias")
    yield Weight(f"{at}post_attention_layernorm.weight", (hidden,), "norm")
    yield from _linear(f"{at}mlp.router", experts, hidden)
    yield from _experts(f"{at}mlp.experts.gate_up_proj", experts, 2 * width, hidden)
    yield from _experts(f"{at}mlp.experts.down_proj", experts, hidden, width)


def _linear(name: str, rows: int, columns: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", (rows, columns), "matrix")
    yield Weight(f"{name}.bias", (rows,), "bf16 bias")


def _experts(name: str, experts: int, rows: int, columns: int) -> Iterator[Weight]:
    yield Weight(name, (experts, rows, columns), "expert")
    yield Weight(f"{name}_bias", (experts, rows), "bf16 bias")
