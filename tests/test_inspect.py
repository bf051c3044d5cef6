"""``inspect``: what a checkpoint is, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fp8convert.inspection import inspect
from fp8convert.samples import make_sample

from .checkpoints import FP8_CONFIG, codes, pair, write


def test_full_inventory(tmp_path: Path) -> None:
    make_sample(tmp_path / "full", size="full")
    report = inspect(tmp_path / "full")
    assert (report.family, report.architecture) == ("deepseek_v3", "DeepseekV3ForCausalLM")
    assert report.scheme == {"scheme": "fp8-block", "block": [128, 128]}
    assert (report.tensors, report.weights, report.coded_weights) == (91_991, 46_183, 45_808)
    assert report.parameters == 684_489_845_504  # 671B and the MTP layer
    assert report.shards == 163
    assert report.bytes == sum(report.bytes_by_dtype.values()) == 688_574_839_360
    assert report.block_size == [128, 128]
    assert (report.layers, report.mtp_layers) == (61, [61])
    assert report.groups["routed experts"]["weights"] == 58 * 256 * 3
    assert report.groups["router"]["weights"] == 58 * 2
    assert report.groups["dense mlp"]["weights"] == 9
    assert "other" not in report.groups
    assert sum(g["weights"] for g in report.groups.values()) == report.weights
    assert (report.problems, report.warnings) == ([], [])


def test_a_plain_checkpoint(tiny_bf16: Path) -> None:
    report = inspect(tiny_bf16)
    assert report.scheme == {"scheme": "none"}
    assert report.block_size is None
    assert report.coded_weights == 0
    assert report.problems == []


def test_problems_are_listed_not_raised(tmp_path: Path) -> None:
    report = inspect(write(tmp_path / "src", [{"w.weight": codes(8, 8)} | pair("v.weight", 8, 8)]))
    assert len(report.problems) == 1
    assert "'w.weight': it is F8_E4M3 but has no scale" in report.problems[0]


def test_an_unknown_scheme_is_a_problem(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "zip"}}
    report = inspect(write(tmp_path / "src", [{"w": torch.ones(2)}], config))
    assert report.scheme == {"scheme": "unknown"}
    assert "quant_method is 'zip'" in report.problems[0]


def test_mtp_layers_that_the_config_does_not_have_are_a_warning(tmp_path: Path) -> None:
    config = {**FP8_CONFIG, "num_hidden_layers": 1, "num_nextn_predict_layers": 2}
    tensors = pair("model.layers.0.mlp.up_proj.weight", 8, 8)
    tensors |= pair("model.layers.1.mlp.up_proj.weight", 8, 8)
    report = inspect(write(tmp_path / "src", [tensors], config))
    assert report.mtp_layers == [1]
    assert report.warnings == ["config.json: num_nextn_predict_layers is 2, found 1 MTP layers"]


@pytest.mark.parametrize("found", [5, "x", [], [1], {"a": 1}, ["\x1b[31m" * 99]])
def test_hostile_words_in_a_config_neither_break_it_nor_reach_a_terminal(
    tmp_path: Path, found: object
) -> None:
    config = {**FP8_CONFIG, "architectures": found, "model_type": found}
    report = inspect(write(tmp_path / "src", [pair("w.weight", 8, 8)], config))
    assert report.architecture.isprintable()
    assert report.family.isprintable()


@pytest.mark.parametrize("layers", ["61", None, 1.5])
def test_odd_configs_do_not_break_it(tmp_path: Path, layers: object) -> None:
    config = {**FP8_CONFIG, "num_hidden_layers": layers, "architectures": None}
    report = inspect(write(tmp_path / "src", [pair("w.weight", 8, 8)], config))
    assert report.layers is None
    assert json.dumps(report.to_dict())
