"""The kernels, bit for bit: against torch's float8, a plain formula, and each other."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from fp8convert import kernels
from fp8convert.errors import UsageError
from fp8convert.kernels import compiled, plain

from .oracle import e4m3fn

TWINS = pytest.mark.parametrize("kernel", [compiled, plain], ids=["compiled", "plain"])
SCALES = np.array(
    [1.0, 0.5, 3.0e-4, 1 / 3, 2.0**-120, 2.0**-126, 2.0**-130, 2.0**-149, 2.0**100, 2.0**127,
     3.4e38, 7.3e35, 0.0, -1.5, -0.0, np.inf, -np.inf, np.nan, 1.1754942e-38, 2.0**-7, 448.0],
    np.float32,
)  # fmt: skip
EVERY_CODE = np.arange(256, dtype=np.uint8)


def torch_product(codes: np.ndarray, scales: np.ndarray) -> torch.Tensor:
    """float32(code) * scale, element by element, by torch."""
    return torch.from_numpy(codes).view(torch.float8_e4m3fn).float() * torch.from_numpy(scales)


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


@TWINS
@pytest.mark.parametrize(("out", "dtype"), [(np.uint16, torch.bfloat16), (np.float32, None)])
def test_every_code_by_every_kind_of_scale(kernel: ModuleType, out: type, dtype: object) -> None:
    codes = np.tile(EVERY_CODE, (len(SCALES), 1))
    got = np.empty(codes.shape, out)
    kernel.e4m3_blocks(codes, SCALES[:, None], 0, (1, 256), got)
    product = torch_product(codes, np.repeat(SCALES[:, None], 256, 1))
    assert_same_bits(got, product.to(torch.bfloat16) if dtype else product)


def test_healthy_scales_take_the_compiled_path_for_every_code() -> None:
    """NaN codes and odd scales fall back to the twin: without them the fast loop itself runs."""
    codes = np.delete(EVERY_CODE, [0x7F, 0xFF])
    good = SCALES[np.isfinite(SCALES) & (SCALES > 0)]
    for scale in good:
        fast = np.empty((1, codes.size), np.uint16)
        compiled._e4m3_rows(codes[None], np.array([[scale]]), 0, 1, codes.size, fast)
        product = torch_product(codes[None], np.full((1, codes.size), scale, np.float32))
        assert_same_bits(fast, product.to(torch.bfloat16))


def test_code_table_is_the_published_formula() -> None:
    ours = [plain.e4m3_value(c) for c in range(256)]
    np.testing.assert_array_equal(ours, [e4m3fn(c) for c in range(256)])


@TWINS
@pytest.mark.parametrize("block", [(128, 128), (1, 32), (32, 32), (3, 5), (128, 5000)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (257, 129), (128, 128), (5, 9000)])
@pytest.mark.parametrize("phase", [0, 1])
def test_ragged_shapes_and_blocks(
    kernel: ModuleType, block: tuple[int, int], shape: tuple[int, int], phase: int
) -> None:
    rng = np.random.default_rng(1)
    phase = phase * (block[0] - 1)  # the first row may lie anywhere in its block
    codes = rng.integers(0, 0x7F, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
    grid = (-(-(phase + shape[0]) // block[0]), -(-shape[1] // block[1]))
    scales = rng.random(grid, np.float32) + np.float32(1e-6)
    got = np.empty(shape, np.uint16)
    kernel.e4m3_blocks(codes, scales, phase, block, got)
    rows, columns = (phase + np.arange(shape[0])) // block[0], np.arange(shape[1]) // block[1]
    product = torch_product(codes, scales[rows][:, columns])
    assert_same_bits(got, product.to(torch.bfloat16))


def test_rounding_of_every_bfloat16_tie_and_neighbour() -> None:
    """Products that fall on, just above and just below the middle of two bfloat16 values."""
    upper = np.arange(0x8000, dtype=np.uint32) << 16
    bits = np.concatenate([upper | low for low in (0x7FFF, 0x8000, 0x8001, 0x0000)])
    values = bits.view(np.float32)
    values = values[np.isfinite(values) & (values > 0)]
    codes = np.full((values.size, 1), 0x38, np.uint8)  # 1.0
    got = np.empty(codes.shape, np.uint16)
    compiled.e4m3_blocks(codes, values[:, None], 0, (1, 1), got)
    assert_same_bits(got, torch.from_numpy(values[:, None]).to(torch.bfloat16))


@TWINS
def test_nan_codes_are_found_wherever_they_are(kernel: ModuleType) -> None:
    codes = np.delete(EVERY_CODE, [0x7F, 0xFF]).repeat(9)
    assert not kernel.has_nan_code(codes)
    for at in (0, 1000, codes.size - 1):
        for code in (0x7F, 0xFF):
            broken = codes.copy()
            broken[at] = code
            assert kernel.has_nan_code(broken)


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


CACHE_PROBE = """
import numpy as np
from fp8convert.kernels import compiled
out = np.empty((1, 2), np.uint16)
compiled.e4m3_blocks(np.array([[0x38, 1]], np.uint8), np.ones((1, 1), np.float32), 0, (1, 2), out)
assert out.tolist() == [[0x3F80, 0x3B00]], out
stats = getattr(compiled._e4m3_rows, "stats", None)
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
    kind = "print(type(compiled._e4m3_rows._cache).__name__)\n"
    done = subprocess.run(
        [sys.executable, "-c", no_locators + CACHE_PROBE + kind],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == "NullCache"
