"""Kimi-K2-Thinking: DeepSeek-V3's weights, with only the routed experts quantized, to int4.

Sources: config.json of moonshotai/Kimi-K2-Instruct, and text_config of moonshotai/Kimi-K2.5,
which has the quantization. The format is compressed-tensors' pack-quantized: q + 8 for q from -8
to 7, eight a word, low nibble first; one BF16 scale per 32 inputs; the shape in a tensor.
"""

from __future__ import annotations

from typing import Any

from .deepseek_v3 import model
from .spec import FILE_6, PLAIN, Part, Sample, Storage, chosen, plain
from .tokenizer import small_files

PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "dtype": "bfloat16",
    "eos_token_id": 163585,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 262144,
    "model_type": "kimi_k2",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "pad_token_id": 163839,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "config_groups": {
            "group_0": {
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "block_structure": None,
                    "dynamic": False,
                    "group_size": 32,
                    "num_bits": 4,
                    "observer": "minmax",
                    "observer_kwargs": {},
                    "strategy": "group",
                    "symmetric": True,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
        ],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 64.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "transformers_version": "4.56.2",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
TINY: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 192,
    "intermediate_size": 512,
    "kv_lora_rank": 128,
    "moe_intermediate_size": 160,
    "n_routed_experts": 16,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "vocab_size": 1024,
}
SMALL: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 6,
    "num_key_value_heads": 16,
    "q_lora_rank": 768,
    "vocab_size": 16384,
}
# size -> (changed fields, bytes that close a shard)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (TINY, 1_200_000),
    "small": (SMALL, 160_000_000),
}
INT4 = Storage(
    Part(".weight_packed", "I32", "int4", (1, 8)),
    (Part(".weight_scale", "BF16", "int4 scales", (1, 32)),),
    (Part(".weight_shape", "I32", "shape"),),
)
BF16 = plain("BF16", "matrix")
STORAGES = {**PLAIN, "linear": BF16, "mlp": BF16, "expert": INT4}


def sample(size: str) -> Sample:
    """The checkpoint of one size: tiny or small. Unknown sizes: UsageError."""
    changed, shard_bytes = chosen("kimi-k2-thinking", SIZES, size)
    config = PUBLISHED | changed
    weights = tuple(model(config))
    return Sample(config, weights, STORAGES, small_files(), shard_bytes, shard_file=FILE_6)
