"""numba kernels. Bit-identical to ``plain``, 15 to 25 times as fast, and they release the GIL.

Why they look like this: every integer stays ``np.uint32`` (numba widens to 64 bits otherwise and
the loop runs at half speed), inner loops run over contiguous 1-D slices so that LLVM vectorizes
them, and no float32 subnormal is ever an operand (each costs a microcode assist). A row is decoded
4,096 columns at a time: the scales, one per column, and the unpacked codes stay in the L1 cache.

A float format is a few numbers to one and the same loop: its magnitude bits, shifted to where
float32 has its own, are a float32 whose exponent is too small by the difference of the biases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from ..codecs.elements import Element
from . import plain
from .encode import difference, encode, measure, squared_error, widen
from .jit import jit
from .transpose import transpose_nibbles, transposed

U8, U16, U32, U64, F32 = np.uint8, np.uint16, np.uint32, np.uint64, np.float32
NORMAL = U32(1 << 23)  # a magnitude shifted this far or more has a non-zero exponent field
HALF, ONE, SIXTEEN = U32(0x7FFF), U32(1), U32(16)
LOW, FOUR, NONE = U8(15), U8(4), U8(255)  # no four-bit code is 255
CHUNK = 4096  # columns per pass, even


class Bits(NamedTuple):
    """Where a float format has its bits, and how they become those of a float32."""

    magnitude: Any  # mask
    shift: Any  # of the magnitude, up to float32's exponent and mantissa
    rebias: Any  # float32's bias minus the format's, in place
    subnormal_rebias: Any  # 2**(1 - bias) * (1 + m) - 2**(1 - bias): exact, no subnormal operand
    subnormal_one: Any
    sign_shift: Any
    zero: Any  # a code that becomes 0 when unpacked


@functools.cache
def _bits(element: Element) -> Bits:
    assert element.mantissa is not None
    assert element.bias is not None
    up, width = 127 - element.bias, element.width
    return Bits(
        U32((1 << width - 1) - 1),
        U32(23 - element.mantissa),
        U32(up << 23),
        U32(up + 1 << 23),
        F32(2.0 ** (1 - element.bias)),
        U32(32 - width),
        NONE if element.minus_zero else U8(1 << width - 1),
    )


@jit
def _rounded(u: Any) -> Any:
    return U16(U32(U32(u + U32(HALF + U32(U32(u >> SIXTEEN) & ONE))) >> SIXTEEN))


@jit
def _float_product(code: Any, scale: Any, f: Any) -> Any:
    """float32(code) * scale, as bits; inlined into the loops below."""
    magnitude = U32(code & f.magnitude)
    bits = U32(magnitude << f.shift)
    normal = U32(bits + f.rebias).view(F32)
    subnormal = F32(U32(bits + f.subnormal_rebias).view(F32) - f.subnormal_one)
    product = F32((normal if bits >= NORMAL else subnormal) * scale)
    return U32(product.view(U32) | U32(U32(code ^ magnitude) << f.sign_shift))


@jit
def _int_product(code: Any, zero: Any, scale: Any) -> Any:
    """(float32(code) - zero) * scale, as bits."""
    return F32((F32(code) - zero) * scale).view(U32)


def _float_run(codes: Any, scales: Any, f: Any, out: Any) -> None:
    raise NotImplementedError("only its overload below runs, inside compiled code")


@overload(_float_run, jit_options={"nogil": True})
def _float_run_for(codes: Any, scales: Any, f: Any, out: Any) -> Callable[..., None]:
    def to_bf16(codes: Any, scales: Any, f: Any, out: Any) -> None:
        for i in range(codes.size):
            out[i] = _rounded(_float_product(U32(codes[i]), scales[i], f))

    def to_f32(codes: Any, scales: Any, f: Any, out: Any) -> None:
        for i in range(codes.size):
            out[i] = U32(_float_product(U32(codes[i]), scales[i], f)).view(F32)

    return to_bf16 if out.dtype == types.uint16 else to_f32


def _int_run(codes: Any, scales: Any, zeros: Any, out: Any) -> None:
    raise NotImplementedError("only its overload below runs, inside compiled code")


@overload(_int_run, jit_options={"nogil": True})
def _int_run_for(codes: Any, scales: Any, zeros: Any, out: Any) -> Callable[..., None]:
    def to_bf16(codes: Any, scales: Any, zeros: Any, out: Any) -> None:
        for i in range(codes.size):
            out[i] = _rounded(_int_product(codes[i], zeros[i], scales[i]))

    def to_f32(codes: Any, scales: Any, zeros: Any, out: Any) -> None:
        for i in range(codes.size):
            out[i] = U32(_int_product(codes[i], zeros[i], scales[i])).view(F32)

    return to_bf16 if out.dtype == types.uint16 else to_f32


@jit
def _end(lo: int, bc: int, columns: int) -> int:
    """Where the pass from column ``lo`` ends: whole blocks, or part of one that is wider."""
    step = CHUNK // bc * bc if bc <= CHUNK else min(CHUNK, bc - lo % bc)
    return min(lo + step, columns)


@jit
def _expand(row: Any, lo: int, hi: int, bc: int, out: Any) -> None:
    """One value per column of a pass, from one per ``bc`` columns."""
    if bc == 1:
        for c in range(hi - lo):  # as a slice it takes numba seconds to compile
            out[c] = row[lo + c]
        return
    first, whole = lo // bc, (hi - lo) // bc  # blocks
    for b in range(whole):
        value = row[first + b]
        for c in range(bc):  # nothing but a store: unrolled and vectorized
            out[b * bc + c] = value
    if whole * bc < hi - lo:
        out[whole * bc : hi - lo] = row[first + whole]


@jit
def _unpack(packed: Any, zero: Any, out: Any) -> None:
    """Four-bit codes, one a byte; the code ``zero`` becomes 0."""
    for j in range(packed.size):
        low, high = U8(packed[j] & LOW), U8(packed[j] >> FOUR)
        out[2 * j] = U8(0) if low == zero else low
        out[2 * j + 1] = U8(0) if high == zero else high


@jit
def _float_rows(
    codes: Any, packed: bool, scales: Any, phase: int, br: int, bc: int, f: Any, out: Any
) -> None:
    rows, columns = out.shape
    expanded, nibbles = np.empty(CHUNK, F32), np.empty(CHUNK, U8)
    lo = 0
    while lo < columns:
        hi = _end(lo, bc, columns)
        current = -1
        for r in range(rows):
            if (phase + r) // br != current:  # once per row of blocks
                current = (phase + r) // br
                _expand(scales[current], lo, hi, bc, expanded)
            if packed:
                _unpack(codes[r, lo // 2 : hi // 2], f.zero, nibbles)
                _float_run(nibbles[: hi - lo], expanded[: hi - lo], f, out[r, lo:hi])
            else:
                _float_run(codes[r, lo:hi], expanded[: hi - lo], f, out[r, lo:hi])
        lo = hi


@jit
def _int_rows(
    codes: Any, packed: bool, scales: Any, zeros: Any, phase: int, br: int, bc: int, out: Any
) -> None:
    rows, columns = out.shape
    expanded, offsets = np.empty(CHUNK, F32), np.empty(CHUNK, F32)
    nibbles = np.empty(CHUNK, codes.dtype)
    lo = 0
    while lo < columns:
        hi = _end(lo, bc, columns)
        current = -1
        for r in range(rows):
            if (phase + r) // br != current:
                current = (phase + r) // br
                _expand(scales[current], lo, hi, bc, expanded)
                _expand(zeros[current], lo, hi, bc, offsets)
            width = hi - lo
            if packed:
                _unpack(codes[r, lo // 2 : hi // 2], NONE, nibbles)
                _int_run(nibbles[:width], expanded[:width], offsets[:width], out[r, lo:hi])
            else:
                _int_run(codes[r, lo:hi], expanded[:width], offsets[:width], out[r, lo:hi])
        lo = hi


@jit
def _largest(codes: Any, flip: Any, mask: Any) -> Any:
    top = U8(0)
    for i in range(codes.size):
        top = max(top, U8(U8(codes[i] ^ flip) & mask))
    return top


@jit
def _both_of(pairs: Any, groups: Any, words: Any, scales: Any, zeros: Any) -> None:
    """Scale and zero point of each column: one gather, then two streams."""
    for i in range(groups.size):
        words[i] = pairs[groups[i]]
    for i in range(groups.size):
        scales[i] = U32(words[i]).view(F32)
        zeros[i] = U32(words[i] >> U64(32)).view(F32)


@jit
def _int_columns(codes: Any, packed: bool, pairs: Any, group_of: Any, out: Any) -> None:
    rows, columns = out.shape
    words = np.empty(CHUNK, U64)
    expanded, offsets = np.empty(CHUNK, F32), np.empty(CHUNK, F32)
    nibbles = np.empty(CHUNK, codes.dtype)
    for lo in range(0, columns, CHUNK):
        hi = min(lo + CHUNK, columns)
        width = hi - lo
        for r in range(rows):
            _both_of(pairs[r], group_of[lo:hi], words, expanded, offsets)
            if packed:
                _unpack(codes[r, lo // 2 : hi // 2], NONE, nibbles)
                _int_run(nibbles[:width], expanded[:width], offsets[:width], out[r, lo:hi])
            else:
                _int_run(codes[r, lo:hi], expanded[:width], offsets[:width], out[r, lo:hi])


def decode_columns(
    element: Element,
    codes: plain.Array,
    scales: plain.Array,
    zeros: plain.Array,
    group_of: plain.Array,
    out: plain.Array,
) -> None:
    """As :func:`plain.decode_columns`."""
    pairs = zeros.view(U32).astype(U64) << U64(32) | scales.view(U32)
    codes = codes.view(np.int8) if element.signed else codes
    # unsigned: numba would look at every index whether it counts from the end
    _int_columns(codes, element.bits == 4, pairs, group_of.astype(U32), out)


def has_odd_code(element: Element, codes: plain.Array) -> bool:
    """As :func:`plain.has_odd_code`."""
    if element.odd is None:
        return False
    return bool(_largest(codes, U8(element.odd.flip), U8(element.odd.mask)) >= element.odd.limit)


def decode(
    element: Element,
    codes: plain.Array,
    scales: plain.Array,
    zeros: plain.Array | None,
    phase: int,
    block: tuple[int, int],
    out: plain.Array,
    checked: bool = False,
) -> None:
    """As :func:`plain.decode`; odd codes, unusual scales, blocks that split a byte: by the twin."""
    split = element.bits == 4 and block[1] % 2 == 1 and block[1] < out.shape[1]
    signs = element.is_float and bool(np.signbit(scales).any())  # a float's is put on by bits
    usual = not split and not signs and bool(np.isfinite(scales).all())
    if not usual or (not checked and has_odd_code(element, codes.reshape(-1))):
        # NaN and sign rules in one place only; no healthy checkpoint comes here
        plain.decode(element, codes, scales, zeros, phase, block, out)
    elif element.is_float:
        _float_rows(codes, element.bits == 4, scales, phase, *block, _bits(element), out)
    else:
        zeros = np.zeros_like(scales) if zeros is None else zeros
        codes = codes.view(np.int8) if element.signed else codes
        _int_rows(codes, element.bits == 4, scales, zeros, phase, *block, out)


__all__ = [
    "decode",
    "decode_columns",
    "difference",
    "encode",
    "has_odd_code",
    "measure",
    "squared_error",
    "transpose_nibbles",
    "transposed",
    "widen",
]
