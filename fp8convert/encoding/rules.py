"""How a scale follows from what a block holds, and how it is kept. Small arrays, no tensor bytes.

A rule sees ``top``, float32 [blocks down, blocks across], the largest magnitude of each block, and
``whole``, the one scale of the tensor where the format has one. It answers scales as float32 values
that its dtype holds exactly; ``effective`` is what a decoder multiplies codes by.

Sources: DeepSeek-V3 ``inference/kernel.py`` (amax / 448, ue8m0: rounded up to a power of two);
compressed-tensors and llm-compressor (scales in the weight's dtype, the MX exponent, NVFP4's two
levels); OCP MX v1.0 (E8M0).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..codecs.elements import ELEMENTS
from ..codecs.scales import from_float32

if TYPE_CHECKING:
    from ..codecs.base import Array

LEAST = {"F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14}  # smallest positive normals
MOST = {"F32": 3.4028234663852886e38, "BF16": 3.3895313892515355e38, "F16": 65504.0}
LOW, HIGH = 2.0**-126, 2.0**127  # of E8M0 that are float32 normals as well
LOCAL = ELEMENTS["e4m3fn"]
LEAST_LOCAL = 2.0**-9
ZERO = 1.0  # the scale of a block of zeros: decodes to zero, and every reader takes it


def rounded(values: Array, dtype: str) -> Array:
    """Numbers of float32 as ``dtype`` (F32, BF16, F16) has them, to nearest even."""
    import numpy as np

    kept: Array = values
    if dtype == "BF16":
        bits = values.view(np.uint32)
        half = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
        kept = ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32)
    elif dtype == "F16":
        with np.errstate(over="ignore"):
            kept = values.astype(np.float16).astype(np.float32)
    return kept


def rounded_local(values: Array) -> Array:
    """float32 values that e4m3 holds, at least its smallest: a local scale of NVFP4."""
    import numpy as np

    from .. import kernels
    from ..kernels import plain

    flat = np.ascontiguousarray(values, np.float32).reshape(1, -1)
    codes = np.empty(flat.shape, np.uint8)
    kernels.load().encode(LOCAL, flat, np.ones((1, 1), np.float32), 0.0, 0, flat.shape, codes)
    kept: Array = np.maximum(plain.table(LOCAL)[codes], np.float32(LEAST_LOCAL))
    return kept.reshape(values.shape)


def power_up(values: Array) -> Array:
    """The smallest powers of two that are not below positive ``values``, within E8M0's normals."""
    import numpy as np

    bits = (values.view(np.uint32) + np.uint32(0x7FFFFF)) & np.uint32(0xFF800000)
    found: Array = np.clip(bits.view(np.float32), np.float32(LOW), np.float32(HIGH))
    return found


@dataclass(frozen=True)
class Rule(ABC):
    """One way from a block's largest magnitude to its scale."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The rule in words, for the manifest."""

    @abstractmethod
    def plain(self, top: Array, whole: float) -> Array:
        """The scale of each block of largest magnitude ``top`` > 0."""

    @abstractmethod
    def held(self, effective: Array, whole: float) -> Array:
        """The scales that can be kept nearest to those that codes are to be multiplied by."""

    def effective(self, scales: Array, whole: float) -> Array:
        """What codes are multiplied by."""
        return scales

    @abstractmethod
    def others(self, scales: Array) -> list[Array]:
        """Candidates for the search beside the plain ``scales``."""


@dataclass(frozen=True)
class Amax(Rule):
    """``top / divisor``, rounded to ``precision`` and kept as ``dtype``.

    ``factors`` are tried by the search: those of a float format only shift where in an octave the
    largest element falls; an integer format, which has no octaves, clips it instead.
    """

    divisor: float
    precision: str
    dtype: str
    factors: tuple[float, ...]

    @property
    def words(self) -> str:
        """E.g. ``amax / 448 in float32, rounded to BF16``."""
        to = "" if self.precision == "F32" else f", rounded to {self.precision}"
        return f"amax / {self.divisor:g} in float32{to}"

    def plain(self, top: Array, whole: float) -> Array:
        """See the class."""
        import numpy as np

        with np.errstate(under="ignore"):
            return self._kept(top / np.float32(self.divisor))

    def held(self, effective: Array, whole: float) -> Array:
        """``effective`` itself, where the dtype has it."""
        return rounded(effective, self.dtype)

    def _kept(self, scales: Array) -> Array:
        import numpy as np

        least, most = np.float32(LEAST[self.precision]), np.float32(MOST[self.precision])
        return np.clip(rounded(scales, self.precision), least, most)

    def others(self, scales: Array) -> list[Array]:
        """Every factor."""
        import numpy as np

        with np.errstate(over="ignore", under="ignore"):
            return [self._kept(scales * np.float32(f)) for f in self.factors]


@dataclass(frozen=True)
class PowerUp(Rule):
    """``2 ** ceil(log2(top / divisor))``: DeepSeek's ue8m0."""

    divisor: float

    @property
    def words(self) -> str:
        """In words."""
        return f"2 ** ceil(log2(amax / {self.divisor:g}))"

    def plain(self, top: Array, whole: float) -> Array:
        """See the class."""
        import numpy as np

        with np.errstate(under="ignore"):
            return power_up(top / np.float32(self.divisor))

    def held(self, effective: Array, whole: float) -> Array:
        """Powers of two as they are, others rounded up."""
        return power_up(effective)

    def others(self, scales: Array) -> list[Array]:
        """One binade up and down."""
        import numpy as np

        low, high = np.float32(LOW), np.float32(HIGH)
        with np.errstate(over="ignore", under="ignore"):
            return [np.clip(scales * np.float32(f), low, high) for f in (0.5, 2.0)]


@dataclass(frozen=True)
class MxPower(PowerUp):
    """``2 ** (floor(log2 top) - emax)``, one more where the mantissa is 1.75 or above.

    As llm-compressor: the largest element then rounds into the code's range.
    """

    emax: int = 2

    @property
    def words(self) -> str:
        """In words."""
        return f"2 ** (floor(log2 amax) - {self.emax}), one more if amax's mantissa is >= 1.75"

    def plain(self, top: Array, whole: float) -> Array:
        """See the class; a float32 subnormal takes the least scale."""
        import numpy as np

        bits = top.view(np.uint32)
        exponent = (bits + np.uint32(0x200000) >> np.uint32(23)).astype(np.int32) - self.emax
        found: Array = (np.clip(exponent, 1, 254).astype(np.uint32) << 23).view(np.float32)
        return found


@dataclass(frozen=True)
class Local(Rule):
    """``top / 6`` times the whole scale, in e4m3: NVFP4's scale of a group."""

    precision: str

    @property
    def words(self) -> str:
        """In words."""
        return (
            f"global = 2688 / amax of the tensor and its fused partners, in {self.precision}; "
            "local = e4m3(global * amax / 6); the code is multiplied by local / global"
        )

    def whole(self, top: float) -> float:
        """The scale of a tensor of largest magnitude ``top``: rounded twice, as the reference."""
        import numpy as np

        if not top:
            return ZERO
        with np.errstate(over="ignore", under="ignore"):
            inverse = rounded(np.float32(1.0) / np.array([top], np.float32), self.precision)
            found = rounded(inverse * np.float32(6 * LOCAL.largest), self.precision)
            if not np.isfinite(found[0]):  # small numbers in F16: it is kept in F32 anyway
                found = np.float32(6 * LOCAL.largest) / np.array([top], np.float32)
        return float(np.clip(found, np.float32(LOW), np.float32(MOST["F32"]))[0])

    @staticmethod
    def power_whole(top: float) -> float:
        """The power of two that gives the largest group the local scale 256 at a power of two."""
        import math

        return 2.0 ** max(min(8 - (math.frexp(top)[1] - 1 - 2), 126), -126) if top else ZERO

    def plain(self, top: Array, whole: float) -> Array:
        """See the class."""
        import numpy as np

        with np.errstate(over="ignore", under="ignore"):
            sixth = rounded(top / np.float32(6.0), self.precision)
            return rounded_local(np.float32(whole) * sixth)

    def held(self, effective: Array, whole: float) -> Array:
        """The nearest local scale."""
        import numpy as np

        with np.errstate(over="ignore", under="ignore"):
            return rounded_local(effective * np.float32(whole))

    def effective(self, scales: Array, whole: float) -> Array:
        """``local / global``, with its rounding."""
        import numpy as np

        with np.errstate(over="ignore", under="ignore"):
            found: Array = scales / np.float32(whole)
        return found

    def others(self, scales: Array) -> list[Array]:
        """The e4m3 values next to it, four either way."""
        import numpy as np

        from ..kernels import plain

        codes = from_float32(scales, "F8_E4M3").reshape(scales.shape).astype(np.int16)
        steps = (-1, 1, -2, 2, -3, 3, -4, 4)
        return [plain.table(LOCAL)[np.clip(codes + step, 1, 126)] for step in steps]
