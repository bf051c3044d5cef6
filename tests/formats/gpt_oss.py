"""gpt-oss: MXFP4 experts, ``X_blocks`` and ``X_scales``, decoded to [E, in, out].

transformers ``integrations/mxfp4.py``: blocks U8 [E, out, groups, 16], scales U8 [E, out, groups].
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import make
from .case import Builder, Case
from .formulas import E2M1, exponents, nibbles, pack_nibbles

CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "model_type": "gpt_oss",
    "num_hidden_layers": 2,
    "num_local_experts": 3,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
}


def experts(builder: Builder, name: str, count: int, rows: int, columns: int) -> None:
    """One projection of all experts."""
    groups = columns // 32
    code = make.integers(name, 0, 16, count, rows, groups, 32)
    scale = make.powers(name, count, rows, groups)
    code[-1, -1, -1] = torch.arange(32) % 4 + 8 * (torch.arange(32) // 4 % 2)  # up to 1.5
    scale[-1, -1, -1] = 254
    blocks = pack_nibbles(code)
    out = torch.empty(count, columns, rows)
    for e in range(count):
        for row in range(rows):
            for g in range(groups):
                group = E2M1[nibbles(blocks[e, row, g])] * exponents(scale[e, row, g])
                out[e, g * 32 : (g + 1) * 32, row] = group
    builder.code(name, {f"{name}_blocks": blocks, f"{name}_scales": scale}, out)


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    builder = Builder()
    builder.keep_all(make.bystanders(64))
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        experts(builder, f"{prefix}.mlp.experts.gate_up_proj", 3, 2 * 24, 64)
        experts(builder, f"{prefix}.mlp.experts.down_proj", 3, 64, 96)
        builder.keep_all(
            {
                f"{prefix}.mlp.experts.gate_up_proj_bias": make.bf16(prefix, 3, 2 * 24),
                f"{prefix}.mlp.experts.down_proj_bias": make.bf16(prefix + "d", 3, 64),
                f"{prefix}.mlp.router.weight": make.bf16(prefix + "r", 3, 64),
                f"{prefix}.self_attn.sinks": make.bf16(prefix + "s", 4),
            }
        )
    return [builder.case("gpt-oss/mxfp4", CONFIG, "transformers convert_moe_packed_tensors")]
