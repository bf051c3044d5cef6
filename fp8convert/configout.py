"""config.json of a checkpoint that is no longer quantized, edited as raw JSON: every key kept."""

from __future__ import annotations

import copy
from typing import Any

from .declared import Config

# What a loader takes as "this checkpoint is quantized", or as the dtype to load in.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
EXPERTS_KEY = "expert_dtype"  # DeepSeek V4's, of its experts' codes
DTYPE_KEYS = ("torch_dtype", "dtype")


def plain_config(config: Config, dtype: str) -> Config:
    """``config`` for a checkpoint without codecs: every other key, and their order, kept.

    Declarations go, at any depth; the dtype is set where the model or its text part states one.
    """
    out: Config = _without(copy.deepcopy(config))
    places = [p for p in (out, out.get("text_config")) if isinstance(p, dict)]
    for place in places:
        place.pop(EXPERTS_KEY, None)
        for key in DTYPE_KEYS:
            if key in place:
                place[key] = dtype
    if not any(key in place for place in places for key in DTYPE_KEYS):
        out["torch_dtype"] = dtype  # the name that every version of every loader reads
    return out


def _without(value: Any) -> Any:
    if isinstance(value, list):
        return [_without(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {k: _without(v) for k, v in value.items() if k not in QUANTIZATION_KEYS}
