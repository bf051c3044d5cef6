"""The kernels, bit for bit: against torch's float8, ml_dtypes' float4, formulas, each other."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
import torch

from fp8convert import kernels
from fp8convert.codecs.elements import ELEMENTS, Element
from fp8convert.errors import UsageError
from fp8convert.kernels import compiled, plain

from .oracle import e4m3fn

TWINS = pytest.mark.parametrize("kernel", [compiled, plain], ids=["compiled", "plain"])
EACH = pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS.keys())
OUT = pytest.mark.parametrize(("out", "dtype"), [(np.uint16, torch.bfloat16), (np.float32, None)])
SCALES = np.array(
    [1.0, 0.5, 3.0e-4, 1 / 3, 2.0**-120, 2.0**-126, 2.0**-130, 2.0**-149, 2.0**100, 2.0**127,
     3.4e38, 7.3e35, 0.0, -1.5, -0.0, np.inf, -np.inf, np.nan, 1.1754942e-38, 2.0**-7, 448.0],
    np.float32,
)  # fmt: skip
HEALTHY = SCALES[np.isfinite(SCALES) & (SCALES > 0)]
FP4 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
TORCH = {
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "int8": torch.int8,
    "uint8": torch.uint8,
}


def table(element: Element) -> np.ndarray:
    """float32 value of each code, by torch or ml_dtypes."""
    if element.name in TORCH:
        every = torch.arange(256, dtype=torch.uint8)
        return every.view(TORCH[element.name]).float().numpy()
    if element.name == "uint4":
        return np.arange(16, dtype=np.float32)
    values = FP4.copy()
    if element.name == "e2m1-unsigned-zero":
        values[8] = 0.0
    return np.tile(values, 16) if element.name == "e2m1-bytes" else values


def every_code(element: Element) -> np.ndarray:
    """Codes that ``element`` may meet, one a byte."""
    return np.arange(1 << element.width, dtype=np.uint8)


def odd_codes(element: Element) -> np.ndarray:
    """Those that no weight has."""
    codes = every_code(element)
    return codes[~np.isfinite(table(element)[codes])]


def legal_codes(element: Element) -> np.ndarray:
    return np.setdiff1d(every_code(element), odd_codes(element))


def packed(element: Element, codes: np.ndarray) -> np.ndarray:
    """``codes`` [r, c] as a kernel takes them."""
    if element.bits == 8:
        return codes
    return codes[:, 0::2] | codes[:, 1::2] << 4


def product(
    element: Element, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None
) -> torch.Tensor:
    """(float32(code) - zero) * scale, element by element, by torch."""
    values = torch.from_numpy(table(element)[codes])
    values = values if zeros is None else values - torch.from_numpy(zeros)
    return values * torch.from_numpy(scales)


def assert_same_bits(ours: np.ndarray, expected: torch.Tensor) -> None:
    """Equal bytes; a NaN matches any NaN, because torch itself writes several."""
    same_nan = np.isnan(expected.float().numpy())
    bits = {torch.bfloat16: torch.int16, torch.float32: torch.int32}[expected.dtype]
    wanted = expected.view(bits).numpy().view(ours.dtype if ours.dtype == np.uint16 else np.uint32)
    found = ours if ours.dtype == np.uint16 else ours.view(np.uint32)
    wrong = np.argwhere((found != wanted) & ~same_nan)
    assert not len(wrong), f"first at {wrong[0]}: {found[tuple(wrong[0])]:#x}"
    values = torch.from_numpy(ours.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.isnan(values if ours.dtype == np.uint16 else ours)[same_nan].all()


def zeros_for(element: Element, shape: tuple[int, ...]) -> np.ndarray | None:
    """Random zero points of an integer."""
    if element.is_float:
        return None
    low = -128 if element.signed else 0
    made = np.random.default_rng(2).integers(low, low + (1 << element.bits), shape)
    return made.astype(np.float32)


@EACH
def test_code_table_is_that_of_others(element: Element) -> None:
    """Values, and the sign of zero; which codes are odd; the largest magnitude."""
    codes, theirs = every_code(element), table(element)
    ours = plain.table(element)
    assert ours.shape == (1 << element.bits,)
    np.testing.assert_array_equal(ours[codes], theirs[codes])
    known = ~np.isnan(theirs[codes])
    np.testing.assert_array_equal(np.signbit(ours[codes])[known], np.signbit(theirs[codes])[known])
    assert np.abs(theirs[legal_codes(element)]).max() == element.largest


def test_code_table_is_the_published_formula() -> None:
    np.testing.assert_array_equal(plain.table(ELEMENTS["e4m3fn"]), [e4m3fn(c) for c in range(256)])


@TWINS
@EACH
@OUT
def test_every_code_by_every_kind_of_scale(
    kernel: ModuleType, element: Element, out: type, dtype: object
) -> None:
    """Row by row, so that one odd scale does not send all others on the slow path; and at once."""
    codes = np.tile(every_code(element), (len(SCALES), 1))
    wide = np.repeat(SCALES[:, None], codes.shape[1], 1)
    zeros = zeros_for(element, (len(SCALES), 1))
    offset = None if zeros is None else np.repeat(zeros, codes.shape[1], 1)
    expected = product(element, codes, wide, offset)
    expected = expected.to(torch.bfloat16) if dtype else expected
    got = np.empty(codes.shape, out)
    block = (1, codes.shape[1])
    kernel.decode(element, packed(element, codes), SCALES[:, None], zeros, 0, block, got)
    assert_same_bits(got, expected)
    for r in range(len(SCALES)):
        row = None if zeros is None else zeros[r : r + 1]
        stored = packed(element, codes[r : r + 1])
        kernel.decode(element, stored, SCALES[r : r + 1, None], row, 0, block, got[r : r + 1])
    assert_same_bits(got, expected)


@EACH
@OUT
def test_healthy_scales_take_the_compiled_path_for_every_code(
    element: Element, out: type, dtype: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd codes and scales fall back to the twin: without them the fast loop itself runs."""

    def never(*args: object) -> None:
        raise AssertionError("the plain twin ran")

    monkeypatch.setattr(plain, "decode", never)
    codes = legal_codes(element)[None]
    codes = codes[:, : codes.shape[1] // 2 * 2]
    zeros = zeros_for(element, (1, 1))
    for scale in HEALTHY if element.is_float else np.concatenate([HEALTHY, -HEALTHY]):
        fast = np.empty(codes.shape, out)
        grid = np.array([[scale]])
        stored = packed(element, codes)
        compiled.decode(element, stored, grid, zeros, 0, (1, codes.shape[1]), fast)
        wide = np.full(codes.shape, scale, np.float32)
        offset = None if zeros is None else np.broadcast_to(zeros, codes.shape).copy()
        expected = product(element, codes, wide, offset)
        assert_same_bits(fast, expected.to(torch.bfloat16) if dtype else expected)


@EACH
@OUT
def test_odd_input_is_the_plain_twins(
    element: Element, out: type, dtype: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN and sign rules are in one place: the compiled kernel hands such input over.

    A scale below 0 is odd for a float only, whose sign is put on by bits.
    """
    calls: list[object] = []
    monkeypatch.setattr(plain, "decode", lambda *args: calls.append(args))
    codes = packed(element, legal_codes(element)[None, :4])
    one, got = np.ones((1, 1), np.float32), np.empty((1, 4), out)
    signs = (-1.0, -0.0) if element.is_float else ()  # an integer's product has its sign anyway
    for scale in (*signs, np.nan, np.inf):
        compiled.decode(element, codes, one * np.float32(scale), None, 0, (1, 4), got)
    for code in odd_codes(element):
        broken = codes.copy()
        broken[0, 3] = code
        compiled.decode(element, broken, one, None, 0, (1, 4), got)
    assert len(calls) == 2 + len(signs) + len(odd_codes(element))


BLOCKS = [(128, 128), (1, 32), (32, 32), (3, 6), (16, 1), (1, 1), (128, 5000), (2, 4096), (1, 9000)]


@TWINS
@EACH
@pytest.mark.parametrize("phase", [0, 1])
def test_ragged_shapes_and_blocks(kernel: ModuleType, element: Element, phase: int) -> None:
    """Among them blocks wider than a pass of 4,096 columns, and passes that end within one."""
    rng = np.random.default_rng(1)
    shapes = [(1, 1), (1, 300), (300, 1), (130, 129), (64, 64), (2, 9000), (3, 4097)]
    for rows, columns in shapes:
        shape = rows, columns + (columns % 2 if element.bits == 4 else 0)
        codes = rng.choice(legal_codes(element), shape)
        stored = packed(element, codes)
        for block in BLOCKS:
            first = phase * (block[0] - 1)  # the first row may lie anywhere in its block
            grid = (-(-(first + shape[0]) // block[0]), -(-shape[1] // block[1]))
            scales = rng.random(grid, np.float32) + np.float32(1e-6)
            zeros = zeros_for(element, grid)
            got = np.full(shape, 7, np.uint16)
            kernel.decode(element, stored, scales, zeros, first, block, got)
            at = np.ix_((first + np.arange(shape[0])) // block[0], np.arange(shape[1]) // block[1])
            offset = None if zeros is None else zeros[at]
            expected = product(element, codes, scales[at], offset).to(torch.bfloat16)
            assert_same_bits(got, expected)


@TWINS
@pytest.mark.parametrize("name", ["e4m3fn", "uint8", "int8", "e2m1-bytes"])
def test_odd_block_widths_of_codes_of_a_byte(kernel: ModuleType, name: str) -> None:
    element, rng = ELEMENTS[name], np.random.default_rng(3)
    for width in (3, 5, 7, 4095, 4097):
        codes = rng.choice(legal_codes(element), (2, 9001))
        scales = rng.random((2, -(-9001 // width)), np.float32) + np.float32(1e-6)
        got = np.empty(codes.shape, np.float32)
        kernel.decode(element, codes, scales, None, 0, (1, width), got)
        assert_same_bits(got, product(element, codes, scales[:, np.arange(9001) // width]))


@TWINS
@EACH
def test_slices_of_larger_arrays(kernel: ModuleType, element: Element) -> None:
    """Codes, scales, zero points and output need not be contiguous."""
    rng = np.random.default_rng(4)
    codes = rng.choice(legal_codes(element), (6, 64))
    scales = rng.random((6, 9), np.float32)[::2, 3:7]
    zeros = zeros_for(element, (3, 9))
    zeros = None if zeros is None else zeros[:, 3:7]
    got = np.zeros((6, 80), np.uint16)
    stored = np.zeros((6, 100), np.uint8)
    part = packed(element, codes)
    stored[:, 7 : 7 + part.shape[1]] = part
    inside = stored[:, 7 : 7 + part.shape[1]]
    kernel.decode(element, inside, scales, zeros, 0, (2, 16), got[:, 8:72])
    at = np.ix_(np.arange(6) // 2, np.arange(64) // 16)
    expected = product(element, codes, scales[at], None if zeros is None else zeros[at])
    assert_same_bits(got[:, 8:72].copy(), expected.to(torch.bfloat16))
    assert not got[:, :8].any()
    assert not got[:, 72:].any()


@TWINS
@pytest.mark.parametrize("name", ["uint4", "uint8", "int8"])
def test_every_zero_point_by_every_code(kernel: ModuleType, name: str) -> None:
    element = ELEMENTS[name]
    kinds = table(element)
    codes = np.tile(every_code(element), (len(kinds), 1))
    for scale in (np.float32(0.013), np.float32(2.0**-140), np.float32(3e38)):
        scales = np.full((len(kinds), 1), scale)
        got = np.empty(codes.shape, np.uint16)
        stored = packed(element, codes)
        kernel.decode(element, stored, scales, kinds[:, None], 0, (1, len(kinds)), got)
        wide = np.full(codes.shape, scale)
        offset = np.repeat(kinds[:, None], len(kinds), 1)
        assert_same_bits(got, product(element, codes, wide, offset).to(torch.bfloat16))


@TWINS
@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e2m1-bytes", "uint8"])
def test_rounding_of_every_bfloat16_tie_and_neighbour(kernel: ModuleType, name: str) -> None:
    """Products that fall on, just above and just below the middle of two bfloat16 values."""
    element = ELEMENTS[name]
    (one,) = np.flatnonzero(table(element)[every_code(element)] == 1.0)
    upper = np.arange(0x8000, dtype=np.uint32) << 16
    bits = np.concatenate([upper | low for low in (0x7FFF, 0x8000, 0x8001, 0x0000)])
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (values > 0)]
    codes = np.full((values.size, 1), one, np.uint8)
    got = np.empty(codes.shape, np.uint16)
    kernel.decode(element, codes, values[:, None], None, 0, (1, 1), got)
    assert_same_bits(got, torch.from_numpy(values[:, None]).to(torch.bfloat16))


@TWINS
@EACH
def test_odd_codes_are_found_wherever_they_are(kernel: ModuleType, element: Element) -> None:
    codes = legal_codes(element)[None].repeat(9, 0)[:, : len(legal_codes(element)) // 2 * 2]
    codes = packed(element, codes).reshape(-1)
    assert not kernel.has_odd_code(element, codes)
    assert not kernel.has_odd_code(element, codes[:0])
    for code in odd_codes(element):
        for at in (0, 1, 31, 1000, codes.size - 1):
            broken = codes.copy()
            broken[at] = code
            assert kernel.has_odd_code(element, broken)
    for code in odd_codes(element)[:1]:
        for at in range(70):
            broken = codes[:70].copy()
            broken[at] = code
            assert kernel.has_odd_code(element, broken)


@TWINS
def test_transpose_nibbles(kernel: ModuleType) -> None:
    rng = np.random.default_rng(5)
    for n, b in (
        (1, 1),
        (1, 70),
        (70, 1),
        (64, 16),
        (65, 33),
        (72, 24),
        (136, 9),
        (200, 3),
        (0, 4),
        (4, 0),
    ):
        whole = rng.integers(0, 256, (n, b + 9), np.uint8)
        for source in (whole[:, 4 : 4 + b], whole[:, 4 : 4 + b].copy()):
            got = np.full((2 * b, n), 99, np.uint8)
            kernel.transpose_nibbles(source, got)
            for k in range(b):
                assert got[2 * k].tolist() == [int(s) & 15 for s in source[:, k]]
                assert got[2 * k + 1].tolist() == [int(s) >> 4 for s in source[:, k]]


@TWINS
@OUT
@pytest.mark.parametrize("name", ["uint4", "uint8", "int8"])
def test_a_group_for_each_column(kernel: ModuleType, name: str, out: type, dtype: object) -> None:
    """In any order, over more columns than a pass has; scales of either sign."""
    element, rng = ELEMENTS[name], np.random.default_rng(6)
    for rows, columns, groups in ((1, 2, 1), (70, 34, 5), (3, 4096, 128), (2, 9002, 7)):
        codes = rng.choice(legal_codes(element), (rows, columns))
        scales = rng.standard_normal((rows, groups)).astype(np.float32)
        zeros = zeros_for(element, (rows, groups))
        assert zeros is not None
        group_of = rng.integers(0, groups, columns).astype(np.int32)
        got = np.full((rows, columns), 7, out)
        kernel.decode_columns(element, packed(element, codes), scales, zeros, group_of, got)
        expected = product(element, codes, scales[:, group_of], zeros[:, group_of])
        assert_same_bits(got, expected.to(torch.bfloat16) if dtype else expected)


@TWINS
def test_transposed(kernel: ModuleType) -> None:
    rng = np.random.default_rng(7)
    for kind in (np.uint32, np.float32):
        for r, c in ((1, 1), (1, 70), (70, 1), (64, 64), (65, 33), (3, 200)):
            whole = rng.integers(0, 1 << 31, (r, c + 9)).astype(kind)
            for source in (whole[:, 4 : 4 + c], whole[:, :c].copy()):
                got = kernel.transposed(source)
                assert got.dtype == kind
                assert got.flags.c_contiguous
                assert got.tolist() == source.T.tolist()


@TWINS
def test_nothing_to_decode(kernel: ModuleType) -> None:
    for name in ("e4m3fn", "uint4"):
        for shape in ((0, 8), (3, 0)):
            codes = np.zeros((shape[0], shape[1] // (8 // ELEMENTS[name].bits)), np.uint8)
            scales = np.ones((shape[0], -(-shape[1] // 4)), np.float32)
            out = np.empty(shape, np.uint16)
            kernel.decode(ELEMENTS[name], codes, scales, None, 0, (1, 4), out)


def test_choice_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FP8CONVERT_KERNELS", raising=False)
    assert kernels.load() is compiled
    monkeypatch.setenv("FP8CONVERT_KERNELS", "numpy")
    assert kernels.load() is plain
    monkeypatch.setenv("FP8CONVERT_KERNELS", "cuda")
    with pytest.raises(UsageError, match="'cuda', expected numba or numpy"):
        kernels.load()


def test_without_numba_the_plain_twin_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FP8CONVERT_KERNELS", raising=False)
    monkeypatch.delitem(sys.modules, "fp8convert.kernels.compiled")
    monkeypatch.delattr(kernels, "compiled")
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises ImportError
    assert kernels.load() is plain


def test_twins_export_the_same() -> None:
    for name in ("decode", "decode_columns", "has_odd_code", "transpose_nibbles", "transposed"):
        assert callable(getattr(plain, name))
        assert callable(getattr(compiled, name))


CACHE_PROBE = """
import numpy as np
from fp8convert.codecs.elements import ELEMENTS
from fp8convert.kernels import compiled
out, codes = np.empty((1, 2), np.uint16), np.array([[0x38, 1]], np.uint8)
compiled.decode(ELEMENTS["e4m3fn"], codes, np.ones((1, 1), np.float32), None, 0, (1, 2), out)
assert out.tolist() == [[0x3F80, 0x3B00]], out
stats = getattr(compiled._float_rows, "stats", None)
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def probe(tmp_path: str, **environment: str) -> str:
    """Cache hits and misses of a fresh process."""
    env = {"PATH": "/usr/bin:/bin", "HOME": tmp_path, **environment}
    return subprocess.run(
        [sys.executable, "-c", CACHE_PROBE], env=env, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_only_the_first_process_compiles(tmp_path: object) -> None:
    cache = str(tmp_path)
    assert probe(cache, NUMBA_CACHE_DIR=cache) == "0 1"
    assert probe(cache, NUMBA_CACHE_DIR=cache) == "1 0"


def test_a_read_only_install_without_any_cache_folder_still_works() -> None:
    no_locators = "from numba.core import caching\ncaching.CacheImpl._locator_classes = []\n"
    kind = "print(type(compiled._float_rows._cache).__name__)\n"
    done = subprocess.run(
        [sys.executable, "-c", no_locators + CACHE_PROBE + kind],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "NullCache"


@pytest.mark.parametrize("columns", [4500, 9000])
@pytest.mark.parametrize("wide", [3, 5, 4097])
@pytest.mark.parametrize("name", ["e2m1", "uint4"])
def test_blocks_that_split_a_byte_are_the_twins(name: str, wide: int, columns: int) -> None:
    element = ELEMENTS[name]
    codes = np.random.default_rng(0).integers(0, 256, (3, columns // 2), np.uint8)
    scales = np.random.default_rng(1).random((3, -(-columns // wide)), np.float32) + 1
    zeros = None if element.is_float else scales * 4
    fast, slow = np.empty((3, columns), np.uint16), np.empty((3, columns), np.uint16)
    compiled.decode(element, codes, scales, zeros, 0, (1, wide), fast)
    plain.decode(element, codes, scales, zeros, 0, (1, wide), slow)
    assert fast.tobytes() == slow.tobytes()
