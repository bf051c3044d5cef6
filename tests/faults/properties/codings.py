"""Random weights in every form that is read, and what each decodes to, by plain NumPy.

A form is drawn once for a checkpoint, whose config declares it; then it codes any matrix that fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...formats import formulas
from ...quantized.oracle import F32, NUMPY, over_elements
from ...quantized.readers import Stored
from ...sharded.arrays import part

Array = npt.NDArray[Any]
Rng = np.random.Generator
E4M3, E2M1 = "F8_E4M3", "e2m1"
TABLES: dict[str, F32] = {
    "F8_E4M3": formulas.TABLES[formulas.torch.float8_e4m3fn].numpy(),
    "F8_E5M2": formulas.TABLES[formulas.torch.float8_e5m2].numpy(),
    "F8_E4M3FNUZ": formulas.TABLES[formulas.torch.float8_e4m3fnuz].numpy(),
    "F8_E5M2FNUZ": formulas.TABLES[formulas.torch.float8_e5m2fnuz].numpy(),
    E2M1: formulas.E2M1.numpy(),
}
EXPONENTS = formulas.TABLES[formulas.torch.float8_e8m0fnu].numpy()
DEEPSEEK = formulas.E2M1_DEEPSEEK.numpy()  # its own table has +0.0
CODES = ("all", "few", "top", "zeros")
SCALES = ("usual", "tiny", "huge", "any")
WIDE = {"usual": (-16, -8), "tiny": (-149, -125), "huge": (119, 128), "any": (-149, 128)}
POWERS = {  # of two, of scales
    "F32": WIDE,
    "BF16": WIDE | {"tiny": (-133, -125)},
    "F16": {"usual": (-12, -5), "tiny": (-24, -13), "huge": (10, 16), "any": (-24, 16)},
}


class Coded(NamedTuple):
    """One weight: its stored parts, which of them are codes and scales, the float32 product."""

    name: str
    parts: Stored
    codes: str
    scale: str
    value: F32


class Kinds(NamedTuple):
    """What codes and scales are like, one of :data:`CODES` and of :data:`SCALES`."""

    codes: str = "all"
    scales: str = "usual"


Code = Callable[[str, Rng, int, int, Kinds], Coded]


class Form(NamedTuple):
    """How a checkpoint is coded: what its config says, how a matrix of fitting size is stored.

    ``step``: what rows and columns must be multiples of. ``signed``: negative scales are legal.
    ``other``: a form that some matrices may have instead, under the same declaration.
    """

    id: str
    declared: dict[str, Any]
    code: Code
    step: tuple[int, int] = (1, 1)
    signed: bool = False
    other: Form | None = None


# Codes and scales


def integers(rng: Rng, kind: str, legal: Array, shape: tuple[int, ...]) -> Array:
    """Some of ``legal``, which begin with what is nearest to 0; every one first where it fits."""
    if kind == "zeros":
        return np.full(shape, legal[0])
    if kind == "few":
        legal = rng.choice(legal, 3)
    if kind == "top":
        legal = legal[-2:]
    out = rng.choice(legal, int(np.prod(shape)))
    room = min(len(legal), out.size)
    out[:room] = legal[:room]
    return np.asarray(out.reshape(shape))


def by_magnitude(table: F32) -> Array:
    """The codes of finite numbers, 0 first, the largest last."""
    finite = np.flatnonzero(np.isfinite(table))
    return finite[np.argsort(np.abs(table[finite]), kind="stable")]


def floats(rng: Rng, kind: str, tag: str, shape: tuple[int, ...]) -> tuple[Array, F32]:
    """Positive numbers as ``tag`` has them: bytes or floats, and as float32."""
    if tag in ("U8", "F8_E8M0"):
        low, high = {"usual": (110, 122), "tiny": (0, 4), "huge": (248, 255), "any": (0, 255)}[kind]
        raw = rng.integers(low, high, shape).astype(np.uint8)
        return raw, EXPONENTS[raw]
    low, high = POWERS[tag][kind]
    with np.errstate(under="ignore", over="ignore"):
        x = np.ldexp(rng.uniform(1, 2, shape), rng.integers(low, high, shape)).astype(NUMPY[tag])
    info = ml_dtypes.finfo(NUMPY[tag])
    x = np.where(x > 0, x, info.smallest_subnormal).astype(NUMPY[tag])
    x = np.where(np.isfinite(x), x, info.max).astype(NUMPY[tag])
    return x, np.asarray(x, np.float32)


def product(numbers: F32, wide: F32) -> F32:
    """One float32 product."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(numbers * wide, np.float32)


def spread(scale: F32, block: tuple[int, int], shape: tuple[int, int]) -> F32:
    """A grid of scales as one for every element."""
    return np.asarray(over_elements(scale, block, shape), np.float32)


def as_part(tag: str, raw: Array) -> Any:
    """As it is stored: bytes of any 8-bit kind, or numbers."""
    return tag, raw.shape, np.ascontiguousarray(raw).tobytes()


def grid_of(block: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Blocks down and across."""
    return -(-rows // block[0]), -(-columns // block[1])


# Words and nibbles


def packed(fields: Array, bits: int) -> Array:
    """Unsigned fields along the last axis in I32, the first lowest; zeros behind them."""
    per = 32 // bits
    missing = -fields.shape[-1] % per
    padded = np.pad(fields.astype(np.uint64), [(0, 0)] * (fields.ndim - 1) + [(0, missing)])
    shifted = padded.reshape(*fields.shape[:-1], -1, per) << np.arange(0, 32, bits, np.uint64)
    return np.asarray(shifted.sum(axis=-1).astype(np.uint32))


def nibbles(code: Array) -> Array:
    """Two codes a byte, the even one low."""
    return np.asarray((code[..., 0::2] | code[..., 1::2] << 4).astype(np.uint8))


def words(fields: Array, bits: int) -> Any:
    """:func:`packed`, as it is stored."""
    return part("I32", packed(fields, bits))
