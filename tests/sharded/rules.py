"""Which axis of which weight is cut over tensor-parallel ranks, by layout and architecture.

``deepseek``: the tables of ``inference/convert.py`` of DeepSeek-V3, V3.2 and V4, as FORMATS lists
them. ``hf``: what is column-parallel in Megatron's sense (q, k, v, gate, up: outputs) and what is
row-parallel (o, down: inputs); biases go with outputs, those of row-parallel layers are whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """``axis`` None: whole on every rank. Fewer ``units`` than ranks may be ``repeated``."""

    axis: int | None = None
    units: int = 0  # 0: as many as there are elements
    repeated: bool = False
    expert: int | None = None
    padded: bool = False


WHOLE = Rule()
Config = Mapping[str, Any]


class Unfit(Exception):  # noqa: N818
    """So many ranks cannot share it."""


def span(rule: Rule, size: int, rank: int, ranks: int) -> tuple[int, int] | None:
    """What a rank has of ``size`` elements along the axis of its rule; None: nothing."""
    units = rule.units or size
    if rule.expert is not None:
        if units % ranks:
            raise Unfit(f"{units} experts")
        each = units // ranks
        return (0, size) if rank * each <= rule.expert < (rank + 1) * each else None
    if rule.axis is None:
        return 0, size
    assert size % units == 0
    if units % ranks == 0:
        each = size // ranks
        return rank * each, (rank + 1) * each
    if rule.repeated and ranks % units == 0:
        copies, one = ranks // units, size // units
        return rank // copies * one, (rank // copies + 1) * one
    raise Unfit(f"{units} units")


# DeepSeek's own layout

V3_TABLE: dict[str, tuple[str, int | None]] = {
    "embed_tokens": ("embed", 0),
    "input_layernorm": ("attn_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "q_proj": ("wq", 0),
    "q_a_proj": ("wq_a", None),
    "q_a_layernorm": ("q_norm", None),
    "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None),
    "kv_a_layernorm": ("kv_norm", None),
    "kv_b_proj": ("wkv_b", 0),
    "o_proj": ("wo", 1),
    "gate": ("gate", None),
    "gate_proj": ("w1", 0),
    "down_proj": ("w2", 1),
    "up_proj": ("w3", 0),
    "norm": ("norm", None),
    "lm_head": ("head", 0),
    # V3.2's indexer
    "wq_b": ("wq_b", None),
    "wk": ("wk", None),
    "k_norm": ("k_norm", None),
    "weights_proj": ("weights_proj", None),
    # the MTP layer's own: in no published script, which all drop it
    "enorm": ("enorm", None),
    "hnorm": ("hnorm", None),
    "eh_proj": ("eh_proj", None),
    "head": ("head", 0),
}
V3_WORDS = {
    "self_attn": "attn", "mlp": "ffn", "weight_scale_inv": "scale",
    "e_score_correction_bias": "bias",
}  # fmt: skip
V4_AXES = {
    "embed": 0, "head": 0, "wq_b": 0, "wo_a": 0, "wo_b": 1, "attn_sink": 0, "weights_proj": 0,
}  # fmt: skip
EXPERT = re.compile(r"\.experts\.([0-9]+)\.")


def is_v4(config: Config) -> bool:
    """Bare names."""
    return str(config["model_type"]).startswith("deepseek_v4")


def experts_of(config: Config) -> int:
    """How many are routed to."""
    for field in ("n_routed_experts", "num_experts", "num_local_experts"):
        if config.get(field):
            return int(config[field])
    return 0


def is_mtp(name: str, config: Config) -> bool:
    """Of the multi-token prediction layers, which come behind the others."""
    if name.startswith("mtp."):
        return True
    found = re.match(r"model\.layers\.([0-9]+)\.", name)
    return found is not None and int(found[1]) >= config["num_hidden_layers"]


def deepseek_rule(name: str, config: Config) -> tuple[str, Rule]:
    """The inference name, and how it is cut."""
    expert = EXPERT.search(name)
    if is_v4(config):
        new, axis = name, _v4_axis(name)
    else:
        parts = [V3_WORDS.get(p, p) for p in name.removeprefix("model.").split(".")]
        parts[-2], axis = V3_TABLE[parts[-2]]
        new = ".".join(parts)
    if expert:
        return new, Rule(units=experts_of(config), expert=int(expert[1]))
    return new, Rule(axis, units=_deepseek_units(new, config) if axis is not None else 0)


def _v4_axis(name: str) -> int | None:
    parts = name.split(".")
    key = parts[-2] if parts[-1] in ("weight", "scale") and len(parts) > 1 else parts[-1]
    return V4_AXES.get(key)


def _deepseek_units(new: str, config: Config) -> int:
    """What is not divided further: a head, a group of outputs."""
    if "indexer" in new:
        return int(config["index_n_heads"])
    if ".attn." not in new:
        return 0
    grouped = "wo_a" in new or "wo_b" in new
    return int(config["o_groups"] if grouped else config["num_attention_heads"])


# The Hugging Face layout

Q, KV = "q", "kv"
COLUMN, ROW = 0, 1
ATTENTION = {
    "q_proj": (COLUMN, Q), "k_proj": (COLUMN, KV), "v_proj": (COLUMN, KV), "o_proj": (ROW, Q),
}  # fmt: skip
MLA = {"q_proj": (COLUMN, Q), "q_b_proj": (COLUMN, Q), "kv_b_proj": (COLUMN, Q), "o_proj": (ROW, Q)}
MLP = {"gate_proj": (COLUMN, ""), "up_proj": (COLUMN, ""), "down_proj": (ROW, "")}
MIXTRAL = {"w1": (COLUMN, ""), "w3": (COLUMN, ""), "w2": (ROW, "")}
NORMS = {"q_norm": (COLUMN, Q), "k_norm": (COLUMN, KV)}  # over all heads, not over each
TABLES = {"embed_tokens": (COLUMN, "vocab"), "lm_head": (COLUMN, "vocab")}
MTP_HEAD = {"head": (COLUMN, "vocab")}
HF: dict[str, dict[str, tuple[int, str]]] = {
    "llama": ATTENTION | MLP,
    "mistral": ATTENTION | MLP,
    "ministral3": ATTENTION | MLP,
    "qwen2": ATTENTION | MLP,
    "qwen2_moe": ATTENTION | MLP,
    "qwen3": ATTENTION | MLP,
    "qwen3_moe": ATTENTION | MLP,
    "glm4_moe": ATTENTION | MLP | MTP_HEAD,
    "minimax_m2": ATTENTION | MIXTRAL | NORMS,
    "gpt_oss": ATTENTION | {"sinks": (COLUMN, Q)},
    "deepseek_v3": MLA | MLP | MTP_HEAD,
    "deepseek_v32": MLA | MLP | MTP_HEAD,
    "kimi_k2": MLA | MLP | MTP_HEAD,
}


def hf_rule(name: str, config: Config, experts: str) -> Rule:
    """How a weight (or a bias) of this name is cut; ``experts`` owner or cut."""
    if config["model_type"] == "gpt_oss" and ".experts." in name:
        return _gpt_oss(name, config, experts)
    if is_v4(config):
        _, rule = deepseek_rule(name, config)
        if rule.expert is None or experts == "owner":
            return rule
        return Rule(MIXTRAL[name.split(".")[-2]][0])
    *path, leaf = name.split(".")
    module = path[-1] if leaf in ("weight", "bias") else leaf
    if module in TABLES:
        return Rule(0, padded=True)
    expert = EXPERT.search(name)
    if expert and experts == "owner":
        return Rule(units=experts_of(config), expert=int(expert[1]))
    if module not in HF[config["model_type"]] or "indexer" in path:
        return WHOLE
    axis, unit = HF[config["model_type"]][module]
    if unit == "vocab":
        return Rule(0, padded=True)
    if leaf == "bias" and axis == ROW:
        return WHOLE
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads", heads))
    return Rule(axis, {Q: heads, KV: kv_heads}.get(unit, 0), repeated=unit == KV)


def _gpt_oss(name: str, config: Config, experts: str) -> Rule:
    """Experts are stacked. ``name`` is the weight's; MXFP4 is [E, out, in], BF16 [E, in, out]."""
    if experts == "owner":
        return Rule(0, experts_of(config))
    mxfp4 = "quantization_config" in config
    if name.endswith("gate_up_proj"):  # the rows of gate and up alternate: a pair is a unit
        return Rule(1 if mxfp4 else 2, int(config["intermediate_size"]))
    if name.endswith("gate_up_proj_bias"):
        return Rule(1, int(config["intermediate_size"]))
    if name.endswith("down_proj_bias"):
        return WHOLE
    return Rule(2 if mxfp4 else 1)
