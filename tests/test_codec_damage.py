"""Bytes that no correct checkpoint has are named with their place; overflow is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fp8convert.codecs.base import Findings, Rect
from fp8convert.codecs.fp4_block import Fp4Block

from .test_codec_cases import (
    CODED,
    EXPONENTS,
    NV,
    TORCH,
    Case,
    Numbers,
    Shape,
    decode,
    rounded,
    stored,
    whole,
    with_last,
)
from .test_codecs import plain_rows, row_cuts

ALL = pytest.mark.parametrize("case", CODED.values(), ids=CODED.keys())


def chosen(keep) -> pytest.MarkDecorator:
    names = [name for name, case in CODED.items() if keep(case)]
    assert names
    return pytest.mark.parametrize("case", [CODED[n] for n in names], ids=names)


def sizes(case: Case) -> list[Shape]:
    return case.fitting((40, 70), (3, 40, 70))


def find(case: Case, n: Numbers, target: str = "BF16") -> Findings:
    """Findings of the whole weight; the same damage whatever way it is cut."""
    parts = case.pack(n)
    grid = case.codec.grid(stored(parts))
    _, found = decode(case.codec, parts, whole(case.codec, parts), target)
    for rects in (row_cuts(grid, 1), plain_rows(grid, 7)):
        _, cut = decode(case.codec, parts, rects, target)
        assert cut.damage == found.damage
    return found


def place(case: Case, shape: Shape, *at: int) -> str:
    """Words for an expert."""
    return f"expert {at[0]}, " if len(shape) == 3 else ""


@chosen(lambda case: len(case.legal) < len(case.table))
def test_odd_codes_are_named_wherever_they_are(case: Case) -> None:
    """Each NaN and infinity, with row and column within the expert."""
    kind = "NaN or infinite" if case.codec.element.name == "e5m2" else "NaN"  # type: ignore[attr-defined]
    odd = [int(c) for c in torch.arange(len(case.table)) if c not in case.legal]
    for shape in sizes(case):
        o, i = shape[-2:]
        for at in ((0, 0), (o - 1, i - 1), (o // 2, i // 3)):
            for code in odd[:1] if at[0] else odd:
                n = case.numbers(shape)
                codes = n.codes.clone()
                index = (*(s - 1 for s in shape[:-2]), *at)
                codes[index] = code
                expected = (
                    f"a {kind} code at {place(case, shape, *index)}row {at[0]}, column {at[1]}"
                )
                assert find(case, n._replace(codes=codes)).damage == expected


def scale_place(case: Case, n: Numbers, shape: Shape) -> str:
    """Where the last scale is, as a message has it."""
    grid = case.grid(shape)
    where = f"expert {shape[0] - 1}, " if len(shape) == 3 else ""
    row, column = grid[-2] - 1, grid[-1] - 1
    if n.groups is not None:  # reordered: the column itself
        column = int((n.groups == column).nonzero()[0])
    return f"{where}block row {row}, column {column}"


def bad_scales(case: Case) -> list[tuple[float, float]]:
    """Scales that are damage: what is stored, and what the message says."""
    if case.scale in EXPONENTS:
        return [(255, math.nan)]
    if case.scale == NV:
        return [(0x7F, math.nan), (0xFF, math.nan), (0x81, -1.0), (0x80, 0.0), (0x00, 0.0)]
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0]
    if case.is_float:
        values += [-1.0, float(torch.tensor(-1e-7).to(case.scale))]
    return [(v, v) for v in values]


@ALL
def test_impossible_scales_are_named(case: Case) -> None:
    sign = "above" if case.is_float else "other than"
    for shape in sizes(case):
        n = case.numbers(shape)
        where = scale_place(case, n, shape)
        n = n._replace(codes=torch.full_like(n.codes, int(case.legal[3])))
        if n.zeros is not None:
            n = n._replace(zeros=torch.full_like(n.zeros, int(case.legal[2])))
        for kept, value in bad_scales(case):
            raw = n.scales.view(torch.uint8) if case.scale in (*EXPONENTS, NV) else n.scales
            changed = n._replace(scales=with_last(raw, kept).view(case.scale))
            damage = find(case, changed).damage
            if value == 0:
                zero = f"scale 0 at {where}, but the block's codes are not all zero"
                assert damage == zero
            elif case.whole and not math.isnan(value):
                assert f"at {where}, expected a finite number above 0" in str(damage)
            else:
                assert damage == f"scale {value} at {where}, expected a finite number {sign} 0"


@chosen(lambda case: not case.is_float)
def test_scales_below_0_are_fine_for_integers(case: Case) -> None:
    for shape in sizes(case):
        n = case.numbers(shape)
        n = n._replace(scales=-n.scales.abs())
        parts = case.pack(n)
        ours, found = decode(case.codec, parts, whole(case.codec, parts))
        assert found.damage is None
        assert ours == rounded(case.value(n))


@chosen(lambda case: case.whole)
@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf])
def test_impossible_global_scales_are_named(case: Case, value: float) -> None:
    for shape in sizes(case):
        n = case.numbers(shape)._replace(whole=torch.tensor([value]))
        assert find(case, n).damage == f"global scale {value}, expected a finite number above 0"


@pytest.mark.parametrize(("how", "value"), [("multiply", 3e38), ("divide", 1e-40)])
def test_scales_that_combine_to_infinity_are_damage(how: str, value: float) -> None:
    case = CODED[f"nvfp4-{how}"]
    (shape,) = case.fitting((2, 16))
    n = case.numbers(shape)._replace(whole=torch.tensor([value]))
    n = n._replace(scales=torch.full(n.scales.shape, 448.0).to(NV))
    expected = "scale inf at block row 0, column 0, expected a finite number above 0"
    assert find(case, n).damage == expected


@pytest.mark.parametrize(("how", "value"), [("multiply", 2.0**-149), ("divide", 3e38)])
def test_scales_that_combine_to_zero_are_damage(how: str, value: float) -> None:
    case = CODED[f"nvfp4-{how}"]
    (shape,) = case.fitting((2, 16))
    n = case.numbers(shape)._replace(whole=torch.tensor([value]))
    tiny = torch.full(n.scales.shape, 1, dtype=torch.uint8).view(NV)  # 2**-9
    found = find(case, n._replace(scales=tiny))
    if how == "multiply":
        assert "scale 0 at block row 0, column 0, but" in str(found.damage)
    else:  # 2**-9 / 3e38 is a subnormal, and good
        assert found.damage is None


@chosen(lambda case: case.reordered)
@pytest.mark.parametrize("group", [-1, 99, 2**31 - 1, -(2**31)])
def test_groups_that_are_not_there_are_named(case: Case, group: int) -> None:
    (shape,) = case.fitting((16, 96))
    n = case.numbers(shape)
    assert n.groups is not None
    low, high = min(group, 0), max(group, 2)
    expected = f"its columns are in groups {low} to {high}, expected 0 to 2"
    groups = n.groups.clone()
    groups[groups.argmin() if n.groups[5] else 5] = group
    parts = case.pack(n._replace(groups=groups))
    _, found = decode(case.codec, parts, whole(case.codec, parts))
    assert found.damage == expected


@chosen(lambda case: case.codec.name == "gptq" and case.zeros.start == 1)
def test_a_zero_point_that_readers_disagree_about(case: Case) -> None:
    """All bits set and stored less one: 0 or 2**bits. Only in the rows that are decoded."""
    bits = case.codec.bits  # type: ignore[attr-defined]
    (shape,) = case.fitting((24, 96))
    n = case.numbers(shape)
    assert n.zeros is not None
    last = (1 << bits) - 1
    parts = case.pack(n._replace(zeros=with_last(n.zeros, 1 << bits)))  # stored as the last code
    rows, columns = shape
    for rects, bad in (
        ([Rect(0, rows, 0, columns)], True),
        ([Rect(rows - 1, rows, 0, columns)], True),
        ([Rect(0, rows - 1, 0, columns)], False),
    ):
        _, found = decode(case.codec, parts, rects)
        message = f"a zero point is stored as {last}, which stands for 0 or for one more"
        assert (message in str(found.damage)) is bad


@chosen(lambda case: case.codec.name == "gptq" and case.zeros.start == 0)
def test_version_2_has_every_zero_point(case: Case) -> None:
    (shape,) = case.fitting((24, 96))
    n = case.numbers(shape)
    assert n.zeros is not None
    top = n._replace(zeros=torch.full_like(n.zeros, len(case.table) - 1))
    parts = case.pack(top)
    assert decode(case.codec, parts, whole(case.codec, parts))[0] == rounded(case.value(top))


@chosen(lambda case: "shape" in case.codec.roles)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_a_shape_tensor_that_says_something_else(case: Case, kind: torch.dtype) -> None:
    (shape,) = case.fitting((16, 96))
    parts = case.pack(case.numbers(shape))
    at = case.codec.roles.index("shape")
    parts[at] = parts[at].to(kind)
    assert decode(case.codec, parts, whole(case.codec, parts))[1].damage is None
    said = [shape[0], shape[1] + 1]
    parts[at] = torch.tensor(said, dtype=kind)
    _, found = decode(case.codec, parts, whole(case.codec, parts))
    assert found.damage == f"its shape tensor says {said}, the packed codes hold {list(shape)}"


@ALL
@pytest.mark.parametrize("target", list(TORCH))
def test_overflow_is_counted_element_by_element(case: Case, target: str) -> None:
    """The largest scale there is, in one place; whatever way the weight is cut."""
    top = {"BF16": 3.0e38, "F32": 3.0e38, "F16": 3.0e4}[target]
    for shape in sizes(case):
        n = case.numbers(shape)
        if case.scale in EXPONENTS:
            raw = with_last(n.scales.view(torch.uint8), 254 if target != "F16" else 142)
            n = n._replace(scales=raw.view(case.scale))
        elif case.whole:
            n = n._replace(
                whole=torch.tensor([top / 448 if case.whole == "multiply" else 448 / top])
            )
        else:
            most = min(top, float(torch.finfo(case.scale).max))
            n = n._replace(scales=with_last(n.scales, most))
        expected = int(case.value(n).to(TORCH[target]).isinf().sum())
        assert expected > 0 or case.scale == torch.float16  # 65504 * 255 is less than 3e38
        parts = case.pack(n)
        grid = case.codec.grid(stored(parts))
        for rects in (whole(case.codec, parts), row_cuts(grid, 1), plain_rows(grid, 7)):
            ours, found = decode(case.codec, parts, rects, target)
            assert (found.damage, found.overflowed) == (None, expected)
            assert ours == rounded(case.value(n), target)


def test_nothing_overflows_at_the_edge() -> None:
    """The largest product that still rounds to the largest number is not counted."""
    codec = Fp4Block(32)
    codes = torch.full((1, 16), 0x22, dtype=torch.uint8)  # 1.0
    for byte, target, count in ((254, "BF16", 0), (254, "F16", 32), (142, "F16", 0)):
        parts = [codes, torch.tensor([[byte]], dtype=torch.uint8)]
        ours, found = decode(codec, parts, [Rect(0, 1, 0, 32)], target)
        assert found.overflowed == count
        if target == "BF16":
            assert set(np.frombuffer(ours, np.uint16).tolist()) == {0x7F00}  # 2**127
