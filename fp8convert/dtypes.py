"""The element types of safetensors: tag -> bits, and the NumPy type that can hold the bits.

Source: safetensors 0.8 ``Dtype`` enum; FP8/FP6/FP4 as in the OCP MX specification.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type. ``numpy`` names the type whose bits (not always values) match, if any."""

    tag: str
    bits: int
    numpy: str | None
    is_float: bool


DTYPES: dict[str, Dtype] = {
    d.tag: d
    for d in (
        Dtype("F64", 64, "float64", True),
        Dtype("F32", 32, "float32", True),
        Dtype("F16", 16, "float16", True),
        Dtype("BF16", 16, "uint16", True),
        Dtype("I64", 64, "int64", False),
        Dtype("I32", 32, "int32", False),
        Dtype("I16", 16, "int16", False),
        Dtype("I8", 8, "int8", False),
        Dtype("U64", 64, "uint64", False),
        Dtype("U32", 32, "uint32", False),
        Dtype("U16", 16, "uint16", False),
        Dtype("U8", 8, "uint8", False),
        Dtype("BOOL", 8, "bool", False),
        Dtype("C64", 64, "complex64", False),
        Dtype("F8_E4M3", 8, "uint8", True),
        Dtype("F8_E5M2", 8, "uint8", True),
        Dtype("F8_E4M3FNUZ", 8, "uint8", True),
        Dtype("F8_E5M2FNUZ", 8, "uint8", True),
        Dtype("F8_E8M0", 8, "uint8", True),
        Dtype("F6_E2M3", 6, None, True),
        Dtype("F6_E3M2", 6, None, True),
        Dtype("F4", 4, None, True),
    )
}

# 8-bit and narrower floats mean nothing without a scale: one left over after pairing is an error.
CODED_FLOATS = frozenset(d.tag for d in DTYPES.values() if d.is_float and d.bits <= 8)
