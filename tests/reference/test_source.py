"""Weights as stored: codes and scales that a GEMM takes, times each other, are the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fp8convert import open_checkpoint
from fp8convert.reference.source import Named

from ..checkpoints import pair, write
from ..formats import compressed_tensors_, deepseek_v4, fp8_scales, gpt_oss, mistral
from ..formats.case import Case

SCALES = {f"fp8/{name}" for name in (
    "f32-128x128", "bf16-128x128", "f16-128x128", "e8m0-128x128", "e8m0-32x32", "u8-1x32-ragged",
)}  # fmt: skip
BLOCKS = [
    deepseek_v4.flash(),
    deepseek_v4.base(),
    deepseek_v4.v41(),
    *(case for case in fp8_scales.cases() if case.id in SCALES),
]
OTHERS = [
    mistral.hugging_face(),  # one scale for all
    fp8_scales.fused(),  # of three axes
    next(case for case in fp8_scales.cases() if case.id == "fp8/e5m2-f32"),
    compressed_tensors_.kimi(),  # INT4
    *gpt_oss.cases(),  # transposed
]


def named(case: Case, folder: Path) -> Named:
    return Named(open_checkpoint(write(folder / "made", case.shards, case.config)))


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case.id)
def test_values_times_scales_are_the_weight(case: Case, tmp_path: Path) -> None:
    """FP8 128 x 128, 32 x 32 and 1 x 32, MXFP4; scales F32 and E8M0; ragged edges."""
    source = named(case, tmp_path)
    seen = set()
    for name in case.decoded:
        rows = source.shape(name)[0]
        for lo in range(0, rows, 128):
            band = slice(lo, min(lo + 128, rows))
            found = source.blocks(name, band)
            assert found is not None, name
            down, across = found.block
            scales = found.scales.repeat(down, 0)[: len(found.values)].repeat(across, 1)
            product = found.values * scales[:, : found.values.shape[1]]
            np.testing.assert_array_equal(product, case.expected[name][band].numpy())
            assert found.values.dtype == np.float32
            seen.add(found.block)
    assert seen
    assert not any(source.coded(name) for name in case.expected.keys() - case.decoded)


def test_a_nan_code_is_nan(tmp_path: Path) -> None:
    tensors = pair("a.weight", 128, 128)
    tensors["a.weight"].view(torch.uint8)[3, 5] = 0x7F
    source = Named(open_checkpoint(write(tmp_path / "made", [tensors])))
    found = source.blocks("a.weight", slice(0, 128))
    assert found is not None
    assert np.argwhere(np.isnan(found.values)).tolist() == [[3, 5]]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.id)
def test_other_codes_are_not_for_the_gemm(case: Case, tmp_path: Path) -> None:
    source = named(case, tmp_path)
    for name in case.decoded:
        assert source.coded(name)
        assert source.blocks(name, slice(0, source.shape(name)[0])) is None


def test_names_are_those_of_the_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "made", [pair("w1.weight", 128, 128)]))
    source = Named(checkpoint, lambda name: name.replace("gate_proj", "w1"))
    assert "gate_proj.weight" in source
    assert "up_proj.weight" not in source
    assert source.shape("gate_proj.weight") == (128, 128)
    assert source.coded("gate_proj.weight")
    np.testing.assert_array_equal(
        source.read("gate_proj.weight", slice(3, 5)), checkpoint.read("w1.weight")[3:5]
    )
    assert source.blocks("gate_proj.weight", slice(0, 128)) is not None
