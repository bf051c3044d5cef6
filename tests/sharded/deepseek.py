"""DeepSeek-V3, V3.2 and V4, and those that have their architecture, tiny."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..quantized.oracle import seed_of
from .arrays import part
from .forms import (
    INT4,
    NVFP4,
    Form,
    bf16,
    blocks,
    fp8_config,
    int4,
    modelopt,
    mxfp4,
    nvfp4,
    table,
)
from .model import Builder, Source, config_of, moe, mtp

# DeepSeek, for eight ranks in blocks of 128: heads * widths are multiples of 1024, the rest is tiny

V3: dict[str, Any] = {
    "first_k_dense_replace": 1, "hidden_size": 144, "intermediate_size": 1024,
    "kv_lora_rank": 16, "moe_intermediate_size": 64, "n_group": 4, "n_routed_experts": 8,
    "n_shared_experts": 16, "norm_topk_prob": True, "num_attention_heads": 16,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 16,
    "num_nextn_predict_layers": 1, "q_lora_rank": 48, "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 2, "torch_dtype": "bfloat16", "v_head_dim": 64, "vocab_size": 64,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
}  # fmt: skip
Extra = Callable[[Builder, str, Mapping[str, Any]], None]


def deepseek(
    id: str, form: Form, quantization: dict[str, Any] | None, extra: Extra | None = None,
    expert: Form | None = None, kind: str = "deepseek_v3", name: str = "DeepseekV3", **more: Any,
) -> Source:  # fmt: skip
    """A dense layer, an MoE layer, an MTP layer. kv_a_proj_with_mqa has 80 rows: no whole block."""
    c = config_of(kind, name, V3, **more)
    if quantization:
        c["quantization_config"] = quantization
    made = Builder(form)
    made.tables(c)
    hidden, width = c["hidden_size"], c["moe_intermediate_size"]
    layers = c["num_hidden_layers"]
    for n in range(layers + c["num_nextn_predict_layers"]):
        at = f"model.layers.{n}"
        made.norms(at, hidden)
        _latent_attention(made, f"{at}.self_attn", c)
        if extra:
            extra(made, f"{at}.self_attn", c)
        if n == 0:
            made.mlp(f"{at}.mlp", hidden, c["intermediate_size"])
        else:
            moe(made, f"{at}.mlp", c, hidden, width, expert)
        if n >= layers:
            mtp(made, at, c)
    return Source(id, c, made.tensors)


def _latent_attention(made: Builder, at: str, c: Mapping[str, Any]) -> None:
    hidden, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    if c["q_lora_rank"] is None:
        made.linear(f"{at}.q_proj", heads * (nope + rope), hidden)
    else:
        made.linear(f"{at}.q_a_proj", c["q_lora_rank"], hidden)
        made.plain(f"{at}.q_a_layernorm.weight", c["q_lora_rank"])
        made.linear(f"{at}.q_b_proj", heads * (nope + rope), c["q_lora_rank"])
    made.linear(f"{at}.kv_a_proj_with_mqa", rank + rope, hidden)
    made.plain(f"{at}.kv_a_layernorm.weight", rank)
    made.linear(f"{at}.kv_b_proj", heads * (nope + value), rank)
    made.linear(f"{at}.o_proj", hidden, heads * value)


def _indexer(made: Builder, at: str, c: Mapping[str, Any]) -> None:
    heads, width, at = c["index_n_heads"], c["index_head_dim"], f"{at}.indexer"
    made.linear(f"{at}.wq_b", heads * width, c["q_lora_rank"])
    made.linear(f"{at}.wk", width, c["hidden_size"])
    made.plain(f"{at}.k_norm.weight", width, tag="F32")
    made.plain(f"{at}.k_norm.bias", width, tag="F32")
    made.plain(f"{at}.weights_proj.weight", heads, c["hidden_size"])


def v3() -> Source:
    """FP8 as published."""
    return deepseek("v3-fp8", blocks(128), fp8_config(128, fmt="e4m3"))


def v3_bf16() -> Source:
    """Unquantized."""
    return deepseek("v3-bf16", bf16, None)


def v31() -> Source:
    """F32 scales that are powers of two, as V3.1 has them."""
    source = deepseek("v3.1-fp8", blocks(128), fp8_config(128, fmt="e4m3", scale_fmt="ue8m0"))
    powers = {
        n: part("F32", np.exp2(seed_of(n).integers(-12, -8, t[1])).astype(np.float32))
        for n, t in source.tensors.items()
        if n.endswith("weight_scale_inv")
    }
    return replace(source, tensors=source.tensors | powers)


def v2() -> Source:
    """Without a low rank for q, as V2-Lite and Moonlight: ``q_proj`` itself."""
    return deepseek("v3-no-q-lora", bf16, None, q_lora_rank=None, num_nextn_predict_layers=0)


def v32() -> Source:
    """The indexer is whole on every rank, though its wq_b is named as V4's that is cut."""
    return deepseek(
        "v3.2-fp8", blocks(128), fp8_config(128, fmt="e4m3", scale_fmt="ue8m0"), _indexer,
        kind="deepseek_v32", name="DeepseekV32", index_head_dim=64, index_n_heads=4, index_topk=16,
    )  # fmt: skip


def kimi(width: int = 64) -> Source:
    """Kimi-K2-Thinking: int4 experts, the rest BF16."""
    return deepseek(
        f"kimi-int4-{width}", bf16, INT4, expert=int4, kind="kimi_k2", hidden_size=96,
        n_shared_experts=1, intermediate_size=128, moe_intermediate_size=width,
        num_nextn_predict_layers=0, num_attention_heads=8,
    )  # fmt: skip


def v3_nvfp4() -> Source:
    """compressed-tensors NVFP4 for experts."""
    return deepseek(
        "v3-nvfp4", bf16, NVFP4, expert=nvfp4, hidden_size=96, n_shared_experts=1,
        intermediate_size=128, num_nextn_predict_layers=0, num_attention_heads=8,
    )  # fmt: skip


def v3_modelopt() -> Source:
    """ModelOpt's NVFP4 for experts: config.json says nothing of it, another file does."""
    source = deepseek(
        "v3-modelopt", bf16, None, expert=modelopt, hidden_size=96, n_shared_experts=1,
        intermediate_size=128, num_nextn_predict_layers=0, num_attention_heads=8,
    )  # fmt: skip
    plain = sorted(n.removesuffix(".weight") for n in source.tensors if ".experts." not in n)
    said = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16,
            "exclude_modules": plain}  # fmt: skip
    text = json.dumps({"producer": {"name": "modelopt"}, "quantization": said})
    return replace(source, files={**source.files, "hf_quant_config.json": text.encode()})


V4: dict[str, Any] = {
    "compress_ratios": [0, 4, 128, 0], "head_dim": 128, "hc_mult": 4, "hidden_size": 160,
    "index_head_dim": 128, "index_n_heads": 8, "index_topk": 16, "moe_intermediate_size": 64,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_attention_heads": 8,
    "num_experts_per_tok": 2, "num_hash_layers": 1, "num_hidden_layers": 3,
    "num_key_value_heads": 1, "num_nextn_predict_layers": 1, "o_groups": 8, "o_lora_rank": 128,
    "q_lora_rank": 48, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "sliding_window": 32,
    "swiglu_limit": 10.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 64, "hc_eps": 1e-6, "hc_sinkhorn_iters": 20, "compress_rope_theta": 160000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16,
                     "original_max_position_embeddings": 65536, "type": "yarn"},
}  # fmt: skip


def deepseek_v4(
    id: str, dense: Form, expert: Form, quantization: dict[str, Any] | None, **more: Any
) -> Source:
    """All three kinds of attention, a layer that routes by token id, an MTP layer."""
    c = config_of("deepseek_v4", "DeepseekV4", V4, **more)
    if quantization:
        c["quantization_config"] = quantization
    made = Builder(dense)
    hidden = c["hidden_size"]
    made.plain("embed.weight", c["vocab_size"], hidden)
    made.plain("head.weight", c["vocab_size"], hidden)
    made.plain("norm.weight", hidden)
    _hyper(made, "hc_head_", 4, 4 * hidden, 1)
    for n, at in enumerate(("layers.0", "layers.1", "layers.2", "mtp.0")):
        _v4_layer(made, at, c, c["compress_ratios"][n], n == 0, expert)
    for leaf in ("e_proj", "h_proj"):
        made.linear(f"mtp.0.{leaf}", hidden, hidden)
    for leaf in ("enorm", "hnorm", "norm"):
        made.plain(f"mtp.0.{leaf}.weight", hidden)
    _hyper(made, "mtp.0.hc_head_", 4, 4 * hidden, 1)
    return Source(id, c, made.tensors)


def _hyper(made: Builder, at: str, rows: int, columns: int, scale: int) -> None:
    made.plain(f"{at}fn", rows, columns, tag="F32")
    made.plain(f"{at}base", rows, tag="F32")
    made.plain(f"{at}scale", scale, tag="F32")


def _v4_layer(
    made: Builder, at: str, c: Mapping[str, Any], ratio: int, hashed: bool, expert: Form
) -> None:
    hidden, rank, width = c["hidden_size"], c["q_lora_rank"], c["head_dim"]
    heads, groups = c["num_attention_heads"], c["o_groups"]
    for block in ("attn", "ffn"):
        made.plain(f"{at}.{block}_norm.weight", hidden)
        _hyper(made, f"{at}.hc_{block}_", 24, 4 * hidden, 3)
    made.plain(f"{at}.attn.attn_sink", heads, tag="F32")
    made.linear(f"{at}.attn.wq_a", rank, hidden)
    made.plain(f"{at}.attn.q_norm.weight", rank)
    made.linear(f"{at}.attn.wq_b", heads * width, rank)
    made.linear(f"{at}.attn.wkv", width, hidden)
    made.plain(f"{at}.attn.kv_norm.weight", width)
    made.linear(f"{at}.attn.wo_a", groups * c["o_lora_rank"], heads * width // groups)
    made.linear(f"{at}.attn.wo_b", hidden, groups * c["o_lora_rank"])
    if ratio:
        _compressor(made, f"{at}.attn.compressor", hidden, ratio, width)
    if ratio == 4:
        indexed = c["index_head_dim"]
        made.linear(f"{at}.attn.indexer.wq_b", c["index_n_heads"] * indexed, rank)
        made.plain(f"{at}.attn.indexer.weights_proj.weight", c["index_n_heads"], hidden)
        _compressor(made, f"{at}.attn.indexer.compressor", hidden, 4, indexed)
    made.plain(f"{at}.ffn.gate.weight", c["n_routed_experts"], hidden)
    if hashed:
        name = f"{at}.ffn.gate.tid2eid"
        made.tensors[name] = table(name, c["n_routed_experts"], c["vocab_size"], 2)
    else:
        made.plain(f"{at}.ffn.gate.bias", c["n_routed_experts"], tag="F32")
    for e in ("shared_experts", *(f"experts.{e}" for e in range(c["n_routed_experts"]))):
        form = None if e == "shared_experts" else expert
        for leaf, rows, columns in (("w1", 64, hidden), ("w2", hidden, 64), ("w3", 64, hidden)):
            made.linear(f"{at}.ffn.{e}.{leaf}", rows, columns, form)


def _compressor(made: Builder, at: str, hidden: int, ratio: int, width: int) -> None:
    rows = 2 * width if ratio == 4 else width
    made.plain(f"{at}.ape", ratio, rows, tag="F32")
    made.plain(f"{at}.wkv.weight", rows, hidden)
    made.plain(f"{at}.wgate.weight", rows, hidden)
    made.plain(f"{at}.norm.weight", width)


UE8M0 = fp8_config(128, fmt="e4m3", scale_fmt="ue8m0")


def v4() -> Source:
    """V4-Flash: E8M0 scales, FP4 experts."""
    form = blocks(128, "F8_E8M0", "scale")
    return deepseek_v4("v4-flash", form, mxfp4, UE8M0, expert_dtype="fp4")


def v4_base() -> Source:
    """V4-Flash-Base: FP8 experts, F32 scales; MTP's own tables are there."""
    form = blocks(128, "F32", "scale")
    source = deepseek_v4("v4-base", form, form, UE8M0, expert_dtype="fp8")
    tied = {f"mtp.0.{leaf}.weight": source.tensors[f"{leaf}.weight"] for leaf in ("embed", "head")}
    return replace(source, tensors=source.tensors | tied)


def v4_bf16() -> Source:
    """Unquantized."""
    return deepseek_v4("v4-bf16", bf16, bf16, None)
