"""numba kernels that measure blocks, encode and compare. Bit-identical to ``plain_encode``.

As in ``compiled``, every integer stays ``np.uint32`` and inner loops run over contiguous 1-D
slices or a constant number of columns, so that LLVM vectorizes them. Sums are of float64 in an
order that is written down, and nothing may be reassociated or contracted: the same bits everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from ..codecs.elements import Element
from . import plain_encode
from .jit import jit, jit_dividing
from .plain_encode import LANES, Array, has_minus_zero, whole_range

U8, U16, U32, F32, F64 = np.uint8, np.uint16, np.uint32, np.float32, np.float64
MAGNITUDE, MANTISSA, EXPONENT = U32(0x7FFFFFFF), U32(0x7FFFFF), U32(0x7F800000)
ROUNDER = F32(1.5 * 2**23)  # a float32 next to it has only its whole part left, in its low bits
FOUR, SIXTEEN = U16(4), U32(16)
PASS = 1024  # columns whose squares stay in the L1 cache, a multiple of 16
NARROW = 64  # columns of a block below which setting up its own loop shows


class FloatRule(NamedTuple):
    """What makes a float32 the code of a float format."""

    largest: Any  # bits of the largest magnitude
    least: Any  # of the exponent of the smallest normal: subnormals share its step
    rounder: Any  # see _rule
    shift: Any  # of float32's mantissa down to the format's
    sign_shift: Any
    sign: Any  # mask
    magnitude: Any  # mask


class WholeRule(NamedTuple):
    """What makes a float32 an integer code."""

    low: Any  # before the zero point is added
    high: Any
    zero: Any  # modulo 2**32


@functools.cache
def _rule(element: Element, zero: float) -> FloatRule | WholeRule:
    """For a float of step 2**k, adding 2**(k + 23) rounds to whole steps, their count lowest.

    So ``rounder`` raises an exponent by the bits that go. Its own low bits take back what the
    exponent, shifted into place above the count, has too much (an even number: ties stay ties).
    """
    if element.mantissa is None or element.bias is None:
        low, high = whole_range(element)
        return WholeRule(F32(low - zero), F32(high - zero), U32(int(zero) % 2**32))
    shift, sign = 23 - element.mantissa, 1 << element.width - 1
    too_much = 128 - element.bias << element.mantissa
    return FloatRule(
        F32(element.largest).view(U32),
        F32(2.0 ** (1 - element.bias)).view(U32),
        U32((shift << 23) + -too_much % 256),
        U32(shift),
        U32(32 - element.width),
        U32(sign),
        U32(sign - 1),
    )


def _code(x: Any, scale: Any, rule: Any) -> Any:
    raise NotImplementedError("only its overload below runs, inside compiled code")


@overload(_code, jit_options={"nogil": True, "error_model": "numpy"})
def _code_for(x: Any, scale: Any, rule: Any) -> Callable[..., Any]:
    def of_float(x: Any, scale: Any, rule: Any) -> Any:
        bits = F32(x / scale).view(U32)
        magnitude = U32(min(U32(bits & MAGNITUDE), rule.largest))
        exponent = U32(max(U32(magnitude & EXPONENT), rule.least))
        rounded = F32(magnitude.view(F32) + U32(exponent + rule.rounder).view(F32))
        code = U32(rounded.view(U32) + U32(exponent >> rule.shift))  # only its low bits
        sign = U32(U32(bits >> rule.sign_shift) & rule.sign)
        return U8(U32(U32(code & rule.magnitude) | sign))

    def of_whole(x: Any, scale: Any, rule: Any) -> Any:
        ratio = F32(min(max(F32(x / scale), rule.low), rule.high))
        return U8(U32(F32(ratio + ROUNDER).view(U32) + rule.zero))

    return of_float if rule.instance_class is FloatRule else of_whole


@jit
def _encode_run(x: Any, scale: Any, rule: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = _code(x[i], scale, rule)


@jit_dividing
def _encode_narrow(x: Any, scales: Any, per: int, rule: Any, out: Any) -> None:
    """Blocks of ``per`` sixteens, as many as make 32: a loop of its own costs a block too much.

    Not one sixteen at a time: LLVM would unroll that loop and vectorize across blocks.
    """
    for g in range(x.size // 32):
        first, second = scales[2 * g // per], scales[(2 * g + 1) // per]
        for k in range(32):
            scale = first if k < 16 else second
            out[32 * g + k] = _code(x[32 * g + k], scale, rule)


@jit
def _encode_row(x: Any, scales: Any, bc: int, rule: Any, out: Any) -> None:
    done = 0
    if bc % 16 == 0 and bc < NARROW:
        _encode_narrow(x, scales, bc // 16, rule, out)
        done = x.size // 32 * 32
    while done < x.size:
        end = min(done // bc * bc + bc, x.size)
        _encode_run(x[done:end], scales[done // bc], rule, out[done:end])
        done = end


@jit
def _pack(codes: Any, out: Any) -> None:
    """Two codes a byte, the first in the low nibble."""
    pairs = codes.view(U16)  # little-endian
    for j in range(pairs.size):
        out[j] = U8(U16(pairs[j] | U16(pairs[j] >> FOUR)))


@jit
def _encode(
    x: Any, scales: Any, phase: int, br: int, bc: int, rule: Any, packed: bool, out: Any
) -> None:
    codes = np.empty(x.shape[1] if packed else 0, U8)
    for r in range(x.shape[0]):
        if packed:
            _encode_row(x[r], scales[(phase + r) // br], bc, rule, codes)
            _pack(codes, out[r])
        else:
            _encode_row(x[r], scales[(phase + r) // br], bc, rule, out[r])


def encode(
    element: Element,
    x: Array,
    scales: Array,
    zero: float,
    phase: int,
    block: tuple[int, int],
    out: Array,
) -> None:
    """As :func:`plain_encode.encode`; formats without a negative zero: by the twin."""
    if element.is_float and not has_minus_zero(element):
        plain_encode.encode(element, x, scales, zero, phase, block, out)
    else:
        _encode(x, scales, phase, *block, _rule(element, zero), element.bits == 4, out)


@jit
def _top_and_bits(words: Any) -> Any:
    top, bits = U32(0), U32(0)
    for i in range(words.size):
        top = U32(max(top, U32(words[i] & MAGNITUDE)))
        bits = U32(bits | words[i])
    return top, U32(bits & MANTISSA)


@jit
def _measure(words: Any, phase: int, br: int, bc: int, top: Any, bits: Any) -> None:
    rows, columns = words.shape
    for r in range(rows):
        band = (phase + r) // br
        for b in range(-(-columns // bc)):
            found, used = _top_and_bits(words[r, b * bc : min(b * bc + bc, columns)])
            top[band, b] = max(top[band, b], found)
            bits[band, b] |= used


def measure(x: Array, phase: int, block: tuple[int, int], top: Array, bits: Array) -> None:
    """As :func:`plain_encode.measure`."""
    _measure(x.view(U32), phase, *block, top, bits)


@jit
def _squares(x: Any, y: Any, out: Any) -> None:
    for i in range(x.size):
        d = F64(x[i]) - F64(y[i])
        out[i] = d * d


@jit
def _halve(terms: Any, out: Any, n: int) -> None:
    for j in range(n):
        out[j] = terms[2 * j] + terms[2 * j + 1]


@jit
def _sixteens(x: Any, y: Any, terms: Any, half: Any) -> Any:
    """Squared errors of at most PASS columns, summed by sixteen into ``terms``; how many sums."""
    n = (x.size + 15) // 16
    _squares(x, y, terms)
    for i in range(x.size, 16 * n):
        terms[i] = 0.0
    _halve(terms, half, 8 * n)
    _halve(half, terms, 4 * n)
    _halve(terms, half, 2 * n)
    _halve(half, terms, n)
    return n


@jit
def _add_to_blocks(sums: Any, n: int, lo: int, bc: int, out: Any) -> None:
    """Each of ``n`` sums of sixteen, the first from column ``lo``, to the cell of its block."""
    g, b = 0, lo // bc
    while g < n:
        end = min((b * bc + bc - lo + 15) // 16, n)
        total = out[b]
        for k in range(g, end):
            total += sums[k]
        out[b] = total
        g, b = end, b + 1


@jit
def _squared_error(x: Any, y: Any, phase: int, br: int, bc: int, out: Any) -> None:
    terms, half = np.empty(PASS, F64), np.empty(PASS // 2, F64)
    rows, columns = x.shape
    span = max(columns, 1) if bc % 16 == 0 else bc  # where no sixteen is of two blocks
    for r in range(rows):
        cells = out[(phase + r) // br]
        for first in range(0, columns, span):
            end = min(first + span, columns)
            for lo in range(first, end, PASS):
                hi = min(lo + PASS, end)
                n = _sixteens(x[r, lo:hi], y[r, lo:hi], terms, half)
                _add_to_blocks(terms, n, lo, bc, cells)


def squared_error(x: Array, y: Array, phase: int, block: tuple[int, int], out: Array) -> None:
    """As :func:`plain_encode.squared_error`."""
    _squared_error(x, y, phase, *block, out)


@jit
def widen(halves: Any, out: Any) -> None:
    """As :func:`plain_encode.widen`."""
    for i in range(halves.size):
        out[i] = U32(U32(halves[i]) << SIXTEEN)


@jit
def _compare(x: Any, y: Any, i: int, k: int, largest: Any, errors: Any, squares: Any) -> None:
    """One element into lane ``k``."""
    value = F64(x[i])
    d = value - F64(y[i])
    size = abs(d)
    largest[k] = size if size > largest[k] else largest[k]
    errors[k] += d * d
    squares[k] += value * value


@jit
def _difference(x: Any, y: Any) -> Any:
    largest, errors, squares = np.zeros(LANES, F64), np.zeros(LANES, F64), np.zeros(LANES, F64)
    whole = x.size // LANES
    for g in range(whole):
        for k in range(LANES):
            _compare(x, y, LANES * g + k, k, largest, errors, squares)
    for k in range(x.size - LANES * whole):
        _compare(x, y, LANES * whole + k, k, largest, errors, squares)
    error, square = 0.0, 0.0
    for k in range(LANES):
        error += errors[k]
        square += squares[k]
    return largest.max(), error, square


def difference(x: Array, y: Array) -> tuple[float, float, float]:
    """As :func:`plain_encode.difference`."""
    largest, error, square = _difference(x.reshape(-1), y.reshape(-1))
    return largest, error, square
