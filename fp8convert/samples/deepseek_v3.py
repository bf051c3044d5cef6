"""DeepSeek-V3: its config, and every weight of its published checkpoint, at three sizes.

Source: config.json and model.safetensors.index.json of deepseek-ai/DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .spec import FILE_6, PLAIN, Part, Sample, Storage, Weight, chosen
from .tokenizer import small_files

# Exactly the published config.json, which is the `full` size.
PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}

# Ragged in both directions: hidden is 1.5 blocks, and kv_a_proj_with_mqa has 576 rows at any size.
# Cuts over 2 ranks fall on block boundaries; over 4 ranks the experts' and q_b's do not.
TINY: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "hidden_size": 192,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "n_group": 4,
    "n_routed_experts": 16,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 256,
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
# size -> (changed fields, bytes that close a shard); the last shard of each is a small one
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 3_200_000),
    "small": (SMALL, 242_000_000),
    "full": ({}, 4_240_000_000),
}


FP8 = Storage(
    Part("", "F8_E4M3", "codes"), (Part(".weight_scale_inv", "F32", "scales", (128, 128)),)
)
STORAGES = {**PLAIN, "linear": FP8, "mlp": FP8, "expert": FP8}


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny, small, or full (sparse). Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("deepseek-v3", SIZES, size)
    config = PUBLISHED | changed
    weights = tuple(model(config))
    return Sample(
        config, weights, STORAGES, small_files(), shard_bytes, size == "full", shard_file=FILE_6
    )


def model(c: dict[str, Any]) -> Iterator[Weight]:
    """Every weight in the published order: the MTP layer comes after lm_head.

    Kinds: linear (of attention), mlp (dense layers and shared experts), expert, and the plain ones.
    """
    table = (c["vocab_size"], c["hidden_size"])
    layers = c["num_hidden_layers"]
    yield Weight("model.embed_tokens.weight", table, "matrix")
    for index in range(layers):
        yield from _layer(f"model.layers.{index}.", c, index >= c["first_k_dense_replace"])
    yield Weight("model.norm.weight", (c["hidden_size"],), "norm")
    yield Weight("lm_head.weight", table, "matrix")
    for index in range(layers, layers + c["num_nextn_predict_layers"]):
        yield from _mtp(f"model.layers.{index}.", c)


def _layer(at: str, c: dict[str, Any], moe: bool) -> Iterator[Weight]:
    hidden = c["hidden_size"]
    yield from _attention(f"{at}self_attn.", c)
    if moe:
        yield from _moe(f"{at}mlp.", c)
    else:
        yield from _mlp(f"{at}mlp.", hidden, c["intermediate_size"], "mlp")
    yield Weight(f"{at}input_layernorm.weight", (hidden,), "norm")
    yield Weight(f"{at}post_attention_layernorm.weight", (hidden,), "norm")


def _attention(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, heads, rope = c["hidden_size"], c["num_attention_heads"], c["qk_rope_head_dim"]
    nope, value = c["qk_nope_head_dim"], c["v_head_dim"]
    q_rank, kv_rank = c["q_lora_rank"], c["kv_lora_rank"]
    yield Weight(f"{at}q_a_proj.weight", (q_rank, hidden), "linear")
    yield Weight(f"{at}q_a_layernorm.weight", (q_rank,), "norm")
    yield Weight(f"{at}q_b_proj.weight", (heads * (nope + rope), q_rank), "linear")
    yield Weight(f"{at}kv_a_proj_with_mqa.weight", (kv_rank + rope, hidden), "linear")
    yield Weight(f"{at}kv_a_layernorm.weight", (kv_rank,), "norm")
    yield Weight(f"{at}kv_b_proj.weight", (heads * (nope + value), kv_rank), "linear")
    yield Weight(f"{at}o_proj.weight", (hidden, heads * value), "linear")


def _mlp(at: str, hidden: int, width: int, kind: str) -> Iterator[Weight]:
    gate = f"{at}gate_proj.weight"
    yield Weight(gate, (width, hidden), kind)
    yield Weight(f"{at}up_proj.weight", (width, hidden), kind, fused=gate)
    yield Weight(f"{at}down_proj.weight", (hidden, width), kind)


def _moe(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    hidden, width, experts = c["hidden_size"], c["moe_intermediate_size"], c["n_routed_experts"]
    yield Weight(f"{at}gate.weight", (experts, hidden), "matrix")
    yield Weight(f"{at}gate.e_score_correction_bias", (experts,), "bias")
    yield from _mlp(f"{at}shared_experts.", hidden, width * c["n_shared_experts"], "mlp")
    for expert in range(experts):
        yield from _mlp(f"{at}experts.{expert}.", hidden, width, "expert")


def _mtp(at: str, c: dict[str, Any]) -> Iterator[Weight]:
    """A whole MoE layer and what joins it to the model; its tables repeat the main model's."""
    hidden = c["hidden_size"]
    table = (c["vocab_size"], hidden)
    yield Weight(f"{at}embed_tokens.weight", table, "matrix", "model.embed_tokens.weight")
    yield Weight(f"{at}shared_head.norm.weight", (hidden,), "norm")
    yield Weight(f"{at}shared_head.head.weight", table, "matrix", "lm_head.weight")
    yield Weight(f"{at}enorm.weight", (hidden,), "norm")
    yield Weight(f"{at}hnorm.weight", (hidden,), "norm")
    yield Weight(f"{at}eh_proj.weight", (hidden, 2 * hidden), "matrix")
    yield from _layer(at, c, moe=True)
