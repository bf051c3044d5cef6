"""The Hugging Face layout: numbered shards beside an index, or one ``model.safetensors`` alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .deepseek import RANK_FILE

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def numbered(count: int) -> list[str]:
    """The usual names of ``count`` shards; a single one is ``model.safetensors``."""
    if count == 1:
        return [SINGLE]
    return [f"model-{i:05d}-of-{count:06d}.safetensors" for i in range(1, count + 1)]


def kept(names: Sequence[str]) -> list[str]:
    """The source's own names, unless a loader would misread one of them among several."""
    # transformers takes model.safetensors over an index; vLLM takes consolidated* for Mistral's.
    # A rank's name on a file of the whole would be taken for one rank of it.
    odd = any(n.startswith("consolidated") or RANK_FILE.fullmatch(n) for n in names)
    if odd or (len(names) > 1 and SINGLE in names):
        return numbered(len(names))
    return list(names)


def index(weight_map: dict[str, str], total_size: int, metadata: dict[str, Any]) -> str | None:
    """Text of the index; None where ``model.safetensors`` stands alone and needs none."""
    if set(weight_map.values()) == {SINGLE}:
        return None
    fields = {"metadata": {**metadata, "total_size": total_size}, "weight_map": weight_map}
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
