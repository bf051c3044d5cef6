"""Names and axes of DeepSeek's own layout: one table for V3 and its kin, one for V4.

A row gives the weight's name in a published checkpoint, its name inside ``inference/model.py``, the
axis that is cut over ranks (None: whole on every rank), and the config fields whose product counts
the parts that are not divided further; each is as long as the fields ``each`` together. ``#`` is a
number. A routed expert has no axis: it is whole on one rank.

Sources: ``inference/convert.py`` and ``inference/model.py`` of DeepSeek-V3, V3.2 and
V4-Flash; the names of V4 are unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# The published code knows one model each; V2 and Kimi K2 have V3's modules and names.
V3_TYPES = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2")
V4_TYPES = ("deepseek_v4",)
V4_ONLY = "attn_sink"  # a tensor that no earlier model has

VOCABULARY = ("vocab_size",)
HEADS = ("num_attention_heads",)
DENSE = ("intermediate_size",)
SHARED = ("moe_intermediate_size", "n_shared_experts")
EXPERTS = ("n_routed_experts",)
GROUPS = ("o_groups",)
INDEX = ("index_n_heads",)
QK = ("qk_nope_head_dim", "qk_rope_head_dim")
KV = ("qk_nope_head_dim", "v_head_dim")

_NUMBER = re.compile(r"\.([0-9]{1,6})\.")
Key = tuple[str, ...]  # a name without its numbers


class Row(NamedTuple):
    """A weight in a checkpoint and in the inference code, and how ranks share it."""

    hf: str
    ours: str
    axis: int | None = None
    units: tuple[str, ...] = ()
    each: tuple[str, ...] = ()


def parsed(name: str) -> tuple[Key, tuple[str, ...]]:
    """``layers.3.attn.wq.weight`` -> (``layers``, ``attn.wq.weight``), (``3``,)."""
    pieces = _NUMBER.split(name)
    return tuple(pieces[::2]), tuple(pieces[1::2])


def key(name: str) -> Key:
    """A row's name as :func:`parsed` gives it."""
    return tuple(name.split(".#."))


def _within(hf: str, ours: str, rows: Iterable[Row]) -> list[Row]:
    return [row._replace(hf=hf + row.hf, ours=ours + row.ours) for row in rows]


def _mlp(hf: str, ours: str, units: tuple[str, ...], cut: bool = True) -> list[Row]:
    return [
        Row(f"{hf}.gate_proj.weight", f"{ours}.w1.weight", 0 if cut else None, units),
        Row(f"{hf}.up_proj.weight", f"{ours}.w3.weight", 0 if cut else None, units),
        Row(f"{hf}.down_proj.weight", f"{ours}.w2.weight", 1 if cut else None, units),
    ]


V3_LAYER = [
    Row("input_layernorm.weight", "attn_norm.weight"),
    Row("post_attention_layernorm.weight", "ffn_norm.weight"),
    Row("self_attn.q_proj.weight", "attn.wq.weight", 0, HEADS, QK),  # where q_lora_rank is null
    Row("self_attn.q_a_proj.weight", "attn.wq_a.weight"),
    Row("self_attn.q_a_layernorm.weight", "attn.q_norm.weight"),
    Row("self_attn.q_b_proj.weight", "attn.wq_b.weight", 0, HEADS, QK),
    Row("self_attn.kv_a_proj_with_mqa.weight", "attn.wkv_a.weight"),
    Row("self_attn.kv_a_layernorm.weight", "attn.kv_norm.weight"),
    Row("self_attn.kv_b_proj.weight", "attn.wkv_b.weight", 0, HEADS, KV),
    Row("self_attn.o_proj.weight", "attn.wo.weight", 1, HEADS, KV[1:]),
    # V3.2's indexer is whole on every rank, though its wq_b is called as attention's is.
    Row("self_attn.indexer.wq_b.weight", "attn.indexer.wq_b.weight"),
    Row("self_attn.indexer.wk.weight", "attn.indexer.wk.weight"),
    Row("self_attn.indexer.k_norm.weight", "attn.indexer.k_norm.weight"),
    Row("self_attn.indexer.k_norm.bias", "attn.indexer.k_norm.bias"),
    Row("self_attn.indexer.weights_proj.weight", "attn.indexer.weights_proj.weight"),
    Row("mlp.gate.weight", "ffn.gate.weight"),
    Row("mlp.gate.e_score_correction_bias", "ffn.gate.bias"),
    *_mlp("mlp", "ffn", DENSE),
    *_mlp("mlp.shared_experts", "ffn.shared_experts", SHARED),
    *_mlp("mlp.experts.#", "ffn.experts.#", EXPERTS, cut=False),
]
# What an MTP layer has beside those. No published loader of V3's family reads an MTP layer: its
# script leaves it out. These names are ours, in the manner of the rest.
V3_MTP = [
    Row("embed_tokens.weight", "embed.weight", 0, VOCABULARY),
    Row("enorm.weight", "enorm.weight"),
    Row("hnorm.weight", "hnorm.weight"),
    Row("eh_proj.weight", "eh_proj.weight"),
    Row("shared_head.norm.weight", "shared_head.norm.weight"),
    Row("shared_head.head.weight", "shared_head.head.weight", 0, VOCABULARY),
]
V3_ROWS = [
    Row("model.embed_tokens.weight", "embed.weight", 0, VOCABULARY),
    Row("model.norm.weight", "norm.weight"),
    Row("lm_head.weight", "head.weight", 0, VOCABULARY),
    *_within("model.layers.#.", "layers.#.", [*V3_LAYER, *V3_MTP]),
]


def _whole(*names: str) -> list[Row]:
    return [Row(name, name) for name in names]


def _cut(name: str, axis: int | None, units: tuple[str, ...], *each: str) -> Row:
    return Row(name, name, axis, units, each)


def _hyper(at: str) -> list[Row]:
    return _whole(f"{at}_fn", f"{at}_base", f"{at}_scale")


def _compressor(at: str) -> list[Row]:
    return _whole(*(f"{at}.{t}" for t in ("ape", "wkv.weight", "wgate.weight", "norm.weight")))


V4_LAYER = [
    *_whole("attn_norm.weight", "ffn_norm.weight"),
    *_hyper("hc_attn"),
    *_hyper("hc_ffn"),
    *_whole("attn.wq_a.weight", "attn.q_norm.weight", "attn.wkv.weight", "attn.kv_norm.weight"),
    _cut("attn.wq_b.weight", 0, HEADS, "head_dim"),
    _cut("attn.attn_sink", 0, HEADS),
    _cut("attn.wo_a.weight", 0, GROUPS, "o_lora_rank"),
    _cut("attn.wo_b.weight", 1, GROUPS, "o_lora_rank"),
    *_compressor("attn.compressor"),
    _cut("attn.indexer.wq_b.weight", 0, INDEX, "index_head_dim"),
    _cut("attn.indexer.weights_proj.weight", 0, INDEX),
    *_compressor("attn.indexer.compressor"),
    *_whole("ffn.gate.weight", "ffn.gate.bias", "ffn.gate.tid2eid"),
    *_whole(*(f"ffn.shared_experts.{w}.weight" for w in ("w1", "w2", "w3"))),
    *(_cut(f"ffn.experts.#.{w}.weight", None, EXPERTS) for w in ("w1", "w2", "w3")),
]
V4_MTP = [
    *_whole("e_proj.weight", "h_proj.weight", "enorm.weight", "hnorm.weight", "norm.weight"),
    *_hyper("hc_head"),
    _cut("embed.weight", 0, VOCABULARY),
    _cut("head.weight", 0, VOCABULARY),
]
V4_ROWS = [
    _cut("embed.weight", 0, VOCABULARY),
    _cut("head.weight", 0, VOCABULARY),
    *_whole("norm.weight"),
    *_hyper("hc_head"),
    *_within("layers.#.", "layers.#.", V4_LAYER),
    *_within("mtp.#.", "mtp.#.", [*V4_LAYER, *V4_MTP]),
]
