"""Parts whose dtypes or shapes do not fit are refused: what was expected, and what was found."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from fp8convert.codecs.awq import Awq
from fp8convert.codecs.base import Codec, Stored
from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Fp8Block, Int8Block
from fp8convert.codecs.gpt_oss import GptOss
from fp8convert.codecs.gptq import Gptq
from fp8convert.codecs.packed_int import PackedInt

from .test_codec_cases import CODED, Case, Shape, made, stored

Facts = tuple[str, tuple[int, ...]]

ALL = pytest.mark.parametrize("case", CODED.values(), ids=CODED.keys())
Facts = list[tuple[str, Shape]]
WRONG = "F64"  # a dtype that no codec takes for any part


def changed(parts: tuple[Stored, ...], number: int, **facts: object) -> tuple[Stored, ...]:
    return (*parts[:number], parts[number]._replace(**facts), *parts[number + 1 :])


def weight(case: Case) -> tuple[Stored, ...]:
    (shape,) = case.fitting((40, 70))
    return stored(made(case, shape)[0])


@ALL
def test_a_wrong_dtype_of_any_part_is_named(case: Case) -> None:
    parts = weight(case)
    assert case.codec.check(parts) is None
    for number, part in enumerate(parts):
        message = case.codec.check(changed(parts, number, dtype=WRONG))
        assert message is not None, case.codec.roles[number]
        assert f"{WRONG} {list(part.shape)}" in message
        same = {"U8": "F8_E8M0"}.get(part.dtype, part.dtype)  # exponents
        assert part.dtype in message.split("expected")[1] or same in message.split("expected")[1]


@ALL
def test_codes_of_another_size_in_bits_are_refused(case: Case) -> None:
    parts = weight(case)
    for dtype in ("I32", "U8", "I8", "I64", "F8_E4M3", "F8_E5M2", "BF16"):
        accepted = {"fp4-block": ("U8", "I8")}.get(case.codec.name, (parts[0].dtype,))
        if dtype not in accepted:
            assert f"{dtype} {list(parts[0].shape)}" in str(
                case.codec.check(changed(parts, 0, dtype=dtype))
            )


@ALL
def test_a_wrong_shape_of_any_part_is_named(case: Case) -> None:
    """One more or one fewer along any axis, an axis more, an axis less; the last part is named."""
    parts = weight(case)
    for number, part in enumerate(parts[1:], 1):
        shape = part.shape
        wrong = [(*shape[:k], n + 1, *shape[k + 1 :]) for k, n in enumerate(shape)]
        wrong += [(*shape[:k], n - 1, *shape[k + 1 :]) for k, n in enumerate(shape) if n > 1]
        if shape and max(shape) > 1:
            wrong += [(*shape, 2), (2, *shape), shape[:-1] if shape[-1] > 1 else shape[1:]]
        for other in wrong:
            message = case.codec.check(changed(parts, number, shape=other))
            assert message is not None, (case.codec.roles[number], shape, other)
            assert f"{part.dtype} {list(other)}" in message
            assert "expected" in message
            assert f"'{part.name}'" in message


@ALL
def test_codes_of_the_wrong_shape_are_refused(case: Case) -> None:
    """With another number of axes, or that the other parts do not fit."""
    parts = weight(case)
    shape = parts[0].shape
    for other in ((), (7,), (1, 1, 1, 1, 1), shape[:1]):
        message = case.codec.check(changed(parts, 0, shape=other))
        assert f"{parts[0].dtype} {list(other)}" in str(message)
        assert "expected" in str(message)
    larger = changed(parts, 0, shape=tuple(3 * n for n in shape))
    old, new = (case.grid(case.codec.shape(p)) for p in (parts, larger))
    assert (case.codec.check(larger) is None) is (old == new)


FP8, MX = Fp8Block((128, 128)), Fp4Block(32)
MESSAGES: list[tuple[Codec, Facts, str]] = [
    (FP8, [("F8_E5M2", (4, 4)), ("F32", (1, 1))], "codes are F8_E5M2 [4, 4], expected F8_E4M3"),
    (FP8, [("F8_E4M3", (4,)), ("F32", (1,))], "codes are F8_E4M3 [4], expected F8_E4M3 with two"),
    (FP8, [("F8_E4M3", (1, 2, 3, 4)), ("F32", (1, 1))], "with two axes (or three, of experts)"),
    (FP8, [("F8_E4M3", (2, 3, 4)), ("F32", (1, 1))], "[1, 1], expected F32 or BF16 or F16 or"),
    (FP8, [("F8_E4M3", (2, 3, 4)), ("F32", (1, 1))], "or U8 [2, 1, 1] for codes [2, 3, 4] in"),
    (
        FP8, [("F8_E4M3", (576, 256)), ("F32", (4, 2))],
        "scales 'p1' are F32 [4, 2], expected F32 or BF16 or F16 or F8_E8M0 or U8 [5, 2] "
        "for codes [576, 256] in blocks of [128, 128]",
    ),
    (FP8, [("F8_E4M3", (576, 256)), ("F32", (2, 5))], "F8_E8M0 or U8 [5, 2] for codes [576, 256]"),
    (FP8, [("F8_E4M3", (576, 256)), ("I32", (5, 2))], "scales 'p1' are I32 [5, 2], expected F32"),
    (FP8, [("F8_E4M3", (576, 256)), ("F32", ())], "scales 'p1' are F32 [], expected F32"),
    (FP8, [("F8_E4M3", (576, 256)), ("F32", (5, 2, 1, 1))], "scales 'p1' are F32 [5, 2, 1, 1]"),
    (
        Fp8Block((1, None)), [("F8_E4M3", (5, 6)), ("F32", (6,))],
        "[5, 1] for codes [5, 6] in blocks of [1, all]",
    ),
    (Fp8Block((1, 1), "e5m2"), [("F8_E4M3", (4, 4)), ("F32", (4, 4))], "expected F8_E5M2"),
    (
        Int8Block((1, 32), zero_points=True), [("I8", (4, 64)), ("F32", (4, 2)), ("U8", (4, 2))],
        "zero points 'p2' are U8 [4, 2], expected I8 [4, 2] as the scales",
    ),
    (
        Int8Block((1, 32), zero_points=True), [("I8", (4, 64)), ("F32", (4, 2)), ("I8", (4, 1))],
        "zero points 'p2' are I8 [4, 1], expected I8 [4, 2] as the scales",
    ),
    (MX, [("U8", (4, 17)), ("U8", (4, 2))], "rows of 34 codes do not divide into groups of 32"),
    (MX, [("U8", (4, 32)), ("F32", (4, 2))], "are F32 [4, 2], expected F8_E8M0 or U8 [4, 2]"),
    (MX, [("U8", (4, 32)), ("U8", (8, 1))], "are U8 [8, 1], expected F8_E8M0 or U8 [4, 2]"),
    (
        Fp4Block(16, "divide"), [("U8", (4, 32)), ("F8_E4M3", (4, 4)), ("F32", (2,))],
        "the global scale 'p2' are F32 [2], expected F32 [] or [1]",
    ),
    (
        Fp4Block(16, "multiply"), [("U8", (4, 32)), ("U8", (4, 4)), ("F32", ())],
        "are U8 [4, 4], expected F8_E4M3 [4, 4]",
    ),
    (PackedInt(4, 32), [("I32", (4, 5)), ("BF16", (4, 1))], "rows of 40 codes do not divide"),
    (PackedInt(4, None), [("I32", (4, 5)), ("BF16", (5, 1))], "in groups of all"),
    (
        PackedInt(4, 32, ("zeros",)), [("I32", (9, 4)), ("BF16", (9, 1)), ("I32", (9, 1))],
        "zero points 'p2' are I32 [9, 1], expected I32 [2, 1] packed along columns",
    ),
    (
        PackedInt(4, 32, ("groups", "shape")),
        [("I32", (9, 4)), ("BF16", (9, 1)), ("I32", (9,)), ("I64", (2,))],
        "groups of columns 'p2' are I32 [9], expected I32 [32] (g_idx)",
    ),
    (
        PackedInt(8, None, ("shape",)), [("I32", (9, 4)), ("F16", (9,)), ("F32", (2,))],
        "the shape 'p2' are F32 [2], expected I32 or I64 [2] [rows, columns]",
    ),
    (
        GptOss(), [("U8", (2, 8, 3, 15)), ("U8", (2, 8, 3))],
        "blocks are U8 [2, 8, 3, 15], expected U8 [experts, out, in / 32, 16]",
    ),
    (
        GptOss(), [("U8", (2, 8, 3, 16)), ("U8", (2, 3, 8))],
        "scales 'p1' are U8 [2, 3, 8], expected U8 or F8_E8M0 [2, 8, 3] as the blocks",
    ),
    (
        Gptq(4, 32, True), [("I32", (5, 8)), ("F16", (1, 8)), ("I32", (1, 1))],
        "40 codes do not divide into groups of 32",
    ),
    (
        Gptq(4, 32, True), [("I32", (4, 9)), ("F16", (1, 9)), ("I32", (1, 1))],
        "9 outputs do not fill words of 8 zero points",
    ),
    (
        Gptq(8, 32, True), [("I32", (8, 8)), ("F16", (8, 1)), ("I32", (1, 2))],
        "scales 'p1' are F16 [8, 1], expected F16 or BF16 or F32 [1, 8]",
    ),
    (
        Gptq(8, 32, True), [("I32", (8, 8)), ("F16", (1, 8)), ("I32", (1, 1))],
        "zero points 'p2' are I32 [1, 1], expected I32 [1, 2] packed along the outputs",
    ),
    (
        Gptq(4, 32, True, True),
        [("I32", (4, 8)), ("F16", (1, 8)), ("I32", (1, 1)), ("I32", (8,))],
        "groups of inputs 'p3' are I32 [8], expected I32 [32] (g_idx)",
    ),
    (
        Awq(32), [("I32", (40, 2)), ("F16", (1, 16)), ("I32", (1, 2))],
        "40 codes do not divide into groups of 32",
    ),
    (
        Awq(32), [("I32", (32, 2)), ("F16", (1, 16)), ("I32", (1, 16))],
        "zero points 'p2' are I32 [1, 16], expected I32 [1, 2] for 32 inputs in groups of 32",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "facts", "message"), MESSAGES)
def test_parts_that_do_not_fit_are_named(codec: Codec, facts: Facts, message: str) -> None:
    known = [Stored(f"p{n}", d, s, 0, 0, 0) for n, (d, s) in enumerate(facts)]
    assert message in str(codec.check(known))


@pytest.mark.parametrize(
    ("block", "codes", "scales"),
    [
        ((1, None), (7, 9), (7,)),
        ((1, None), (7, 9), (7, 1)),
        ((None, None), (7, 9), ()),
        ((None, None), (7, 9), (1,)),
        ((None, None), (7, 9), (1, 1)),
        ((None, None), (3, 7, 9), (3,)),
        ((None, None), (3, 7, 9), (3, 1, 1)),
        ((1, None), (3, 7, 9), (3, 7)),
        ((128, 128), (300, 257), (3, 1, 3, 1)),  # ModelOpt
        ((128, 128), (0, 9), (0, 1)),
        ((128, 128), (9, 0), (1, 0)),
    ],
)
def test_forms_of_scales_that_fit(block: tuple, codes: Shape, scales: Shape) -> None:
    known = (Stored("w", "F8_E4M3", codes, 0, 0, 0), Stored("s", "F32", scales, 0, 0, 0))
    assert Fp8Block(block).check(known) is None


@ALL
def test_other_dtypes_of_scales_that_say_the_same(case: Case) -> None:
    """A checkpoint may keep the scales of one form in several dtypes."""
    parts = weight(case)
    kinds = {"U8": "F8_E8M0", "F8_E8M0": "U8", "F16": "BF16", "BF16": "F32", "F32": "F16"}
    other = kinds.get(parts[1].dtype, parts[1].dtype)
    assert case.codec.check(changed(parts, 1, dtype=other)) is None


@pytest.mark.parametrize(
    ("codec", "codes", "scales", "message"),
    [
        (Fp4Block(5), ("U8", (1, 10)), ("U8", (1, 4)), "end within a byte or word of 2"),
        (PackedInt(4, 3), ("I32", (2, 3)), ("BF16", (2, 8)), "end within a byte or word of 2"),
        (Gptq(4, 12, True), ("I32", (3, 8)), ("F16", (2, 8)), "end within a byte or word of 8"),
    ],
    ids=["fp4", "packed", "gptq"],
)
def test_groups_that_split_a_byte_or_word_are_refused(
    codec: Codec, codes: Facts, scales: Facts, message: str
) -> None:
    parts = [Stored("codes", *codes, 0, 0, 0), Stored("scales", *scales, 0, 0, 0)]
    assert message in str(codec.check([*parts, Stored("zeros", "I32", (2, 1), 0, 0, 0)]))


@pytest.mark.parametrize("case", CODED.values(), ids=CODED)
def test_every_fact_of_a_codec_is_in_its_dict(case: Case) -> None:
    """Plans tell readings apart by it."""
    codec = case.codec
    for field in fields(codec):  # type: ignore[arg-type]
        facts = replace(codec, **{field.name: another(getattr(codec, field.name))}).to_dict()  # type: ignore[type-var]
        assert facts != codec.to_dict(), field.name


def another(value: object) -> object:
    """Some other value of the same kind."""
    kinds = {bool: lambda v: not v, tuple: lambda v: (*v, "shape"), str: lambda v: f"{v}x"}
    return kinds.get(type(value), lambda v: (v or 0) + 3)(value)
