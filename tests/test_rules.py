"""Rules of scales against exact arithmetic: one number at a time, no float until the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Fp8Block
from fp8convert.codecs.scales import from_float32, to_float32
from fp8convert.encoding.encoder import Encoder
from fp8convert.encoding.rules import (
    Amax,
    Local,
    MxPower,
    PowerUp,
    Rule,
    power_up,
    rounded,
    rounded_local,
)

F32 = npt.NDArray[np.float32]
Formula = Callable[[Fraction], Fraction]

# Mantissa bits and the smallest normal's exponent.
FORMS = {"F32": (23, -126), "BF16": (7, -126), "F16": (10, -14), "e4m3": (3, -6)}
LARGEST = {"F32": Fraction(2) ** 128 - Fraction(2) ** 104,
           "BF16": Fraction(2) ** 128 - Fraction(2) ** 120, "F16": Fraction(65504),
           "e4m3": Fraction(448)}  # fmt: skip
LOCALS = [Fraction(float(v)) for v in
          np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)]  # fmt: skip


def exponent_of(value: Fraction) -> int:
    """floor(log2(value))."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    return e if Fraction(2) ** e <= value else e - 1


def nearest(value: Fraction, form: str) -> Fraction | None:
    """To nearest, ties to even; None beyond the largest (infinity)."""
    if value == 0:
        return value
    mantissa, least = FORMS[form]
    step = Fraction(2) ** (max(exponent_of(value), least) - mantissa)
    kept = round(value / step) * step  # Python rounds a Fraction to even
    return kept if kept <= LARGEST[form] else None


def up(value: Fraction) -> Fraction:
    """The smallest power of two from 2**-126 to 2**127 that is not below."""
    e = exponent_of(value) if value else -126
    return Fraction(2) ** min(max(e + (value > Fraction(2) ** e), -126), 127)


def tops() -> F32:
    """Largest magnitudes of blocks: random ones of every size, and all kinds of edges."""
    rng = np.random.default_rng(11)
    bits = rng.integers(1, 0x7F800000, 300, dtype=np.uint32)  # subnormals to the largest
    edges = [2.0**k for k in range(-149, 128, 3)]
    edges += [c * 2.0**k for c in (448, 127.5, 7.5, 6, 1.75, 1.5) for k in range(-120, 110, 23)]
    edges += [448 * 2.0**-126, 448 * 2.0**-127, 6 * 2.0**-126, 448.0, 6.0, 2688.0, 1.0, 65504.0]
    edges += [float(np.finfo(np.float32).max), 2.0**-149, 2.0**-126 - 2.0**-149]
    exact = np.array(edges, np.float32)
    with np.errstate(over="ignore", under="ignore"):
        around = [np.nextafter(exact, np.float32(to)) for to in (0, np.inf)]
    every = np.concatenate([bits.view(np.float32), exact, *around])
    return every[np.isfinite(every) & (every > 0)].astype(np.float32)


TOPS = tops()


def check(ours: F32, formula: Formula, values: F32 = TOPS) -> None:
    """Each number against the formula on exact ones."""
    assert ours.dtype == np.float32
    assert ours.shape == values.shape
    for value, found in zip(values.tolist(), ours.tolist(), strict=True):
        assert Fraction(found) == formula(Fraction(value)), value


def differ(ours: F32, formula: Formula, values: F32 = TOPS) -> None:
    """The control: a rule that is not quite the one is noticed."""
    with pytest.raises(AssertionError):
        check(ours, formula, values)


def divided(value: Fraction, divisor: float) -> Fraction:
    """One float32 division."""
    found = nearest(value / Fraction(divisor), "F32")
    assert found is not None
    return found


# --- amax / divisor


def amax_over(divisor: float, precision: str) -> Formula:
    least = Fraction(2) ** FORMS[precision][1]

    def formula(top: Fraction) -> Fraction:
        scale = nearest(divided(top, divisor), precision)
        return max(scale, least) if scale is not None else LARGEST[precision]

    return formula


@pytest.mark.parametrize("precision", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("divisor", [448.0, 127.5, 7.5])
def test_amax(divisor: float, precision: str) -> None:
    rule = Amax(divisor, precision, "F32", ())
    ours = rule.plain(TOPS, 1.0)
    check(ours, amax_over(divisor, precision))
    assert (ours >= 2.0 ** FORMS[precision][1]).all()
    assert np.isfinite(ours).all()
    assert rule.words.startswith(f"amax / {divisor:g} in float32")
    assert (precision in rule.words) == (precision != "F32")
    others = {"F32": "BF16", "BF16": "F32", "F16": "BF16"}
    differ(ours, amax_over(divisor, others[precision]))
    differ(np.nextafter(ours, np.float32(0)), amax_over(divisor, precision))


@pytest.mark.parametrize(("divisor", "precision"), [(448.0, "F32"), (127.5, "BF16"), (7.5, "F16")])
def test_other_scales_are_kept_alike(divisor: float, precision: str) -> None:
    """Candidates of the search are scales that the dtype has, within its bounds."""
    factors = (0.5, 0.775, 1.0625, 1.9375, 4.0)
    plain = Amax(divisor, precision, precision, ()).plain(TOPS, 1.0)
    found = Amax(divisor, precision, precision, factors).others(plain)
    assert len(found) == len(factors)
    least = Fraction(2) ** FORMS[precision][1]
    for factor, scales in zip(factors, found, strict=True):

        def formula(scale: Fraction, factor: float = factor) -> Fraction:
            product = nearest(scale * Fraction(float(np.float32(factor))), "F32")
            kept = None if product is None else nearest(product, precision)
            return LARGEST[precision] if kept is None else max(kept, least)

        check(scales, formula, plain)


# --- Powers of two


def power_over(top: Fraction) -> Fraction:
    return up(divided(top, 448))


def test_power_up() -> None:
    """Of everything, beyond both ends of E8M0's normals too."""
    check(power_up(TOPS), up)
    assert power_up(np.float32([2.0**127 * 1.5])).tolist() == [2.0**127]
    assert power_up(np.float32([1e-45])).tolist() == [2.0**-126]
    differ(power_up(np.nextafter(TOPS, np.float32(0))), up)


def test_ue8m0() -> None:
    rule = PowerUp(448.0)
    ours = rule.plain(TOPS, 1.0)
    check(ours, power_over)
    check(rule.held(TOPS, 1.0), up)
    assert set(np.frexp(ours)[0].tolist()) == {0.5}
    differ(power_up(TOPS / np.float32(449)), power_over)
    assert rule.words == "2 ** ceil(log2(amax / 448))"
    low, high = rule.others(ours)
    check(low, lambda s: max(s / 2, Fraction(2) ** -126), ours)
    check(high, lambda s: min(s * 2, Fraction(2) ** 127), ours)


def test_ue8m0_bytes_are_within_e8m0() -> None:
    """1 to 254: never 2**-127, which float32 has as a subnormal only, nor NaN."""
    for rule in (PowerUp(448.0), MxPower(6.0, 2), MxPower(448.0, 8)):
        for scales in (rule.plain(TOPS, 1.0), rule.held(TOPS, 1.0)):
            raw = from_float32(scales, "F8_E8M0")
            assert raw.min() >= 1
            assert raw.max() <= 254
            kept = raw.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
            assert kept.tobytes() == scales.tobytes()
    assert from_float32(PowerUp(448.0).held(np.float32([3e38]), 1.0), "U8").tolist() == [254]
    assert from_float32(MxPower(6.0, 2).plain(np.float32([1e-45]), 1.0), "U8").tolist() == [1]


def mx(less: int) -> Formula:
    """floor(log2 top), one more from a mantissa of 1.75 on; ``less`` below; bytes 1 to 254."""

    def formula(top: Fraction) -> Fraction:
        e = exponent_of(top)
        e += top / Fraction(2) ** e >= Fraction(7, 4)
        return Fraction(2) ** (min(max(127 + e - less, 1), 254) - 127)

    return formula


@pytest.mark.parametrize(("divisor", "emax"), [(6.0, 2), (448.0, 8)])
def test_mx(divisor: float, emax: int) -> None:
    ours = MxPower(divisor, emax).plain(TOPS, 1.0)
    normal = TOPS >= 2.0**-126
    check(ours[normal], mx(emax), TOPS[normal])
    assert (ours[~normal] == 2.0**-126).all()
    differ(ours[normal], mx(emax + 1), TOPS[normal])
    edge = np.float32([1.75, np.nextafter(np.float32(1.75), np.float32(0)), 1.0, 1.9999])
    found = np.log2(MxPower(divisor, emax).plain(edge, 1.0)).tolist()
    assert found == [1 - emax, -emax, -emax, 1 - emax]


# --- NVFP4: two levels


def reciprocal(precision: str) -> Callable[[Fraction], Fraction | None]:
    """D(D(1 / A) * 2688) as float32; None where it is beyond D."""

    def formula(top: Fraction) -> Fraction | None:
        single = nearest(1 / top, "F32")
        inverse = None if single is None else nearest(single, precision)
        product = None if inverse is None else nearest(inverse * 2688, "F32")
        return None if product is None else nearest(product, precision)

    return formula


@pytest.mark.parametrize("precision", ["F32", "BF16", "F16"])
def test_global_scales(precision: str) -> None:
    """Where the formula has a number; elsewhere still something finite above 0."""
    rule, formula = Local(precision), reciprocal(precision)
    met = 0
    for top in TOPS.tolist():
        found, expected = rule.whole(top), formula(Fraction(top))
        assert math.isfinite(found)
        assert found > 0
        assert float(np.float32(found)) == found
        if expected is not None and expected >= Fraction(2) ** -126:
            met += 1
            assert Fraction(found) == expected, top
    assert met > (100 if precision == "F16" else 300)
    assert rule.whole(0.0) == 1.0
    assert precision in rule.words
    other = reciprocal("BF16" if precision == "F32" else "F32")
    tops = (1.2345, 0.0217, 3.3333)
    assert any(Fraction(rule.whole(float(np.float32(t)))) != other(Fraction(float(np.float32(t))))
               for t in tops)  # fmt: skip


def local(precision: str, whole: float) -> Formula:
    """e4m3(clamp(F32(gs * D(amax / 6)), 2**-9, 448))."""

    def formula(top: Fraction) -> Fraction:
        sixth = nearest(divided(top, 6), precision)
        product = None if sixth is None else nearest(sixth * Fraction(whole), "F32")
        kept = min(LARGEST["e4m3"] if product is None else product, LARGEST["e4m3"])
        found = nearest(max(kept, Fraction(2) ** -9), "e4m3")
        assert found is not None
        return found

    return formula


@pytest.mark.parametrize("precision", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("whole", [1.0, 2688.0, 123456.0, 2.0**-120, 2.0**100, 0.007])
def test_local_scales(precision: str, whole: float) -> None:
    rule, kept = Local(precision), float(np.float32(whole))
    ours = rule.plain(TOPS, kept)
    check(ours, local(precision, kept))
    assert {Fraction(v) for v in ours.tolist()} <= set(LOCALS)


def test_local_scales_fill_their_range() -> None:
    """Over a tensor's groups they run up to 448, as its global scale intends."""
    rng = np.random.default_rng(2)
    tops = np.abs(rng.standard_normal(4000) * 0.02).astype(np.float32) + np.float32(1e-6)
    rule = Local("F32")
    whole = rule.whole(float(tops.max()))
    ours = rule.plain(tops, whole)
    check(ours, local("F32", whole), tops)
    assert ours.max() == 448
    differ(ours, local("F32", whole * 1.02), tops)
    effective = rule.effective(ours, whole)
    check(effective, lambda s: nearest(s / Fraction(whole), "F32") or Fraction(0), ours)


def test_rounded_local_of_midpoints() -> None:
    """To even, at least 2**-9, at most 448."""
    values = np.array([float(v) for v in LOCALS], np.float32)
    middles = (values[:-1] + values[1:]) / 2
    every = np.concatenate([values, middles, np.float32([1e-30, 449, 1e30, 2.0**-11])])
    every = np.concatenate([every, *(np.nextafter(every, np.float32(x)) for x in (0, 1e38))])

    def formula(value: Fraction) -> Fraction:
        return max(nearest(min(value, Fraction(448)), "e4m3") or Fraction(0), Fraction(2) ** -9)

    check(rounded_local(every), formula, every)


def test_neighbours_of_local_scales() -> None:
    """Four either way, none beyond the ends."""
    scales = np.array([float(v) for v in LOCALS], np.float32)
    found = Local("F32").others(scales)
    steps = (-1, 1, -2, 2, -3, 3, -4, 4)
    assert len(found) == len(steps)
    last = len(LOCALS) - 1
    for step, ours in zip(steps, found, strict=True):
        expected = [LOCALS[min(max(k + step, 0), last)] for k in range(len(LOCALS))]
        assert [Fraction(v) for v in ours.tolist()] == expected


def test_power_whole() -> None:
    """A power of two, so that 448 / 256 is room for the largest group at a power of two."""
    for top in TOPS.tolist():
        found = Fraction(Local.power_whole(top))
        e = exponent_of(Fraction(top))
        assert found == Fraction(2) ** max(min(8 - (e - 2), 126), -126)
    assert Local.power_whole(0.0) == 1.0


# --- Of a whole tensor


def of_tensor(rule: Rule, whole: str = "amax", search: bool = False) -> Encoder:
    """As fp8-tensor's."""
    codec = Fp8Block((None, None))
    return Encoder(codec=codec, rule=rule, stored="F32", search=search, whole=whole)


@pytest.mark.parametrize("precision", ["F32", "BF16", "F16"])
def test_tensor_scales(precision: str) -> None:
    rule = Amax(448.0, precision, "F32", (1.25, 0.75))
    amax, power = (of_tensor(rule, whole) for whole in ("amax", "power"))
    for top in TOPS.tolist():
        exact = Fraction(top)
        assert Fraction(amax.tensor_scale(top)) == amax_over(448, precision)(exact)
        assert Fraction(power.tensor_scale(top)) == power_over(exact)
        assert amax.tensor_scales(top) == [amax.tensor_scale(top)]
    assert amax.tensor_scale(0.0) == power.tensor_scale(0.0) == 1.0


def test_tensor_scales_of_a_search() -> None:
    """The plain one first, then one for each factor; a tensor of zeros has one to try."""
    factors = (1.25, 0.75)
    encoder = of_tensor(Amax(448.0, "F32", "F32", factors), search=True)
    plain = encoder.tensor_scale(1.2345)
    expected = [plain, *(float(np.float32(plain) * np.float32(f)) for f in factors)]
    assert encoder.tensor_scales(1.2345) == expected
    assert encoder.tensor_scales(0.0) == [1.0]
    two = Encoder(codec=Fp4Block(16, "divide"), rule=Local("F32"), stored="F8_E4M3", search=True,
                  whole="amax")  # fmt: skip
    assert two.tensor_scales(3.0) == [Local("F32").whole(3.0)]  # its groups have their own


# --- Kept


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_rounded(dtype: str) -> None:
    values = np.concatenate([TOPS, np.float32([0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11])])
    ours = rounded(values, dtype)
    for value, found in zip(values.tolist(), ours.tolist(), strict=True):
        expected = nearest(Fraction(value), dtype)
        assert (Fraction(found) == expected) if expected is not None else math.isinf(found)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("F32", np.float32), ("BF16", ml_dtypes.bfloat16), ("F16", np.float16),
     ("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
     ("U8", ml_dtypes.float8_e8m0fnu)],
)  # fmt: skip
def test_scales_are_kept_as_they_are(dtype: str, kind: Any) -> None:
    """Bytes that ml_dtypes reads as the same values; and we do."""
    width = np.dtype(kind).itemsize
    if width < 4:
        values = np.arange(1, 1 << 8 * width, dtype=f"<u{width}").view(kind).astype(np.float32)
    else:
        values = TOPS
    positive = values[np.isfinite(values) & (values >= (2.0**-126 if width == 1 else 0))]
    positive = positive[~np.signbit(positive)]
    assert positive.size > 100
    raw = from_float32(positive, dtype)
    assert raw.dtype == np.uint8
    assert raw.view(kind).astype(np.float32).tobytes() == positive.tobytes()
    assert to_float32(raw, dtype).tobytes() == positive.tobytes()


@pytest.mark.parametrize(
    "rule", [Amax(448.0, "BF16", "F32", ()), PowerUp(448.0), MxPower(6.0, 2), Local("BF16")]
)
def test_rules_do_not_look_at_neighbours(rule: Rule) -> None:
    """A grid of scales is as many numbers, each by itself."""
    grid = TOPS[: TOPS.size // 2 * 2].reshape(2, -1)
    whole = rule.plain(grid, 3.0)
    assert whole.shape == grid.shape
    alone = [rule.plain(grid[:, k : k + 1].copy(), 3.0) for k in range(0, grid.shape[1], 17)]
    assert np.concatenate(alone, axis=1).tobytes() == whole[:, ::17].copy().tobytes()
