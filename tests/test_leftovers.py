"""What stands beside coded weights: dropped, kept with a word, or a reason to refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fp8convert
from fp8convert.catalogue import open_catalogue
from fp8convert.errors import SchemeError
from fp8convert.schemes import detect
from fp8convert.schemes.base import Reading

from .checkpoints import FP8_CONFIG, codes, pair, write
from .oracle import load

W = "m.q_proj.weight"
GOOD = pair(W, 64, 64) | {"m.norm.weight": torch.ones(8, dtype=torch.bfloat16)}
ONE, MANY = torch.ones(()), torch.ones(64)


def reading(tmp_path: Path, more: dict[str, torch.Tensor], **config: Any) -> Reading:
    catalogue = open_catalogue(write(tmp_path / "src", [GOOD | more], FP8_CONFIG | config))
    scheme = detect(catalogue.declared, catalogue.tensors)
    return scheme.read(catalogue.tensors, catalogue.shard_names)


@pytest.mark.parametrize(
    "name",
    ["m.k_scale", "m.v_proj.v_scale", "m.q_proj.input_scale", "m.other.activation_scale"],
)
def test_scales_of_activations_and_cache_vanish(name: str, tmp_path: Path) -> None:
    found = reading(tmp_path, {name: ONE})
    assert found.problems == found.warnings == ()
    fp8convert.to_bf16(tmp_path / "src", tmp_path / "dst", strict=True)
    assert name not in load(tmp_path / "dst")


def test_an_integer_zero_point_of_activations_vanishes(tmp_path: Path) -> None:
    more = {"m.q_proj.input_zero_point": torch.zeros(1, dtype=torch.int8)}
    assert reading(tmp_path, more).problems == ()


@pytest.mark.parametrize("name", ["m.q_scale", "m.k_scale", "m.q_proj.input_scale"])
def test_a_vector_of_that_name_is_a_parameter_and_stays(name: str, tmp_path: Path) -> None:
    found = reading(tmp_path, {name: MANY})
    assert found.problems == ()
    assert bool(found.warnings) is name.startswith("m.q_proj")
    fp8convert.to_bf16(tmp_path / "src", tmp_path / "dst")
    assert torch.equal(load(tmp_path / "dst")[name], MANY)


@pytest.mark.parametrize("leaf", ["pre_quant_scale", "weight_offset", "smooth_scale"])
def test_what_changes_a_coded_weight_bars_decoding_it(leaf: str, tmp_path: Path) -> None:
    (problem,) = reading(tmp_path, {f"m.q_proj.{leaf}": MANY}).problems
    assert f"'m.q_proj.{leaf}': it changes the coded weight beside it" in problem


def test_unknown_company_is_kept_and_reported(tmp_path: Path) -> None:
    names = ("m.q_proj.twist", "m.q_proj.bias", "m.norm.twist")
    more = {name: MANY.clone() for name in names}
    (warning,) = reading(tmp_path, more).warnings
    assert warning.startswith("'m.q_proj.twist' beside coded weights: kept")
    with pytest.raises(SchemeError, match="twist"):
        fp8convert.to_bf16(tmp_path / "src", tmp_path / "dst", strict=True)


def test_activation_scales_of_fused_experts_vanish(tmp_path: Path) -> None:
    name = "m.experts.gate_up_proj"
    more = {
        name: codes(2 * 64, 64).reshape(2, 64, 64),
        f"{name}_scale_inv": torch.ones(2, 1, 1),
        f"{name}_activation_scale": torch.ones(2),
    }
    assert reading(tmp_path, more).problems == ()
    fp8convert.to_bf16(tmp_path / "src", tmp_path / "dst", strict=True)
    assert f"{name}_activation_scale" not in load(tmp_path / "dst")


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_one_scale_an_expert_needs_no_declared_block(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    values = codes(2 * 64, 64).reshape(2, 64, 64)
    tensors = {"e.w": values, "e.w_scale_inv": torch.tensor([0.5, 2.0]).reshape(shape)}
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}
    fp8convert.to_bf16(write(tmp_path / "s", [tensors], config), tmp_path / "dst", dtype="float32")
    expected = values.float() * torch.tensor([0.5, 2.0]).reshape(2, 1, 1)
    assert torch.equal(load(tmp_path / "dst")["e.w"], expected)


def test_a_refused_weight_is_one_problem_not_three(tmp_path: Path) -> None:
    more = {"b.weight": codes(64, 64), "b.weight_scale_inv": torch.ones(7, 7)}
    (problem,) = reading(tmp_path, more).problems
    assert "'b.weight'" in problem
    assert "[7, 7]" in problem
