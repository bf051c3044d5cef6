"""Quantizing by the formulas, a whole matrix at a time, in NumPy and ml_dtypes.

Rules of the scales: compressed-tensors' ``calculate_qparams``, ``generate_gparam`` and
``generate_mx_scales``; DeepSeek's ``amax / 448``. Every number is a float32, every rounding is to
nearest, ties to even, and a code is one division by the scale as it is stored.
"""

from __future__ import annotations

import zlib
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Part = tuple[str, tuple[int, ...], bytes]
"""Dtype tag as in a safetensors header, shape, bytes."""
Parts = dict[str, Part]
"""By what follows the module's name: ``weight``, ``weight_scale``, ..."""
Block = tuple[int, int]

SCHEMES = (
    "fp8-block",
    "fp8-block-ue8m0",
    "fp8-channel",
    "fp8-tensor",
    "int8-channel",
    "int4-group",
    "nvfp4",
    "mxfp4",
    "mxfp8",
)
FORMATS = {  # what compressed-tensors calls those that are its
    "fp8-channel": "float-quantized",
    "fp8-tensor": "float-quantized",
    "int8-channel": "int-quantized",
    "int4-group": "pack-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
}
NUMPY: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
}
LARGEST = {"e4m3": 448.0, "e2m1": 6.0, "int8": 127.0, "int4": 7.0}
MANTISSA = {"e4m3": 3, "e2m1": 1}
SMALLEST = {"F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14}  # positive normal numbers


def group_of(scheme: str, group: int = 128) -> int:
    """What the last axis must be a multiple of."""
    return {"int4-group": group, "nvfp4": 16, "mxfp4": 32, "mxfp8": 32}.get(scheme, 1)


def block_of(
    scheme: str, shape: tuple[int, ...], block: Block = (128, 128), group: int = 128
) -> Block:
    """Rows and columns that share a scale."""
    if scheme.startswith("fp8-block"):
        return block
    if scheme == "fp8-tensor":
        return shape[0], shape[1]
    return 1, shape[1] if scheme.endswith("channel") else group_of(scheme, group)


# Blocks


def over_blocks(ufunc: np.ufunc, x: npt.NDArray[Any], block: Block) -> npt.NDArray[Any]:
    """``ufunc`` reduced over every block; edge blocks hold what exists."""
    rows, columns = (np.arange(0, n, b) for n, b in zip(x.shape, block, strict=True))
    return np.asarray(ufunc.reduceat(ufunc.reduceat(x, rows, axis=0), columns, axis=1))


def over_elements(scale: npt.NDArray[Any], block: Block, shape: tuple[int, ...]) -> Any:
    """A number of every block as one of every element."""
    wide = scale.repeat(block[0], axis=0).repeat(block[1], axis=1)
    return wide[: shape[0], : shape[1]]


def rounded(x: Any, dtype: str) -> F32:
    """To ``dtype`` and back."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x, np.float32).astype(NUMPY[dtype]).astype(np.float32)


# Elements


def codes(x: F32, scale: F32, element: str) -> npt.NDArray[Any]:
    """Codes of ``x`` under ``scale`` of every element: uint8 for floats, int8 for integers."""
    with np.errstate(over="ignore", under="ignore"):  # beyond float32 it is clamped anyway
        quotient = x / scale
    assert quotient.dtype == np.float32
    if element.startswith("int"):
        low = -LARGEST[element] - 1
        return np.rint(np.clip(quotient, low, LARGEST[element])).astype(np.int8)
    kept = np.clip(quotient, -LARGEST[element], LARGEST[element])
    kind = {"e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}[element]
    return kept.astype(kind).view(np.uint8)


def numbers(code: npt.NDArray[Any], element: str) -> F32:
    """Codes as float32."""
    if element.startswith("int"):
        return code.astype(np.float32)
    kind = {"e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}[element]
    return np.asarray(code.view(kind).astype(np.float32))


def squared_error(x: F32, y: F32, block: Block) -> npt.NDArray[np.float64]:
    """The sum of (x - y)**2 of every block, in float64."""
    with np.errstate(under="ignore"):
        return over_blocks(np.add, (x.astype(np.float64) - y.astype(np.float64)) ** 2, block)


def error_of(x: F32, scale: F32, block: Block, element: str) -> npt.NDArray[np.float64]:
    """Of every block, under one scale a block."""
    wide = over_elements(scale, block, x.shape)
    return squared_error(x, numbers(codes(x, wide, element), element) * wide, block)


def is_short(x: F32, block: Block, element: str) -> npt.NDArray[np.bool_]:
    """Blocks whose values all have at most the mantissa bits of the element.

    As float32 stores them: of a number below 2**-126, whose mantissa is not normalized, those that
    stand for less than a whole step of 2**-126 / 2**bits.
    """
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1], -125)  # 2**-126 is 0.5 * 2**-125
    bits = np.ldexp(x.astype(np.float64), MANTISSA[element] + 1 - exponent)
    return over_blocks(np.logical_and, bits == np.rint(bits), block)


def power_for(amax: F32, element: str) -> npt.NDArray[np.int64]:
    """The smallest k with amax <= largest * 2**k."""
    wide = amax.astype(np.float64)
    k = np.frexp(wide)[1] - np.frexp(LARGEST[element])[1]
    return np.asarray(k + (wide > np.ldexp(LARGEST[element], k)), np.int64)


def better(x: F32, block: Block, element: str, plain: F32, power: F32) -> F32:
    """``power`` in the blocks of short values where it errs less than ``plain``."""
    less = error_of(x, power, block, element) < error_of(x, plain, block, element)
    return np.where(is_short(x, block, element) & less, power, plain).astype(np.float32)


# Scales


def block_scale(x: F32, block: Block, power_of_two: bool) -> F32:
    """``fp8-block`` and ``fp8-block-ue8m0``."""
    amax = over_blocks(np.maximum, np.abs(x), block)
    with np.errstate(under="ignore"):
        plain = np.maximum(amax / np.float32(448), np.float32(2.0**-126))
    power = np.ldexp(np.float32(1), np.clip(power_for(amax, "e4m3"), -126, 127))
    if power_of_two:
        mantissa, exponent = np.frexp(plain)
        k = np.clip(np.where(mantissa == 0.5, exponent - 1, exponent), -126, 127)
        plain = np.ldexp(np.float32(1), k)
    scale = better(x, block, "e4m3", plain, power)
    return np.where(amax == 0, np.float32(1), scale).astype(np.float32)


def rounded_scale(x: F32, block: Block, element: str, dtype: str, amax: F32 | None = None) -> F32:
    """The scale of a row, a group or (given ``amax``) a matrix, rounded to the weight's dtype.

    A power of two is tried for rows, and kept in F32; not for a matrix and all it is fused with.
    """
    whole = amax is not None
    amax = over_blocks(np.maximum, np.abs(x), block) if amax is None else amax
    half = {"e4m3": 448.0, "int8": 127.5, "int4": 7.5}[element]
    with np.errstate(under="ignore"):
        plain = rounded(amax / np.float32(half), dtype)
    plain = np.maximum(plain, np.float32(SMALLEST[dtype]))
    if element == "e4m3" and not whole:
        power = np.ldexp(np.float32(1), np.clip(power_for(amax, "e4m3"), -126, 127))
        plain = better(x, block, element, plain, power)
    return np.where(amax == 0, np.float32(1), plain).astype(np.float32)


def mx_exponent(x: F32, element: str) -> npt.NDArray[np.uint8]:
    """The E8M0 byte of every 32."""
    block = (1, 32)
    amax = over_blocks(np.maximum, np.abs(x), block)
    mantissa, exponent = np.frexp(amax.astype(np.float64))  # 0.5 <= mantissa < 1
    e = exponent - 1 + (mantissa * 2 >= 1.75) - {"e2m1": 2, "e4m3": 8}[element]
    plain = np.clip(127 + e, 1, 254)
    power = np.clip(127 + power_for(amax, element), 1, 254)
    as_scale = [np.ldexp(np.float32(1), k - 127) for k in (plain, power)]
    chosen = better(x, block, element, *as_scale)
    byte = np.where(amax == 0, 127, np.where(chosen == as_scale[0], plain, power))
    return byte.astype(np.uint8)


def nvfp4_global(amax: float, dtype: str) -> np.float32:
    """``2688 / amax`` as torch computes it in ``dtype``: a reciprocal, then a product."""
    if amax == 0:
        return np.float32(1)
    with np.errstate(over="ignore", under="ignore"):
        scale = rounded(rounded(np.float32(1) / np.float32(amax), dtype) * np.float32(2688), dtype)
    return np.float32(scale) if np.isfinite(scale) else np.float32(1)


def nvfp4_local(x: F32, whole: np.float32, dtype: str) -> F32:
    """The e4m3 scale of every 16, as float32: the nearest to amax / 6, or to a power of two."""
    block = (1, 16)
    amax = over_blocks(np.maximum, np.abs(x), block)
    power = np.ldexp(np.float32(1), power_for(amax, "e2m1"))
    local = []
    with np.errstate(over="ignore", under="ignore"):
        for wanted in (whole * rounded(amax / np.float32(6), dtype), whole * power):
            kept = np.clip(wanted, np.float32(2.0**-9), np.float32(448))
            local.append(rounded(kept, "F8_E4M3"))
        scales = [one / whole for one in local]
    chosen = better(x, block, "e2m1", *scales)
    best = np.where(chosen == scales[0], local[0], local[1])
    return np.where(amax == 0, np.float32(1), best).astype(np.float32)


# Parts


def part(array: npt.NDArray[Any], dtype: str) -> Part:
    """``array`` as it is stored in ``dtype``."""
    kept = array.view(NUMPY[dtype]) if array.dtype == np.uint8 else array.astype(NUMPY[dtype])
    return dtype, kept.shape, np.ascontiguousarray(kept).tobytes()


def array(stored: Part) -> npt.NDArray[Any]:
    """The inverse of :func:`part`."""
    dtype, shape, data = stored
    return np.frombuffer(data, NUMPY[dtype]).reshape(shape)


def nibbles(code: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two 4-bit codes a byte, the even one low."""
    return code[:, 0::2] | code[:, 1::2] << 4


def words(code: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Eight 4-bit codes, 8 added, a word, the first one lowest."""
    unsigned = (code.astype(np.int64) + 8).reshape(len(code), -1, 8)
    packed = (unsigned << np.arange(0, 32, 4)).sum(axis=-1)
    return packed.astype(np.uint32).view(np.int32)


def quantized(
    x: F32,
    scheme: str,
    dtype: str,
    partners_amax: float | None = None,
    *,
    block: Block = (128, 128),
    group: int = 128,
    scale_dtype: str = "f32",
    scale_leaf: str = "weight_scale_inv",
) -> Parts:
    """The stored parts of ``x`` [o, i]; ``dtype`` is that of the source's weight.

    ``partners_amax`` is the largest magnitude among the weights that an engine fuses with this one.
    """
    assert x.dtype == np.float32
    assert x.ndim == 2
    assert np.isfinite(x).all()
    place = block_of(scheme, x.shape, block, group)
    whole = float(np.abs(x).max()) if partners_amax is None else partners_amax
    if scheme.startswith("fp8-block"):
        scale = block_scale(x, place, scheme.endswith("ue8m0"))
        code = codes(x, over_elements(scale, place, x.shape), "e4m3")
        kept = part(scale, "F8_E8M0" if scale_dtype == "e8m0" else "F32")
        return {"weight": part(code, "F8_E4M3"), scale_leaf: kept}
    if scheme in ("fp8-channel", "fp8-tensor", "int8-channel"):
        element = "int8" if scheme.startswith("int8") else "e4m3"
        amax = np.full((1, 1), whole, np.float32) if scheme == "fp8-tensor" else None
        scale = rounded_scale(x, place, element, dtype, amax)
        code = codes(x, over_elements(scale, place, x.shape), element)
        kept = scale.reshape(1) if scheme == "fp8-tensor" else scale
        stored = part(code, "I8" if element == "int8" else "F8_E4M3")
        return {"weight": stored, "weight_scale": part(kept, "F32")}
    if scheme == "int4-group":
        scale = rounded_scale(x, place, "int4", dtype)
        code = codes(x, over_elements(scale, place, x.shape), "int4")
        return {
            "weight_packed": part(words(code), "I32"),
            "weight_scale": part(scale, dtype),
            "weight_shape": part(np.array(x.shape), "I64"),
        }
    if scheme == "nvfp4":
        one = nvfp4_global(whole, dtype)
        local = nvfp4_local(x, one, dtype)
        code = codes(x, over_elements(local / one, place, x.shape), "e2m1")
        return {
            "weight_packed": part(nibbles(code), "U8"),
            "weight_scale": part(local, "F8_E4M3"),
            "weight_global_scale": part(one.reshape(1), "F32"),
        }
    element = {"mxfp4": "e2m1", "mxfp8": "e4m3"}[scheme]
    byte = mx_exponent(x, element)
    scale = np.ldexp(np.float32(1), byte.astype(np.int64) - 127)
    code = codes(x, over_elements(scale, place, x.shape), element)
    if scheme == "mxfp8":
        return {"weight": part(code, "F8_E4M3"), "weight_scale": part(byte, "U8")}
    return {"weight_packed": part(nibbles(code), "U8"), "weight_scale": part(byte, "U8")}


# The way back


def _unpacked(parts: Parts) -> tuple[npt.NDArray[Any], str]:
    """Codes, one each, and their element."""
    if "weight" in parts:
        code = array(parts["weight"])
        return (code, "int8") if code.dtype == np.int8 else (code.view(np.uint8), "e4m3")
    packed = array(parts["weight_packed"])
    if packed.dtype == np.uint8:
        pairs = np.stack([packed & 15, packed >> 4], axis=-1)
        return pairs.reshape(len(packed), -1), "e2m1"
    fields = packed.view(np.uint32)[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    rows, columns = array(parts["weight_shape"])
    code = fields.reshape(rows, -1)[:, :columns].astype(np.int8) - np.int8(8)
    return code, "int4"


def decoded(parts: Parts, block: Block = (128, 128)) -> F32:
    """float32(code) * scale, one float32 product; ``block`` is that of ``fp8-block*``."""
    code, element = _unpacked(parts)
    blocked = next((leaf for leaf in ("weight_scale_inv", "scale") if leaf in parts), None)
    stored = parts[blocked or "weight_scale"]
    scale = array(stored)
    if stored[0] == "U8":
        scale = np.ldexp(np.float32(1), scale.astype(np.int64) - 127)
    scale = scale.astype(np.float32)
    if "weight_global_scale" in parts:
        scale = scale / array(parts["weight_global_scale"])
    if blocked is None:
        scale = scale.reshape(-1, scale.shape[-1]) if scale.ndim == 2 else scale.reshape(1, 1)
        block = tuple(-(-n // k) for n, k in zip(code.shape, scale.shape, strict=True))  # type: ignore[assignment]
    with np.errstate(under="ignore"):
        return numbers(code, element) * over_elements(scale, block, code.shape)


def errors(x: F32, y: F32) -> dict[str, Any]:
    """What is reported of a weight ``x`` that decodes to ``y``, in float64."""
    wide, difference = x.astype(np.float64), y.astype(np.float64) - x.astype(np.float64)
    if not difference.any():
        return {"exact": True}
    with np.errstate(under="ignore"):
        signal, noise = float((wide**2).sum()), float((difference**2).sum())
    return {
        "exact": False,
        "max_abs": float(np.abs(difference).max()),
        "relative_rms": (noise / signal) ** 0.5,
        "snr_db": 10 * float(np.log10(signal / noise)),
    }


def seed_of(name: str) -> np.random.Generator:
    """A generator of its own for every name."""
    return np.random.default_rng(zlib.crc32(name.encode()))
