"""Every format of :mod:`tests.formats`, converted whole and compared with its oracle by bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fp8convert
from fp8convert.errors import Fp8ConvertError
from fp8convert.inspection import inspect
from fp8convert.settings import Settings

from .checkpoints import write
from .formats import deepseek_ranks
from .formats.bad import Bad, bad_cases
from .formats.case import Case
from .formats.catalogue import all_cases
from .oracle import differing, load

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CASES = {c.id: c for c in all_cases()}
RANKS = {c.id: c for c in deepseek_ranks.cases()}
BAD = {b.id: b for b in bad_cases()}


def checkpoint(folder: Path, case: Case | Bad) -> Path:
    if isinstance(case, deepseek_ranks.RankCase):
        folder.mkdir()
        for name, tensors in case.files.items():
            save_file(tensors, folder / name, metadata={"format": "pt"})
        return folder
    write(folder, case.shards, case.config)
    for name, content in case.sidecars.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def expected(case: Case, dtype: str) -> dict[str, torch.Tensor]:
    to = DTYPES[dtype]
    return {n: t.to(to) if n in case.decoded else t for n, t in case.expected.items()}


@pytest.mark.parametrize("case", [*CASES.values(), *RANKS.values()], ids=[*CASES, *RANKS])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_converted_bytes_equal_the_oracle(case: Case, dtype: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "src", case)
    fp8convert.to_bf16(source, tmp_path / "dst", dtype=dtype)
    assert differing(load(tmp_path / "dst"), expected(case, dtype)) == []
    names = {p.name for p in (tmp_path / "dst").iterdir()}
    assert not names & {"hf_quant_config.json", "quantize_config.json"}
    if "config.json" in names:
        config = (tmp_path / "dst" / "config.json").read_text()
        assert "quantization_config" not in config
        assert "expert_dtype" not in config


@pytest.mark.parametrize("case", [*CASES.values(), *RANKS.values()], ids=[*CASES, *RANKS])
def test_the_smallest_tiles_give_the_same_bytes(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts at every row, and within rows: what a large tensor meets with little memory."""
    monkeypatch.setattr(Settings, "tile", 4096)
    source = checkpoint(tmp_path / "src", case)
    fp8convert.to_bf16(source, tmp_path / "dst", dtype="float32")
    assert differing(load(tmp_path / "dst"), expected(case, "float32")) == []


@pytest.mark.parametrize("case", [*CASES.values(), *RANKS.values()], ids=[*CASES, *RANKS])
def test_reading_by_name_gives_the_float32_product(case: Case, tmp_path: Path) -> None:
    opened = fp8convert.open_checkpoint(checkpoint(tmp_path / "src", case))
    assert set(opened.names()) == set(case.expected)
    for name in case.decoded:
        want = case.expected[name].numpy()
        assert opened.spec(name).shape == want.shape
        assert np.array_equal(opened.read(name).view(np.uint32), want.view(np.uint32)), name
        some = opened.read(name, slice(1, want.shape[0] - 1 or 1))
        assert np.array_equal(some, want[1 : want.shape[0] - 1 or 1])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_inspect_recognises_it(case: Case, tmp_path: Path) -> None:
    report = inspect(checkpoint(tmp_path / "src", case))
    assert report.problems == []
    assert report.coded_weights == len(case.decoded)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_checkpoints_are_refused_by_name(bad: Bad, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "src", bad)
    with pytest.raises(Fp8ConvertError) as caught:
        fp8convert.to_bf16(source, tmp_path / "dst")
    assert caught.value.exit_code == 1
    message = str(caught.value).lower()
    assert [w for w in bad.words if w not in message] == [], message
    assert not (tmp_path / "dst").exists()
    planned = (tmp_path / ".dst.fp8convert").exists()
    assert planned is (bad.when == "decode"), message
