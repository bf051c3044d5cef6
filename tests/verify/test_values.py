"""What is NaN, infinite or zero, by other libraries' word and by plain loops; bands and samples."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from fp8convert.errors import ResumableError
from fp8convert.folder import Folder
from fp8convert.verify import values, verify
from fp8convert.verify.bits import first_odd, first_uneven, has_odd
from fp8convert.verify.scales import Scale
from fp8convert.verify.survey import survey
from fp8convert.verify.tensors import Opened
from fp8convert.verify.values import Reading, check_values
from fp8convert.verify.zeros import first_wrong_zero

from ..checkpoints import write
from .made import Made

NARROW = {
    "F8_E4M3": (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    "F8_E5M2": (torch.float8_e5m2, ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": (torch.float8_e4m3fnuz, ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (torch.float8_e5m2fnuz, ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": (torch.float8_e8m0fnu, ml_dtypes.float8_e8m0fnu),
}
WIDE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("dtype", NARROW)
def test_every_code_of_eight_bits(dtype: str) -> None:
    ours, theirs = NARROW[dtype]
    codes = np.arange(256, dtype=np.uint8)
    finite = np.isfinite(codes.view(theirs).astype(np.float32))
    assert not finite.all()
    for code in range(256):
        among = torch.full((5,), int(codes[finite][0]), dtype=torch.uint8)
        among[3] = code
        assert has_odd(dtype, among.view(ours)) is not bool(finite[code]), code
        if not finite[code]:
            assert first_odd(dtype, among.view(ours))[0] == 3
    assert not has_odd(dtype, torch.from_numpy(codes[finite]).view(ours))


@pytest.mark.parametrize("dtype", WIDE)
def test_wide_floats(dtype: str) -> None:
    kind = WIDE[dtype]
    largest = torch.finfo(kind).max
    ends = torch.tensor([largest, -largest, 0.0, torch.finfo(kind).smallest_normal], dtype=kind)
    assert not has_odd(dtype, ends)
    for odd in (float("nan"), float("inf"), -float("inf")):
        among = torch.cat([ends, torch.tensor([odd], dtype=kind), ends])
        assert has_odd(dtype, among)
        at, word = first_odd(dtype, among)
        assert (at, word) == (4, str(odd))


def test_complex_numbers() -> None:
    assert not has_odd("C64", torch.tensor([1 + 2j]))
    assert has_odd("C64", torch.tensor([1 + 2j, complex(0, float("inf"))]))


def test_powers_of_two() -> None:
    powers = torch.tensor([2.0**n for n in range(-140, 127)] + [0.0])  # subnormal ones too
    assert first_uneven(powers) == -1
    for odd in (3.0, 1 + 2.0**-23, 3 * 2.0**-140):
        assert first_uneven(torch.cat([powers, torch.tensor([odd])])) == len(powers)


# Shape of the codes as stored, of the scales, block of codes, and codes that are zero.
GRIDS = {
    "128 x 128": ((150, 140), (2, 2), (128, 128), 0x7F),
    "a row": ((6, 40), (6, 1), (1, 40), 0x7F),
    "a row, one axis": ((6, 40), (6,), (1, 40), 0x7F),
    "a tensor": ((6, 40), (), (6, 40), 0x7F),
    "ModelOpt": ((150, 140), (2, 1, 2, 1), (128, 128), 0x7F),
    "1 x 32": ((7, 96), (7, 3), (1, 32), 0x7F),
    "experts": ((3, 50, 40), (3, 4, 3), (16, 16), 0x7F),
    "FNUZ": ((50, 40), (4, 3), (16, 16), 0xFF),
    "FP4": ((9, 48), (9, 3), (1, 16), 0x77),
    "gpt-oss": ((2, 5, 3, 16), (2, 5, 3), (1, 16), 0x77),
}


def wrong_zeros(
    codes: np.ndarray, scales: np.ndarray, block: tuple[int, int], mask: int
) -> list[int]:
    """By a plain loop over every code: scales that are zero, though one of their codes is not."""
    matrices = codes.reshape(-1, *codes.shape[-2:])
    down, across = (-(-n // b) for n, b in zip(codes.shape[-2:], block, strict=True))
    out = set()
    for (m, r, c), code in np.ndenumerate(matrices):
        at = (m * down + r // block[0]) * across + c // block[1]
        if code & mask and scales.reshape(-1)[at] == 0:
            out.add(int(at))
    return sorted(out)


@pytest.mark.parametrize("grid", GRIDS)
def test_zero_scales_against_a_plain_loop(
    grid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, scaled, block, mask = GRIDS[grid]
    rng = np.random.default_rng(3)
    monkeypatch.setattr("fp8convert.verify.zeros.MOST", 2 * block[0] * shape[-1])
    found = set()
    for trial in range(20):
        few = rng.random(shape) < 2 / np.prod(shape)  # so that both outcomes come about
        minus = rng.random(shape) < 0.3  # -0.0, where the form has it
        codes = rng.integers(0, 256, shape, np.uint8) * few | np.uint8(0x80 & ~mask) * minus
        scales = (rng.random(scaled) < 0.6).astype(np.float32)
        folder = tmp_path / f"{trial}"
        folder.mkdir()
        save_file({"codes": torch.from_numpy(codes)}, folder / "model.safetensors")
        seen = survey(Folder.at(folder))
        flat = torch.from_numpy(np.asarray(scales).reshape(-1))
        expected = [*wrong_zeros(codes, scales, block, mask), -1][0]
        with Opened(seen, {"codes": "model.safetensors"}) as opened:
            assert first_wrong_zero(opened, 0, flat, Scale("codes", block, mask)) == expected
            found.add(expected >= 0)
            row = flat.numel() // (scaled[0] if scaled else 1)  # and of a band of scales
            late = [w - row for w in wrong_zeros(codes, scales, block, mask) if w >= row]
            if flat.numel() > row:
                at = first_wrong_zero(opened, row, flat[row:], Scale("codes", block, mask))
                assert at == [*late, -1][0]
    assert found == {True, False}


def test_a_zero_over_all_codes(tmp_path: Path) -> None:
    for value, expected in ((0x80, -1), (0x01, 0)):
        codes = torch.zeros(3, 8, dtype=torch.uint8)
        codes[2, 7] = value
        save_file({"codes": codes}, tmp_path / "model.safetensors")
        with Opened(survey(Folder.at(tmp_path)), {"codes": "model.safetensors"}) as opened:
            found = first_wrong_zero(opened, 0, torch.zeros(1), Scale("codes", None, 0x7F))
            assert found == expected


def test_zero_scales_over_zeros_are_right(tmp_path: Path) -> None:
    codes = torch.ones(256, 256, dtype=torch.uint8)
    codes[128:, :128] = 0x80  # -0.0
    scale = torch.ones(2, 2)
    scale[1, 0] = 0
    pair = {"a.weight": codes.view(torch.float8_e4m3fn), "a.weight_scale_inv": scale}
    assert verify(write(tmp_path / "right", [pair])).passed
    pair["a.weight_scale_inv"] = scale.flip(0, 1)
    wrong = verify(write(tmp_path / "wrong", [pair])).failed
    assert [c.name for c in wrong] == ["values"]
    assert "scale 0 at [0, 1], but not all codes of 'a.weight'" in wrong[0].problems[0]


def test_zero_scales_of_integers_are_a_warning(right: Made, tmp_path: Path) -> None:
    from .damage import put_at

    folder = right.copied("kimi-k2-thinking")
    name = "model.layers.1.mlp.experts.0.down_proj.weight_scale"
    put_at(name, (3, 0), 0.0)(folder)
    report = verify(folder)
    assert report.passed
    assert f"tensor '{name}': a scale is 0" in report.checks[4].warnings[0]
    put_at(name, (3, 0), -1.0)(folder)  # full-range rules give such
    assert verify(folder).passed


def found_by(folder: Path, sample: float, seed: int) -> tuple[bool, float]:
    check, _ = check_values(survey(Folder.at(folder)), Reading({}, sample, seed))
    return not check.passed, check.counts["bytes"]


def test_every_row_of_every_band_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands and jobs so small that there are many, of one row or the ragged last."""
    monkeypatch.setattr(values, "BAND", 3 * 40)
    monkeypatch.setattr(values, "JOB", 500)
    shapes = {"a": (23, 10), "b": (7,), "c": (), "d": (2, 3, 5), "none": (0, 4), "e": (1, 100)}
    for name, shape in shapes.items():
        for place in itertools.product(*map(range, shape)):
            if sum(place) % 7 == 0:
                tensors = {n: torch.zeros(s) for n, s in shapes.items()}
                tensors[name][place] = float("nan")
                save_file(tensors, tmp_path / "model.safetensors")
                seen = survey(Folder.at(tmp_path))
                check, _ = check_values(seen, Reading({}, workers=2))
                assert len(check.problems) == 1
                assert f"tensor '{name}': nan at {list(place)}" in check.problems[0]
    assert check.counts["bytes"] == 4 * (230 + 7 + 1 + 30 + 100)


def test_a_sample_is_a_part_drawn_by_its_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "SAMPLED", 400)
    tensor = torch.zeros(1000, 10)
    tensor[617, 3] = float("inf")
    save_file({"a": tensor, "b": torch.zeros(5)}, tmp_path / "model.safetensors")
    answers = [found_by(tmp_path, 0.25, seed) for seed in range(40)]
    assert answers == [found_by(tmp_path, 0.25, seed) for seed in range(40)]
    assert {nbytes for _, nbytes in answers} == {10_000 + 20}  # 25 bands of 100, and one of b
    assert 2 <= sum(found for found, _ in answers) <= 20
    assert found_by(tmp_path, 1.0, 0) == (True, 40_020)
    assert found_by(tmp_path, 1e-9, 0)[1] == 400 + 20  # at least one band of each


def test_no_memory_left_is_no_fault_of_a_tensor(
    right: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has a RuntimeError for it where a file cannot be mapped, as under ``ulimit -v``."""
    real = safetensors.safe_open

    def full(path: Path, framework: str) -> Any:
        if framework == "pt":
            raise RuntimeError(f"unable to mmap 9 bytes from <{path}>: Cannot allocate memory (12)")
        return real(path, framework)

    monkeypatch.setattr(safetensors, "safe_open", full)
    with pytest.raises(ResumableError, match=r"^out of memory: "):
        verify(right.output("bf16"))


def test_threads_of_torch_are_left_as_they_were(right: Made) -> None:
    before = torch.get_num_threads()
    verify(right.output("bf16"), workers=2)
    assert torch.get_num_threads() == before
