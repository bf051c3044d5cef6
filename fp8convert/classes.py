"""What a tensor is, by its name alone: its group, why it stays unquantized, what is fused with it.

Sources: the tensors that are not coded in the published files of DeepSeek V3 to V4.1, Kimi K2,
Qwen3 to Qwen3.8, GLM-5, MiniMax M2, Mistral and Llama, and the ignore lists of their configs; what
is fused: ``packed_modules_mapping`` of vLLM's models. Every rule is a row of a table.
"""

from __future__ import annotations

import functools
import re

# A part of a name -> group; the deepest part that is found here decides.
GROUPS = {
    "embed_tokens": "embedding",
    "embed": "embedding",
    "lm_head": "head",
    "head": "head",
    "experts": "routed experts",
    "shared_experts": "shared experts",
    "gate": "router",
    "self_attn": "attention",
    "attn": "attention",
    "mlp": "dense mlp",
    "ffn": "dense mlp",
    "norm": "norms",
    "attn_norm": "norms",
    "ffn_norm": "norms",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
}
LAYER = re.compile(r"(?:^|\.)(?P<kind>layers|mtp)\.(?P<n>[0-9]{1,6})\.")

# Why publishers leave a matrix as it is, and loaders read it so.
EMBEDDING, HEAD, NORM, ROUTER = "embedding", "head", "norm", "router"
SENSES, STREAMS, STATE = "vision or audio", "hyper-connection", "state space"
PARTS = {  # a whole part of the name, at any depth; the deepest decides
    "wte": EMBEDDING, "wpe": EMBEDDING, "emb": EMBEDDING, "relative_attention_bias": EMBEDDING,
    "head": HEAD, "cls": HEAD, "score": HEAD, "classifier": HEAD, "pre_classifier": HEAD,
    "qa_outputs": HEAD, "embed_out": HEAD, "vocab_transform": HEAD, "vocab_projector": HEAD,
    "gate": ROUTER, "router": ROUTER, "switch": ROUTER, "gating": ROUTER, "moe_gate": ROUTER,
    "shared_expert_gate": ROUTER,
    "aligner": SENSES, "patch_merger": SENSES, "resampler": SENSES, "sam_model": SENSES,
    "vit": SENSES, "vpm": SENSES, "apm": SENSES,
    "attn_hc": STREAMS, "ffn_hc": STREAMS, "hc_head": STREAMS,
}  # fmt: skip
ENDINGS = {"_head": HEAD, "_emb": EMBEDDING}  # of a part
WITHIN = {  # somewhere in a part
    "embed": EMBEDDING, "hyper_connection": STREAMS, "vision": SENSES, "visual": SENSES,
    "audio": SENSES, "image": SENSES, "video": SENSES, "speech": SENSES, "projector": SENSES,
    "multi_modal": SENSES,
}  # fmt: skip
TAILS = {  # the last part of the module's name, or the last two
    "eh_proj": "MTP projection", "mtp.fc": "MTP projection",
    "weights_proj": "indexer", "indexers_proj": "indexer",
    "compressor.wkv": "compressor", "compressor.wgate": "compressor",
    "compressor.kv_proj": "compressor", "compressor.gate_proj": "compressor",
    "conv1d": STATE, "in_proj_a": STATE, "in_proj_b": STATE, "in_proj_ba": STATE, "x_proj": STATE,
    "dt_proj": STATE,
}  # fmt: skip
FIRST = {"output": HEAD, "proj_out": HEAD, "shared": EMBEDDING, "mlp1": SENSES}  # after WRAPPERS
WRAPPERS = {"model", "language_model"}

# Linears that engines merge into one: they take one precision, and one scale where that is per
# tensor. Not every member is in every model.
PARTNERS = (
    ("q_proj", "k_proj", "v_proj"),
    ("wq", "wk", "wv"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("wq_a", "wkv", "wkv_a"),
    ("compressor.wkv", "compressor.wgate"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
    ("query", "key", "value"),
)
_GROUP_OF: dict[str, tuple[str, ...]] = {leaf: group for group in PARTNERS for leaf in group}


def group(name: str) -> str:
    """``model.layers.4.mlp.experts.7.up_proj.weight`` -> routed experts: the deepest known part."""
    for part in reversed(name.split(".")):
        if part in GROUPS:
            return GROUPS[part]
    return "other"


def mtp_layer(name: str, layers: int | None) -> int | None:
    """The layer number of a tensor beyond the model's own layers; ``mtp.0`` is the first."""
    found = LAYER.search(name)
    if layers is None or found is None:
        return None
    number = int(found["n"]) + (layers if found["kind"] == "mtp" else 0)
    if number < layers or SENSES in map(_kind, name[: found.start()].split(".")):
        return None  # a tower of images or sounds has layers of its own
    return number


def left_alone(name: str) -> str | None:
    """Why a weight is not quantized unless asked for, such as ``router``; None for a linear."""
    parts = name.removesuffix(".weight").split(".")
    found = [kind for kind in map(_kind, parts) if kind is not None]
    tail = _tail(parts[-1]) or TAILS.get(".".join(parts[-2:]))
    return tail or (found[-1] if found else _first(parts))


def is_embedding(name: str) -> bool:
    """Whether it is a table itself: not a linear of an embedding layer (``patch_embed.proj``)."""
    parts = name.removesuffix(".weight").split(".")
    return EMBEDDING in (_kind(parts[-1]), _first(parts))


def partners(name: str) -> tuple[str, ...]:
    """The weights that may be fused with the weight ``name``, and itself; () if it never is."""
    around, dot, last = name.removesuffix(".weight").rpartition(".")
    if not name.endswith(".weight"):
        return ()
    found = _GROUP_OF.get(f"{around.rpartition('.')[2]}.{last}") or _GROUP_OF.get(last, ())
    return tuple(f"{around}{dot}{member.rpartition('.')[2]}.weight" for member in found)


def experts_of(name: str) -> str | None:
    """The module that holds the routed experts ``name`` belongs to: engines stack them all."""
    around, found, _ = name.partition(".experts.")
    return f"{around}.experts" if found else None


def _first(parts: list[str]) -> str | None:
    """By the outermost part that says something."""
    if FIRST.keys().isdisjoint(parts):
        return None
    return FIRST.get(next((part for part in parts if part not in WRAPPERS), ""))


@functools.lru_cache(4096)  # parts are few, names are many
def _kind(part: str) -> str | None:
    if part in PARTS:
        return PARTS[part]
    rows = [kind for end, kind in ENDINGS.items() if part.endswith(end)]
    rows += [kind for word, kind in WITHIN.items() if word in part]
    return rows[0] if rows else None


@functools.lru_cache(4096)
def _tail(last: str) -> str | None:
    return TAILS.get(last) or (NORM if "norm" in last.lower() else None)
