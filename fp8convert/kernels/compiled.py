"""numba kernels. Bit-identical to ``plain``, 15 to 25 times as fast, and they release the GIL.

Why they look like this: every integer stays ``np.uint32`` (numba widens to 64 bits otherwise and
the loop runs at half speed), inner loops run over contiguous 1-D slices so that LLVM vectorizes
them, and no float32 subnormal is ever an operand (each costs a microcode assist).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from . import plain

U32, F32 = np.uint32, np.float32
SIGN, MAGNITUDE, NAN_CODE = U32(0x80), U32(0x7F), np.uint8(0x7F)
TO_SIGN, TO_EXPONENT = U32(24), U32(20)
NORMAL = U32(1 << 23)  # a magnitude shifted this far or more has a non-zero exponent field
REBIAS = U32(120 << 23)  # float32 bias 127 - e4m3 bias 7
SUBNORMAL_REBIAS, SUBNORMAL_ONE = U32(121 << 23), F32(2.0**-6)  # 2**-6 * (1 + m/8) - 2**-6
HALF, ONE, SIXTEEN = U32(0x7FFF), U32(1), U32(16)
CHUNK = 4096  # columns per pass: the expanded scales of one row stay in the L1 cache


def _jit(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


@_jit
def _product_bits(code: Any, scale: Any) -> Any:
    """float32(code) * scale, as bits; inlined into the loops below."""
    bits = U32(U32(code & MAGNITUDE) << TO_EXPONENT)
    normal = U32(bits + REBIAS).view(F32)
    subnormal = F32(U32(bits + SUBNORMAL_REBIAS).view(F32) - SUBNORMAL_ONE)
    product = F32((normal if bits >= NORMAL else subnormal) * scale)
    return U32(product.view(U32) | U32(U32(code & SIGN) << TO_SIGN))


def _e4m3_run(codes: Any, scales: Any, out: Any) -> None:
    raise NotImplementedError("only its overload below runs, inside compiled code")


@overload(_e4m3_run, jit_options={"nogil": True})
def _e4m3_run_for(codes: Any, scales: Any, out: Any) -> Callable[..., None]:
    def to_bf16(codes: Any, scales: Any, out: Any) -> None:
        for i in range(codes.size):
            u = U32(_product_bits(codes[i], scales[i]))
            out[i] = np.uint16(U32(U32(u + U32(HALF + U32(U32(u >> SIXTEEN) & ONE))) >> SIXTEEN))

    def to_f32(codes: Any, scales: Any, out: Any) -> None:
        for i in range(codes.size):
            out[i] = U32(_product_bits(codes[i], scales[i])).view(F32)

    return to_bf16 if out.dtype == types.uint16 else to_f32


@_jit
def _e4m3_rows(codes: Any, scales: Any, phase: int, br: int, bc: int, out: Any) -> None:
    rows, columns = codes.shape
    width = max(CHUNK // bc, 1) * bc
    expanded = np.empty(min(width, columns), F32)
    for lo in range(0, columns, width):
        hi = min(lo + width, columns)
        current = -1
        for r in range(rows):
            block_row = (phase + r) // br
            if block_row != current:  # one scale per element, once per row of blocks
                current = block_row
                row = scales[block_row]
                for b in range(lo // bc, (hi + bc - 1) // bc):
                    expanded[b * bc - lo : min(b * bc + bc, hi) - lo] = row[b]
            _e4m3_run(codes[r, lo:hi], expanded[: hi - lo], out[r, lo:hi])


@_jit
def _largest_magnitude(codes: Any) -> Any:
    top = np.uint8(0)
    for i in range(codes.size):
        top = max(top, np.uint8(codes[i] & NAN_CODE))
    return top


def has_nan_code(codes: plain.Array) -> bool:
    """As :func:`plain.has_nan_code`."""
    return int(_largest_magnitude(codes)) == 0x7F


def e4m3_blocks(
    codes: plain.Array, scales: plain.Array, phase: int, block: tuple[int, int], out: plain.Array
) -> None:
    """As :func:`plain.e4m3_blocks`; NaN codes and unusual scales take the plain twin's path."""
    usual = not np.signbit(scales).any() and bool(np.isfinite(scales).all())
    if usual and not has_nan_code(codes.reshape(-1)):
        _e4m3_rows(codes, scales, phase, block[0], block[1], out)
    else:  # NaN and sign rules in one place only; no healthy checkpoint comes here
        plain.e4m3_blocks(codes, scales, phase, block, out)
