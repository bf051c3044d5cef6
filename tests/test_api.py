"""The Python API: ``fp8convert.to_bf16`` and ``open_checkpoint``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fp8convert
from fp8convert.errors import FormatError, SchemeError, UsageError
from fp8convert.settings import Progress

from .checkpoints import codes, pair, write
from .oracle import dequantize, load


def test_to_bf16_returns_the_manifest_and_reports_progress(tiny_fp8: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    manifest = fp8convert.to_bf16(tiny_fp8, tmp_path / "dst", progress=seen.append, workers=3)
    assert manifest.path == tmp_path / "dst"
    assert not manifest.already_done
    assert {f["name"] for f in manifest.files} == {p.name for p in (tmp_path / "dst").iterdir()} - {
        "manifest.json"
    }
    assert [p.written for p in seen] == sorted(p.written for p in seen)
    assert seen[-1].written == seen[-1].total
    assert fp8convert.to_bf16(tiny_fp8, tmp_path / "dst").already_done


def test_unknown_options_are_named_with_the_known_ones(tiny_fp8: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\['worker'\], known: .*'workers'"):
        fp8convert.to_bf16(tiny_fp8, tmp_path / "dst", worker=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": -1}, "workers -1"),
        ({"io": "mmap"}, "io 'mmap', expected one of auto"),
        ({"memory": 1 << 20}, "1 MiB is too little for .* expected at least"),
    ],
)
def test_settings_without_meaning(
    tiny_fp8: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fp8convert.to_bf16(tiny_fp8, tmp_path / "dst", **settings)


def test_read_gives_the_float32_value_of_every_weight(tiny_fp8: Path) -> None:
    """Coded weights before any rounding, BF16 widened exactly, others as stored."""
    stored = load(tiny_fp8)
    checkpoint = fp8convert.open_checkpoint(tiny_fp8)
    assert set(checkpoint.names()) == {n for n in stored if not n.endswith("_scale_inv")}
    for name in checkpoint.names():
        tensor = stored[name]
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = dequantize(tensor, stored[name + "_scale_inv"], torch.float32)
        got = checkpoint.read(name)
        assert got.dtype == np.float32
        assert got.tobytes() == tensor.float().numpy().tobytes()
        assert got.shape == tuple(tensor.shape) == checkpoint.spec(name).shape


@pytest.mark.parametrize(
    "rows",
    [slice(0, 1), slice(127, 129), slice(100, 576), slice(-3, None), slice(9, 9), slice(5, 2)],
)
def test_read_of_some_rows_is_a_slice_of_the_whole(tiny_fp8: Path, rows: slice) -> None:
    checkpoint = fp8convert.open_checkpoint(tiny_fp8)
    for name in ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "lm_head.weight"):
        np.testing.assert_array_equal(checkpoint.read(name, rows), checkpoint.read(name)[rows])


def test_read_of_other_dtypes_and_shapes(tmp_path: Path) -> None:
    odd = {
        "scalar": torch.tensor(1.5),
        "table": torch.arange(6).reshape(1, 2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "cube": torch.arange(24).reshape(4, 2, 3).bfloat16(),
        "empty": torch.empty((0, 4)),
    }
    checkpoint = fp8convert.open_checkpoint(write(tmp_path / "src", [odd | pair("w", 8, 8)]))
    for name, tensor in odd.items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(checkpoint.read(name), expected.numpy())
    np.testing.assert_array_equal(checkpoint.read("cube", slice(1, 3)), odd["cube"][1:3].float())
    with pytest.raises(UsageError, match="'scalar' is a scalar"):
        checkpoint.read("scalar", slice(0, 1))
    with pytest.raises(UsageError, match="step 2"):
        checkpoint.read("w", slice(0, 8, 2))
    with pytest.raises(KeyError):
        checkpoint.read("missing")


def test_nan_codes_read_as_nan(tmp_path: Path) -> None:
    tensors = pair("w", 8, 8)
    tensors["w"].view(torch.uint8)[2, 3] = 0x7F
    got = fp8convert.open_checkpoint(write(tmp_path / "src", [tensors])).read("w")
    assert np.argwhere(np.isnan(got)).tolist() == [[2, 3]]


def test_spec_says_what_a_weight_is(tiny_fp8: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    spec = fp8convert.open_checkpoint(tiny_fp8).spec(name)
    assert spec.dtype == "F8_E4M3"
    assert spec.codec == {"codec": "fp8-block", "element": "e4m3fn", "block": [128, 128]}
    assert spec.parts == (name, name + "_scale_inv")


def test_a_source_that_changed_is_not_read(tiny_fp8: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_fp8, tmp_path / "src")
    checkpoint = fp8convert.open_checkpoint(tmp_path / "src")
    for shard in (tmp_path / "src").glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match="changed since it was planned"):
        checkpoint.read("lm_head.weight")


def test_an_unsound_checkpoint_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match="has no scale"):
        fp8convert.open_checkpoint(write(tmp_path / "src", [{"w.weight": codes(8, 8)}]))


def test_converting_imports_neither_torch_nor_click(tiny_fp8: Path, tmp_path: Path) -> None:
    code = (
        "import sys, fp8convert; assert 'numpy' not in sys.modules\n"
        f"fp8convert.to_bf16({str(tiny_fp8)!r}, {str(tmp_path / 'dst')!r})\n"
        "found = {'torch', 'click', 'tqdm', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not found, found; assert 'numba' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there_and_nothing_else() -> None:
    for name in fp8convert.__all__:
        assert getattr(fp8convert, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'to_bf17'"):
        fp8convert.to_bf17  # noqa: B018
