"""The encoding kernels, bit for bit: against ml_dtypes, NumPy, loops in Python, each other."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from fp8convert.codecs.elements import ELEMENTS, Element
from fp8convert.kernels import compiled, plain

TWINS = pytest.mark.parametrize("kernel", [compiled, plain], ids=["compiled", "plain"])
EACH = pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS.keys())
FP4 = ml_dtypes.float4_e2m1fn
THEIRS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e2m1": FP4,
    "e2m1-bytes": FP4,
    "e2m1-unsigned-zero": FP4,
}
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "uint4": (0, 15)}
SCALES = [1.0, 2.0**-7, 2.0**20, 1 / 3, 0.0123, 448.0, 2.0**-126, 1.1e-38, 2.0**-149, 3.4e38]
BLOCKS = [(128, 128), (1, 16), (1, 32), (2, 48), (1, 64), (3, 6), (3, 7), (1, 1), (16, 1),
          (1, 9002), (2, 4096), (1, 1040), (5, 1500)]  # fmt: skip
SHAPES = [(1, 2), (1, 300), (130, 130), (64, 64), (5, 36), (3, 4098), (2, 9002)]


def zeros_of(element: Element) -> list[float]:
    """Zero points to try: none, the middle, odd, the ends."""
    if element.is_float:
        return [0.0]
    low, high = LIMITS[element.name]
    return [0.0, float(low + high + 1 >> 1), 5.0, float(low), float(high)]


def wanted(element: Element, ratio: np.ndarray, zero: float = 0.0) -> np.ndarray:
    """uint8 code of each float32 of x / scale, by ml_dtypes and np.rint."""
    if not element.is_float:
        whole = np.rint(ratio.astype(np.float64)) + zero
        return np.clip(whole, *LIMITS[element.name]).astype(np.int64).astype(np.uint8)
    clamped = np.clip(ratio, -np.float32(element.largest), np.float32(element.largest))
    codes = clamped.astype(THEIRS[element.name]).view(np.uint8)
    return np.where(codes == 8, np.uint8(0), codes) if "unsigned" in element.name else codes


def packed(element: Element, codes: np.ndarray) -> np.ndarray:
    return codes[:, 0::2] | codes[:, 1::2] << 4 if element.bits == 4 else codes


def divided(x: np.ndarray, scales: np.ndarray | np.float32) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return x / scales


def encoded(
    kernel: ModuleType,
    element: Element,
    x: np.ndarray,
    scales: np.ndarray,
    block: tuple[int, int],
    zero: float = 0.0,
    phase: int = 0,
) -> np.ndarray:
    out = np.full((x.shape[0], x.shape[1] // (8 // element.bits)), 99, np.uint8)
    kernel.encode(element, x, scales, zero, phase, block, out)
    return out


def with_neighbours(values: np.ndarray) -> np.ndarray:
    """float32, their neighbours on either side, and the negatives of all; an even number."""
    values = np.abs(values).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        around = [np.nextafter(values, np.float32(to)) for to in (0.0, np.inf)]
    every = np.concatenate([values, *around])
    every = every[np.isfinite(every)]
    return np.concatenate([every, -every])


def telling(element: Element) -> np.ndarray:
    """Every code's value, every middle of two, zeros, subnormals, huge ones; neighbours of all."""
    if element.is_float:
        values = np.arange(256 if element.width == 8 else 16, dtype=np.uint8)
        values = values.view(THEIRS[element.name]).astype(np.float64)
        values = np.unique(np.abs(values[np.isfinite(values)]))
    else:
        values = np.arange(0.0, 300.0)
    middles = (values[:-1] + values[1:]) / 2
    least = values[1] * 2.0 ** -np.arange(8)
    odd = [2.0**-149, 1e-45, 1e-40, 2.0**-126, 2.0**22 + 0.5, 2.0**23 - 0.5, 2.0**31, 2.0**32 + 512,
           464.0, 480.0, 65536.0, 1e30, 3.4028235e38]  # fmt: skip
    return with_neighbours(np.concatenate([values, middles, least, odd]))


@TWINS
@EACH
@pytest.mark.parametrize("scale", SCALES)
def test_every_value_and_middle_by_every_scale(
    kernel: ModuleType, element: Element, scale: float
) -> None:
    """Of x / scale, where the scale is a power of two; next to it, where the product rounds."""
    with np.errstate(over="ignore", under="ignore"):
        x = telling(element) * np.float32(scale)
    x = with_neighbours(x[np.isfinite(x)])[None]
    for sign in (1.0,) if element.is_float else (1.0, -1.0):
        scales = np.full((1, 1), sign * scale, np.float32)
        ratio = divided(x, scales)
        for zero in zeros_of(element):
            got = encoded(kernel, element, x, scales, (1, x.shape[1]), zero)
            np.testing.assert_array_equal(got, packed(element, wanted(element, ratio, zero)))


@TWINS
@EACH
def test_every_bfloat16_and_its_neighbours(kernel: ModuleType, element: Element) -> None:
    upper = np.arange(0x10000, dtype=np.uint32) << 16
    x = np.concatenate([upper, upper + 1, upper - 1]).view(np.float32)
    x = x[np.isfinite(x)]
    x = x[: x.size // 32 * 32].reshape(32, -1)
    for columns in (16, x.shape[1]):  # by either loop
        scales = np.ones((32, -(-x.shape[1] // columns)), np.float32)
        got = encoded(kernel, element, x, scales, (1, columns))
        np.testing.assert_array_equal(got, packed(element, wanted(element, x)))


@TWINS
def test_zero_keeps_its_sign_where_the_format_has_both(kernel: ModuleType) -> None:
    x, one = np.array([[0.0, -0.0, 2.0**-140, -(2.0**-140)]], np.float32), np.ones((1, 1))
    minus = {"e4m3fn": 0x80, "e5m2": 0x80, "e2m1-bytes": 8, "e4m3fnuz": 0, "int8": 0, "uint8": 0}
    for name, code in minus.items():
        got = encoded(kernel, ELEMENTS[name], x, one.astype(np.float32), (1, 4))
        assert got.tolist() == [[0, code, 0, code]]
    assert encoded(kernel, ELEMENTS["e2m1"], x, one.astype(np.float32), (1, 4)).tolist() == [
        [0x80, 0x80]
    ]


def grid_of(shape: tuple[int, int], phase: int, block: tuple[int, int]) -> tuple[int, int]:
    return -(-(phase + shape[0]) // block[0]), -(-shape[1] // block[1])


def cell_of(shape: tuple[int, int], phase: int, block: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Index of each element's cell."""
    return np.ix_((phase + np.arange(shape[0])) // block[0], np.arange(shape[1]) // block[1])


def weights(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """float32 of many exponents, some of them 0."""
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 3, shape)
    return np.where(rng.random(shape) < 0.05, 0.0, x).astype(np.float32)


@TWINS
@EACH
@pytest.mark.parametrize("phase", [0, 1])
def test_ragged_shapes_and_blocks(kernel: ModuleType, element: Element, phase: int) -> None:
    """Of other codes where each cell has its neighbour's scale: the control."""
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        for block in BLOCKS:
            first = phase * (block[0] - 1)
            x, scales = weights(rng, shape), rng.random(grid_of(shape, first, block), np.float32)
            scales = (scales + np.float32(0.01)) / np.float32(element.largest)
            at = cell_of(shape, first, block)
            zero = zeros_of(element)[1 % len(zeros_of(element))]
            got = encoded(kernel, element, x, scales, block, zero, first)
            codes = wanted(element, divided(x, scales[at]), zero)
            np.testing.assert_array_equal(got, packed(element, codes))
            if scales.size > 1 and x.size > 100:
                shifted = np.roll(scales, 1).reshape(scales.shape)[at]
                assert (codes != wanted(element, divided(x, shifted), zero)).any()


@EACH
def test_a_product_with_the_reciprocal_would_be_found(element: Element) -> None:
    """Control: the values of the tests above tell it from a division."""
    values = telling(element)
    values = values[np.abs(values) < 1e30]
    found = 0
    for scale in map(np.float32, SCALES[3:6]):
        x = with_neighbours(values * scale)
        found += (wanted(element, x / scale) != wanted(element, x * (1 / scale))).sum()
    assert found > 10


@TWINS
@pytest.mark.parametrize("name", ["e4m3fn", "e2m1", "uint4", "int8"])
def test_parts_of_larger_arrays(kernel: ModuleType, name: str) -> None:
    """Grids and output need not be contiguous; nothing is written beside them."""
    element, rng = ELEMENTS[name], np.random.default_rng(2)
    x = weights(rng, (6, 64))
    scales = (rng.random((6, 9), np.float32) + np.float32(0.1))[::2, 3:7]
    codes = packed(element, wanted(element, divided(x, scales[cell_of((6, 64), 0, (2, 16))])))
    out = np.full((6, 100), 99, np.uint8)
    kernel.encode(element, x, scales, 0.0, 0, (2, 16), out[:, 7 : 7 + codes.shape[1]])
    np.testing.assert_array_equal(out[:, 7 : 7 + codes.shape[1]], codes)
    assert (out[:, :7] == 99).all()
    assert (out[:, 7 + codes.shape[1] :] == 99).all()


def measured(
    kernel: ModuleType, x: np.ndarray, phase: int, block: tuple[int, int], rows: int = 10**9
) -> tuple[np.ndarray, np.ndarray]:
    """Both grids, brought by calls of ``rows`` rows."""
    grids = np.zeros((2, *grid_of(x.shape, phase, block)), np.uint32)
    for r in range(0, x.shape[0], rows):
        cells = grids[:, (phase + r) // block[0] :]
        kernel.measure(x[r : r + rows], (phase + r) % block[0], block, *cells)
    return grids[0], grids[1]


@TWINS
@pytest.mark.parametrize("phase", [0, 1])
def test_measure(kernel: ModuleType, phase: int) -> None:
    rng = np.random.default_rng(3)
    for shape in SHAPES[:6]:
        coarse = weights(rng, shape).view(np.uint32) & ~np.uint32(0x0F0F)
        x = coarse.view(np.float32)
        for block in BLOCKS:
            first = phase * (block[0] - 1)
            top, bits = measured(kernel, x, first, block)
            size, used = np.zeros(top.shape, np.float32), np.zeros(top.shape, np.uint32)
            cells = np.broadcast_arrays(*cell_of(shape, first, block))
            np.maximum.at(size, tuple(cells), np.abs(x))
            np.bitwise_or.at(used, tuple(cells), x.view(np.uint32) & 0x7FFFFF)
            np.testing.assert_array_equal(top.view(np.float32), size)
            np.testing.assert_array_equal(bits, used)
            assert not (bits & 0x0F0F).any()
            for rows in (1, 3, 7):
                assert measured(kernel, x, first, block, rows)[0].tolist() == top.tolist()
                assert measured(kernel, x, first, block, rows)[1].tolist() == bits.tolist()


@TWINS
@pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf, -np.inf])
def test_measure_shows_what_is_not_finite(kernel: ModuleType, odd: float) -> None:
    for block in ((1, 16), (4, 128), (1, 7)):
        x = np.full((4, 200), -3.4028235e38, np.float32)
        assert measured(kernel, x, 0, block)[0].max() < 0x7F800000
        x[2, 130] = odd
        top = measured(kernel, x, 0, block)[0]
        assert (top >= 0x7F800000).sum() == 1
        assert top[2 // block[0], 130 // block[1]] >= 0x7F800000


def by_neighbours(terms: list[float]) -> float:
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[0::2], terms[1::2], strict=True)]
    return terms[0]


def squared_errors(x: np.ndarray, y: np.ndarray, phase: int, block: tuple[int, int]) -> np.ndarray:
    """The documented order, in Python's floats."""
    out = np.zeros(grid_of(x.shape, phase, block))
    terms = ((x.astype(np.float64) - y.astype(np.float64)) ** 2).tolist()
    for r, row in enumerate(terms):
        for b in range(out.shape[1]):
            part = row[b * block[1] : (b + 1) * block[1]]
            part += [0.0] * (-len(part) % 16)
            for k in range(0, len(part), 16):
                out[(phase + r) // block[0], b] += by_neighbours(part[k : k + 16])
    return out


@TWINS
@pytest.mark.parametrize("phase", [0, 1])
def test_squared_error_is_summed_in_the_documented_order(kernel: ModuleType, phase: int) -> None:
    """However the rows are shared out to calls. Sums differ by order, and by a contraction."""
    rng, otherwise = np.random.default_rng(4), False
    for shape in SHAPES:
        x, y = weights(rng, shape), weights(rng, shape)
        for block in BLOCKS:
            first = phase * (block[0] - 1)
            expected = squared_errors(x, y, first, block)
            for rows in (10**9, 3):
                got = np.zeros(expected.shape)
                for r in range(0, shape[0], rows):
                    part, at = slice(r, r + rows), first + r
                    cells = got[at // block[0] :]
                    kernel.squared_error(x[part], y[part], at % block[0], block, cells)
                assert got.tobytes() == expected.tobytes()
            by_rows = np.zeros(expected.shape)
            cells = np.broadcast_arrays(*cell_of(shape, first, block))
            np.add.at(by_rows, tuple(cells), (x.astype(np.float64) - y) ** 2)
            otherwise |= by_rows.tobytes() != expected.tobytes()
    assert otherwise


def test_squares_are_inexact_so_that_a_contraction_would_show() -> None:
    rng = np.random.default_rng(4)
    x, y = weights(rng, (5, 36)), weights(rng, (5, 36))
    d = (x.astype(np.float64) - y).reshape(-1)
    assert sum(Fraction(float(v)) ** 2 != Fraction(float(v * v)) for v in d) > 50


@TWINS
def test_errors_of_whole_numbers_are_exact(kernel: ModuleType) -> None:
    rng = np.random.default_rng(5)
    for shape in SHAPES:
        whole = rng.integers(-(2**12), 2**12, (2, *shape))
        x, y = whole.astype(np.float32)
        squares = (whole[0] - whole[1]) ** 2
        for block in BLOCKS:
            expected = np.zeros(grid_of(shape, 0, block), np.int64)
            np.add.at(expected, tuple(np.broadcast_arrays(*cell_of(shape, 0, block))), squares)
            got = np.full(expected.shape, 3.0)  # added to
            kernel.squared_error(x, y, 0, block, got)
            assert got.tolist() == (expected + 3).tolist()
        largest, error, square = kernel.difference(x, y)
        assert largest == np.abs(whole[0] - whole[1]).max()
        assert error == squares.sum()
        assert square == (whole[0] ** 2).sum()


def in_lanes(terms: list[float]) -> float:
    """The documented order, in Python's floats."""
    lanes, total = [0.0] * 64, 0.0
    for i, term in enumerate(terms):
        lanes[i % 64] += term
    for lane in lanes:
        total += lane
    return total


@TWINS
def test_difference_is_summed_in_the_documented_order(kernel: ModuleType) -> None:
    rng = np.random.default_rng(6)
    for shape in [*SHAPES, (1, 64 * 4096 + 1), (131, 2001)]:  # more than the twin takes in a step
        x, y = weights(rng, shape), weights(rng, shape)
        value = x.astype(np.float64).reshape(-1)
        d = value - y.reshape(-1)
        got = kernel.difference(x, y)
        assert [type(v) for v in got] == [float] * 3
        assert got[0] == np.abs(d).max()
        assert got[1] == in_lanes((d * d).tolist())
        assert got[2] == in_lanes((value * value).tolist())
    assert got[1] != (d * d).cumsum()[-1]  # another order, another sum
    assert kernel.difference(x, -x)[0] == 2 * float(np.abs(x).max())
    assert kernel.difference(x, x)[:2] == (0.0, 0.0)


@TWINS
def test_no_rows_or_columns(kernel: ModuleType) -> None:
    for shape in ((0, 32), (3, 0)):
        x, grid = np.zeros(shape, np.float32), grid_of(shape, 0, (1, 16))
        for name in ("e4m3fn", "uint4"):
            scales = np.ones(grid, np.float32)
            encoded(kernel, ELEMENTS[name], x, scales, (1, 16))
        kernel.measure(x, 0, (1, 16), np.zeros(grid, np.uint32), np.zeros(grid, np.uint32))
        for block in ((1, 16), (1, 3)):
            kernel.squared_error(x, x, 0, block, np.zeros(grid_of(shape, 0, block)))
        assert kernel.difference(x, x) == (0.0, 0.0, 0.0)


def test_twins_export_the_same() -> None:
    for name in ("difference", "encode", "measure", "squared_error"):
        assert callable(getattr(plain, name))
        assert callable(getattr(compiled, name))
        assert name in plain.__all__
        assert name in compiled.__all__
