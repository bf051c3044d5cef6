"""How the weights of each architecture are cut over tensor-parallel ranks, as tables.

Names are those inside a layer, experts' without their number. Sources: ``base_model_tp_plan`` of
transformers; which linears of vLLM's models are column- or row-parallel or replicated; for
DeepSeek-V4, ``inference/convert.py``.
"""

from __future__ import annotations

from .rules import (
    BEYOND,
    IN,
    MTP,
    OUT,
    Family,
    Rule,
    Table,
    Unit,
    columns,
    cut,
    mlp,
    norms,
    replicated,
    rows,
    whole,
    within,
)

# What there is of: fields of config.json.
VOCABULARY = Unit("vocab_size")
HEADS = Unit("num_attention_heads", ("head_dim",))
KV_HEADS = Unit("num_key_value_heads", ("head_dim",), repeat=True)
DENSE = Unit("intermediate_size")
PAIRS = Unit("intermediate_size", width=2)  # of gate and up, side by side
EXPERT = Unit("moe_intermediate_size")
SHARED = Unit("moe_intermediate_size", times="n_shared_experts")
SHARED_EXPERT = Unit("shared_expert_intermediate_size")
MLA_Q = Unit("num_attention_heads", ("qk_nope_head_dim", "qk_rope_head_dim"))
MLA_KV = Unit("num_attention_heads", ("qk_nope_head_dim", "v_head_dim"))
MLA_OUT = Unit("num_attention_heads", ("v_head_dim",))
O_GROUPS = Unit("o_groups", ("o_lora_rank",))
INDEX_HEADS = Unit("index_n_heads", ("index_head_dim",))

OUTSIDE = cut(0, VOCABULARY, "embed_tokens.weight") | columns(VOCABULARY, "lm_head") | norms("norm")
ROTARY = whole("rotary_emb.inv_freq")
BLOCK = norms("input_layernorm", "post_attention_layernorm")
GQA = within(
    "self_attn",
    columns(HEADS, "q_proj"),
    columns(KV_HEADS, "k_proj", "v_proj"),
    rows(HEADS, "o_proj"),
    ROTARY,
)
HEAD_NORMS = within("self_attn", norms("q_norm", "k_norm"))  # one for all heads
MLA = within(
    "self_attn",
    replicated("q_a_proj", "kv_a_proj_with_mqa"),
    norms("q_a_layernorm", "kv_a_layernorm"),
    columns(MLA_Q, "q_proj", "q_b_proj"),
    columns(MLA_KV, "kv_b_proj"),
    rows(MLA_OUT, "o_proj"),
    ROTARY,
)
INDEXER = within("self_attn.indexer", replicated("wq_b", "wk", "weights_proj", "k_norm"))
MLP = within("mlp", mlp(DENSE))
ROUTER = replicated("mlp.gate")
EXPERTS = within("mlp.experts.*", mlp(EXPERT))
SHARED_EXPERTS = (
    whole("mlp.gate.e_score_correction_bias") | ROUTER | EXPERTS
    | within("mlp.shared_experts", mlp(SHARED))
)  # fmt: skip
MTP_LAYER = (
    replicated("eh_proj")
    | norms("enorm", "hnorm", "shared_head.norm")
    | cut(0, VOCABULARY, "embed_tokens.weight", "shared_head.head.weight")
)
QWEN2_MOE = (
    ROUTER | EXPERTS | replicated("mlp.shared_expert_gate")
    | within("mlp.shared_expert", mlp(SHARED_EXPERT))
)  # fmt: skip
MINIMAX = within(
    "block_sparse_moe",
    replicated("gate"),
    whole("e_score_correction_bias"),
    within("experts.*", mlp(DENSE, "w1", "w3", "w2")),
) | within(  # norms over all heads at once
    "self_attn", cut(0, HEADS, "q_norm.weight"), cut(0, KV_HEADS, "k_norm.weight")
)
GPT_OSS = (
    cut(0, Unit("num_attention_heads"), "self_attn.sinks")
    | replicated("mlp.router")
    | within(  # [experts, in, out]
        "mlp.experts",
        cut(2, PAIRS, "gate_up_proj"),
        cut(1, PAIRS, "gate_up_proj_bias"),
        cut(1, DENSE, "down_proj"),
        {"down_proj_bias": Rule(adds=True)},
    )
)

# DeepSeek-V4's own names, and what its own layout cuts: not the shared experts.
HYPER = ("fn", "base", "scale")
COMPRESSOR = whole("ape") | replicated("wkv", "wgate") | norms("norm")
V4_ATTENTION = within(
    "attn",
    replicated("wq_a", "wkv"),
    norms("q_norm", "kv_norm"),
    columns(HEADS, "wq_b"),
    columns(O_GROUPS, "wo_a"),
    rows(O_GROUPS, "wo_b"),
    cut(0, Unit("num_attention_heads"), "attn_sink"),
    within("compressor", COMPRESSOR),
    within("indexer", columns(INDEX_HEADS, "wq_b"), columns(Unit("index_n_heads"), "weights_proj")),
    within("indexer.compressor", COMPRESSOR),
)
V4_LAYER = (
    V4_ATTENTION
    | norms("attn_norm", "ffn_norm")
    | whole(*(f"hc_{block}_{part}" for block in ("attn", "ffn") for part in HYPER))
    | replicated("ffn.gate", *(f"ffn.shared_experts.{w}" for w in ("w1", "w2", "w3")))
    | whole("ffn.gate.tid2eid")
    | within("ffn.experts.*", mlp(EXPERT, "w1", "w3", "w2"))
)
V4_TAIL = norms("norm") | whole(*(f"hc_head_{part}" for part in HYPER))
V4_OUTSIDE = V4_TAIL | cut(0, VOCABULARY, "embed.weight", "head.weight")
V4_MTP = (
    V4_TAIL
    | replicated("e_proj", "h_proj")
    | norms("enorm", "hnorm")
    | cut(0, VOCABULARY, "embed.weight", "emb.tok_emb.weight", "head.weight")
)


def _family(
    *tables: Table, mtp: bool = False, experts: str = "mlp.experts", of: str = ""
) -> Family:
    layer = {**BLOCK}
    for table in tables:
        layer |= table
    places = {OUT: OUTSIDE, IN: layer} | ({BEYOND: layer | MTP_LAYER} if mtp else {})
    return Family(places, experts if of else "", Unit(of))


ROUTED = "n_routed_experts"
_DENSE = _family(GQA, MLP)
_DEEPSEEK = _family(MLA, MLP, SHARED_EXPERTS, mtp=True, of=ROUTED)
_WITH_INDEXER = _family(MLA, INDEXER, MLP, SHARED_EXPERTS, mtp=True, of=ROUTED)
_V4 = Family({OUT: V4_OUTSIDE, IN: V4_LAYER, MTP: V4_LAYER | V4_MTP}, "ffn.experts", Unit(ROUTED))

FAMILIES: dict[str, Family] = {  # by model_type
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _WITH_INDEXER,
    "deepseek_v4": _V4,
    "glm4_moe": _family(GQA, HEAD_NORMS, MLP, SHARED_EXPERTS, mtp=True, of=ROUTED),
    "glm_moe_dsa": _WITH_INDEXER,
    "gpt_oss": _family(GQA, GPT_OSS, of="num_local_experts"),
    "kimi_k2": _DEEPSEEK,
    "llama": _DENSE,
    "minimax_m2": _family(GQA, MINIMAX, experts="block_sparse_moe.experts", of="num_local_experts"),
    "ministral3": _DENSE,
    "mistral": _DENSE,
    "qwen2": _DENSE,
    "qwen2_moe": _family(GQA, MLP, QWEN2_MOE, of="num_experts"),
    "qwen3": _family(GQA, HEAD_NORMS, MLP),
    "qwen3_moe": _family(GQA, HEAD_NORMS, MLP, ROUTER, EXPERTS, of="num_experts"),
}
