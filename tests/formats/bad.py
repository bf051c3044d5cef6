"""Checkpoints that must be refused, each one step away from a good one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from . import (
    awq,
    compressed_tensors_,
    deepseek_v4,
    fp8_scales,
    gpt_oss,
    gptq,
    make,
    mistral,
    modelopt,
)
from .case import Builder, Case, Tensors

When = Literal["plan", "decode"]
Edit = Callable[[dict[str, Any], Tensors], None]


@dataclass(frozen=True)
class Bad:
    """One checkpoint, and what the refusal has to say."""

    id: str
    config: dict[str, Any]
    shards: list[Tensors]
    sidecars: dict[str, dict[str, Any]]
    words: tuple[str, ...]
    """Lower-case fragments of the message: the module or the field, at least."""
    when: When
    """``plan``: the headers and the JSON files show it. ``decode``: only the values do."""


# Edits


def drop(name: str) -> Edit:
    """Without this tensor."""
    return lambda config, tensors: tensors.__delitem__(name)


def put(name: str, value: torch.Tensor) -> Edit:
    """With this tensor instead, or besides."""
    return lambda config, tensors: tensors.__setitem__(name, value)


def cast(name: str, dtype: torch.dtype) -> Edit:
    """With the tensor in another dtype."""
    return lambda config, tensors: tensors.__setitem__(name, tensors[name].to(dtype))


def first(name: str, value: float) -> Edit:
    """With the first number changed; for 8-bit formats ``value`` is the byte."""

    def edit(config: dict[str, Any], tensors: Tensors) -> None:
        changed = tensors[name].clone()
        raw = changed.view(torch.uint8) if changed.element_size() == 1 else changed
        raw.reshape(-1)[0] = value
        tensors[name] = changed

    return edit


def declare(*path: str, value: Any) -> Edit:
    """With another value in quantization_config; None takes the key away."""

    def edit(config: dict[str, Any], tensors: Tensors) -> None:
        section = config["quantization_config"]
        for key in path[:-1]:
            section = section[key]
        if value is None:
            del section[path[-1]]
        else:
            section[path[-1]] = value

    return edit


def undeclared(config: dict[str, Any], tensors: Tensors) -> None:
    """Without quantization_config."""
    del config["quantization_config"]


def bad(case: Case, id: str, when: When, words: Iterable[str], *edits: Edit) -> Bad:
    """``case`` after ``edits``, on fresh copies."""
    config = copy.deepcopy(case.config)
    tensors = dict(case.stored)
    for edit in edits:
        edit(config, tensors)
    names = sorted(tensors)
    shards = [{name: tensors[name] for name in names[start::2]} for start in range(2)]
    family = case.id.partition("/")[0]
    return Bad(f"{family}/{id}", config, shards, case.sidecars, tuple(words), when)


def numbers(case: Case, label: str, name: str, module: str, values: str) -> list[Bad]:
    """Scales that no quantizer writes.

    Negative ones are no fault over integer codes: AutoRound's full-range symmetric scheme
    (``auto_round/data_type/int.py``) writes them.
    """
    table = {"zero": 0.0, "negative": -1.0, "nan": torch.nan, "inf": torch.inf}
    return [
        bad(case, f"{label}-{value}", "decode", (module,), first(name, table[value]))
        for value in values.split()
    ]


def named(cases: Iterable[Case], id: str) -> Case:
    """The case of this id."""
    return next(case for case in cases if case.id == id)


# Families


def fp8() -> list[Bad]:
    """``quant_method: fp8``."""
    module = "model.layers.0.mlp.experts.0.up_proj"
    weight, scale = f"{module}.weight", f"{module}.weight_scale_inv"

    def base(dtype: torch.dtype, **more: Any) -> Case:
        return fp8_scales.blocks("base", fp8_scales.config(), dtype, shapes=((192, 130),), **more)

    f32, plain = torch.float32, base(torch.float32)
    fused = fp8_scales.fused()
    gate_up = "model.layers.0.mlp.experts.gate_up_proj"
    static = fp8_scales.config(None, activation_scheme="static")
    tensor = fp8_scales.whole("base", static, "weight_scale_inv", "0-d")
    first_proj = "model.layers.0.self_attn.proj_0"
    out = [
        bad(plain, "scale-shape", "plan", (module,), put(scale, torch.ones(1, 2))),
        bad(plain, "scale-transposed-rank", "plan", (module,), put(scale, torch.ones(4))),
        bad(plain, "scale-dtype", "plan", (module, "i32"), cast(scale, torch.int32)),
        bad(plain, "scale-missing", "plan", (module,), drop(scale)),
        bad(plain, "weight-missing", "plan", (scale,), drop(weight)),
        bad(plain, "scale-beside-bf16", "plan", (module,), cast(weight, torch.bfloat16)),
        bad(plain, "i8-weight", "plan", (module, "i8"), cast(weight, torch.int8), drop(scale)),
        bad(plain, "u8-weight", "plan", (module, "u8"), cast(weight, torch.uint8)),
        bad(plain, "nothing-coded", "plan", ("fp8",), drop(weight), drop(scale)),
        bad(plain, "undeclared", "plan", ("quantization_config",), undeclared),
        bad(
            plain,
            "unknown-method",
            "plan",
            ("quant_method", "fp99"),
            declare("quant_method", value="fp99"),
        ),
        bad(
            plain,
            "method-missing",
            "plan",
            ("quant_method",),
            declare("quant_method", value=None),
        ),
        bad(
            plain,
            "other-block",
            "plan",
            (module,),
            declare("weight_block_size", value=[64, 64]),
        ),
        *(
            bad(
                plain,
                f"block-{label}",
                "plan",
                ("weight_block_size",),
                declare("weight_block_size", value=value),
            )
            for label, value in (
                ("of-one", [128]),
                ("zero", [0, 128]),
                ("negative", [128, -128]),
                ("string", "128x128"),
                ("float", [128.5, 128]),
            )
        ),
        bad(fused, "fused-flat-grid", "plan", (gate_up,), put(f"{gate_up}_scale_inv", ones(5, 2))),
        bad(
            fused,
            "fused-other-experts",
            "plan",
            (gate_up,),
            put(f"{gate_up}_scale_inv", ones(2, 2, 2)),
        ),
        bad(
            tensor,
            "per-tensor-two",
            "plan",
            (first_proj,),
            put(f"{first_proj}.weight_scale_inv", ones(2)),
        ),
        *numbers(plain, "scale", scale, module, "zero negative nan inf"),
        *numbers(base(torch.bfloat16), "bf16-scale", scale, module, "zero negative nan inf"),
        bad(plain, "code-nan", "decode", (module, "nan"), first(weight, 0x7F)),
        bad(plain, "code-minus-nan", "decode", (module, "nan"), first(weight, 0xFF)),
        bad(base(make.E8M0), "e8m0-nan", "decode", (module,), first(scale, 255)),
        bad(base(torch.uint8), "u8-nan", "decode", (module,), first(scale, 255)),
    ]
    for label, dtype, byte, word in (
        ("e5m2-inf", torch.float8_e5m2, 0x7C, "inf"),
        ("e5m2-nan", torch.float8_e5m2, 0x7F, "nan"),
        ("e4m3fnuz-nan", torch.float8_e4m3fnuz, 0x80, "nan"),
        ("e5m2fnuz-nan", torch.float8_e5m2fnuz, 0x80, "nan"),
    ):
        case = base(f32, code_dtype=dtype)
        case.config["quantization_config"]["fmt"] = str(dtype).removeprefix("torch.float8_")
        out.append(bad(case, label, "decode", (module, word), first(weight, byte)))
    return out


def ones(*shape: int) -> torch.Tensor:
    """F32 ones."""
    return torch.ones(shape)


def v4() -> list[Bad]:
    """DeepSeek-V4."""
    case = deepseek_v4.flash()
    dense, expert = "layers.0.attn.wq_a", "layers.1.ffn.experts.0.w1"
    short = torch.ones(128, 7, dtype=torch.uint8).view(make.E8M0)
    half = torch.ones(128, 2, dtype=torch.uint8).view(make.E8M0)
    return [
        bad(case, "expert-scale-shape", "plan", (expert,), put(f"{expert}.scale", short)),
        bad(case, "expert-scale-missing", "plan", (expert,), drop(f"{expert}.scale")),
        bad(case, "expert-missing", "plan", (expert,), drop(f"{expert}.weight")),
        bad(
            case,
            "expert-group-divides-not",
            "plan",
            (expert,),
            put(f"{expert}.weight", torch.ones(128, 24, dtype=torch.int8)),
            put(f"{expert}.scale", half),
        ),
        bad(case, "dense-scale-missing", "plan", (dense,), drop(f"{dense}.scale")),
        bad(case, "dense-scale-i8", "plan", (dense,), cast(f"{dense}.scale", torch.int8)),
        bad(case, "expert-scale-nan", "decode", (expert,), first(f"{expert}.scale", 255)),
        bad(case, "dense-scale-nan", "decode", (dense,), first(f"{dense}.scale", 255)),
        bad(case, "dense-code-nan", "decode", (dense, "nan"), first(f"{dense}.weight", 0x7F)),
    ]


def mistral_() -> list[Bad]:
    """Mistral's per-tensor FP8."""
    case, native = mistral.cases()
    module, own = "model.layers.0.self_attn.o_proj", "layers.0.attention.wq"
    scale = f"{module}.weight_scale_inv"
    return [
        bad(case, "scale-missing", "plan", (module,), drop(scale)),
        bad(case, "scale-shape", "plan", (module,), put(scale, ones(3))),
        bad(case, "weight-missing", "plan", (module,), drop(f"{module}.weight")),
        bad(native, "qscale-missing", "plan", (own,), drop(f"{own}.qscale_weight")),
        *numbers(case, "scale", scale, module, "zero negative nan inf"),
        *numbers(native, "qscale", f"{own}.qscale_weight", own, "zero nan"),
    ]


def gpt_oss_() -> list[Bad]:
    """gpt-oss."""
    (case,) = gpt_oss.cases()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    blocks, scales = f"{name}_blocks", f"{name}_scales"
    narrow = torch.ones(3, 48, 2, 8, dtype=torch.uint8)
    return [
        bad(case, "scales-missing", "plan", (name,), drop(scales)),
        bad(case, "blocks-missing", "plan", (name,), drop(blocks)),
        bad(
            case,
            "scales-shape",
            "plan",
            (name,),
            put(scales, torch.ones(3, 48, 1, dtype=torch.uint8)),
        ),
        bad(case, "blocks-of-8", "plan", (name,), put(blocks, narrow)),
        bad(case, "blocks-dtype", "plan", (name,), cast(blocks, torch.int16)),
        bad(case, "scales-dtype", "plan", (name,), cast(scales, torch.float32)),
        bad(
            case,
            "both-names",
            "plan",
            (name,),
            put(name, torch.zeros(3, 64, 48, dtype=torch.bfloat16)),
        ),
        bad(case, "scale-nan", "decode", (name,), first(scales, 255)),
    ]


def compressed() -> list[Bad]:
    """compressed-tensors."""

    def get(name: str) -> Case:
        return named(compressed_tensors_.cases(), f"compressed-tensors/{name}")

    layer = "model.layers.0"
    module = f"{layer}.mlp.experts.0.up_proj"
    weight, scale, packed = (f"{module}.weight{part}" for part in ("", "_scale", "_packed"))
    zero, shape, second = (
        f"{module}.weight_{part}" for part in ("zero_point", "shape", "global_scale")
    )
    int4, asym, order = get("pack-int4"), get("pack-int4-asym"), get("pack-int4-actorder")
    nvfp4, mxfp4, mxfp8, block = get("nvfp4"), get("mxfp4"), get("mxfp8"), get("float-block")
    up, q = f"{layer}.mlp.up_proj", f"{layer}.self_attn.q_proj"
    int8 = get("int8-channel-asym")
    args = ("config_groups", "group_0", "weights")
    u8 = torch.uint8
    formats = [
        bad(int4, f"format-{value}", "plan", ("format", value), declare("format", value=value))
        for value in ("sparse-24-bitmask", "marlin-24", "mxfp6-pack-quantized", "pack-quantised")
    ]
    sparsity = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"}
    return [
        *formats,
        bad(
            get("float-channel-kv"),
            "sparsity",
            "plan",
            ("sparsity_config",),
            declare("sparsity_config", value=sparsity),
        ),
        bad(int4, "3-bit", "plan", ("num_bits", "3"), declare(*args, "num_bits", value=3)),
        bad(int4, "no-groups", "plan", ("config_groups",), declare("config_groups", value=None)),
        bad(
            int4,
            "group-divides-not",
            "plan",
            (module,),
            put(packed, torch.ones(24, 10, dtype=torch.int32)),
            put(shape, torch.tensor([24, 80])),
        ),
        bad(int4, "other-group", "plan", (module,), declare(*args, "group_size", value=64)),
        bad(int4, "scale-missing", "plan", (module,), drop(scale)),
        bad(int4, "scale-shape", "plan", (module,), put(scale, ones(24, 2))),
        bad(int4, "scale-dtype", "plan", (module,), cast(scale, torch.int32)),
        bad(int4, "packed-missing", "plan", (module,), drop(packed)),
        bad(int4, "packed-dtype", "plan", (module,), cast(packed, torch.int64)),
        bad(int4, "shape-missing", "plan", (module,), drop(shape)),
        bad(int4, "shape-of-3", "plan", (module,), put(shape, torch.tensor([1, 24, 96]))),
        bad(int4, "shape-disagrees", "decode", (module,), put(shape, torch.tensor([24, 128]))),
        bad(int4, "shape-rows", "decode", (module,), put(shape, torch.tensor([25, 96]))),
        bad(int4, "shape-negative", "decode", (module,), put(shape, torch.tensor([-24, 96]))),
        *numbers(int4, "pack-scale", scale, module, "zero nan inf"),
        bad(asym, "zero-missing", "plan", (module,), drop(zero)),
        bad(asym, "zero-undeclared", "plan", (module,), declare(*args, "symmetric", value=True)),
        bad(
            asym,
            "zero-unpacked",
            "plan",
            (module,),
            put(zero, torch.zeros(24, 3, dtype=torch.int8)),
        ),
        bad(order, "g-idx-missing", "plan", (up,), drop(f"{up}.weight_g_idx")),
        bad(
            order,
            "g-idx-shape",
            "plan",
            (up,),
            put(f"{up}.weight_g_idx", torch.zeros(95, dtype=torch.int32)),
        ),
        bad(order, "g-idx-range", "decode", (up,), first(f"{up}.weight_g_idx", 3)),
        bad(order, "g-idx-negative", "decode", (up,), first(f"{up}.weight_g_idx", -2)),
        bad(int8, "int8-zero-missing", "plan", (q,), drop(f"{q}.weight_zero_point")),
        bad(int8, "int8-scale-missing", "plan", (q,), drop(f"{q}.weight_scale")),
        bad(int8, "int8-scale-shape", "plan", (q,), put(f"{q}.weight_scale", ones(23, 1))),
        bad(int8, "int8-weight-u8", "plan", (q, "u8"), cast(f"{q}.weight", u8)),
        *numbers(int8, "int8-scale", f"{q}.weight_scale", q, "zero nan"),
        bad(block, "block-scale-shape", "plan", (module,), put(scale, ones(1, 1))),
        bad(block, "block-scale-missing", "plan", (module,), drop(scale)),
        bad(block, "block-weight-missing", "plan", (scale,), drop(weight)),
        bad(block, "code-nan", "decode", (module, "nan"), first(weight, 0x7F)),
        *numbers(block, "block-scale", scale, module, "zero negative nan inf"),
        bad(nvfp4, "nvfp4-global-missing", "plan", (module,), drop(second)),
        bad(nvfp4, "nvfp4-global-shape", "plan", (module,), put(second, ones(2))),
        bad(nvfp4, "nvfp4-scale-missing", "plan", (module,), drop(scale)),
        bad(nvfp4, "nvfp4-scale-dtype", "plan", (module,), cast(scale, torch.float32)),
        bad(nvfp4, "nvfp4-scale-shape", "plan", (module,), cut(scale)),
        bad(nvfp4, "nvfp4-packed-dtype", "plan", (module,), cast(packed, torch.int32)),
        *numbers(nvfp4, "nvfp4-global", second, module, "zero negative nan inf"),
        bad(nvfp4, "nvfp4-scale-nan", "decode", (module,), first(scale, 0x7F)),
        bad(nvfp4, "nvfp4-scale-negative", "decode", (module,), first(scale, 0xB8)),
        bad(nvfp4, "nvfp4-scale-zero", "decode", (module,), first(scale, 0)),
        bad(mxfp4, "mxfp4-scale-shape", "plan", (module,), cut(scale)),
        bad(mxfp4, "mxfp4-scale-dtype", "plan", (module,), cast(scale, torch.int32)),
        bad(mxfp4, "mxfp4-scale-nan", "decode", (module,), first(scale, 255)),
        bad(mxfp8, "mxfp8-scale-dtype", "plan", (up,), cast(f"{up}.weight_scale", torch.int32)),
        bad(mxfp8, "mxfp8-scale-nan", "decode", (up,), first(f"{up}.weight_scale", 255)),
    ]


def cut(name: str) -> Edit:
    """Without the last column."""

    def edit(config: dict[str, Any], tensors: Tensors) -> None:
        raw = tensors[name]
        bytes_ = raw.view(torch.uint8)[:, :-1].contiguous()
        tensors[name] = bytes_.view(raw.dtype)

    return edit


def modelopt_() -> list[Bad]:
    """NVIDIA ModelOpt."""

    def get(name: str) -> Case:
        return named(modelopt.cases(), f"modelopt/{name}")

    layer = "model.layers.0"
    nvfp4, mixed, mxfp8 = get("nvfp4"), get("mixed"), get("mxfp8")
    sidecar, channel, pb = get("fp8-sidecar"), get("fp8-channel"), get("fp8-pb-wo")
    expert, up, q = (
        f"{layer}.{part}" for part in ("mlp.experts.0.up_proj", "mlp.up_proj", "self_attn.q_proj")
    )
    scale, second = f"{expert}.weight_scale", f"{expert}.weight_scale_2"
    return [
        bad(
            channel,
            "unknown-algo",
            "plan",
            ("quant_algo", "int8_sq"),
            declare("quant_algo", value="INT8_SQ"),
        ),
        bad(
            replace(nvfp4, sidecars={}),
            "awq-algo",
            "plan",
            ("quant_algo", "w4a16_awq"),
            declare("quant_algo", value="W4A16_AWQ"),
        ),
        bad(
            mixed,
            "unknown-layer-algo",
            "plan",
            ("quant_algo", "int8_sq"),
            declare("quantized_layers", q, "quant_algo", value="INT8_SQ"),
        ),
        bad(mxfp8, "no-algo", "plan", ("quant_algo",), declare("quantization", value={})),
        bad(sidecar, "scale-missing", "plan", (q,), drop(f"{q}.weight_scale")),
        bad(sidecar, "weight-missing", "plan", (q,), drop(f"{q}.weight")),
        bad(sidecar, "scale-shape", "plan", (q,), put(f"{q}.weight_scale", ones(2))),
        *numbers(sidecar, "scale", f"{q}.weight_scale", q, "zero negative nan inf"),
        bad(sidecar, "code-nan", "decode", (q, "nan"), first(f"{q}.weight", 0x7F)),
        bad(channel, "channel-scale-shape", "plan", (up,), put(f"{up}.weight_scale", ones(23))),
        bad(pb, "pb-scale-shape", "plan", (expert,), put(scale, ones(1, 1, 1, 1))),
        bad(pb, "pb-scale-3d", "plan", (expert,), put(scale, ones(2, 1, 1))),
        bad(nvfp4, "nvfp4-second-missing", "plan", (expert,), drop(second)),
        bad(nvfp4, "nvfp4-second-shape", "plan", (expert,), put(second, ones(2))),
        bad(nvfp4, "nvfp4-scale-missing", "plan", (expert,), drop(scale)),
        bad(nvfp4, "nvfp4-scale-shape", "plan", (expert,), cut(scale)),
        bad(nvfp4, "nvfp4-scale-dtype", "plan", (expert,), cast(scale, torch.float32)),
        bad(nvfp4, "nvfp4-weight-missing", "plan", (expert,), drop(f"{expert}.weight")),
        *numbers(nvfp4, "nvfp4-second", second, expert, "zero negative nan inf"),
        bad(nvfp4, "nvfp4-scale-nan", "decode", (expert,), first(scale, 0x7F)),
        bad(nvfp4, "nvfp4-scale-zero", "decode", (expert,), first(scale, 0)),
        bad(mxfp8, "mxfp8-scale-nan", "decode", (up,), first(f"{up}.weight_scale", 255)),
        bad(mxfp8, "mxfp8-scale-shape", "plan", (up,), cut(f"{up}.weight_scale")),
    ]


def awq_() -> list[Bad]:
    """AutoAWQ."""
    case = named(awq.cases(), "awq/gemm-g32")
    module = "model.layers.0.mlp.experts.0.up_proj"  # in 64, out 24
    q, z, scale = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    i32 = torch.int32
    return [
        bad(case, "3-bit", "plan", ("bits", "3"), declare("bits", value=3)),
        bad(case, "gemv", "plan", ("version", "gemv"), declare("version", value="gemv")),
        bad(case, "other-group", "plan", (module,), declare("group_size", value=128)),
        bad(case, "zeros-missing", "plan", (module,), drop(z)),
        bad(case, "scales-missing", "plan", (module,), drop(scale)),
        bad(case, "weight-missing", "plan", (module,), drop(q)),
        bad(case, "zeros-shape", "plan", (module,), put(z, torch.ones(2, 4, dtype=i32))),
        bad(case, "scales-shape", "plan", (module,), put(scale, ones(2, 23).half())),
        bad(case, "weight-dtype", "plan", (module,), cast(q, torch.int64)),
        bad(case, "scales-dtype", "plan", (module,), cast(scale, i32)),
        bad(
            case,
            "group-divides-not",
            "plan",
            (module,),
            put(q, torch.ones(72, 3, dtype=i32)),
        ),
        *numbers(case, "scale", scale, module, "zero nan inf"),
    ]


def gptq_() -> list[Bad]:
    """GPTQ."""
    case = named(gptq.cases(), "gptq/int4-desc-act")
    module = "model.layers.0.mlp.experts.0.up_proj"  # in 96, out 24
    q, z, scale, g = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    i32 = torch.int32
    return [
        bad(case, "3-bit", "plan", ("bits", "3"), declare("bits", value=3)),
        bad(case, "2-bit", "plan", ("bits", "2"), declare("bits", value=2)),
        bad(case, "bits-missing", "plan", ("bits",), declare("bits", value=None)),
        *(
            bad(
                case,
                f"format-{value}",
                "plan",
                ("checkpoint_format", value),
                declare("checkpoint_format", value=value),
            )
            for value in ("marlin", "bitblas")
        ),
        bad(case, "pack-dtype", "plan", ("pack_dtype",), declare("pack_dtype", value="int16")),
        bad(case, "other-bits", "plan", (module,), declare("bits", value=8)),
        bad(case, "other-group", "plan", (module,), declare("group_size", value=64)),
        bad(case, "g-idx-missing", "plan", (module,), drop(g)),
        bad(case, "zeros-missing", "plan", (module,), drop(z)),
        bad(case, "scales-missing", "plan", (module,), drop(scale)),
        bad(case, "weight-missing", "plan", (module,), drop(q)),
        bad(case, "zeros-shape", "plan", (module,), put(z, torch.ones(3, 4, dtype=i32))),
        bad(case, "scales-shape", "plan", (module,), put(scale, ones(2, 24).half())),
        bad(case, "g-idx-shape", "plan", (module,), put(g, torch.zeros(95, dtype=i32))),
        bad(case, "g-idx-dtype", "plan", (module,), cast(g, torch.float32)),
        bad(case, "scales-dtype", "plan", (module,), cast(scale, i32)),
        bad(case, "g-idx-range", "decode", (module,), first(g, 3)),
        bad(case, "g-idx-negative", "decode", (module,), first(g, -1)),
        *numbers(case, "scale", scale, module, "zero nan inf"),
    ]


def unpaired() -> list[Bad]:
    """Codes that nothing declares."""
    builder = Builder()
    builder.keep_all(make.bystanders())
    config = fp8_scales.config() | {"quantization_config": None}
    case = builder.case("undeclared/base", config, "")
    name = "model.layers.0.mlp.up_proj.weight"
    return [
        bad(case, "fp8", "plan", (name,), put(name, make.codes(name, 8, 8))),
        bad(
            case,
            "i8",
            "plan",
            (name,),
            put(name, make.integers(name, -9, 9, 8, 8).to(torch.int8)),
        ),
    ]


@functools.cache
def bad_cases() -> list[Bad]:
    """Every one, of all families."""
    families = (fp8, v4, mistral_, gpt_oss_, compressed, modelopt_, awq_, gptq_, unpaired)
    return [item for family in families for item in family()]
