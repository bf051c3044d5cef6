"""Groups of a compressed-tensors config: which one means a module, and when none can be chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fp8convert
from fp8convert.convert import execute, prepare
from fp8convert.declared import declared
from fp8convert.engine import Engine
from fp8convert.errors import SchemeError, TargetError
from fp8convert.publish import Staging, opened
from fp8convert.schemes import detect
from fp8convert.settings import Settings

from .checkpoints import codes, write

A, B = "m.experts.0.up", "m.experts.1.up"


def group(rows: int, *targets: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [rows, 128]}
    return {"weights": weights, "targets": list(targets), "format": "float-quantized"}


def config(**groups: Any) -> dict[str, Any]:
    said = {"quant_method": "compressed-tensors", "config_groups": groups}
    return {"quantization_config": said, "torch_dtype": "bfloat16"}


def tensors(module: str) -> dict[str, torch.Tensor]:
    """A weight whose scales fit blocks of 96 rows as well as of 128."""
    return {
        f"{module}.weight": codes(192, 128),
        f"{module}.weight_scale": torch.tensor([[1.0], [2.0]]),
    }


def blocks(tmp_path: Path, said: dict[str, Any]) -> dict[str, list[int]]:
    source = write(tmp_path / "src", [tensors(A), tensors(B)], said)
    opened_checkpoint = fp8convert.open_checkpoint(source)
    return {n: opened_checkpoint.spec(n).codec["block"] for n in opened_checkpoint.names()}


def test_shapes_that_fit_two_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match=r"fit several groups of the config: 'g0', 'g1'"):
        blocks(tmp_path, config(g0=group(96, "Linear"), g1=group(128, "ColumnLinear")))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (A, B),
        (r"re:.*experts\.0\..*", r"re:.*experts\.1\..*"),
        (A, "Linear"),
        (r"re:.*experts\.0\..*", "Linear"),
    ],
)
def test_a_name_goes_before_a_pattern_before_a_class(
    first: str, second: str, tmp_path: Path
) -> None:
    found = blocks(tmp_path, config(g0=group(128, first), g1=group(96, second)))
    assert found == {f"{A}.weight": [128, 128], f"{B}.weight": [96, 128]}


def test_a_pattern_that_is_not_tried_may_mean_any_module(tmp_path: Path) -> None:
    slow = "re:(a+)+(b+)+(c+)+$"
    with pytest.raises(SchemeError, match="fit several groups"):
        blocks(tmp_path, config(g0=group(96, slow), g1=group(128, "Linear")))


def test_groups_of_activations_only_are_passed_over(tmp_path: Path) -> None:
    attention = {"weights": None, "targets": ["Attention"], "input_activations": {"num_bits": 8}}
    found = blocks(tmp_path, config(a=attention, g=group(128, "Linear")))
    assert found[f"{A}.weight"] == [128, 128]
    with pytest.raises(SchemeError, match="no group with weights"):
        detect(declared(config(a=attention), {}), {})


def test_a_block_of_five_thousand_digits() -> None:
    broken = group(128, "Linear")
    broken["weights"]["block_structure"] = "9" * 5000 + "x128"
    with pytest.raises(SchemeError, match="block_structure"):
        detect(declared(config(g=broken), {}), {})


def test_another_reading_of_the_same_headers_does_not_resume(tmp_path: Path) -> None:
    """The plan's identity holds every codec: swapping two groups' targets is another plan."""
    source = write(tmp_path / "src", [tensors(A), tensors(B)], config(g=group(128, A, B)))
    job = prepare(source, tmp_path / "dst")
    staging = Staging(job.target, job.plan)
    with opened(staging):
        staging.begin(job.catalogue.fingerprint)
        Engine(job.catalogue, staging, Settings()).run(job.plan.tasks[:1])
    (source / "config.json").unlink()
    other = write(tmp_path / "other", [tensors(A), tensors(B)], config(g=group(96, A, B)))
    (source / "config.json").write_bytes((other / "config.json").read_bytes())
    again = prepare(source, tmp_path / "dst")
    assert [t.header for t in again.plan.tasks] == [t.header for t in job.plan.tasks]
    assert [t.digest for t in again.plan.tasks] != [t.digest for t in job.plan.tasks]
    with pytest.raises(TargetError, match="is not this one"):
        execute(again)
