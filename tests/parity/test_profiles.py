"""Named thresholds: what each lets pass, and what replaces them."""

from __future__ import annotations

import math

import pytest
import torch

from fp8convert.errors import UsageError
from fp8convert.parity import profiles
from fp8convert.parity.measures import head


def fails(found: torch.Tensor, limits: profiles.Limits) -> list[str]:
    return profiles.failures(head("logits", torch.ones(1, 1, 4), found), limits)


def test_identical_lets_nothing_pass() -> None:
    limits = profiles.limits("identical", "bf16", 8)
    ones = torch.ones(1, 1, 4)
    assert fails(ones, limits) == []
    near = ones.clone()
    near[..., 2] = torch.nextafter(near[..., 2], torch.tensor(2.0))
    assert fails(near, limits) == ["max_abs 1.192e-7, at most 0"]


@pytest.mark.parametrize("profile", profiles.PROFILES)
@pytest.mark.parametrize("compute", ["bf16", "fp32", "fp8"])
def test_nan_passes_no_profile(profile: str, compute: str) -> None:
    limits = profiles.limits(profile, compute, 4)
    assert fails(torch.tensor([[[1.0, math.nan, 1.0, 1.0]]]), limits)


def test_float32_is_judged_more_strictly_and_more_bits_are_too() -> None:
    order = {c: profiles.limits("reduction-order", c, 16) for c in ("bf16", "fp32")}
    assert order["fp32"]["max_rms"] * 100 < order["bf16"]["max_rms"]  # type: ignore[operator]
    eight, four = (profiles.limits("requantized", "bf16", bits) for bits in (8, 4))
    assert eight["max_rms"] < four["max_rms"]  # type: ignore[operator]
    assert profiles.limits("requantized", "bf16", 16) == eight
    assert profiles.limits("requantized", "bf16", 7) == four


def test_own_thresholds_replace_those_of_the_profile_only() -> None:
    own = {"max_abs": 0.5, "min_top1": 0.9, "max_kl": None}
    limits = profiles.limits("identical", "bf16", 8, own)
    assert limits == profiles.NONE | {"max_abs": 0.5, "min_top1": 0.9}
    assert fails(torch.tensor([[[1.4, 1.0, 1.0, 1.0]]]), limits) == []
    words = fails(torch.tensor([[[1.0, 1.0, 1.0, 2.0]]]), limits)
    assert words == ["max_abs 1, at most 0.5"]
    kept = profiles.limits("reduction-order", "bf16", 8, {"max_kl": 1.0})
    assert kept["max_kl"] == 1
    assert kept["max_rms"] == profiles.limits("reduction-order", "bf16", 8)["max_rms"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="profile 'close', expected one of identical, reduc"):
        profiles.limits("close", "bf16", 8)
    with pytest.raises(UsageError, match="threshold 'max_rmse', expected one of max_abs"):
        profiles.limits("identical", "bf16", 8, {"max_rmse": 1.0})
