"""What DeepSeek's own rank files call the weights that a model asks for.

Source: ``inference/convert.py`` and ``inference/model.py`` of DeepSeek-V3 and V3.2. Written down
once more, apart from the table that :mod:`..layouts` cuts by: an error there would cancel out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import SchemeError
from ..strictjson import brief

# A piece of a name between dots -> in rank files. Pieces that are not here stay, and so does what
# comes before and after: the published script replaces one word at a time, too.
WORDS = {
    "embed_tokens": "embed",
    "lm_head": "head",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn": "attn",
    "q_proj": "wq",
    "q_a_proj": "wq_a",
    "q_a_layernorm": "q_norm",
    "q_b_proj": "wq_b",
    "kv_a_proj_with_mqa": "wkv_a",
    "kv_a_layernorm": "kv_norm",
    "kv_b_proj": "wkv_b",
    "o_proj": "wo",
    "mlp": "ffn",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
    "e_score_correction_bias": "bias",
}


def v3(name: str) -> str:
    """``model.layers.0.mlp.gate_proj.weight`` -> ``layers.0.ffn.w1.weight``."""
    pieces = name.removeprefix("model.").split(".")
    return ".".join(WORDS.get(piece, piece) for piece in pieces)


def unchanged(name: str) -> str:
    """V4 is published under the names of its inference code."""
    return name


RENAMES: dict[str, Callable[[str], str]] = {
    "deepseek_v2": v3,
    "deepseek_v3": v3,
    "deepseek_v32": v3,
    "kimi_k2": v3,
    "deepseek_v4": unchanged,
}


def rename_of(config: dict[str, Any]) -> Callable[[str], str]:
    """From a model's names to those in DeepSeek's rank files; SchemeError for other models."""
    model = config.get("model_type")
    if model not in RENAMES:
        raise SchemeError(
            f"config.json: model_type is {brief(model)}, but model{{i}}-mp{{N}}.safetensors are "
            f"DeepSeek's own files, of {', '.join(RENAMES)}"
        )
    return RENAMES[model]
