"""Checkpoints that are not quantized."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Fact, Json, Row, raw
from .facts import bf16 as kept


def dense(hidden: int, width: int, vocabulary: int) -> list[Row]:
    """A llama or a Qwen3."""
    return [
        kept("model.embed_tokens.weight", vocabulary, hidden),
        kept("model.layers.0.self_attn.q_proj.weight", 4096, hidden),
        kept("model.layers.0.mlp.down_proj.weight", hidden, width),
        kept("model.norm.weight", hidden),
    ]


def qwen3_moe() -> list[Row]:
    """Experts one by one."""
    return [
        kept("model.layers.0.mlp.gate.weight", 128, 2048),
        kept("model.layers.0.mlp.experts.127.down_proj.weight", 2048, 768),
    ]


def llama4() -> list[Row]:
    """Experts fused, inputs before outputs."""
    at = "language_model.model.layers.0.feed_forward"
    return [
        kept(f"{at}.router.weight", 16, 5120),
        kept(f"{at}.experts.gate_up_proj", 16, 5120, 16384),
        kept(f"{at}.experts.down_proj", 16, 8192, 5120),
    ]


def glm() -> list[Row]:
    """With the indexer, and a router's bias in F32."""
    return [
        kept("model.layers.3.self_attn.indexer.weights_proj.weight", 32, 6144),
        raw("model.layers.3.mlp.gate.e_score_correction_bias", "F32", 256),
        kept("model.layers.3.mlp.experts.0.gate_proj.weight", 2048, 6144),
    ]


def _fact(name: str, model: str, rows: list[Row], **more: Json) -> Fact:
    config = {"model_type": model, "torch_dtype": "bfloat16", **more}
    return Fact(f"config.json of {name}", {"scheme": "none"}, rows, config)


def facts() -> Iterator[Fact]:
    """Nothing is declared."""
    yield _fact("Qwen/Qwen3-8B", "qwen3", dense(4096, 12288, 151936))
    yield _fact("Qwen/Qwen3-30B-A3B", "qwen3_moe", qwen3_moe())
    yield _fact("meta-llama/Meta-Llama-3.1-8B", "llama", dense(4096, 14336, 128256))
    inner = {"model_type": "llama4_text", "torch_dtype": "bfloat16"}
    name = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    yield _fact(name, "llama4", llama4(), text_config=inner)
    yield _fact("zai-org/GLM-5", "glm_moe_dsa", glm())
