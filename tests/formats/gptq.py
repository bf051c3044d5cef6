"""GPTQ: int4 and int8, inputs packed down the rows, zero points along the outputs.

AutoGPTQ ``nn_modules/qlinear`` and GPTQModel ``utils/model.py``: qweight I32 [in*bits/32, out],
qzeros I32 [groups, out*bits/32], scales F16 [groups, out], g_idx I32 [in];
weight[o, i] = (q[i, o] - z[g_idx[i], o]) * scales[g_idx[i], o]. The first format (``gptq``, or no
``checkpoint_format``) stores z - 1; ``gptq_v2`` stores z.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import make
from .case import Builder, Case
from .formulas import words


def config(bits: int, group: int, **more: Any) -> dict[str, Any]:
    """A config.json as GPTQModel writes it."""
    quantization: dict[str, Any] = {
        "bits": bits,
        "group_size": group,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": ["gptqmodel:2.2.0"], "damp_percent": 0.01},
    } | more
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 256,
        "model_type": "qwen2",
        "num_hidden_layers": 1,
        "quantization_config": {k: v for k, v in quantization.items() if v is not None},
        "torch_dtype": "float16",
    }


def linear(
    builder: Builder,
    module: str,
    inputs: int,
    outputs: int,
    *,
    bits: int,
    group: int,
    sym: bool,
    v2: bool,
    desc_act: bool,
    dtype: torch.dtype = torch.float16,
    negative: bool = False,
) -> None:
    """One quantized layer."""
    size = inputs if group == -1 else group
    groups = -(-inputs // size)
    q = make.integers(module, 0, 1 << bits, inputs, outputs)
    # z - 1 has to fit: the first format cannot store 0
    z = make.integers(module + "z", 0 if v2 else 1, 1 << bits, groups, outputs)
    if sym:
        z = torch.full_like(z, 1 << bits - 1)
    scales = make.scales(module, groups, outputs, dtype=dtype)
    if negative:
        scales[:, ::2] = -scales[:, ::2]
    g_idx = torch.arange(inputs) // size
    if desc_act:
        g_idx = g_idx[torch.randperm(inputs, generator=make.generator(module))]
    value = torch.empty(outputs, inputs)
    for i in range(inputs):
        g = int(g_idx[i])
        value[:, i] = (q[i] - z[g]).to(torch.float32) * scales[g].to(torch.float32)
    parts = {
        f"{module}.qweight": words(q.T, bits).T,
        f"{module}.qzeros": words(z if v2 else z - 1, bits),
        f"{module}.scales": scales,
        f"{module}.g_idx": g_idx.to(torch.int32),
    }
    builder.code(f"{module}.weight", parts, value)


def negative_scales() -> Case:
    """Not in :func:`cases`: AutoRound's full-range symmetric scheme has scales below zero."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    module = "model.layers.0.mlp.up_proj"
    linear(
        builder,
        module,
        96,
        24,
        bits=4,
        group=32,
        sym=True,
        v2=False,
        desc_act=False,
        negative=True,
    )
    return builder.case("gptq/int4-negative-scales", config(4, 32), "plain loop")


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    out = []
    for name, bits, group, sym, version, desc_act in (
        ("int4-sym", 4, 128, True, "gptq", False),
        ("int4-sym-undeclared", 4, 32, True, None, False),
        ("int4-asym", 4, 32, False, "gptq", False),
        ("int4-desc-act", 4, 32, True, "gptq", True),
        ("int4-asym-desc-act", 4, 32, False, "gptq", True),
        ("int4-channel", 4, -1, True, "gptq", False),
        ("int4-v2-sym", 4, 32, True, "gptq_v2", False),
        ("int4-v2-asym-desc-act", 4, 32, False, "gptq_v2", True),
        ("int8-sym", 8, 128, True, "gptq", False),
        ("int8-asym", 8, 32, False, "gptq", False),
        ("int8-v2-asym", 8, 32, False, "gptq_v2", False),
    ):
        builder = Builder()
        builder.keep_all(make.bystanders())
        step = 128 if group == 128 else 32
        for number, (inputs, outputs) in enumerate(((3 * step, 24), (step, 8), (2 * step, 40))):
            module = f"model.layers.0.mlp.experts.{number}.up_proj"
            linear(
                builder,
                module,
                inputs,
                outputs,
                bits=bits,
                group=group,
                sym=sym,
                v2=version == "gptq_v2",
                desc_act=desc_act,
                dtype=torch.bfloat16 if number == 2 else torch.float16,
            )
            bias = make.f32(module, outputs).to(torch.float16)
            builder.keep_all({f"{module}.bias": bias})
        made = config(bits, group, sym=sym, checkpoint_format=version, desc_act=desc_act)
        oracle = "plain loop; cross-checked by repacking for compressed-tensors"
        out.append(builder.case(f"gptq/{name}", made, oracle))
    return out
