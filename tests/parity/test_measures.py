"""The measures of logits, held against plain loops, PyTorch's KL, and every way to break ties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fp8convert.parity import measures

SIZES = (2, 3, 7)


def pair(seed: int, shape: tuple[int, ...] = SIZES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(shape, generator=generator) * 4
    return a, a + torch.randn(shape, generator=generator)


@pytest.mark.parametrize("chunk", [1 << 20, 5])
def test_differences_are_those_of_plain_loops(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "CHUNK", chunk)
    a, b = pair(0)
    found = measures.difference(a, b.bfloat16())
    pairs = list(zip(a.flatten().tolist(), b.bfloat16().flatten().tolist(), strict=True))
    power = math.fsum(r * r for r, _ in pairs)
    assert found.max_abs == max(abs(c - r) for r, c in pairs)
    squares = math.fsum((c - r) ** 2 for r, c in pairs)
    assert found.relative_rms == pytest.approx(math.sqrt(squares / power), rel=1e-12)
    assert found.reference_rms == pytest.approx(math.sqrt(power / len(pairs)), rel=1e-12)


def test_relative_to_zeros_any_difference_is_infinite() -> None:
    zeros = torch.zeros(4)
    assert measures.difference(zeros, zeros) == (0, 0, 0)
    assert measures.difference(zeros, zeros + 1) == (1, math.inf, 0)
    assert measures.difference(zeros, -zeros) == (0, 0, 0)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("strange", [math.nan, math.inf])
def test_nan_is_not_lost_among_other_parts(
    side: int, strange: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "CHUNK", 2)
    both = [torch.ones(6), torch.ones(6)]
    both[side][2] = strange
    found = measures.difference(*both)
    assert not math.isfinite(found.max_abs)
    assert not found.relative_rms <= 1


@pytest.mark.parametrize("chunk", [1 << 20, 8])
def test_kl_is_that_of_pytorch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "CHUNK", chunk)
    a, b = pair(1)
    log_p, log_q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    found = measures.head("logits", a, b)
    assert found["kl_max"] == pytest.approx(float(kl.max()), rel=1e-9)
    assert found["kl_mean"] == pytest.approx(float(kl.mean()), rel=1e-9)


def test_kl_has_the_reference_first_and_does_not_mind_a_shift() -> None:
    a, b = torch.tensor([[[5.0, 0.0]]]), torch.tensor([[[1.0, 1.0]]])
    p = 1 / (1 + math.exp(-5))
    expected = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert measures.head("logits", a, b)["kl_max"] == pytest.approx(expected, rel=1e-9)
    shifted = measures.head("logits", a, b + 100)
    assert shifted["kl_max"] == pytest.approx(expected, rel=1e-9)
    assert measures.head("logits", a * 1e4, b)["kl_max"] == pytest.approx(math.log(2), rel=1e-9)


def choices(row: list[float], k: int) -> list[set[int]]:
    """Every set of ``k`` tokens that is best, by one way or another to break ties."""
    tokens = range(len(row))
    return [
        set(some)
        for some in itertools.combinations(tokens, k)
        if min(row[t] for t in some) >= max((row[t] for t in tokens if t not in some), default=0)
    ]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_overlap_is_the_best_of_all_ways_to_break_ties(k: int) -> None:
    generator = torch.Generator().manual_seed(2)
    both = torch.randint(0, 4, (2, 200, 6), generator=generator).double()  # full of ties
    found = measures.overlap(both[0], both[1], k).tolist()
    for a, b, share in zip(both[0].tolist(), both[1].tolist(), found, strict=True):
        best = max(len(x & y) for x in choices(a, k) for y in choices(b, k))
        assert share == best / k, (a, b)
    assert len(set(found)) > 1


def test_a_vocabulary_of_less_than_five_has_fewer_best() -> None:
    a = torch.tensor([[[1.0, 2.0, 3.0]]])
    found = measures.head("logits", a, a.flip(-1))
    assert (found["top1"], found["top5"]) == (0, 1)


def test_agreement_is_the_mean_over_positions() -> None:
    a = torch.eye(8)[None]
    b = a.clone()
    b[0, 0] = a[0, 1]
    assert measures.head("logits", a, b)["top1"] == 7 / 8


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_have_no_measure(side: int, strange: float) -> None:
    both = list(pair(3))
    both[side][1, 2, 3] = strange
    found = measures.head("logits", *both)
    assert found.pop("finite") is False
    assert found.pop("name") == "logits"
    assert all(math.isnan(v) for v in found.values())
    words = measures.nonfinite("the candidate", both[side])
    assert words == (
        f"1 of 42 logits of the candidate are NaN or infinite, the first is {strange} "
        "(sequence 1, position 2, token 3)"
    )
    assert measures.nonfinite("the reference", both[1 - side]) is None


def test_the_pairs_to_draw_are_pairs_and_the_same_each_time() -> None:
    a = torch.arange(3.0 * 5 * 700).view(3, 5, 700)
    found = measures.scatter("logits", a, a + 0.5)
    assert len(found["reference"]) == measures.PAIRS
    apart = {c - r for r, c in zip(found["reference"], found["candidate"], strict=True)}
    assert apart == {0.5}
    assert len(set(found["reference"])) > measures.PAIRS * 0.8
    assert found == measures.scatter("logits", a, a + 0.5)
    few = measures.scatter("mtp", a[:1, :1, :9], a[:1, :1, :9])
    assert few == {"head": "mtp", "reference": [*range(9)], "candidate": [*range(9)]}
