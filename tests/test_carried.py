"""Stored tensors as float32, bit for bit, whatever keeps them; copies; and what neither takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fp8convert.codecs.base import Findings, Rect, Stored
from fp8convert.codecs.blocks import Blocks
from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Fp8Block, Int8Block
from fp8convert.codecs.packed_int import PackedInt
from fp8convert.encoding.carried import Copied, CopiedCodes, CopiedShape, Floats

Array = npt.NDArray[Any]

KINDS: dict[str, Any] = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": ml_dtypes.float8_e8m0fnu,  # where a checkpoint keeps such scales
}
PLACES = (0, 1, 3)  # where in a buffer the bytes begin: a file has them anywhere


def every(dtype: str) -> Array:
    """All values of a dtype; of F32 some of every exponent, both zeros, infinity and NaN."""
    kind = np.dtype(KINDS[dtype])
    if kind.itemsize < 4:
        return np.arange(1 << 8 * kind.itemsize, dtype=f"<u{kind.itemsize}").view(kind)
    rng = np.random.default_rng(3)
    exponents = np.arange(256, dtype=np.uint32).repeat(64) << 23
    mantissas = rng.integers(0, 1 << 23, exponents.size, dtype=np.uint32)
    mantissas[::64], mantissas[1::64] = 0, 0x7FFFFF
    signs = rng.integers(0, 2, exponents.size, dtype=np.uint32) << 31
    return (exponents | mantissas | signs).view(np.float32)


def stored(dtype: str, shape: tuple[int, ...]) -> Stored:
    width = np.dtype(KINDS[dtype]).itemsize
    return Stored("t", dtype, shape, 0, 0, width * int(np.prod(shape)))


def decoded(
    codec: Floats, values: Array, dtype: str, place: int = 0, rect: Rect | None = None
) -> tuple[Array, Findings]:
    """What ``codec`` makes of ``values``, from bytes that begin at ``place`` of a buffer."""
    matrix = values.reshape(1, -1) if values.ndim < 2 else values
    part = stored(dtype, values.shape)
    rect = rect or Rect(0, matrix.shape[0], 0, matrix.shape[1])
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    buffer = np.concatenate([np.zeros(place, np.uint8), raw])
    (span,) = codec.spans((part,), rect)
    data = buffer[place + span.begin : place + span.end]
    out = np.full((rect.r1 - rect.r0) * (rect.c1 - rect.c0), 7, np.float32)
    found = codec.decode((part,), rect, [data], out, "F32")
    return out, found


def assert_same(ours: Array, values: Array) -> None:
    """The same float32 in every bit; NaN for NaN."""
    with np.errstate(invalid="ignore"):
        theirs = values.reshape(-1).astype(np.float32)
    nan = np.isnan(theirs)
    assert np.isnan(ours[nan]).all()
    np.testing.assert_array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", KINDS)
def test_every_value_of_every_dtype(dtype: str, place: int) -> None:
    values = every(dtype)
    ours, found = decoded(Floats(), values, dtype, place)
    assert_same(ours, values)
    assert found == Findings()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_nan_keeps_its_bits(dtype: str) -> None:
    """Nothing is computed where a value is moved."""
    values = every(dtype)
    bits = values.view(np.uint32 if dtype == "F32" else np.uint16).astype(np.uint32)
    ours, _ = decoded(Floats(), values, dtype)
    np.testing.assert_array_equal(ours.view(np.uint32), bits << (0 if dtype == "F32" else 16))


def test_a_sign_that_is_lost_is_noticed() -> None:
    values = every("BF16")
    ours, _ = decoded(Floats(), values, "BF16")
    with pytest.raises(AssertionError):
        assert_same(np.abs(ours), values)
    wrong = ours.copy()
    wrong[5] = np.nextafter(wrong[5], np.float32(1))
    with pytest.raises(AssertionError):
        assert_same(wrong, values)


RECTS = [
    ((6, 10), Rect(0, 6, 0, 10)),
    ((6, 10), Rect(2, 5, 0, 10)),
    ((6, 10), Rect(3, 4, 2, 9)),
    ((1, 10), Rect(0, 1, 9, 10)),
    ((2, 3, 5), Rect(1, 5, 0, 5)),  # experts: six rows
    ((10,), Rect(0, 1, 3, 7)),
    ((), Rect(0, 1, 0, 1)),
]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("shape", "rect"), RECTS)
def test_rectangles(dtype: str, shape: tuple[int, ...], rect: Rect) -> None:
    """Whole rows, or a run in one row: the slice of the whole."""
    count = int(np.prod(shape))
    values = every(dtype)[40 : 40 + count].reshape(shape)
    ours, _ = decoded(Floats(), values, dtype, rect=rect)
    matrix = values.reshape(-1, shape[-1] if shape else 1)
    assert_same(ours, matrix[rect.r0 : rect.r1, rect.c0 : rect.c1])


@pytest.mark.parametrize("dtype", KINDS)
def test_facts(dtype: str) -> None:
    part, codec = stored(dtype, (4, 6)), Floats()
    assert codec.check([part]) is None
    assert (codec.shape([part]), codec.out_dtype([part], "BF16")) == ((4, 6), "F32")
    grid = codec.grid([part])
    assert (grid.rows, grid.columns, grid.row_step, grid.column_step) == (4, 6, 1, 1)
    assert codec.to_dict() == {"codec": "floats"}


@pytest.mark.parametrize("dtype", ["I8", "I32", "F64", "F8_E5M2", "BOOL", "F4"])
def test_dtypes_that_float32_does_not_hold(dtype: str) -> None:
    why = Floats().check([Stored("t", dtype, (2, 2), 0, 0, 4)])
    assert why is not None
    assert why.startswith(f"it is {dtype}, expected one of F32, BF16, F16")


# --- Scales that are widened

ODD_POWERS = [
    ("F32", [1.0, 3.0, 2.0], "scale 3.0, expected a power of two, as the config says (scale_fmt)"),
    ("F32", [1.0, 0.25, 2.0**-126 * 1.5], "expected a power of two"),
    ("F32", [1.0, float("nan"), 2.0], "scale nan, expected a power of two"),
    ("BF16", [1.0, 1.0078125, 4.0], "scale 1.0078125, expected a power of two"),
    ("F16", [0.75, 1.0, 4.0], "scale 0.75, expected a power of two"),
]


@pytest.mark.parametrize(("dtype", "values", "words"), ODD_POWERS)
def test_scales_that_are_declared_powers_of_two(
    dtype: str, values: list[float], words: str
) -> None:
    array = np.array(values, KINDS[dtype])
    ours, found = decoded(Floats(powers=True), array, dtype)
    assert found.damage is not None
    assert words in found.damage
    assert_same(ours, array)  # decoded all the same
    assert decoded(Floats(), array, dtype)[1].damage is None


@pytest.mark.parametrize("dtype", KINDS)
def test_every_power_of_two(dtype: str) -> None:
    """All that a dtype has as normal numbers of float32; and no other number."""
    values = every(dtype).astype(np.float32)
    normal = values[np.isfinite(values) & (values >= 2.0**-126)]
    power = np.frexp(normal)[0] == 0.5
    powers = normal[power].astype(KINDS[dtype])
    assert powers.size > 10
    assert decoded(Floats(powers=True), powers, dtype)[1].damage is None
    odd = normal[~power]
    for value in odd[:: max(len(odd) // 50, 1)]:  # each by itself
        one = np.array([value]).astype(KINDS[dtype])
        assert decoded(Floats(powers=True), one, dtype)[1].damage is not None


# --- Copies


@pytest.mark.parametrize("place", PLACES)
def test_copied(place: str) -> None:
    """Every byte, from any place."""
    raw = np.concatenate([np.zeros(place, np.uint8), np.arange(256, dtype=np.uint8)])[place:]
    part = Stored("t", "U8", (16, 16), 0, 0, 256)
    out = np.zeros(256, np.uint8)
    codec = Copied()
    assert codec.decode((part,), Rect(0, 256, 0, 1), [raw], out, "U8") == Findings()
    assert out.tobytes() == bytes(range(256))
    assert codec.spans((part,), Rect(16, 48, 0, 1))[0][:2] == (16, 48)
    assert codec.to_dict() == {"codec": "copied"}
    assert codec.coded is False


@pytest.mark.parametrize(("dtype", "kind"), [("I32", "<i4"), ("I64", "<i8")])
@pytest.mark.parametrize(
    ("shape", "damage"),
    [((300, 96), None), ((300, 95), "[300, 95], expected [300, 96]"),
     ((96, 300), "[96, 300], expected [300, 96]"), ((-300, 96), "[-300, 96], expected [300, 96]")],
)  # fmt: skip
def test_shapes_of_packed_integers(
    dtype: str, kind: str, shape: tuple[int, int], damage: str | None
) -> None:
    """Kimi's are I32; I64 is written. One that is not the weight's is damage."""
    raw = np.array(shape, kind).view(np.uint8)
    part = Stored("t", dtype, (2,), 0, 0, raw.size)
    codec, out = CopiedShape(expected=(300, 96)), np.zeros(2, np.int64)
    found = codec.decode((part,), Rect(0, 2, 0, 1), [raw], out, "I64")
    assert tuple(out) == shape
    assert found.damage == damage
    assert codec.spans((part,), Rect(0, 2, 0, 1))[0][:2] == (0, raw.size)


class Case(NamedTuple):
    """Codes [5, 64] of one byte or half of one, in blocks of a row of 32 or 16."""

    codec: Blocks
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    nan: bool  # whether some codes are


CASES = {
    "fp8": Case(Fp8Block((1, 32)), (("F8_E4M3", (5, 64)), ("F32", (5, 2))), True),
    "mxfp4": Case(Fp4Block(32), (("U8", (5, 32)), ("F8_E8M0", (5, 2))), False),
    "int8": Case(Int8Block((1, 32)), (("I8", (5, 64)), ("F32", (5, 2))), False),
    "int4": Case(PackedInt(4, 32, ("shape",)), (("I32", (5, 8)), ("F32", (5, 2)), ("I64", (2,))),
                 False),
}  # fmt: skip


def copied(case: Case, codes: bytes, scales: list[float], rect: Rect) -> str | None:
    """What copying ``rect`` (in bytes) finds; the bytes are checked."""
    numbers = [np.array(scales, KINDS[case.parts[1][0]]).view(np.uint8)]
    data = [np.frombuffer(codes, np.uint8), *numbers, np.array([5, 64], "<i8").view(np.uint8)]
    parts = tuple(
        Stored(f"t{n}", dtype, shape, n, 0, raw.size)
        for n, ((dtype, shape), raw) in enumerate(zip(case.parts, data, strict=False))
    )
    codec = CopiedCodes(case.codec, case.parts[0][1])
    assert codec.check(parts) is None
    assert codec.shape(parts) == case.parts[0][1]
    spans = codec.spans(parts, rect)
    out = np.zeros((rect.r1 - rect.r0) * (rect.c1 - rect.c0), np.uint8)
    reads = [raw[s.begin : s.end] for raw, s in zip(data, spans, strict=False)]
    found = codec.decode(parts, rect, reads, out, case.parts[0][0])
    row = len(codes) // 5
    matrix = np.frombuffer(codes, np.uint8).reshape(5, row)
    expected = matrix[rect.r0 : rect.r1, rect.c0 : rect.c1]
    assert out.tobytes() == expected.tobytes()
    return found.damage


@pytest.mark.parametrize("kind", CASES)
def test_codes_are_copied(kind: str) -> None:
    """Whole rows and runs in a row, down to what one scale is for."""
    case = CASES[kind]
    row = {"fp8": 64, "int8": 64}.get(kind, 32)
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 127, 5 * row).astype(np.uint8).tobytes()
    for rect in (Rect(0, 5, 0, row), Rect(2, 4, 0, row), Rect(3, 4, row // 2, row)):
        assert copied(case, codes, [1.0] * 10, rect) is None
    grid = CopiedCodes(case.codec, case.parts[0][1]).grid(
        [Stored("t", dtype, shape, 0, 0, 0) for dtype, shape in case.parts]
    )
    assert (grid.rows, grid.columns) == (5, row)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 0.0])
def test_scales_beside_codes_that_are_copied(kind: str, value: float) -> None:
    """Damage as in decoding, and where; scales of integers may be below 0."""
    case = CASES[kind]
    if kind == "mxfp4" and not np.isnan(value):
        return  # its exponents have no such values
    scales = [1.0] * 10
    scales[5] = value  # of row 2, the second half
    row = {"fp8": 64, "int8": 64}.get(kind, 32)
    whole, before = Rect(0, 5, 0, row), Rect(0, 2, 0, row)
    codes = b"\1" * (5 * row)
    damage = copied(case, codes, scales, whole)
    if kind.startswith("int") and value == -0.5:
        assert damage is None
    else:
        assert damage is not None
        assert damage.startswith(f"scale {value if value else 0}")
        assert "at block row 2, column 1" in damage
    assert copied(case, codes, scales, before) is None
    if value == 0 and kind == "fp8":
        zeros = b"\0" * (5 * row)
        assert copied(case, zeros, scales, whole) is None


@pytest.mark.parametrize("value", range(256))
def test_which_codes_are_damage(value: int) -> None:
    """Those that ml_dtypes reads as NaN; the message says where."""
    codes = bytearray(5 * 64)
    codes[3 * 64 + 17] = value
    number = np.array([value], np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    expected = "a NaN code at row 3, column 17" if np.isnan(number[0]) else None
    assert copied(CASES["fp8"], bytes(codes), [1.0] * 10, Rect(0, 5, 0, 64)) == expected
    assert copied(CASES["mxfp4"], bytes(codes[:160]), [1.0] * 10, Rect(0, 5, 0, 32)) is None
