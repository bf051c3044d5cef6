"""The JSON that DeepSeek's own ``inference/generate.py`` takes with ``--config``, from config.json.

Fields: ``ModelArgs`` of ``inference/model.py`` of DeepSeek-V3 (with V3.1's ``scale_fmt``), V3.2 and
V4-Flash. Values were compared with the published config_671B.json, config_16B.json,
config_v3.1.json, config_671B_v3.2.json and V4-Flash's config.json; that of V4-Pro was not seen, and
none is published for Kimi K2. The code stops at a field that it does not know, and has defaults of
its own for those that are absent: batch and sequence length are such.
"""

from __future__ import annotations

from typing import Any, Literal

from ..declared import KEY, Config, mapping
from ..errors import SchemeError, shown
from ..strictjson import brief
from .deepseek_names import V3_TYPES, V4_TYPES

COMMON = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "route_scale": "routed_scaling_factor",
    "score_func": "scoring_func",
    "q_lora_rank": "q_lora_rank",
    "rope_theta": "rope_theta",
    "index_n_heads": "index_n_heads",  # from V3.2 on
    "index_head_dim": "index_head_dim",
    "index_topk": "index_topk",
}
V3 = {
    "inter_dim": "intermediate_size",
    "n_dense_layers": "first_k_dense_replace",
    "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
}
V4 = {
    "n_hash_layers": "num_hash_layers",
    "n_mtp_layers": "num_nextn_predict_layers",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "rope_head_dim": "qk_rope_head_dim",
    "norm_eps": "rms_norm_eps",
    "o_groups": "o_groups",
    "o_lora_rank": "o_lora_rank",
    "window_size": "sliding_window",
    "compress_ratios": "compress_ratios",  # of the MTP layers too
    "compress_rope_theta": "compress_rope_theta",
    "hc_mult": "hc_mult",
    "hc_sinkhorn_iters": "hc_sinkhorn_iters",
    "hc_eps": "hc_eps",
}
YARN = {  # of rope_scaling
    "original_seq_len": "original_max_position_embeddings",
    "rope_factor": "factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}
MSCALE = {"mscale": "mscale_all_dim"}  # V3 has one, by which it scales the softmax
# What the code takes for granted, whatever the config says.
FIXED_V3 = {
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-06,
    "moe_layer_freq": 1,
}
FIXED_V4 = {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
            "n_shared_experts": 1}  # fmt: skip
BIASED = 7168  # the one width of a model whose router has a bias, in V3's code and V3.2's


def model_args(config: Config, dtype: Literal["fp8", "bf16"]) -> dict[str, Any]:
    """``ModelArgs`` for a model with linears of ``dtype``; SchemeError if it is not DeepSeek's.

    ``config`` is that of the model as it is written: without the MTP layers that were left out, and
    with ``expert_dtype`` only if experts stay FP4. Its ``scale_fmt`` is that of activations, and
    holds for BF16 weights too.
    """
    v4 = _is_v4(config)
    args = _taken(COMMON | (V4 if v4 else V3), config)
    if "q_lora_rank" in config and config["q_lora_rank"] is None:
        args["q_lora_rank"] = 0
    args |= _rope(config, v4)
    args["dtype"] = dtype
    args |= _taken({"scale_fmt": "scale_fmt"}, mapping(config.get(KEY)))
    if v4 and dtype == "fp8" and config.get("expert_dtype") == "fp4":
        args["expert_dtype"] = "fp4"  # without it experts are as the rest
    return args


def untold(config: Config) -> list[str]:
    """What the config says and the published code computes otherwise: it has no field for it."""
    v4 = _is_v4(config)
    said = [
        f"{name} is {brief(config[name])}, but DeepSeek's own code has {brief(fixed)}"
        for name, fixed in (FIXED_V4 if v4 else FIXED_V3).items()
        if config.get(name, fixed) != fixed
    ]
    width = config.get("hidden_size")
    if not v4 and width != BIASED and config.get("topk_method") == "noaux_tc":
        said.append(
            f"hidden_size is {brief(width)}, but DeepSeek's own code has routers with a bias for "
            f"{BIASED} only"
        )
    yarn = mapping(config.get("rope_scaling"))
    if not v4 and yarn.get("mscale") != yarn.get("mscale_all_dim"):
        said.append("mscale and mscale_all_dim differ, but DeepSeek's own code has one for both")
    if yarn and "yarn" not in (yarn.get("type"), yarn.get("rope_type")):
        said.append("rope_scaling is not YaRN, but DeepSeek's own code has no other")
    return said


def _is_v4(config: Config) -> bool:
    kind = config.get("model_type")
    if kind not in (*V3_TYPES, *V4_TYPES):
        raise SchemeError(f"DeepSeek's own inference code has no model_type {shown(kind)}")
    return kind in V4_TYPES


def _taken(fields: dict[str, str], config: Config) -> dict[str, Any]:
    return {ours: config[name] for ours, name in fields.items() if config.get(name) is not None}


def _rope(config: Config, v4: bool) -> dict[str, Any]:
    """Of YaRN. V3's code scales long sequences by default, V4's only from a length it is told."""
    yarn = mapping(config.get("rope_scaling"))
    if not yarn:
        return {} if v4 else {"rope_factor": 1.0}
    return _taken(YARN if v4 else YARN | MSCALE, yarn)
