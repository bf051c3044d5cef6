"""Tiny random models of the architectures that are cut by rules, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

BASE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,  # not 64 / 4
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "head_dim": 8,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}
QWEN_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "mlp_only_layers": [0],
}
BIASES = {"attention_bias": True, "mlp_bias": True}
# What is written under the names of the published checkpoint. Not DeepSeek-V4.
MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v2": BASE | MLA | ROUTED | {"n_shared_experts": 2},
    "deepseek_v3": BASE | MLA | ROUTED | {"attention_bias": True},
    "deepseek_v32": BASE | MLA | ROUTED | INDEXER,
    "glm4_moe": BASE | ROUTED | {"use_qk_norm": True, "attention_bias": True},
    "glm_moe_dsa": BASE | MLA | ROUTED | INDEXER,
    "gpt_oss": BASE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama": BASE | BIASES,
    "minimax_m2": BASE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral3": BASE,
    "mistral": BASE,
    "qwen2": BASE,
    "qwen2_moe": BASE | QWEN_MOE | {"shared_expert_intermediate_size": 40},
    "qwen3": BASE,
    "qwen3_moe": BASE | QWEN_MOE,
}


def write(model: str, folder: Path) -> tuple[dict[str, Any], Tensors]:
    """Its config and its tensors, also written into ``folder``. Nothing in it is 0 or 1."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    config = AutoConfig.for_model(model, **MODELS[model])
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in [*made.parameters(), *made.buffers()]:
        if parameter.dtype == torch.float32 and not parameter.is_meta:
            torch.nn.init.normal_(parameter, 0.1, 0.2)
    made.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    return said, load_file(folder / "model.safetensors")
