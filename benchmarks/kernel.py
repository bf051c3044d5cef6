"""Kernel: e4m3 block decode on one core, against torch's own conversions and the NumPy twin.

One matrix of a published expert's shape with the sample's codes and scales, from memory to memory.
All sides but torch's bare cast (which applies no scale) give the same bytes; that is checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fp8convert.codecs.elements import ELEMENTS
from fp8convert.kernels import compiled, plain
from fp8convert.samples import values

from .cast_loop import dequantize
from .common import Bound, Env, Report
from .rates import Side, one_thread, rates

BOUND = Bound(at_least=1.5)  # G elements/s, compiled, to BF16
SHAPE, BLOCK = (2048, 7168), (128, 128)
COUNT = SHAPE[0] * SHAPE[1]
E4M3 = ELEMENTS["e4m3fn"]
Array = NDArray[Any]


def run(env: Env, report: Report) -> None:
    """128 x 128 blocks with every side, then 1 x 32 blocks for information."""
    with one_thread():
        _all_sides(env, report)
    _narrow_blocks(env, report)


def _all_sides(env: Env, report: Report) -> None:
    codes, scales = _matrix(BLOCK)
    half, full, twin = (np.empty(SHAPE, t) for t in (np.uint16, np.float32, np.uint16))
    weight, by_block = torch.from_numpy(codes).view(torch.float8_e4m3fn), torch.from_numpy(scales)
    sides: dict[str, Side] = {
        "compiled, to BF16": lambda: compiled.decode(E4M3, codes, scales, None, 0, BLOCK, half),
        "compiled, to F32": lambda: compiled.decode(E4M3, codes, scales, None, 0, BLOCK, full),
        "torch, scaled, to BF16": lambda: dequantize(weight, by_block),
        "torch, bare cast to BF16": lambda: weight.to(torch.bfloat16),
        "NumPy twin, to BF16": lambda: plain.decode(E4M3, codes, scales, None, 0, BLOCK, twin),
    }
    ours, *others = rates(env, {name: (side, COUNT) for name, side in sides.items()})
    report.figure("128 x 128 blocks: the compiled kernel", ours, BOUND)
    for other in others:
        report.ratio(f"128 x 128 blocks: compiled to BF16 against {other.label}", ours, other)
    expected = dequantize(weight, by_block).view(torch.uint16).numpy()
    same = all(np.array_equal(expected, found) for found in (half, twin))
    report.fact("128 x 128 blocks: bytes", same, "compiled, twin and torch give the same bytes")


def _narrow_blocks(env: Env, report: Report) -> None:
    block = (1, 32)
    codes, scales = _matrix(block)
    half = np.empty(SHAPE, np.uint16)
    sides: dict[str, tuple[Side, int]] = {
        "compiled, to BF16": (
            lambda: compiled.decode(E4M3, codes, scales, None, 0, block, half),
            COUNT,
        )
    }
    for found in rates(env, sides):
        report.figure("1 x 32 blocks: the compiled kernel", found)


def _matrix(block: tuple[int, int]) -> tuple[Array, Array]:
    """Codes and scales drawn from the tables of the sample checkpoints."""
    source = np.random.default_rng(0)
    grid = tuple(-(-n // b) for n, b in zip(SHAPE, block, strict=True))
    codes = values.table("codes")[source.integers(0, 1 << 16, SHAPE)]
    return codes, values.table("scales")[source.integers(0, 1 << 16, grid)]
