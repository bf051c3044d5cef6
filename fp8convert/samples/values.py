"""Random tensors that look like trained ones, and a plain decoder for the unquantized twin.

Each tensor has its own stream of 16-bit numbers, seeded by (seed, stream name) alone; a number
indexes a table of 65,536 equally likely values. The decoder here shares nothing with the
project's codecs: the twin is evidence about them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp8convert.header import numel

from .spec import BLOCK, Stored, scale_name, scale_shape

CHUNK = 1 << 16  # numbers drawn at a time: stays in the cache
BAND = 1 << 18  # elements made at a time, at least: bounds memory to tens of MB
MAX_CODE = 448.0
MEAN_SCALE = 0.02 * 4 / MAX_CODE  # codes reach 448 at 4.2 sigma: weights of sigma 0.02

Array = NDArray[Any]


def pieces(tensor: Stored, seed: int) -> Iterator[Array]:
    """The values of ``tensor`` in file order, in bands of whole rows; BF16 as uint16 bits."""
    if tensor.fill == "decoded":
        yield from _decoded(tensor, seed)
    else:
        yield from _drawn(tensor.shape, tensor.fill, tensor.stream, seed)


def _drawn(shape: tuple[int, ...], fill: str, stream: str, seed: int) -> Iterator[Array]:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    source = np.random.SFC64(int.from_bytes(digest[:16], "little"))
    columns = numel(shape[1:])
    rows = max(1, BAND // (BLOCK * columns)) * BLOCK
    for top in range(0, shape[0], rows):
        height = min(rows, shape[0] - top)
        yield _draw(source, table(fill), height * columns).reshape(height, *shape[1:])


def _draw(source: np.random.SFC64, values: Array, count: int) -> Array:
    out = np.empty(count, values.dtype)
    for start in range(0, count, CHUNK):
        part = out[start : start + CHUNK]
        raw: Array = source.random_raw(-(-part.size // 4))  # a 64-bit number is four indices
        # "clip" writes straight to out; no 16-bit index is out of range
        values.take(raw.view(np.uint16)[: part.size], out=part, mode="clip")
    return out


@cache
def table(fill: str) -> Array:
    """The 65,536 values that tensors of one kind are drawn from: codes, scales, matrix, ..."""
    z = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)])
    if fill == "codes":
        return to_e4m3(z * (MAX_CODE / z.max()))
    if fill == "scales":
        return np.asarray(MEAN_SCALE * np.exp(0.25 * z), np.float32)
    if fill == "bias":
        return np.asarray(0.01 * z, np.float32)
    mean, sigma = (1.0, 0.05) if fill == "norm" else (0.0, 0.02)
    return to_bf16(np.asarray(mean + sigma * z, np.float32))


def _decoded(tensor: Stored, seed: int) -> Iterator[Array]:
    """BF16 bits of code * scale: one float32 multiply, one rounding."""
    grid = scale_shape(tensor.shape)
    scales = np.concatenate([*_drawn(grid, "scales", scale_name(tensor.stream), seed)])
    top = 0
    for codes in _drawn(tensor.shape, "codes", tensor.stream, seed):
        rows, columns = codes.shape
        block_rows = scales[top // BLOCK : -(-(top + rows) // BLOCK)]
        wide = np.repeat(block_rows, BLOCK, axis=1)[:, :columns]
        scale = np.repeat(wide, BLOCK, axis=0)[:rows]  # the last block is cut to the edge
        values: Array = e4m3_values().take(codes)
        values *= scale
        yield to_bf16(values)
        top += rows


@cache
def e4m3_values() -> Array:
    """float32 value of each e4m3fn code: s eeee mmm, bias 7, no infinity, NaN at 0x7F and 0xFF.

    Source: Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433, table 1.
    """
    return np.array([_e4m3_value(code) for code in range(256)], np.float32)


def _e4m3_value(code: int) -> float:
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return float(sign * mantissa * 2.0**-9)
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def to_e4m3(x: Array) -> Array:
    """The nearest e4m3fn code of each value; magnitudes up to 448, never NaN."""
    magnitudes = e4m3_values()[:0x7F].astype(np.float64)
    code = np.searchsorted((magnitudes[1:] + magnitudes[:-1]) / 2, np.abs(x))
    return np.asarray(code | np.where(x < 0, 0x80, 0), np.uint8)


def to_bf16(x: Array) -> Array:
    """BF16 bits of finite float32 values, round to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits >> 16  # in place from here on: twice as fast as one expression
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)
