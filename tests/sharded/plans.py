"""How each tensor of each architecture is to be cut, name by name.

``#`` stands for any number, ``@`` for a layer. Then the axis and what of, by the config's field;
``-``: whole; ``+``: whole, and added on one rank only. Where there are two of these, the first is
for whole experts: ``experts`` alone is one of them, ``0 experts`` a stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

REST = """
model.embed_tokens.weight                        0 vocab_size
model.norm.weight                                -
lm_head.weight                                   0 vocab_size
model.layers.#.input_layernorm.weight            -
model.layers.#.post_attention_layernorm.weight   -
"""
ATTENTION = """
model.layers.#.self_attn.q_proj.weight           0 num_attention_heads
model.layers.#.self_attn.k_proj.weight           0 num_key_value_heads
model.layers.#.self_attn.v_proj.weight           0 num_key_value_heads
model.layers.#.self_attn.o_proj.weight           1 num_attention_heads
"""
QKV_BIAS = """
model.layers.#.self_attn.q_proj.bias             0 num_attention_heads
model.layers.#.self_attn.k_proj.bias             0 num_key_value_heads
model.layers.#.self_attn.v_proj.bias             0 num_key_value_heads
"""
O_BIAS = """
model.layers.#.self_attn.o_proj.bias             +
"""
HEAD_NORMS = """
model.layers.#.self_attn.q_norm.weight           -
model.layers.#.self_attn.k_norm.weight           -
"""
MLA = """
model.layers.#.self_attn.q_a_proj.weight             -
model.layers.#.self_attn.q_a_layernorm.weight        -
model.layers.#.self_attn.q_b_proj.weight             0 num_attention_heads
model.layers.#.self_attn.kv_a_proj_with_mqa.weight   -
model.layers.#.self_attn.kv_a_layernorm.weight       -
model.layers.#.self_attn.kv_b_proj.weight            0 num_attention_heads
model.layers.#.self_attn.o_proj.weight               1 num_attention_heads
"""
MLA_BIAS = """
model.layers.#.self_attn.q_a_proj.bias               -
model.layers.#.self_attn.kv_a_proj_with_mqa.bias     -
"""
INDEXER = """
model.layers.#.self_attn.indexer.wq_b.weight         -
model.layers.#.self_attn.indexer.wk.weight           -
model.layers.#.self_attn.indexer.weights_proj.weight -
model.layers.#.self_attn.indexer.k_norm.weight       -
model.layers.#.self_attn.indexer.k_norm.bias         -
"""
MLP = """
model.layers.#.mlp.gate_proj.weight   0 intermediate_size
model.layers.#.mlp.up_proj.weight     0 intermediate_size
model.layers.#.mlp.down_proj.weight   1 intermediate_size
"""
MLP_BIAS = """
model.layers.#.mlp.gate_proj.bias     0 intermediate_size
model.layers.#.mlp.up_proj.bias       0 intermediate_size
model.layers.#.mlp.down_proj.bias     +
"""
EXPERTS = """
model.layers.#.mlp.gate.weight                   -
model.layers.#.mlp.experts.#.gate_proj.weight    experts   0 moe_intermediate_size
model.layers.#.mlp.experts.#.up_proj.weight      experts   0 moe_intermediate_size
model.layers.#.mlp.experts.#.down_proj.weight    experts   1 moe_intermediate_size
"""
SHARED = """
model.layers.#.mlp.shared_experts.gate_proj.weight   0 moe_intermediate_size
model.layers.#.mlp.shared_experts.up_proj.weight     0 moe_intermediate_size
model.layers.#.mlp.shared_experts.down_proj.weight   1 moe_intermediate_size
"""
SCORE_BIAS = """
model.layers.#.mlp.gate.e_score_correction_bias      -
"""
SHARED_EXPERT = """
model.layers.#.mlp.shared_expert_gate.weight         -
model.layers.#.mlp.shared_expert.gate_proj.weight    0 shared_expert_intermediate_size
model.layers.#.mlp.shared_expert.up_proj.weight      0 shared_expert_intermediate_size
model.layers.#.mlp.shared_expert.down_proj.weight    1 shared_expert_intermediate_size
"""
MINIMAX = """
model.layers.#.self_attn.q_norm.weight                    0 num_attention_heads
model.layers.#.self_attn.k_norm.weight                    0 num_key_value_heads
model.layers.#.block_sparse_moe.gate.weight               -
model.layers.#.block_sparse_moe.e_score_correction_bias   -
model.layers.#.block_sparse_moe.experts.#.w1.weight   experts   0 intermediate_size
model.layers.#.block_sparse_moe.experts.#.w3.weight   experts   0 intermediate_size
model.layers.#.block_sparse_moe.experts.#.w2.weight   experts   1 intermediate_size
"""
GPT_OSS = """
model.layers.#.self_attn.sinks                       0 num_attention_heads
model.layers.#.mlp.router.weight                     -
model.layers.#.mlp.router.bias                       -
model.layers.#.mlp.experts.gate_up_proj              0 experts   2 intermediate_size
model.layers.#.mlp.experts.gate_up_proj_bias         0 experts   1 intermediate_size
model.layers.#.mlp.experts.down_proj                 0 experts   1 intermediate_size
model.layers.#.mlp.experts.down_proj_bias            0 experts   +
"""
MTP = """
model.layers.#.eh_proj.weight            -
model.layers.#.enorm.weight              -
model.layers.#.hnorm.weight              -
model.layers.#.embed_tokens.weight       0 vocab_size
model.layers.#.shared_head.norm.weight   -
model.layers.#.shared_head.head.weight   0 vocab_size
"""
DENSE = REST + ATTENTION + MLP
DEEPSEEK = REST + MLA + MLP + EXPERTS + SHARED
EXPECTED = {
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK + SCORE_BIAS + MLA_BIAS + O_BIAS,
    "deepseek_v32": DEEPSEEK + SCORE_BIAS + INDEXER,
    "glm4_moe": DENSE + HEAD_NORMS + QKV_BIAS + EXPERTS + SHARED + SCORE_BIAS,
    "glm_moe_dsa": DEEPSEEK + SCORE_BIAS + INDEXER,
    "gpt_oss": REST + ATTENTION + QKV_BIAS + O_BIAS + GPT_OSS,
    "llama": DENSE + QKV_BIAS + O_BIAS + MLP_BIAS,
    "minimax_m2": REST + ATTENTION + MINIMAX,
    "ministral3": DENSE,
    "mistral": DENSE,
    "qwen2": DENSE + QKV_BIAS,
    "qwen2_moe": DENSE + QKV_BIAS + EXPERTS + SHARED_EXPERT,
    "qwen3": DENSE + HEAD_NORMS,
    "qwen3_moe": DENSE + HEAD_NORMS + EXPERTS,
}
V4_LAYER = """
@.attn_norm.weight                     -
@.ffn_norm.weight                      -
@.hc_attn_fn                           -
@.hc_attn_base                         -
@.hc_attn_scale                        -
@.hc_ffn_fn                            -
@.hc_ffn_base                          -
@.hc_ffn_scale                         -
@.attn.attn_sink                       0 num_attention_heads
@.attn.wq_a.weight                     -
@.attn.q_norm.weight                   -
@.attn.wq_b.weight                     0 num_attention_heads
@.attn.wkv.weight                      -
@.attn.kv_norm.weight                  -
@.attn.wo_a.weight                     0 o_groups
@.attn.wo_b.weight                     1 o_groups
@.ffn.gate.weight                      -
@.ffn.gate.bias                        -
@.ffn.shared_experts.w1.weight         -
@.ffn.shared_experts.w2.weight         -
@.ffn.shared_experts.w3.weight         -
@.ffn.experts.#.w1.weight              experts   0 moe_intermediate_size
@.ffn.experts.#.w3.weight              experts   0 moe_intermediate_size
@.ffn.experts.#.w2.weight              experts   1 moe_intermediate_size
"""
V4_COMPRESSED = """
layers.#.ffn.gate.tid2eid                     -
layers.#.attn.compressor.ape                  -
layers.#.attn.compressor.wkv.weight           -
layers.#.attn.compressor.wgate.weight         -
layers.#.attn.compressor.norm.weight          -
layers.#.attn.indexer.wq_b.weight             0 index_n_heads
layers.#.attn.indexer.weights_proj.weight     0 index_n_heads
layers.#.attn.indexer.compressor.ape          -
layers.#.attn.indexer.compressor.wkv.weight   -
layers.#.attn.indexer.compressor.wgate.weight -
layers.#.attn.indexer.compressor.norm.weight  -
"""
V4_REST = """
embed.weight             0 vocab_size
head.weight              0 vocab_size
norm.weight              -
hc_head_fn               -
hc_head_base             -
hc_head_scale            -
mtp.#.e_proj.weight      -
mtp.#.h_proj.weight      -
mtp.#.enorm.weight       -
mtp.#.hnorm.weight       -
mtp.#.norm.weight        -
mtp.#.hc_head_fn         -
mtp.#.hc_head_base       -
mtp.#.hc_head_scale      -
"""
V4 = V4_REST + V4_COMPRESSED + V4_LAYER.replace("@", "layers.#") + V4_LAYER.replace("@", "mtp.#")
SAMPLED = {  # made by the package from published lists of tensors
    "deepseek-v3": DEEPSEEK + SCORE_BIAS + MTP,
    "deepseek-v4": V4,
    "gpt-oss": EXPECTED["gpt_oss"],
    "kimi-k2-thinking": DEEPSEEK + SCORE_BIAS,
    "minimax-m3": EXPECTED["minimax_m2"],
    "mistral-fp8": DENSE,
    "modelopt-nvfp4": DEEPSEEK + SCORE_BIAS + MTP,
    "qwen3-fp8": REST + ATTENTION + HEAD_NORMS + EXPERTS,
}


class Cut(NamedTuple):
    """``axis`` None: whole, or one expert, if there is ``of``."""

    axis: int | None = None
    of: str = ""
    adds: bool = False


def read(text: str, experts: str) -> dict[str, Cut]:
    """A table for ``experts`` owner or cut."""
    table = {}
    for line in filter(None, text.splitlines()):
        name, *words = line.split()
        cuts = list(_cuts(iter(words)))
        table[name] = cuts[experts == "cut" and len(cuts) > 1]
    return table


def _cuts(words: Iterator[str]) -> Iterator[Cut]:
    for word in words:
        if word in "-+":
            yield Cut(adds=word == "+")
        else:
            yield Cut(int(word), next(words)) if word.isdigit() else Cut(None, word)
