"""compressed-tensors: every format a weight may be stored in.

Where the layout is more than a plain matrix, the library's own packers make the stored tensors
(``compressed_tensors.compressors``), and ``test_oracles`` runs its decompressors over all of them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from . import make
from .case import Builder, Case
from .formulas import E2M1, by_block, exponents, values

LAYER = "model.layers.0"
IGNORE = ["lm_head", "re:.*mlp\\.gate$"]


def weights(bits: int, type: str, strategy: str, **more: Any) -> dict[str, Any]:
    """A ``weights`` section as llm-compressor writes it."""
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None,
        "num_bits": bits,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": True,
        "type": type,
    } | more


def group(
    weights: dict[str, Any], format: str | None = None, targets: tuple[str, ...] = ("Linear",)
) -> dict[str, Any]:
    """One of ``config_groups``."""
    return {
        "format": format,
        "input_activations": None,
        "output_activations": None,
        "targets": list(targets),
        "weights": weights,
    }


def config(format: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A config.json."""
    quantization = {
        "config_groups": {f"group_{n}": section for n, section in enumerate(groups)},
        "format": format,
        "global_compression_ratio": None,
        "ignore": IGNORE,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    } | more
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 256,
        "model_type": "qwen3",
        "num_hidden_layers": 1,
        "quantization_config": quantization,
        "torch_dtype": "bfloat16",
    }


def spread(scale: torch.Tensor, rows: int, columns: int, strategy: str, size: int) -> torch.Tensor:
    """Scales or zero points of any strategy as one number for every element."""
    out = torch.empty(rows, columns, dtype=scale.dtype)
    for row in range(rows):
        for column in range(columns):
            if strategy == "tensor":
                out[row, column] = scale[0]
            elif strategy == "channel":
                out[row, column] = scale[row, 0]
            else:
                out[row, column] = scale[row, column // size]
    return out


def scale_shape(strategy: str, rows: int, columns: int, size: int) -> tuple[int, ...]:
    """The shape of ``weight_scale`` and of an unpacked zero point."""
    return {"tensor": (1,), "channel": (rows, 1)}.get(strategy, (rows, columns // (size or 1)))


def floats(
    builder: Builder,
    module: str,
    rows: int,
    columns: int,
    strategy: str,
    dtype: torch.dtype = torch.bfloat16,
    size: int = 0,
) -> None:
    """F8_E4M3 ``weight`` and its ``weight_scale``; ``block`` means 128x128."""
    weight = make.codes(module, rows, columns)
    if strategy == "block":
        scale = make.scales(module, -(-rows // 128), -(-columns // 128), dtype=dtype)
        value = by_block(values(weight), scale.to(torch.float32), (128, 128))
    else:
        scale = make.scales(module, *scale_shape(strategy, rows, columns, size), dtype=dtype)
        wide = spread(scale.to(torch.float32), rows, columns, strategy, size)
        value = values(weight) * wide
    builder.code(
        f"{module}.weight", {f"{module}.weight": weight, f"{module}.weight_scale": scale}, value
    )


def ints(
    builder: Builder,
    module: str,
    rows: int,
    columns: int,
    strategy: str,
    *,
    bits: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    size: int = 0,
    asymmetric: bool = False,
    packed: bool = False,
    shape_dtype: torch.dtype = torch.int64,
    g_idx: torch.Tensor | None = None,
) -> None:
    """Signed codes, as I8 ``weight`` or packed, with a zero point where asymmetric."""
    low, high = -(1 << bits - 1), 1 << bits - 1
    code = make.integers(module, low, high, rows, columns)
    shape = scale_shape(strategy, rows, columns, size)
    scale = make.scales(module, *shape, dtype=dtype)
    zero = make.integers(module + "zero", low, high, *shape) if asymmetric else None
    parts = {f"{module}.weight_scale": scale}
    if packed:
        parts[f"{module}.weight_packed"] = pack_to_int32(code.to(torch.int8), bits)
        parts[f"{module}.weight_shape"] = torch.tensor([rows, columns], dtype=shape_dtype)
    else:
        parts[f"{module}.weight"] = code.to(torch.int8)
    if zero is not None:
        stored = zero.to(torch.int8)
        # packed zero points are packed along the rows: [ceil(o * bits / 32), groups]
        parts[f"{module}.weight_zero_point"] = (
            pack_to_int32(stored, bits, packed_dim=0) if packed else stored
        )
    column = torch.arange(columns)
    wide, offset = scale.to(torch.float32), torch.zeros(rows, columns, dtype=torch.int64)
    if g_idx is not None:
        parts[f"{module}.weight_g_idx"] = g_idx.to(torch.int32)
        factor = torch.stack([wide[:, g_idx[c]] for c in column], dim=1)
        if zero is not None:
            offset = torch.stack([zero[:, g_idx[c]] for c in column], dim=1)
    else:
        factor = spread(wide, rows, columns, strategy, size)
        if zero is not None:
            offset = spread(zero, rows, columns, strategy, size)
    builder.code(f"{module}.weight", parts, (code - offset).to(torch.float32) * factor)


def fp4(builder: Builder, module: str, rows: int, columns: int, kind: str) -> None:
    """e2m1 pairs in U8: NVFP4 (16 to an e4m3 scale, all divided by a global one) or MXFP4."""
    numbers = E2M1[make.integers(module, 0, 16, rows, columns)]
    parts = {f"{module}.weight_packed": pack_fp4_to_uint8(numbers)}
    if kind == "nvfp4":
        scale = make.codes(module, rows, columns // 16).view(torch.uint8) & 0x7F
        scale[scale == 0] = 1  # a scale of 0 is refused; 1 is the smallest subnormal
        scale[scale == 0x7F] = 0x7E
        parts[f"{module}.weight_scale"] = scale.view(make.E4M3)
        parts[f"{module}.weight_global_scale"] = make.scales(module, 1) * 7e6
        parts[f"{module}.input_global_scale"] = make.scales(module + "in", 1) * 1e6
        wide = values(scale.view(make.E4M3)) / parts[f"{module}.weight_global_scale"]
        value = by_block(numbers, wide, (1, 16))
    else:
        power = make.powers(module, rows, columns // 32)
        parts[f"{module}.weight_scale"] = power
        value = by_block(numbers, exponents(power), (1, 32))
    builder.code(f"{module}.weight", parts, value)


def mx8(builder: Builder, module: str, rows: int, columns: int) -> None:
    """MXFP8: F8_E4M3 and U8 exponents, 32 inputs to one."""
    weight = make.codes(module, rows, columns)
    power = make.powers(module, rows, columns // 32)
    builder.code(
        f"{module}.weight",
        {f"{module}.weight": weight, f"{module}.weight_scale": power},
        by_block(values(weight), exponents(power), (1, 32)),
    )


def _start() -> Builder:
    builder = Builder()
    builder.keep_all(make.bystanders())
    return builder


FP8_ACT = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
NVFP4 = weights(4, "float", "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
MXFP4 = weights(4, "float", "group", group_size=32, scale_dtype="torch.uint8")
MXFP8 = weights(8, "float", "group", group_size=32, scale_dtype="torch.uint8")


def float_cases() -> list[Case]:
    """``float-quantized`` and its older name, ``naive-quantized``."""
    out = []
    builder = _start()
    floats(builder, f"{LAYER}.self_attn.q_proj", 24, 40, "tensor", torch.float32)
    floats(builder, f"{LAYER}.self_attn.k_proj", 1, 256, "tensor")
    builder.drop({f"{LAYER}.self_attn.q_proj.input_scale": make.scales("in", 1)})
    section = group(weights(8, "float", "tensor")) | {"input_activations": dict(FP8_ACT)}
    out.append(("float-tensor", builder, config("float-quantized", section)))

    builder = _start()
    for leaf, dtype in (("q", torch.bfloat16), ("k", torch.float32), ("v", torch.float16)):
        floats(builder, f"{LAYER}.self_attn.{leaf}_proj", 33, 41, "channel", dtype)
    floats(builder, f"{LAYER}.mlp.up_proj", 40, 1, "channel")
    for leaf in ("k_scale", "v_scale"):
        builder.drop({f"{LAYER}.self_attn.{leaf}": make.scales(leaf, 1, dtype=torch.bfloat16)})
    kv = weights(8, "float", "tensor")
    made = config("float-quantized", group(weights(8, "float", "channel")), kv_cache_scheme=kv)
    out.append(("float-channel-kv", builder, made))

    builder = _start()
    for n, (rows, columns) in enumerate(((256, 128), (192, 200), (96, 130), (1, 128))):
        dtype = torch.float32 if n == 1 else torch.bfloat16
        floats(builder, f"{LAYER}.mlp.experts.{n}.up_proj", rows, columns, "block", dtype)
    section = group(weights(8, "float", "block", block_structure=[128, 128]), "float-quantized")
    out.append(("float-block", builder, config("float-quantized", section)))

    for format in ("float-quantized", "naive-quantized"):
        builder = _start()
        floats(builder, f"{LAYER}.mlp.up_proj", 24, 256, "group", size=64)
        floats(builder, f"{LAYER}.mlp.down_proj", 8, 64, "group", torch.float16, size=64)
        section = group(weights(8, "float", "group", group_size=64))
        name = "float-group" if format == "float-quantized" else "naive-float-group"
        out.append((name, builder, config(format, section)))
    return [_finish(*item) for item in out]


def int_cases() -> list[Case]:
    """``int-quantized``: I8 weights, zero points I8 in the shape of the scale."""
    out = []
    for strategy, asymmetric in (
        ("tensor", True),
        ("channel", False),
        ("channel", True),
        ("group", True),
    ):
        builder = _start()
        for leaf, rows, dtype in (("q", 24, torch.bfloat16), ("k", 8, torch.float32)):
            ints(
                builder,
                f"{LAYER}.self_attn.{leaf}_proj",
                rows,
                96,
                strategy,
                dtype=dtype,
                size=32 if strategy == "group" else 0,
                asymmetric=asymmetric,
            )
        more = {"group_size": 32} if strategy == "group" else {}
        section = group(weights(8, "int", strategy, symmetric=not asymmetric, **more))
        name = f"int8-{strategy}" + ("-asym" if asymmetric else "")
        out.append((name, builder, config("int-quantized", section)))
    return [_finish(*item) for item in out]


def packed_cases() -> list[Case]:
    """``pack-quantized``: I32 words along the inputs, zero points packed along the outputs."""
    out = []
    for name, bits, strategy, asymmetric, shapes in (
        ("pack-int4", 4, "group", False, ((24, 96), (1, 32), (9, 64))),
        ("pack-int4-asym", 4, "group", True, ((24, 96), (20, 64), (1, 32))),
        ("pack-int4-channel", 4, "channel", False, ((16, 48), (7, 8), (3, 96))),
        ("pack-int4-channel-asym", 4, "channel", True, ((16, 48), (9, 8), (3, 96))),
        ("pack-int8", 8, "group", False, ((24, 96), (3, 32))),
        ("pack-int8-asym", 8, "group", True, ((24, 96), (5, 32))),
        ("pack-int8-channel-asym", 8, "channel", True, ((16, 44), (6, 4), (2, 260))),
    ):
        builder = _start()
        size = 32 if strategy == "group" else 0
        for n, (rows, columns) in enumerate(shapes):
            ints(
                builder,
                f"{LAYER}.mlp.experts.{n}.up_proj",
                rows,
                columns,
                strategy,
                bits=bits,
                dtype=(torch.bfloat16, torch.float16, torch.float32)[n],
                size=size,
                asymmetric=asymmetric,
                packed=True,
            )
        more = {"group_size": size} if size else {}
        section = group(weights(bits, "int", strategy, symmetric=not asymmetric, **more))
        out.append((name, builder, config("pack-quantized", section)))

    for name, asymmetric in (("pack-int4-actorder", False), ("pack-int4-actorder-asym", True)):
        builder = _start()
        for leaf in ("up_proj", "down_proj"):
            order = torch.randperm(96, generator=make.generator(leaf))
            ints(
                builder,
                f"{LAYER}.mlp.{leaf}",
                24,
                96,
                "group",
                bits=4,
                size=32,
                asymmetric=asymmetric,
                packed=True,
                g_idx=order // 32,
            )
        section = weights(
            4, "int", "group", group_size=32, symmetric=not asymmetric, actorder="group"
        )
        out.append((name, builder, config("pack-quantized", group(section))))
    return [_finish(*item) for item in out]


def kimi() -> Case:
    """Kimi-K2.5's form: the section inside ``text_config``, ``weight_shape`` as I32."""
    builder = _start()
    for number, leaf in enumerate(("gate_proj", "down_proj")):
        module = f"language_model.model.layers.1.mlp.experts.{number}.{leaf}"
        ints(
            builder,
            module,
            24,
            96,
            "group",
            bits=4,
            size=32,
            packed=True,
            shape_dtype=torch.int32,
        )
    made = config("pack-quantized", group(weights(4, "int", "group", group_size=32)))
    text = {"model_type": "kimi_k2", "quantization_config": made.pop("quantization_config")}
    made |= {"model_type": "kimi_k25", "text_config": text}
    return _finish("pack-int4-kimi", builder, made)


def small_float_cases() -> list[Case]:
    """NVFP4, MXFP4, MXFP8, and a mixture chosen by ``targets``."""
    out = []
    for name, format, section in (
        ("nvfp4", "nvfp4-pack-quantized", NVFP4),
        ("mxfp4", "mxfp4-pack-quantized", MXFP4),
    ):
        builder = _start()
        for leaf, rows, columns in (
            ("up_proj", 24, 96),
            ("down_proj", 1, 64),
            ("gate_proj", 16, 32),
        ):
            fp4(builder, f"{LAYER}.mlp.experts.0.{leaf}", rows, columns, name)
        out.append((name, builder, config(format, group(section))))

    builder = _start()
    for leaf, rows, columns in (("up_proj", 24, 96), ("down_proj", 1, 256), ("o_proj", 16, 32)):
        mx8(builder, f"{LAYER}.mlp.{leaf}", rows, columns)
    out.append(("mxfp8", builder, config("mxfp8-quantized", group(MXFP8))))

    builder = _start()
    floats(builder, f"{LAYER}.self_attn.q_proj", 192, 160, "block")
    fp4(builder, f"{LAYER}.mlp.experts.0.up_proj", 24, 96, "nvfp4")
    fp4(builder, f"{LAYER}.mlp.experts.1.up_proj", 24, 96, "nvfp4")
    ints(builder, f"{LAYER}.mlp.shared.up_proj", 24, 96, "group", bits=4, size=32, packed=True)
    block = weights(8, "float", "block", block_structure=[128, 128])
    int4 = weights(4, "int", "group", group_size=32)
    made = config(
        "mixed-precision",
        group(block, "float-quantized", ("re:.*self_attn.*",)),
        group(NVFP4, "nvfp4-pack-quantized", ("re:.*experts.*",)),
        group(int4, "pack-quantized", ("re:.*shared.*",)),
    )
    out.append(("mixed-precision", builder, made))
    return [_finish(*item) for item in out]


def _finish(name: str, builder: Builder, config: dict[str, Any]) -> Case:
    oracle = "compressed-tensors' decompress"
    if "actorder" in name:
        oracle = "plain loop; scale of column c is scale[:, g_idx[c]]"
    return builder.case(f"compressed-tensors/{name}", config, oracle)


@functools.cache
def cases() -> list[Case]:
    """Every case of the family."""
    return [*float_cases(), *int_cases(), *packed_cases(), kimi(), *small_float_cases()]
