"""Every code by every kind of scale, for every codec; zero blocks; special values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .test_codec_cases import (
    BF16,
    CODED,
    EXPONENTS,
    F16,
    NV,
    TORCH,
    Case,
    Numbers,
    Shape,
    decode,
    rounded,
    whole,
)

ALL = pytest.mark.parametrize("case", CODED.values(), ids=CODED.keys())
FLOATS = {
    torch.float32: (
        1.0, 0.5, 3.0e-4, 1 / 3, 448.0, 2.0**-7, 2.0**-120, 2.0**-126, 1.1754942e-38, 2.0**-130,
        2.0**-149, 2.0**100, 2.0**127, 7.3e35, 3.4e38,
    ),
    BF16: (1.0, 1.0078125, 0.0123, 2.0**-126, 2.0**-133, 2.0**100, 3.3895313892515355e38),
    F16: (1.0, 1 / 3, 0.000123, 2.0**-14, 2.0**-24, 65504.0),
}  # fmt: skip
BYTES = (0, 1, 2, 5, 22, 23, 24, 100, 119, 126, 127, 128, 135, 200, 252, 253, 254)
WHOLE = (1.0, 3.7e-4, 2688.0, 2.0**-120, 2.0**-126, 1e30, 2.0**120, 3e38)


def scales(case: Case) -> torch.Tensor:
    """Scales of every kind that the case may have, as stored."""
    if case.scale in EXPONENTS:
        return torch.tensor(BYTES, dtype=torch.uint8).view(case.scale)
    if case.scale == NV:
        return torch.arange(1, 0x7F, dtype=torch.uint8).view(NV)
    made = torch.tensor(FLOATS[case.scale], dtype=case.scale)
    return made if case.is_float else torch.cat([made, -made])


def full_shape(case: Case) -> Shape:
    """Room for all codes, by all zero points where each row has its own."""
    side = len(case.table)
    rows = side if case.zeros and case.block[0] == 1 else 1
    shape = (side, rows) if case.codec.name == "mxfp4-transposed" else (rows, side)
    return case.fitting(shape)[0]


def every_code(case: Case) -> Numbers:
    """All legal codes along a row (or a column), all zero points down the rows."""
    shape = full_shape(case)
    n = case.numbers(shape)
    long = -1 if shape[-1] >= len(case.table) else -2
    at = torch.arange(shape[long]) % len(case.legal)
    at = at if long == -1 else at[:, None]
    zeros = None
    if case.zeros and n.zeros is not None:
        kinds = torch.tensor(list(case.zeros))
        zeros = kinds[torch.arange(n.zeros.numel()) // n.zeros.shape[-1] % len(kinds)]
        zeros = zeros.reshape(n.zeros.shape)
    return n._replace(codes=case.legal[at].expand(shape).clone(), zeros=zeros)


def check(case: Case, n: Numbers, targets: tuple[str, ...] = tuple(TORCH)) -> None:
    parts, value = case.pack(n), case.value(n)
    for target in targets:
        ours, found = decode(case.codec, parts, whole(case.codec, parts), target)
        what = (target, n.scales.reshape(-1)[:1], n.whole)
        assert found.damage is None, what
        assert ours == rounded(value, target), what
        assert found.overflowed == int(value.to(TORCH[target]).isinf().sum()), what


@ALL
def test_every_code_by_every_kind_of_scale(case: Case) -> None:
    """Subnormal, tiny, huge, and overflowing products, counted exactly."""
    n = every_code(case)
    assert set(n.codes.reshape(-1).tolist()) == set(case.legal.tolist())
    many = case.whole or n.codes.numel() > 1 << 15  # float32 alone decides the rest
    for scale in scales(case):
        one = n._replace(scales=scale.expand(n.scales.shape).clone())
        for whole_scale in WHOLE if case.whole else (None,):
            if whole_scale is not None:
                one = one._replace(whole=torch.tensor([whole_scale]))
                factors = case.factors(one)
                if not (factors.isfinite() & (factors > 0)).all():
                    continue  # damage: see test_codec_damage
            check(case, one, ("BF16",) if many else tuple(TORCH))


@ALL
def test_these_scales_make_the_products_they_should(case: Case) -> None:
    """The test above meets subnormal results, and overflow where the scales allow it."""
    n = every_code(case)
    scale = scales(case)
    factor = case.factors(
        Numbers(n.codes, scale, whole=torch.tensor([1.0]) if case.whole else None)
    )
    top = float(case.table[case.legal].abs().max())
    small = float(case.table[case.legal].abs()[case.table[case.legal] != 0].min())
    if case.scale not in (F16, NV):
        assert float(factor.abs().min()) * small < 2.0**-126
        assert float(factor.abs().max()) * top > 3.4e38


def test_byte_0_and_254_of_an_exponent_are_two_to_the_minus_and_plus_127() -> None:
    for name in ("fp8-mx-u8", "fp8-32-e8m0", "mxfp4", "mxfp4-unsigned-zero", "gpt-oss"):
        case = CODED[name]
        for byte, power in ((0, -127), (1, -126), (127, 0), (254, 127)):
            n = case.numbers(full_shape(case))
            one = 0x38 if case.codec.name == "fp8-block" else 2
            raw = torch.full(n.scales.shape, byte, dtype=torch.uint8).view(case.scale)
            parts = case.pack(n._replace(codes=torch.full_like(n.codes, one), scales=raw))
            ours, _ = decode(case.codec, parts, whole(case.codec, parts), "F32")
            assert (np.frombuffer(ours, np.float32) == np.float32(2.0**power)).all()


def zero_codes(case: Case) -> list[int]:
    """Codes worth 0 by themselves, -0.0 among them."""
    if case.zero and not case.zeros:
        return [case.zero]
    return [int(c) for c in case.legal if case.table[c] == 0]


WITH_ZERO = {name: c for name, c in CODED.items() if c.scale not in EXPONENTS}  # which have none


@pytest.mark.parametrize("case", WITH_ZERO.values(), ids=WITH_ZERO.keys())
@pytest.mark.parametrize("target", list(TORCH))
def test_a_scale_of_0_over_codes_of_0(case: Case, target: str) -> None:
    """Legal: a block of zeros that a quantizer had no scale for; other blocks are what they are."""
    for shape in case.fitting((3, 40), (20, 70), (3, 5, 40)):
        n = case.numbers(shape)
        across = case.blocks(shape)[1]
        columns = torch.arange(shape[-1]) // across if n.groups is None else n.groups
        rows = torch.arange(shape[-2]) // case.blocks(shape)[0]
        zero = (rows == rows.max())[:, None] & (columns == columns.max())
        kinds = zero_codes(case)
        fill = torch.tensor(kinds)[torch.arange(n.codes.numel()) % len(kinds)].reshape(shape)
        codes = torch.where(zero, fill, n.codes)
        changed, zeros = n.scales.clone(), n.zeros
        changed[..., -1, -1] = 0.0
        if zeros is not None:
            zeros = zeros.clone()
            assert case.zeros is not None
            at = max(case.zeros.start, 0)  # the zero point: the code itself
            zeros[..., -1, -1] = at
            codes = torch.where(zero, torch.full_like(codes, at), codes)
        check(case, n._replace(codes=codes, scales=changed, zeros=zeros), (target,))


@ALL
def test_a_zero_keeps_its_sign(case: Case) -> None:
    """-0.0 where the format has one; +0.0 from a code equal to its zero point."""
    n = case.numbers(full_shape(case))
    for code in zero_codes(case):
        codes = torch.full_like(n.codes, code)
        zeros = None if n.zeros is None else torch.full_like(n.zeros, code)
        if case.zeros and code not in case.zeros:
            continue
        parts = case.pack(n._replace(codes=codes, zeros=zeros))
        ours, found = decode(case.codec, parts, whole(case.codec, parts))
        assert found.damage is None
        negative = case.is_float and bool(torch.signbit(case.table[code]))
        if case.is_float:
            assert set(np.frombuffer(ours, np.uint16).tolist()) == {0x8000 if negative else 0}
        else:  # a negative scale makes it -0.0
            assert set(np.frombuffer(ours, np.uint16).tolist()) <= {0, 0x8000}


@pytest.mark.parametrize(
    ("name", "code", "bits"),
    [
        ("mxfp4", 8, 0x8000),  # OCP: -0.0
        ("mxfp4-unsigned-zero", 8, 0),  # DeepSeek's own table: +0.0
        ("mxfp4-unsigned-zero", 9, 0xBF00),  # -0.5 all the same
        ("nvfp4-multiply", 8, 0x8000),
        ("gpt-oss", 8, 0x8000),
        ("gpt-oss", 1, 0x3F00),  # 0.5, the subnormal
        ("fp8-128", 0x80, 0x8000),
        ("fp8-128", 0x01, 0x3B00),  # 2**-9, the smallest subnormal
        ("e5m2-128", 0x01, 0x3780),  # 2**-16
        ("e4m3fnuz-128-bf16", 0x01, 0x3A80),  # 2**-10
        ("e5m2fnuz-row", 0x01, 0x3700),  # 2**-17
        ("int8-row", 0x80, 0xC300),  # -128
        ("packed-4", 0, 0xC100),  # -8
        ("packed-8", 255, 0x42FE),  # 127
        ("awq-without-zeros", 15, 0x40E0),  # 7
    ],
)
def test_a_code_by_scale_1(name: str, code: int, bits: int) -> None:
    case = CODED[name]
    n = case.numbers(full_shape(case))
    if case.scale in EXPONENTS:
        ones = torch.full(n.scales.shape, 127, dtype=torch.uint8).view(case.scale)
    else:
        ones = torch.ones(n.scales.shape).to(case.scale)
    single = None if n.whole is None else torch.ones(1)
    n = n._replace(codes=torch.full_like(n.codes, code), scales=ones, whole=single)
    parts = case.pack(n)
    ours, _ = decode(case.codec, parts, whole(case.codec, parts))
    assert set(np.frombuffer(ours, np.uint16).tolist()) == {bits}
