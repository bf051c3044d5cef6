"""Every sample family, converted: equal to its unquantized twin, which other code writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fp8convert
from fp8convert.convert import prepare
from fp8convert.inspection import inspect
from fp8convert.samples import FAMILIES, make_sample

from .oracle import differing, load

# family -> scheme that is recognised, and its codecs by number of weights
RECOGNISED = {
    "deepseek-v3": ("fp8-block", ["fp8-block"]),
    "deepseek-v4": ("fp8-block", ["fp4-block", "fp8-block"]),
    "qwen3-fp8": ("fp8-block", ["fp8-block"]),
    "kimi-k2-thinking": ("compressed-tensors", ["packed-int"]),
    "gpt-oss": ("mxfp4", ["mxfp4-transposed", "mxfp4-transposed"]),
    "mistral-fp8": ("fp8-block", ["fp8-block"]),
    "minimax-m3": ("fp8-block", ["fp8-block"]),
    "modelopt-nvfp4": ("modelopt", ["fp4-block"]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_output_equals_the_unquantized_twin(family: str, tmp_path: Path) -> None:
    for scheme in ("published", "bf16"):
        make_sample(str(tmp_path / scheme), family, "tiny", scheme)
    scheme, codecs = RECOGNISED[family]
    report = inspect(tmp_path / "published")
    assert report.scheme["scheme"] == scheme
    assert [c["codec"] for c in report.codecs] == codecs
    assert report.problems == []
    assert report.warnings == []
    fp8convert.to_bf16(tmp_path / "published", tmp_path / "ours", strict=True)
    assert differing(load(tmp_path / "ours"), load(tmp_path / "bf16")) == []
    ours, twin = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "bf16"))
    assert ours.pop("torch_dtype", None) in (None, twin.pop("torch_dtype", "bfloat16"))
    assert ours == twin


def test_the_whole_v4_inventory_is_planned(tmp_path: Path) -> None:
    make_sample(str(tmp_path / "full"), "deepseek-v4", "full")
    plan = prepare(tmp_path / "full", tmp_path / "dst").plan
    weights = [i.weight for t in plan.tasks for i in t.items]
    coded = [w for w in weights if w.codec.coded]
    assert sum(len(w.parts) for w in weights) == 69_187
    assert sum(w.codec.name == "fp4-block" for w in coded) == 33_792
    assert sum(w.codec.name == "fp8-block" for w in coded) == 375
    assert len(weights) - len(coded) == 853
    tables = [i for t in plan.tasks for i in t.items if i.weight.name.endswith("tid2eid")]
    assert {(i.dtype, i.weight.shape) for i in tables} == {("I64", (129280, 6))}
