"""Small checkpoints in the published names: every architecture, in every form it is stored in."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fp8convert.samples import make_sample

from ..quantized import readers
from .coding import decoded
from .deepseek import (
    kimi,
    v2,
    v3,
    v3_bf16,
    v3_modelopt,
    v3_nvfp4,
    v4,
    v4_base,
    v4_bf16,
    v31,
    v32,
)
from .families import (
    glm4_moe,
    gpt_oss,
    llama,
    llama_awq,
    llama_bf16,
    llama_gptq,
    llama_tied,
    minimax_m2,
    mistral,
    qwen2,
    qwen2_gptq,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    rows_of_192,
    rows_of_384,
)
from .model import Source

MAKERS: dict[str, Callable[[], Source]] = {
    maker.__name__: maker
    for maker in (
        rows_of_192, rows_of_384, llama, llama_bf16, llama_tied, llama_awq, llama_gptq, qwen2_gptq,
        mistral, qwen2, qwen3, qwen2_moe, qwen3_moe, glm4_moe, minimax_m2, gpt_oss, v3, v3_bf16,
        v31, v2, v32, kimi, v3_nvfp4, v3_modelopt, v4, v4_base, v4_bf16,
    )
}  # fmt: skip


@functools.cache
def source(id: str) -> Source:
    """One of :data:`MAKERS`; ``X-in-bf16``: the same decoded; ``sample-F``: a tiny make-sample."""
    if id in MAKERS:
        return MAKERS[id]()
    if id.startswith("sample-") and not id.endswith("-in-bf16"):
        return _sample(id, id.removeprefix("sample-"))
    coded = source(id.removesuffix("-in-bf16"))
    config = {k: v for k, v in coded.config.items()
              if k not in ("quantization_config", "expert_dtype")}  # fmt: skip
    return replace(coded, id=id, config=config, tensors=decoded(coded.tensors, coded.config))


def _sample(id: str, family: str) -> Source:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / family
        make_sample(str(folder), family=family)
        config = json.loads((folder / "config.json").read_text())
        files = {p.name: p.read_bytes() for p in folder.iterdir()
                 if p.suffix != ".safetensors" and p.name not in OWN}  # fmt: skip
        return Source(id, config, readers.stored(folder), files=files)


OWN = ("config.json", "model.safetensors.index.json")
