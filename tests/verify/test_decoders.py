"""The decoders of ``verify --against``, against torch, ml_dtypes, and the formats' own oracles."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fp8convert.codecs.elements import ELEMENTS
from fp8convert.errors import DataError
from fp8convert.verify import loops, numbers
from fp8convert.verify.decoders import AWQ_ORDER, DECODERS, decode, nibbles
from fp8convert.verify.sides import opened
from fp8convert.verify.stored import Files, boxes

from ..checkpoints import write
from ..formats.case import Case
from ..formats.catalogue import all_cases
from ..test_formats import checkpoint

CASES = {c.id: c for c in all_cases()}
TORCH = {
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "int8": torch.int8,
    "uint8": torch.uint8,
}
EVERY = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("element", TORCH)
def test_every_code_is_what_torch_says(element: str) -> None:
    want = torch.from_numpy(EVERY.copy()).view(TORCH[element]).float().numpy()
    found = numbers.values(element)
    assert np.array_equal(found, want, equal_nan=True)
    sure = ~np.isnan(want)
    assert np.array_equal(np.signbit(found[sure]), np.signbit(want[sure]))


def test_four_bits_are_what_ml_dtypes_says() -> None:
    want = EVERY[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    found = numbers.values("e2m1")[:16]
    assert found.tobytes() == want.tobytes()
    assert numbers.values("e2m1-unsigned-zero")[8].tobytes() == np.float32(0).tobytes()
    assert numbers.values("uint4")[:16].tolist() == list(range(16))


def test_scales_are_what_torch_says() -> None:
    for tag, dtype in (("F8_E8M0", torch.float8_e8m0fnu), ("F8_E4M3", torch.float8_e4m3fn)):
        want = torch.from_numpy(EVERY.copy()).view(dtype).float().numpy()
        with np.errstate(over="ignore"):
            assert np.array_equal(numbers.as_float32(EVERY, tag), want, equal_nan=True)
    halves = np.arange(1 << 16, dtype=np.uint16)
    want = torch.from_numpy(halves.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    assert np.array_equal(numbers.as_float32(halves, "BF16"), want, equal_nan=True)


def test_no_element_is_without_a_table() -> None:
    for name in ELEMENTS:
        if name != "e2m1-bytes":  # how the converter unpacks; not a stored form
            assert numbers.values(name).shape == (256,)
    with pytest.raises(KeyError):
        numbers.values("e3m4")


@pytest.mark.parametrize("element", ["e4m3fn", "e5m2", "e2m1", "int8", "uint4"])
def test_limits_are_where_the_nearest_code_changes(element: str) -> None:
    """By trying: the code whose value is nearest to a number, for numbers on a fine grid."""
    table = numbers.values(element)
    above, below = numbers.limits(element)
    count = 16 if element in ("e2m1", "uint4") else 256
    codes = [c for c in range(count) if np.isfinite(table[c])]
    values = table[codes].astype(np.float64)
    order = np.unique(values)
    grid = np.concatenate([np.linspace(a, b, 9) for a, b in pairwise(order)])
    distance = np.abs(grid[:, None] - values[None, :])
    nearest = distance <= distance.min(axis=1, keepdims=True)
    off = grid[:, None] - values[None, :]
    allowed = (off <= above[codes]) & (-off <= below[codes])
    assert np.array_equal(allowed, nearest)


def test_what_clips_is_the_largest_code_alone() -> None:
    above, below = numbers.limits("e4m3fn")
    assert above[0x7E] == pytest.approx(448 * 5 / 3)
    assert below[0xFE] == above[0x7E]
    assert above[0x7D] == below[0xFD] == 16  # between 416 and 448
    assert numbers.limits("int8")[0][127] == pytest.approx(127.5 * 5 / 3)


def test_rounding_is_torch_s() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) + np.uint32(0x8000)
    x = np.concatenate([bits, ties, ties - 1, ties + 1]).view(np.float32)
    x = x[~np.isnan(x)]
    want = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(numbers.to_bfloat16(x), want)


def _piece(rows: int, columns: int, br: int, bc: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(rows * columns)
    codes = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    scales = rng.uniform(1e-4, 2, (-(-rows // br), -(-columns // bc))).astype(np.float32)
    return codes, scales, np.arange(rows) // br, np.arange(columns) // bc


@pytest.mark.parametrize("shape", [(300, 200, 128, 128), (7, 64, 1, 32), (5, 9, 5, 9)])
def test_the_loops_are_torch_s_product(shape: tuple[int, int, int, int]) -> None:
    codes, scales, down, across = _piece(*shape)
    zeros, table = np.zeros_like(scales), numbers.values("e4m3fn")
    out = np.empty(codes.shape, np.float32)
    loops.products(codes, table, zeros, scales, down, across, out)
    exact = torch.from_numpy(codes).view(torch.float8_e4m3fn).float()
    want = exact * torch.from_numpy(scales)[down][:, across]
    assert out.tobytes() == want.numpy().tobytes()
    stored = want.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16).copy()
    piece = (codes, table, zeros, scales, down, across)
    assert loops.bf16_differences(*piece, stored) == (0, -1)
    stored[-1, 3] ^= 1
    stored[-1, 5] ^= 0x8000
    at = (codes.shape[0] - 1) * codes.shape[1] + 3
    assert loops.bf16_differences(*piece, stored) == (2, at)


def test_nan_is_nan_whatever_its_bits() -> None:
    codes = np.array([[0x7F, 0xFF, 0x38]], np.uint8)
    one = np.ones((1, 1), np.float32)
    across, table = np.zeros(3, np.int64), numbers.values("e4m3fn")
    for nan in (0x7FC0, 0xFFFF, 0x7F81):
        stored = np.array([[nan, nan, 0x3F80]], np.uint16)
        piece = (codes, table, 0 * one, one, np.zeros(1, np.int64), across)
        assert loops.bf16_differences(*piece, stored) == (0, -1)
        stored[0, 1] = 0x7F80  # infinity is not
        assert loops.bf16_differences(*piece, stored) == (1, 1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_box_of_every_format_is_the_oracle_s(case: Case, tmp_path: Path) -> None:
    """Boxes of odd sizes, so that they begin and end within blocks, groups, bytes and words."""
    side = opened(checkpoint(tmp_path / "src", case))
    files = Files(side.root)
    seen = 0
    for name in case.decoded:
        held, want = side.weights[name], case.expected[name].numpy()
        assert held.shape == want.shape
        for limit in (77, 1 << 20):
            for box in boxes(held.shape, limit, len(held.shape) - 2):
                found = decode(files, held.codec.to_dict(), held.parts, held.shape, box).numbers()
                part = want[tuple(slice(lo, hi) for lo, hi in box)]
                assert found.tobytes() == part.tobytes(), (name, box)
                seen += 1
    files.close()
    assert seen >= len(case.decoded) > 0


def test_every_codec_has_a_case_here() -> None:
    """So that none is added to the package without a decoder."""
    import pkgutil

    from fp8convert import codecs
    from fp8convert.codecs.base import Codec
    from fp8convert.codecs.transposed import Excerpt
    from fp8convert.codecs.window import Window

    modules = [f"fp8convert.codecs.{m.name}" for m in pkgutil.iter_modules(codecs.__path__)]
    for module in modules:
        __import__(module)

    def kinds(of: type) -> set[type]:
        return {of} | {k for sub in of.__subclasses__() for k in kinds(sub)}

    named = {
        k.name for k in kinds(Codec)
        if k.__module__ in modules and isinstance(k.__dict__.get("name"), str)
        and k not in (Window, Excerpt)  # slices in memory
    }  # fmt: skip
    assert named == {*DECODERS, "raw"}


def test_nibbles_and_the_order_of_awq() -> None:
    assert nibbles(np.array([[0x21, 0x43]], np.uint8)).tolist() == [[1, 2, 3, 4]]
    assert sorted(AWQ_ORDER) == list(range(8))


def test_columns_in_groups_that_are_not_there(tmp_path: Path) -> None:
    tensors = {
        "a.qweight": torch.zeros(8, 8, dtype=torch.int32),
        "a.scales": torch.ones(2, 8, dtype=torch.float16),
        "a.qzeros": torch.zeros(2, 1, dtype=torch.int32),
        "a.g_idx": torch.full((64,), 5, dtype=torch.int32),
    }
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
    folder = write(tmp_path / "src", [tensors], {"quantization_config": quantization})
    side = opened(folder)
    held = side.weights["a.weight"]
    with pytest.raises(DataError, match="columns in groups 5 to 5, expected 0 to 1"):
        decode(Files(side.root), held.codec.to_dict(), held.parts, held.shape, ((0, 8), (0, 64)))


def test_files_that_are_not_aligned(tmp_path: Path) -> None:
    """The safetensors library writes headers of any length by itself, but reads them all."""
    side = opened(write(tmp_path / "a", [{"x.weight": torch.arange(6.0).reshape(2, 3)}], {}))
    (file,) = Path(side.root).glob("*.safetensors")
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    odd = raw[8 : 8 + length] + b" "
    file.write_bytes(len(odd).to_bytes(8, "little") + odd + raw[8 + length :])
    side = opened(side.root)
    files = Files(side.root)
    assert files.read(side.weights["x.weight"].parts[0]).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_pages_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fp8convert.verify.stored.MAPPED", 100)
    (tmp_path / "a").mkdir()
    save_file({"x": torch.arange(64)}, tmp_path / "a" / "model.safetensors")
    (tmp_path / "a" / "config.json").write_text("{}")
    side, opens = opened(tmp_path / "a"), []
    real = __import__("safetensors").safe_open
    monkeypatch.setattr(
        "safetensors.safe_open",
        lambda *a, **k: opens.append(a) or real(*a, **k),
    )
    files, place = Files(side.root), side.weights["x"].parts[0]
    kept = [files.read(place) for _ in range(3)]
    assert len(opens) == 3
    assert all(k.tolist() == list(range(64)) for k in kept)
