"""Where a declaration sits, several of them, and what is left of them in the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fp8convert
from fp8convert.configout import plain_config
from fp8convert.declared import declared
from fp8convert.errors import Fp8ConvertError, SchemeError
from fp8convert.schemes import detect

from .checkpoints import FP8_CONFIG, codes, pair, write
from .formats import gptq
from .oracle import dequantize_all, differing, load

FP8 = FP8_CONFIG["quantization_config"]
OTHER = FP8 | {"weight_block_size": [96, 128]}
GOOD = pair("w.weight", 192, 128)


@pytest.mark.parametrize("path", [("llm_config",), ("thinker_config", "text_config")])
def test_a_declaration_is_found_where_parts_of_a_model_have_it(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    config: dict[str, Any] = {"quantization_config": FP8, "torch_dtype": "bfloat16", "a": 1}
    for key in reversed(path):
        config = {key: config, "b": 2}
    source = write(tmp_path / "src", [GOOD], config)
    assert declared(config, {}).where.endswith(".".join((*path, "quantization_config")))
    fp8convert.to_bf16(source, tmp_path / "dst")
    assert differing(load(tmp_path / "dst"), dequantize_all(load(source))) == []
    assert "quantization_config" not in (tmp_path / "dst" / "config.json").read_text()


def test_declarations_that_disagree_are_refused() -> None:
    config = {"quantization_config": FP8, "text_config": {"quantization_config": OTHER}}
    with pytest.raises(SchemeError, match=r"text_config\.quantization_config disagree"):
        detect(declared(config, {}), {})
    config["text_config"]["quantization_config"] = dict(FP8)
    assert detect(declared(config, {}), {}).to_dict()["block"] == [128, 128]


def test_a_sidecar_of_another_version_is_refused() -> None:
    said = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    sidecar = {"quantize_config.json": said | {"checkpoint_format": "gptq_v2"}}
    with pytest.raises(SchemeError, match=r"quantize_config\.json: top level disagree"):
        detect(declared({"quantization_config": said}, sidecar), {})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"checkpoint_format": "gptq", "format": "gptq_v2"}, "which"),
        ({"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic has options of its own"),
    ],
)
def test_gptq_options_that_could_mean_something_else(more: dict[str, Any], words: str) -> None:
    said = {"quant_method": "gptq", "bits": 4, "group_size": 128, **more}
    with pytest.raises(SchemeError, match=words):
        detect(declared({"quantization_config": said}, {}), {})
    said = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:lm_head": {}}}
    assert detect(declared({"quantization_config": said}, {}), {})


def test_gptq_inputs_reordered_against_the_config(tmp_path: Path) -> None:
    case = next(c for c in gptq.cases() if c.id == "gptq/int4-desc-act")
    said = case.config["quantization_config"] | {"desc_act": False}
    source = write(tmp_path / "src", case.shards, case.config | {"quantization_config": said})
    with pytest.raises(Fp8ConvertError, match="desc_act is false"):
        fp8convert.to_bf16(source, tmp_path / "dst")


def test_nothing_declared_is_left_at_any_depth() -> None:
    inner = {"quantization_config": FP8, "keep": [{"compression_config": {}, "x": 1}]}
    config = {"a": {"b": inner}, "expert_dtype": "fp4", "torch_dtype": "float16"}
    kept = json.dumps(config)
    out = plain_config(config, "bfloat16")
    assert out == {"a": {"b": {"keep": [{"x": 1}]}}, "torch_dtype": "bfloat16"}
    assert json.dumps(config) == kept


@pytest.mark.parametrize("block", [[10**30, 10**30], [10**30, 1]])
def test_a_block_longer_than_any_matrix(block: list[int], tmp_path: Path) -> None:
    across = -(-128 // block[1])
    tensors = {"w.weight": codes(192, 128), "w.weight_scale_inv": torch.ones(1, across) * 0.5}
    config = FP8_CONFIG | {"quantization_config": FP8 | {"weight_block_size": block}}
    fp8convert.to_bf16(write(tmp_path / "src", [tensors], config), tmp_path / "dst")
    expected = (tensors["w.weight"].float() * 0.5).bfloat16()
    assert torch.equal(load(tmp_path / "dst")["w.weight"], expected)
