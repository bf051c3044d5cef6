"""DeepSeek's own inference files, ``model{rank}-mp{N}.safetensors``, cut from a small V3.

The names, the table and the cut are those of ``inference/convert.py`` of DeepSeek-V3.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch

from . import make
from .case import Case, Tensors
from .formulas import by_block, values

TABLE: dict[str, tuple[str, int | None]] = {
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
}
EXPERTS = 8
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 128,
    "intermediate_size": 512,
    "kv_lora_rank": 64,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 128,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 4,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "torch_dtype": "bfloat16",
    "vocab_size": 16,
}


@dataclass(frozen=True)
class RankCase(Case):
    """A set of rank files. ``shards`` are its files in order of rank, names repeated in all.

    ``expected`` is the joined checkpoint decoded, as for any case, in the inference naming.
    """

    source: Tensors = field(default_factory=dict)
    """The Hugging Face checkpoint that was cut."""
    files: dict[str, Tensors] = field(default_factory=dict)
    joined: Tensors = field(default_factory=dict)
    """The files put together again, still coded, in the inference naming."""


@functools.cache
def source() -> Tensors:
    """A DeepSeek-V3 of two layers, the first dense, in Hugging Face names."""
    out: Tensors = {}

    def fp8(module: str, rows: int, columns: int) -> None:
        grid = (-(-rows // 128), -(-columns // 128))
        out[f"{module}.weight"] = make.codes(module, rows, columns)
        out[f"{module}.weight_scale_inv"] = make.scales(module, *grid)

    out["model.embed_tokens.weight"] = make.bf16("embed", 16, 128)
    out["lm_head.weight"] = make.bf16("head", 16, 128)
    out["model.norm.weight"] = make.bf16("norm", 128)
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        attention = f"{prefix}.self_attn"
        for leaf, width in (("input_layernorm", 128), ("post_attention_layernorm", 128)):
            out[f"{prefix}.{leaf}.weight"] = make.bf16(prefix + leaf, width)
        out[f"{attention}.q_a_layernorm.weight"] = make.bf16(attention + "q", 64)
        out[f"{attention}.kv_a_layernorm.weight"] = make.bf16(attention + "kv", 64)
        fp8(f"{attention}.q_a_proj", 64, 128)
        fp8(f"{attention}.q_b_proj", 512, 64)
        fp8(f"{attention}.kv_a_proj_with_mqa", 80, 128)
        fp8(f"{attention}.kv_b_proj", 512, 64)
        fp8(f"{attention}.o_proj", 128, 512)
        if layer == 0:
            mlps = {f"{prefix}.mlp": 512}
        else:
            mlps = {f"{prefix}.mlp.experts.{e}": 128 for e in range(EXPERTS)}
            mlps[f"{prefix}.mlp.shared_experts"] = 512
            out[f"{prefix}.mlp.gate.weight"] = make.bf16("gate", EXPERTS, 128)
            out[f"{prefix}.mlp.gate.e_score_correction_bias"] = make.f32("bias", EXPERTS)
        for mlp, width in mlps.items():
            fp8(f"{mlp}.gate_proj", width, 128)
            fp8(f"{mlp}.up_proj", width, 128)
            fp8(f"{mlp}.down_proj", 128, width)
    return out


def rename(name: str) -> tuple[str, int | None]:
    """The inference name and the axis that is cut, None for whole."""
    parts = name.removeprefix("model.").split(".")
    words = {"self_attn": "attn", "mlp": "ffn", "weight_scale_inv": "scale"}
    words["e_score_correction_bias"] = "bias"
    parts = [words.get(part, part) for part in parts]
    parts[-2], axis = TABLE[parts[-2]]
    return ".".join(parts), axis


def rank_case(ranks: int) -> RankCase:
    """The files of so many ranks."""
    files: dict[str, Tensors] = {f"model{rank}-mp{ranks}.safetensors": {} for rank in range(ranks)}
    joined: Tensors = {}
    for name, tensor in source().items():
        new, axis = rename(name)
        joined[new] = tensor
        for rank, file in enumerate(files.values()):
            if ".experts." in new:
                owner = int(new.split(".")[-3]) // (EXPERTS // ranks)
                if owner == rank:
                    file[new] = tensor
            elif axis is None:
                file[new] = tensor
            else:
                assert tensor.shape[axis] % ranks == 0, new
                width = tensor.shape[axis] // ranks
                raw = tensor.view(torch.uint8) if tensor.dtype == make.E4M3 else tensor
                cut = raw.narrow(axis, rank * width, width).contiguous()
                file[new] = cut.view(tensor.dtype)
    expected = {
        name: by_block(values(tensor), joined[name.removesuffix("weight") + "scale"], (128, 128))
        if tensor.dtype == make.E4M3
        else tensor
        for name, tensor in joined.items()
        if not name.endswith(".scale")
    }
    return RankCase(
        id=f"deepseek-ranks/mp{ranks}",
        config=CONFIG,
        shards=list(files.values()),
        expected=expected,
        decoded=frozenset(n for n, t in joined.items() if t.dtype == make.E4M3),
        dropped=frozenset(n for n in joined if n.endswith(".scale")),
        oracle="the table and cut of DeepSeek-V3 inference/convert.py in a plain loop",
        source=source(),
        files=files,
        joined=joined,
    )


@functools.cache
def cases() -> list[RankCase]:
    """One, two and four ranks."""
    return [rank_case(ranks) for ranks in (1, 2, 4)]
