"""AutoAWQ's GEMM layout: int4, eight outputs to a word, in the order 0 2 4 6 1 3 5 7.

``awq/modules/linear/gemm.py`` and ``awq/utils/packing_utils.py`` of AutoAWQ:
qweight I32 [in, out/8], qzeros I32 [in/group, out/8], scales F16 [in/group, out];
weight[o, i] = (q[i, o] - z[i // group, o]) * scales[i // group, o].
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import make
from .case import Builder, Case
from .formulas import words

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def config(group: int = 128, zero_point: bool = True) -> dict[str, Any]:
    """A config.json as AutoAWQ's ``save_quantized`` writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "model_type": "llama",
        "num_hidden_layers": 1,
        "quantization_config": {
            "bits": 4,
            "group_size": group,
            "modules_to_not_convert": None,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": zero_point,
        },
        "torch_dtype": "float16",
    }


def pack(numbers: torch.Tensor) -> torch.Tensor:
    """[n, out] in 0..15 to I32 [n, out/8]: bits 4k of a word hold its output ORDER[k]."""
    shuffled = torch.empty_like(numbers)
    for start in range(0, numbers.shape[1], 8):
        for k, source in enumerate(ORDER):
            shuffled[:, start + k] = numbers[:, start + source]
    return words(shuffled, 4)


def linear(
    builder: Builder,
    module: str,
    inputs: int,
    outputs: int,
    group: int = 128,
    dtype: torch.dtype = torch.float16,
    zero_point: bool = True,
) -> None:
    """One quantized layer."""
    groups = inputs // group
    q = make.integers(module, 0, 16, inputs, outputs)
    z = make.integers(module + "z", 0, 16, groups, outputs)
    if not zero_point:
        z = torch.full_like(z, 8)
    scales = make.scales(module, groups, outputs, dtype=dtype)
    parts = {f"{module}.qweight": pack(q), f"{module}.scales": scales}
    if zero_point:
        parts[f"{module}.qzeros"] = pack(z)
    value = torch.empty(outputs, inputs)
    for i in range(inputs):
        centred = (q[i] - z[i // group]).to(torch.float32)
        value[:, i] = centred * scales[i // group].to(torch.float32)
    builder.code(f"{module}.weight", parts, value)


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    out = []
    oracle = "compressed-tensors' AutoAWQConverter and decompress"
    for name, group, zero_point, shapes in (
        ("gemm-g128", 128, True, ((256, 24), (128, 8), (384, 40))),
        ("gemm-g32", 32, True, ((64, 24), (32, 8))),
        ("gemm-no-zeros", 32, False, ((64, 24), (32, 8))),
    ):
        builder = Builder()
        builder.keep_all(make.bystanders())
        for number, (inputs, outputs) in enumerate(shapes):
            module = f"model.layers.0.mlp.experts.{number}.up_proj"
            dtype = torch.bfloat16 if number == 2 else torch.float16
            linear(builder, module, inputs, outputs, group, dtype, zero_point)
            bias = make.f32(module, outputs).to(torch.float16)
            builder.keep_all({f"{module}.bias": bias})
        out.append(builder.case(f"awq/{name}", config(group, zero_point), oracle))
    return out
