"""The broken control: the fault is a real one, it goes away again, and it must be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fp8convert.errors import FormatError
from fp8convert.parity.control import FACTORS, control
from fp8convert.parity.walk import Walk
from fp8convert.reference.ranks import open_any
from fp8convert.reference.run import logits_of, open_model

from .models import copy, first_block

IDS = torch.tensor([[5, 1, 90, 17, 33]])
O_PROJ = "model.layers.{}.self_attn.o_proj.weight"


def walked(folder: Path, layers: list[int], compute: str = "bf16") -> Walk:
    walk = Walk(open_any(folder, compute), IDS)
    walk.begin()
    for n in layers:
        walk.layer(n)
    return walk


@pytest.mark.parametrize("layers", [[0, 1], [0]])
def test_the_fault_is_that_of_a_file_with_this_block_changed(
    llama: Path, tmp_path: Path, layers: list[int]
) -> None:
    walk = walked(llama, layers, "fp32")
    name = O_PROJ.format(layers[-1])
    broken = copy(llama, tmp_path / "broken", {name: first_block(16)})
    expected = logits_of(open_model(broken, "fp32"), IDS, layers)
    assert torch.equal(walk.again(layers[-1], 16), expected)
    assert not torch.equal(walk.logits(), expected)


@pytest.mark.parametrize("compute", ["bf16", "fp8"])
def test_the_fault_of_a_coded_weight_is_one_in_its_scale(
    tiny_fp8: Path, tmp_path: Path, compute: str
) -> None:
    def first_scale(s: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.cat([s[:1, :1] * 2, s[:1, 1:]], 1), s[1:]])

    ids = IDS % 1024
    walk = Walk(open_any(tiny_fp8, compute), ids)
    walk.begin()
    walk.layer(0)
    name = f"{O_PROJ.format(0)}_scale_inv"
    broken = copy(tiny_fp8, tmp_path / "broken", {name: first_scale})
    expected = logits_of(open_model(broken, compute), ids, [0])
    found = walk.again(0, 2)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-3)
    assert (walk.logits() - expected).abs().max() > 10 * (found - expected).abs().max()


def test_it_leaves_the_model_as_it_was(llama: Path) -> None:
    walk = walked(llama, [0, 1])
    before = walk.logits()
    assert not torch.equal(walk.again(1, 2), before)
    assert torch.equal(walk.again(1, 1), before)
    assert torch.equal(walk.logits(), before)
    assert walk.model.w.fault is None


def test_a_fault_that_ends_in_an_error_leaves_the_model_as_it_was(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = walked(llama, [0, 1])

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("stop")

    monkeypatch.setattr(walk.model, "logits", fail)
    with pytest.raises(RuntimeError, match="stop"):
        walk.again(1, 2)
    assert walk.model.w.fault is None


def test_on_ranks_it_is_a_block_of_each_ones_part(llama_ranks: Path) -> None:
    walk = walked(llama_ranks, [0, 1])
    before = walk.logits()
    assert walk.fault(2).columns == (0, 48)  # 96 channels on two ranks
    assert not torch.equal(walk.again(1, 2), before)
    assert torch.equal(walk.again(1, 1), before)


def seen_at(times: int) -> Callable[[torch.Tensor], list[str]]:
    """A judge who sees the fault when it is asked for the ``times``-th time, 0 for never."""
    asked: list[torch.Tensor] = []

    def judge(logits: torch.Tensor) -> list[str]:
        asked.append(logits)
        return ["max_abs"] if len(asked) == times else []

    return judge


def test_larger_faults_follow_until_one_is_seen(llama: Path) -> None:
    found = control(walked(llama, [0, 1]), 1, seen_at(3))
    assert found == {
        "weight": O_PROJ.format(1),
        "rows": [0, 64],
        "columns": [0, 96],
        "factor": 256.0,
        "detected": True,
        "failed": ["max_abs"],
        "tried": [2.0, 16.0, 256.0],
    }


def test_a_judge_who_never_sees_it_is_told_so(llama: Path) -> None:
    found = control(walked(llama, [0]), 0, seen_at(0))
    assert (found["detected"], found["failed"], found["tried"]) == (
        False,
        [],
        [*map(float, FACTORS)],
    )


def test_without_a_matrix_to_put_it_in_there_is_an_error(llama: Path) -> None:
    walk = Walk(open_any(llama), IDS)
    walk.begin()
    with pytest.raises(FormatError, match=r"last layer has no o_proj.weight or wo_b.weight"):
        walk.fault(2)
