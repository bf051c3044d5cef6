"""The published formulas, as plain loops in float32.

Element formats: OCP "8-bit Floating Point" (e4m3, e5m2) and "Microscaling Formats" v1.0 (e8m0,
e2m1); the fnuz forms from "8-bit Numerical Formats for Deep Neural Networks" (arXiv 2206.02915).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def minifloat(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """Sign, exponent, mantissa, with subnormals and without special values."""
    mantissa = code & (1 << mantissa_bits) - 1
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    fraction = mantissa / (1 << mantissa_bits)
    magnitude = math.ldexp(fraction if exponent == 0 else 1 + fraction, max(exponent, 1) - bias)
    return -magnitude if code >> mantissa_bits + exponent_bits else magnitude


def e4m3fn(code: int) -> float:
    """Bias 7; no infinity; NaN is 0x7F and 0xFF."""
    return math.nan if code & 0x7F == 0x7F else minifloat(code, 4, 3, 7)


def e5m2(code: int) -> float:
    """Bias 15; infinity is 0x7C, NaN above it."""
    if code & 0x7F == 0x7C:
        return math.copysign(math.inf, -1 if code >> 7 else 1)
    return math.nan if code & 0x7F > 0x7C else minifloat(code, 5, 2, 15)


def e4m3fnuz(code: int) -> float:
    """Bias 8; no infinity, no -0; NaN is 0x80."""
    return math.nan if code == 0x80 else minifloat(code, 4, 3, 8)


def e5m2fnuz(code: int) -> float:
    """Bias 16; no infinity, no -0; NaN is 0x80."""
    return math.nan if code == 0x80 else minifloat(code, 5, 2, 16)


def e8m0(code: int) -> float:
    """2**(code - 127); 255 is NaN."""
    return math.nan if code == 255 else math.ldexp(1.0, code - 127)


def e2m1(code: int) -> float:
    """Bias 1; code 8 is -0."""
    return minifloat(code, 2, 1, 1)


def _table(function: Callable[[int], float], size: int = 256) -> torch.Tensor:
    return torch.tensor([function(code) for code in range(size)], dtype=torch.float32)


TABLES: dict[torch.dtype, torch.Tensor] = {
    torch.float8_e4m3fn: _table(e4m3fn),
    torch.float8_e5m2: _table(e5m2),
    torch.float8_e4m3fnuz: _table(e4m3fnuz),
    torch.float8_e5m2fnuz: _table(e5m2fnuz),
    torch.float8_e8m0fnu: _table(e8m0),
}
E2M1 = _table(e2m1, 16)
E2M1_DEEPSEEK = E2M1.clone()
E2M1_DEEPSEEK[8] = 0.0  # DeepSeek's own table (inference/convert.py of DeepSeek-V4) has +0.0


def values(codes: torch.Tensor) -> torch.Tensor:
    """Codes or numbers as float32, byte by byte through the tables."""
    if codes.dtype in TABLES:
        return TABLES[codes.dtype][codes.contiguous().view(torch.uint8).long()]
    return codes.to(torch.float32)


def exponents(scales: torch.Tensor) -> torch.Tensor:
    """E8M0 bytes, stored as U8 or F8_E8M0, as float32."""
    return TABLES[torch.float8_e8m0fnu][scales.contiguous().view(torch.uint8).long()]


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """4-bit codes, two a byte along the last axis, the even one in the low half."""
    raw = packed.contiguous().view(torch.uint8)
    return torch.stack([raw & 0xF, raw >> 4], dim=-1).flatten(-2).long()


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`nibbles`, as U8."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)


def by_block(numbers: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """``numbers`` [..., o, i] times ``scales`` [..., ceil(o/b0), ceil(i/b1)], block by block."""
    rows, columns = scales.shape[-2:]
    assert (rows, columns) == (
        -(-numbers.shape[-2] // block[0]),
        -(-numbers.shape[-1] // block[1]),
    )
    out = torch.empty_like(numbers)
    for r in range(rows):
        for c in range(columns):
            at = (
                ...,
                slice(r * block[0], (r + 1) * block[0]),
                slice(c * block[1], (c + 1) * block[1]),
            )
            out[at] = numbers[at] * scales[..., r : r + 1, c : c + 1]
    return out


def words(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned ``bits``-wide fields along the last axis, packed into I32, the first one lowest.

    A last word that is not full is padded with zeros.
    """
    per_word = 32 // bits
    count = -(-fields.shape[-1] // per_word)
    out = torch.zeros(*fields.shape[:-1], count, dtype=torch.int64)
    for k in range(fields.shape[-1]):
        out[..., k // per_word] |= fields[..., k].long() << bits * (k % per_word)
    return torch.where(out >= 1 << 31, out - (1 << 32), out).to(torch.int32)


def fields(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of :func:`words`: ``count`` unsigned fields along the last axis, as int64."""
    per_word = 32 // bits
    raw = packed.long() & 0xFFFFFFFF
    out = [raw[..., k // per_word] >> bits * (k % per_word) for k in range(count)]
    return torch.stack(out, dim=-1) & (1 << bits) - 1
