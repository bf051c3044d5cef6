"""Ranks as real processes: the bits that they have as threads, and errors that end all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fp8convert.reference.ranks import distributed, open_any
from fp8convert.reference.run import logits_of

from ..sharded.runs import runs
from .rank_sets import Models, edit, ids

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    with runs(tmp_path_factory.mktemp("torchrun")) as made:
        yield Models(made.root)


def torchrun(ranks: int, *words: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone",
             "--nproc-per-node", str(ranks), "-m", "tests.reference.rank_process"]  # fmt: skip
    env = {**os.environ, "PYTHONWARNINGS": "default"}
    return subprocess.run([*start, *words], capture_output=True, text=True, cwd=ROOT, env=env)


def test_processes_have_the_bits_of_threads(models: Models, tmp_path: Path) -> None:
    folder = models.cut("sample-deepseek-v3", 2, layout="deepseek", mtp="keep")
    out = tmp_path / "logits.safetensors"
    done = torchrun(2, str(folder), str(out), "fp32", "bf16")
    assert done.returncode == 0, done.stderr
    found = load_file(out)
    assert found.keys() == {"fp32", "bf16"}
    for compute, logits in found.items():
        model = open_any(folder, compute)
        assert torch.equal(logits, logits_of(model, ids(model.vocabulary)))


def test_ranks_that_disagree_end_every_process(models: Models, tmp_path: Path) -> None:
    folder = models.copy(models.cut("sample-deepseek-v3", 2, layout="deepseek"))
    edit(folder, lambda ranks: ranks[1]["layers.1.ffn.gate.weight"].mul_(-1))
    done = torchrun(2, str(folder), str(tmp_path / "out"), "fp32")
    assert done.returncode == 1
    said = "DataError: experts that tokens are routed to: rank 0 and rank 1 have different values"
    assert done.stderr.count(said) == 2


def test_alone_it_is_not_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert not distributed()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not distributed()  # a name that others use, too
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert distributed()
