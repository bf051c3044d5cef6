"""Tiny random DeepSeek-V4 models on disk, in the published form, and transformers' view of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV4ForCausalLM

from fp8convert.samples.deepseek_v4 import _model

from ..checkpoints import write
from .hf import outputs

# All kinds of attention, with a router by hash and a learned one; YaRN's ramp inside the few
# channels that are turned; a limit that cuts; epsilons that are more than rounding.
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "compress_ratios": [0, 4, 128, 0, 4, 0],
    "compress_rope_theta": 160000,
    "hc_eps": 1e-3,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 48,
    "index_head_dim": 16,
    "index_n_heads": 8,
    "index_topk": 6,
    "max_position_embeddings": 4096,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 24,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hash_layers": 2,
    "num_hidden_layers": 5,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-3,
    "rope_scaling": {
        "beta_fast": 4,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 256,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 16,
    "swiglu_limit": 1.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "vocab_size": 96,
}
WIDE = ("hc_", ".ape", ".attn_sink", ".gate.bias")  # F32 in every published file


def tensors(config: dict[str, Any], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight under its published name, as large as makes it matter."""
    torch.manual_seed(seed)
    return {name: _random(name, shape, config, dtype) for name, shape in shapes(config).items()}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of every weight: the sample's list, whose names and shapes are the published ones."""

    return {w.name: w.shape for w in _model(config)}


def _random(
    name: str, shape: tuple[int, ...], config: dict[str, Any], dtype: torch.dtype
) -> Tensor:
    if name.endswith("tid2eid"):
        experts = config["n_routed_experts"]
        return torch.stack([torch.randperm(experts)[: shape[1]] for _ in range(shape[0])])
    if name.endswith("_scale") or "norm" in name:
        found = torch.rand(shape) + 0.5
    elif any(part in name for part in WIDE):
        found = torch.randn(shape) * (shape[-1] ** -0.5 if name.endswith("_fn") else 0.7)
    else:
        found = torch.randn(shape) * shape[-1] ** -0.5 * 1.5
    return found if any(part in name for part in WIDE) else found.to(dtype)


def published(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """A checkpoint with published names and config."""
    return write(folder, [weights], config)


def transformers(folder: Path, dtype: torch.dtype) -> DeepseekV4ForCausalLM:
    """What transformers loads."""
    model = DeepseekV4ForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


def margins(model: DeepseekV4ForCausalLM, tokens: Tensor) -> tuple[float, float]:
    """The least distance of a chosen expert, and of a chosen entry, from the best not chosen.

    Rounding below that changes no choice. Infinite where nothing is left out.
    """
    gates = [layer.mlp.gate for layer in model.model.layers if not layer.mlp.is_hash]
    with torch.no_grad(), outputs(*gates) as routed:
        model(tokens, use_cache=False)
    by_router = []
    for (logits, *_), gate in zip(routed, gates, strict=True):
        scores = torch.nn.functional.softplus(logits.float()).sqrt()
        by_router.append(_gap(scores + gate.e_score_correction_bias, gate.top_k))
    ready = (torch.arange(tokens.shape[1]) + 1) // 4
    best = model.config.index_topk
    by_indexer = [_gap_of_ready(scores, ready, best) for scores in index_scores(model, tokens)]
    return min(by_router), min(by_indexer)


def index_scores(model: DeepseekV4ForCausalLM, tokens: Tensor) -> list[Tensor]:
    """Of every layer with an indexer: scores [b, l, s] of entries."""
    attentions = [layer.self_attn for layer in model.model.layers]
    sparse = [a for a in attentions if a.layer_type == "compressed_sparse_attention"]
    with torch.no_grad(), outputs(*(a.compressor.indexer.scorer for a in sparse)) as scored:
        model(tokens, use_cache=False)
    return scored


def _gap_of_ready(scores: Tensor, ready: Tensor, best: int) -> float:
    gaps = [_gap(scores[:, t, :n], best) for t, n in enumerate(ready.tolist()) if n > best]
    return min(gaps, default=float("inf"))


def _gap(scores: Tensor, best: int) -> float:
    ordered = scores.sort(-1, descending=True).values
    return float((ordered[..., best - 1] - ordered[..., best]).min())


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def rms(found: Tensor, expected: Tensor) -> float:
    """Relative RMS of the difference."""
    found, expected = found.float(), expected.float()
    return float((found - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())
