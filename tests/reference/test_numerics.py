"""Norms, gates, FP8 activations and the block-wise GEMM: torch's own, or loops from the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fp8convert.errors import UsageError
from fp8convert.reference.numerics import (
    block_matmul,
    checked_device,
    dtype_of,
    quantized,
    rms_norm,
    swiglu,
)

from . import fp8
from .held import random

F32 = np.float32


@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm_is_that_of_torch(weighted: bool) -> None:
    x, weight = 3 * random(4, 5, 64), random(64, seed=1) if weighted else None
    expected = torch.nn.functional.rms_norm(x, (64,), weight, 1e-3)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), expected)
    narrow = rms_norm(x.bfloat16(), weight, 1e-3)
    wide = torch.nn.functional.rms_norm(x.bfloat16().float(), (64,), weight, 1e-3)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow, wide.bfloat16(), rtol=2**-8, atol=0)


def test_swiglu_and_its_limit() -> None:
    gate, up = 4 * random(6, 16), 4 * random(6, 16, seed=1)
    g, u = gate.double().numpy(), up.double().numpy()
    np.testing.assert_allclose(swiglu(gate, up).numpy(), g / (1 + np.exp(-g)) * u, rtol=1e-6)
    g, u = np.minimum(g, 2.5), np.clip(u, -2.5, 2.5)
    limited = swiglu(gate, up, 2.5).numpy()
    np.testing.assert_allclose(limited, g / (1 + np.exp(-g)) * u, rtol=1e-6)
    assert (gate < -2.5).any()  # which stays: the gate is cut above only
    assert (up < -2.5).any()


def activations(tokens: int, channels: int) -> Any:
    """Of every magnitude, with a token of zeros, one below the least scale, and equal powers."""
    x = random(tokens, channels).bfloat16().float()
    x *= 2.0 ** torch.arange(-8, tokens - 8)[:, None]
    x[0], x[1], x[2] = 0, 1e-6, 448 * 2.0**-5
    return x.numpy()


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("channels", [64, 128, 192, 256])
def test_activations_are_quantized_by_the_formula(channels: int, power_of_two: bool) -> None:
    x = activations(20, channels)
    values, scales = quantized(torch.from_numpy(x), power_of_two)
    expected, expected_scales = fp8.act_quant(x, power_of_two)
    np.testing.assert_array_equal(scales.numpy(), expected_scales)
    np.testing.assert_array_equal(values.numpy(), expected)
    assert values.shape == x.shape
    if power_of_two:
        assert (np.frexp(scales.numpy())[0] == 0.5).all()


def test_power_of_two_scales_are_exact_at_every_exponent() -> None:
    """Just at a power of two it stays, just above it is the next one."""
    for exponent in range(-13, 100):
        exact = F32(448 * 2.0**exponent)
        x = np.array([[exact], [np.nextafter(exact, F32(np.inf))]], F32)
        _, scales = quantized(torch.from_numpy(x), True)
        assert scales.flatten().tolist() == [2.0**exponent, 2.0 ** (exponent + 1)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_what_is_not_finite_stays_so(bad: float, power_of_two: bool) -> None:
    x = np.ones((1, 128), F32)
    x[0, 3] = bad
    values, scales = quantized(torch.from_numpy(x), power_of_two)
    assert not (values * scales)[0, 3].isfinite()


@pytest.mark.parametrize("block", [(128, 128), (1, 128), (1, 32), (32, 32), (64, 128)])
@pytest.mark.parametrize(("rows", "columns"), [(256, 256), (200, 192), (8, 96)])
def test_the_gemm_is_that_of_the_formula(block: tuple[int, int], rows: int, columns: int) -> None:
    x, x_scale = fp8.act_quant(activations(10, columns), False)
    rng = np.random.default_rng(1)
    w = rng.integers(-8, 9, (rows, columns)).astype(F32)
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    w_scale = np.exp2(rng.uniform(-6, 6, grid)).astype(F32)
    found = block_matmul(*map(torch.from_numpy, (x, x_scale, w, w_scale)), block)
    expected = fp8.gemm(x, x_scale, w, w_scale, block)
    size = fp8.gemm(np.abs(x), x_scale, np.abs(w), w_scale, block)  # sums of magnitudes
    assert (np.abs(found.numpy() - expected) <= 2e-6 * size).all()
    assert (size > 0).any(1).sum() == 9  # all but the token of zeros


def test_one_scale_that_is_another_shows() -> None:
    x, x_scale = fp8.act_quant(activations(12, 256), False)
    w, w_scale = np.ones((256, 256), F32), np.ones((2, 2), F32)
    args = [torch.from_numpy(a) for a in (x, x_scale, w, w_scale)]
    before = block_matmul(*args, (128, 128))
    args[3][1, 0] = 2
    changed = (block_matmul(*args, (128, 128)) != before).any(0)
    assert changed.tolist() == [False] * 128 + [True] * 128


def test_modes_and_devices_are_checked() -> None:
    assert [dtype_of(c) for c in ("bf16", "fp32", "fp8")] == [
        torch.bfloat16, torch.float32, torch.bfloat16,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="compute is 'fp16', expected one of bf16, fp32, fp8"):
        dtype_of("fp16")
    with pytest.raises(UsageError, match="device is 'mps', expected one of cpu, cuda"):
        checked_device("mps")


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="finds no CUDA device"):
        checked_device("cuda")


def test_products_are_float32_whatever_torch_was_told() -> None:
    torch.set_float32_matmul_precision("medium")
    assert checked_device("cpu") == "cpu"
    assert torch.get_float32_matmul_precision() == "highest"
