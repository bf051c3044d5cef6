"""Declarations of quantized output: accepted by the libraries that read them, and by our own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
from transformers import AutoConfig, CompressedTensorsConfig, FineGrainedFP8Config
from transformers.quantizers.auto import AutoQuantizationConfig

from fp8convert import schemes
from fp8convert.configout import CONFIGS, compressed_config, native_fp8, plain_config
from fp8convert.configout import quantized_config as quantized
from fp8convert.declared import declared
from fp8convert.schemes.compressed_tensors import CompressedTensorsScheme
from fp8convert.schemes.fp8_block import Fp8BlockScheme

from .recognition.catalogue import all_facts
from .recognition.facts import SHARDS, Part, stored

FACTS = all_facts()
W = "model.layers.0.mlp.up_proj.weight"
IGNORED = ["model.layers.0.mlp.gate", "lm_head"]

# By hand, from the published config.json of RedHatAI/DeepSeek-V4-Flash-NVFP4-FP8 (nvfp4),
# moonshotai/Kimi-K3 (mxfp4) and poolside/Laguna-S-2.1-FP8 (keys), and the presets' definitions.
NUMBERS = {"actorder": None, "block_structure": None, "dynamic": False, "group_size": None,
           "num_bits": 8, "observer": "memoryless_minmax", "observer_kwargs": {},
           "scale_dtype": None, "strategy": "tensor", "symmetric": True, "type": "float",
           "zp_dtype": None}  # fmt: skip
TOKEN = NUMBERS | {"dynamic": True, "observer": None, "strategy": "token"}
FOUR = NUMBERS | {"num_bits": 4}
MX = {"group_size": 32, "scale_dtype": "torch.uint8", "strategy": "group"}
NV = {"group_size": 16, "scale_dtype": "torch.float8_e4m3fn", "strategy": "tensor_group"}
EXPECTED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "fp8-channel": ("float-quantized", NUMBERS | {"strategy": "channel"}, TOKEN),
    "fp8-tensor": ("float-quantized", NUMBERS, TOKEN),
    "int8-channel": (
        "int-quantized",
        NUMBERS | {"strategy": "channel", "type": "int"},
        TOKEN | {"type": "int"},
    ),
    "int4-group": (
        "pack-quantized",
        FOUR | {"group_size": 128, "strategy": "group", "type": "int"},
        None,
    ),
    "nvfp4": ("nvfp4-pack-quantized", FOUR | NV, None),
    "mxfp4": ("mxfp4-pack-quantized", FOUR | MX, None),
    "mxfp8": ("mxfp8-quantized", NUMBERS | MX, None),
}
PRESETS = {  # of compressed-tensors, by the weights and by the inputs
    "fp8-channel": ("FP8_DYNAMIC", "FP8_DYNAMIC"),
    "fp8-tensor": ("FP8", "FP8_DYNAMIC"),
    "int8-channel": ("INT8", "INT8"),
    "int4-group": ("W4A16", "W4A16"),
    "nvfp4": ("NVFP4A16", "NVFP4A16"),
    "mxfp4": ("MXFP4A16", "MXFP4A16"),
    "mxfp8": ("MXFP8A16", "MXFP8A16"),
}
STORED: dict[str, tuple[list[Part], dict[str, Any]]] = {  # tensors of W, and what they are read as
    "fp8-channel": (
        [(W, "F8_E4M3", (192, 256)), (f"{W}_scale", "F32", (192, 1))],
        {"codec": "fp8-block", "element": "e4m3fn", "block": [1, None]},
    ),
    "fp8-tensor": (
        [(W, "F8_E4M3", (192, 256)), (f"{W}_scale", "F32", (1,))],
        {"codec": "fp8-block", "element": "e4m3fn", "block": [None, None]},
    ),
    "int8-channel": (
        [(W, "I8", (192, 256)), (f"{W}_scale", "F32", (192, 1))],
        {"codec": "int8-block", "element": "int8", "block": [1, None], "zero_points": False},
    ),
    "int4-group": (
        [
            (f"{W}_packed", "I32", (192, 32)),
            (f"{W}_scale", "BF16", (192, 2)),
            (f"{W}_shape", "I64", (2,)),
        ],
        {"codec": "packed-int", "bits": 4, "group": 128, "extra": ["shape"]},
    ),
    "nvfp4": (
        [
            (f"{W}_packed", "U8", (192, 128)),
            (f"{W}_scale", "F8_E4M3", (192, 16)),
            (f"{W}_global_scale", "F32", (1,)),
        ],
        {"codec": "fp4-block", "group": 16, "global": "divide", "signed_zero": True},
    ),
    "mxfp4": (
        [(f"{W}_packed", "U8", (192, 128)), (f"{W}_scale", "U8", (192, 8))],
        {"codec": "fp4-block", "group": 32, "global": "none", "signed_zero": True},
    ),
    "mxfp8": (
        [(W, "F8_E4M3", (192, 256)), (f"{W}_scale", "U8", (192, 8))],
        {"codec": "fp8-block", "element": "e4m3fn", "block": [1, 32]},
    ),
}


FIELDS = ("num_bits", "type", "strategy", "symmetric", "dynamic", "group_size", "block_structure",
          "scale_dtype")  # fmt: skip


def test_every_scheme_is_in_every_table() -> None:
    assert CONFIGS.keys() == EXPECTED.keys() == PRESETS.keys() == STORED.keys()


@pytest.mark.parametrize("scheme", EXPECTED)
def test_compressed_tensors_declarations_by_hand(scheme: str) -> None:
    form, weights, inputs = EXPECTED[scheme]
    group = {
        "format": form,
        "input_activations": inputs,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    expected = {
        "config_groups": {"group_0": group},
        "format": form,
        "global_compression_ratio": None,
        "ignore": IGNORED,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": "0.19.0",
    }
    found = compressed_config(scheme, None, IGNORED)
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize("group", [32, 64, 128, None])
def test_the_group_of_int4(group: int | None) -> None:
    said = compressed_config("int4-group", group, ())["config_groups"]["group_0"]["weights"]
    assert said["group_size"] == (group or 128)
    channel = compressed_config("fp8-channel", group, ())["config_groups"]["group_0"]["weights"]
    assert channel["group_size"] is None


@pytest.mark.parametrize("scheme", EXPECTED)
def test_compressed_tensors_takes_them_for_its_own(scheme: str) -> None:
    """The numbers of its presets, and the format that it would write."""
    said = QuantizationConfig.model_validate(compressed_config(scheme, None, IGNORED))
    assert said.ignore == IGNORED
    assert said.quantization_status.value == "compressed"
    group = said.config_groups["group_0"]
    assert infer_module_format(torch.nn.Linear, group).value == group.format == said.format
    by_weights, by_inputs = (preset_name_to_scheme(name, ["Linear"]) for name in PRESETS[scheme])
    for found, preset in (
        (group.weights, by_weights.weights),
        (group.input_activations, by_inputs.input_activations),
    ):
        if preset is None:
            assert found is None
            continue
        for field in FIELDS:
            assert getattr(found, field) == getattr(preset, field), field


@pytest.mark.parametrize(
    "wrong", [{"group_size": None}, {"bits": 4}, {"strategy": "rows"}, {"dynamic": "yes"}]
)
def test_compressed_tensors_would_refuse_others(wrong: dict[str, Any]) -> None:
    said = compressed_config("mxfp4", None, IGNORED)
    said["config_groups"]["group_0"]["weights"].update(wrong)
    with pytest.raises(pydantic.ValidationError):
        QuantizationConfig.model_validate(said)


@pytest.mark.parametrize("scheme", EXPECTED)
def test_transformers_takes_compressed_tensors(scheme: str) -> None:
    found = AutoQuantizationConfig.from_dict(compressed_config(scheme, None, IGNORED))
    assert isinstance(found, CompressedTensorsConfig)
    assert found.is_quantized
    assert found.is_quantization_compressed
    assert found.has_fp8_modules is (scheme in ("fp8-channel", "fp8-tensor", "mxfp8"))


@pytest.mark.parametrize("scheme", EXPECTED)
def test_they_are_recognised_here(scheme: str) -> None:
    parts, codec = STORED[scheme]
    tensors = stored([*parts, ("model.layers.0.mlp.gate.weight", "BF16", (8, 256))])
    config = quantized({}, compressed_config(scheme, None, IGNORED), "bfloat16")
    found = schemes.detect(declared(config, {}), tensors)
    assert isinstance(found, CompressedTensorsScheme)
    reading = found.read(tensors, SHARDS)
    assert (reading.problems, reading.warnings, reading.dropped) == ((), (), ())
    (weight,) = [w for w in reading.weights if w.codec.coded]
    assert (weight.name, weight.shape, weight.codec.to_dict()) == (W, (192, 256), codec)


# DeepSeek's own declaration.
@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V3.1", "DeepSeek-V3.2"])
def test_the_native_declaration_is_deepseeks(name: str) -> None:
    published = FACTS[f"deepseek-ai/{name}"].config["quantization_config"]
    found = native_fp8((128, 128), published.get("scale_fmt"), IGNORED)
    assert found == published | {"modules_to_not_convert": IGNORED}
    assert list(found) == sorted(found)
    assert type(found["weight_block_size"]) is list


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_transformers_takes_the_native_declaration(scale_fmt: str | None) -> None:
    found = AutoQuantizationConfig.from_dict(native_fp8((32, 32), scale_fmt, IGNORED))
    assert isinstance(found, FineGrainedFP8Config)
    assert found.weight_block_size == [32, 32]
    assert found.modules_to_not_convert == IGNORED
    assert found.scale_fmt == (scale_fmt or "float")
    assert found.activation_scheme == "dynamic"


def test_the_native_declaration_is_recognised_here() -> None:
    tensors = stored([(W, "F8_E4M3", (192, 256)), (f"{W}_scale_inv", "F32", (2, 2))])
    config = quantized({}, native_fp8((128, 128), None, IGNORED), "bfloat16")
    found = schemes.detect(declared(config, {}), tensors)
    assert isinstance(found, Fp8BlockScheme)
    assert found.read(tensors, SHARDS).problems == ()
    assert found.to_dict() == {"scheme": "fp8-block", "block": [128, 128]}


# The config around it.
NEW = native_fp8((128, 128), None, IGNORED)
INNER = {"a": 1, "quantization_config": {"quant_method": "awq"}, "dtype": "bfloat16"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "in the place of the old one",
        {"b": 1, "quantization_config": {"x": 1}, "a": 2, "torch_dtype": "float16"},
        {"b": 1, "quantization_config": NEW, "a": 2, "torch_dtype": "float16"},
    ),
    (
        "stale ones elsewhere",
        {"compression_config": {}, "text_config": INNER, "c": [{"quantization_config": 1}]},
        {"text_config": {"a": 1, "dtype": "bfloat16"}, "c": [{}], "quantization_config": NEW},
    ),
    (
        "an old one that is no object",
        {"quantization_config": None, "dtype": "float32"},
        {"quantization_config": NEW, "dtype": "float32"},
    ),
    ("no dtype", {"a": {}}, {"a": {}, "quantization_config": NEW, "torch_dtype": "bfloat16"}),
    ("nothing", {}, {"quantization_config": NEW, "torch_dtype": "bfloat16"}),
]


@pytest.mark.parametrize(("before", "after"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_every_other_key_and_the_order_are_kept(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    kept, new = copy.deepcopy(before), copy.deepcopy(NEW)
    assert json.dumps(quantized(before, NEW, "bfloat16")) == json.dumps(after)
    assert (before, NEW) == (kept, new)  # what was given is not changed


V4 = {"model_type": "deepseek_v4", "expert_dtype": "fp4", "dtype": "bfloat16"}


def test_experts_of_deepseek_v4() -> None:
    """vLLM's ``DeepseekV4FP8Config``: ``getattr(hf_config, "expert_dtype", "fp4")``."""
    assert list(quantized(V4, NEW, "bfloat16", "fp8").items())[:2] == [
        ("model_type", "deepseek_v4"),
        ("expert_dtype", "fp8"),
    ]
    assert "expert_dtype" not in quantized(V4, NEW, "bfloat16")
    again = plain_config(V4, "bfloat16")
    assert "expert_dtype" not in again
    assert quantized(again, NEW, "bfloat16", "fp8")["expert_dtype"] == "fp8"
    assert "expert_dtype" not in json.dumps(quantized(again, NEW, "bfloat16"))
    nested = {"text_config": {"expert_dtype": "fp4"}}
    assert quantized(nested, NEW, "bfloat16", "fp8")["text_config"] == {"expert_dtype": "fp8"}
    assert quantized(nested, NEW, "bfloat16")["text_config"] == {}
    other = {"model_type": "deepseek_v3"}
    assert "expert_dtype" not in json.dumps(quantized(other, NEW, "bfloat16", "fp8"))


def test_experts_of_deepseek_v41_are_declared_with_the_quantization() -> None:
    before = FACTS["deepseek-ai/DeepSeek-V4.1-Flash"].config
    out = quantized(before, NEW, "bfloat16", "fp8")
    assert out["quantization_config"] == NEW | {"expert_dtype": "fp8"}
    assert "expert_dtype" not in out
    assert "expert_dtype" not in json.dumps(quantized(before, NEW, "bfloat16"))


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("scheme", ["nvfp4", None])
def test_nothing_else_is_declared_in_any_published_config(name: str, scheme: str | None) -> None:
    before = FACTS[name].config
    new = compressed_config(scheme, None, IGNORED) if scheme else NEW
    out = quantized(before, new, "bfloat16", None if scheme else "fp8")
    said = declared(out, {})
    assert (said.where, said.others) == ("config.json: quantization_config", ())
    assert json.dumps(out).count("quant_method") == 1
    other = {"quantization_config", "expert_dtype", "text_config", "torch_dtype"}
    assert {k: v for k, v in out.items() if k not in other} == {
        k: v for k, v in before.items() if k not in other
    }
    mine = [key for key in out if key in before]
    assert mine == [key for key in before if key in out]


@pytest.mark.parametrize("where", ["top", "text_config"])
def test_transformers_finds_it_for_models_of_several_parts(where: str, tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 32, "num_hidden_layers": 1}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    config |= {"text_config": text, "vision_config": {"hidden_size": 32}}
    place: dict[str, Any] = config if where == "top" else text
    place["quantization_config"] = {"quant_method": "awq"}
    out = quantized(config, compressed_config("nvfp4", None, IGNORED), "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(out))
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.quantization_config == compressed_config("nvfp4", None, IGNORED)
    assert getattr(read.get_text_config(), "quantization_config", None) is None
