"""Element formats narrower than 16 bits, as the facts that kernels and checks need. No arrays.

A float is ``sign | exponent | mantissa`` with a bias; exponent field 0 holds subnormals. Sources:
Micikevicius et al., arXiv 2209.05433 (e4m3fn, e5m2); Noune et al., arXiv 2206.02915 (the FNUZ
forms: bias one larger, no infinity, no negative zero, NaN is 0x80); OCP MX v1.0 (e2m1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Odd(NamedTuple):
    """The codes that no weight has: those with ``(code ^ flip) & mask >= limit``."""

    flip: int
    mask: int
    limit: int


@dataclass(frozen=True)
class Element:
    """One format. ``mantissa`` and ``bias`` are those of a float; both None for an integer.

    Four-bit elements are packed two a byte, the one with the even index in the low nibble.
    """

    name: str
    bits: int
    largest: float  # magnitude of a code, before zero point and scale
    mantissa: int | None = None
    bias: int | None = None
    signed: bool = False  # integers: two's complement
    minus_zero: bool = True  # floats: whether the code with only the sign bit is -0.0, else +0.0
    odd: Odd | None = None
    significant: int | None = None

    @property
    def is_float(self) -> bool:
        """Whether codes are floats (else integers)."""
        return self.mantissa is not None

    @property
    def width(self) -> int:
        """Bits of a code; fewer than ``bits`` if it has a byte to itself."""
        return self.bits if self.significant is None else self.significant

    def value(self, code: int) -> float:
        """The exact value of one code, from the published formula."""
        if not self.is_float:
            return float(code - (1 << self.bits) if self.signed and code >> self.bits - 1 else code)
        assert self.mantissa is not None
        assert self.bias is not None
        if self.name.endswith("fnuz") and code == 0x80:
            return float("nan")
        sign = -1.0 if code >> self.width - 1 & 1 else 1.0
        magnitude = code & (1 << self.width - 1) - 1
        exponent, fraction = divmod(magnitude, 1 << self.mantissa)
        if magnitude == 0 and not self.minus_zero:
            return 0.0
        if self.name == "e4m3fn" and magnitude == 0x7F:
            return float("nan")
        if self.name == "e5m2" and exponent == 31:
            return float("nan") if fraction else sign * float("inf")
        step = fraction / (1 << self.mantissa)
        if exponent == 0:
            return sign * step * 2.0 ** (1 - self.bias)
        return float(sign * (1 + step) * 2.0 ** (exponent - self.bias))


NAN_E4M3, NAN_E5M2, NAN_FNUZ = Odd(0, 0x7F, 0x7F), Odd(0, 0x7F, 0x7C), Odd(0x7F, 0xFF, 0xFF)

ELEMENTS = {
    e.name: e
    for e in (
        Element("e4m3fn", 8, 448.0, 3, 7, odd=NAN_E4M3),
        Element("e5m2", 8, 57344.0, 2, 15, odd=NAN_E5M2),
        Element("e4m3fnuz", 8, 240.0, 3, 8, odd=NAN_FNUZ),
        Element("e5m2fnuz", 8, 57344.0, 2, 16, odd=NAN_FNUZ),
        Element("e2m1", 4, 6.0, 1, 1),
        Element("e2m1-unsigned-zero", 4, 6.0, 1, 1, minus_zero=False),
        Element("e2m1-bytes", 8, 6.0, 1, 1, significant=4),  # unpacked: one code a byte
        Element("int8", 8, 128.0, signed=True),
        Element("uint8", 8, 255.0),
        Element("uint4", 4, 15.0),
    )
}

# The element that a stored dtype says by itself; packed ones hide in integers.
BY_DTYPE = {
    "F8_E4M3": "e4m3fn",
    "F8_E5M2": "e5m2",
    "F8_E4M3FNUZ": "e4m3fnuz",
    "F8_E5M2FNUZ": "e5m2fnuz",
    "I8": "int8",
}
