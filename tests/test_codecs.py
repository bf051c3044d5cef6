"""The conformance suite of codecs: a new one adds a Case and inherits every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fp8convert.codecs.base import Codec, Rect, Stored
from fp8convert.codecs.fp8_block import Fp8Block
from fp8convert.codecs.raw import Raw
from fp8convert.dtypes import DTYPES
from fp8convert.plan import Item, Task
from fp8convert.schemes.base import Weight
from fp8convert.tiles import tiles

from .checkpoints import codes, scales
from .oracle import dequantize

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A codec, a way to make parts of a shape, and an oracle for their decoded value."""

    codec: Codec
    make: Callable[[int, int], list[torch.Tensor]]
    oracle: Callable[[list[torch.Tensor], torch.dtype], torch.Tensor]


def fp8_case(block: int) -> Case:
    return Case(
        Fp8Block((block, block)),
        lambda o, i: [codes(o, i), scales(o, i, (block, block))],
        lambda parts, dtype: dequantize(parts[0], parts[1], dtype, block),
    )


CASES = {
    "fp8-block-128": fp8_case(128),
    "fp8-block-32": fp8_case(32),
    "fp8-block-wider-than-a-tile": fp8_case(7000),
    "raw": Case(
        Raw(),
        lambda o, i: [torch.randn((o, i), generator=torch.Generator().manual_seed(o)).bfloat16()],
        lambda parts, dtype: parts[0],
    ),
}
SHAPES = [(1, 1), (1, 300), (300, 1), (128, 128), (192, 257), (129, 127), (576, 130)]
WIDE = (1, 14_100)  # a short last block, reached from within the one before
TAGS = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}


def to_bytes(t: torch.Tensor) -> np.ndarray:
    return t.contiguous().view(-1).view(torch.uint8).numpy().copy()


def stored(parts: list[torch.Tensor]) -> tuple[Stored, ...]:
    """The parts as if each were alone in a shard of its own."""
    return tuple(
        Stored(f"part{n}", TAGS[p.dtype], tuple(p.shape), n, 0, p.numel() * p.element_size())
        for n, p in enumerate(parts)
    )


def decode(case: Case, parts: list[torch.Tensor], rects: Iterator[Rect], target: str) -> bytes:
    """Decode rectangle by rectangle, giving the codec only the bytes of its own spans."""
    known, raw = stored(parts), [to_bytes(p) for p in parts]
    dtype = DTYPES[case.codec.out_dtype(known, target)]
    out = b""
    for rect in rects:
        spans = case.codec.spans(known, rect)
        data = [r[s.begin : s.end].copy() for r, s in zip(raw, spans, strict=True)]
        count = (rect.r1 - rect.r0) * (rect.c1 - rect.c0)
        piece = np.empty(count, dtype.numpy)
        found = case.codec.decode(known, rect, data, piece, target)
        assert found.damage is None
        out += piece.tobytes()
    return out


def cut_rows(case: Case, known: tuple[Stored, ...], step: int) -> Iterator[Rect]:
    grid = case.codec.grid(known)
    for r in range(0, grid.rows, step):
        yield Rect(r, min(r + step, grid.rows), 0, grid.columns)


ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@ALL
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", list(TORCH))
def test_whole_weight_equals_the_oracle(case: Case, shape: tuple[int, int], target: str) -> None:
    parts = case.make(*shape)
    known = stored(parts)
    assert case.codec.check(known) is None
    assert case.codec.shape(known) == shape
    whole = iter([Rect(0, case.codec.grid(known).rows, 0, case.codec.grid(known).columns)])
    expected = to_bytes(case.oracle(parts, TORCH[target])).tobytes()
    assert decode(case, parts, whole, target) == expected


@ALL
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2])
def test_cuts_at_every_legal_point_give_the_same_bytes(
    case: Case, shape: tuple[int, int], steps: int
) -> None:
    parts = case.make(*shape)
    known = stored(parts)
    rects = cut_rows(case, known, steps * case.codec.grid(known).row_step)
    expected = to_bytes(case.oracle(parts, torch.bfloat16)).tobytes()
    assert decode(case, parts, rects, "BF16") == expected


@ALL
@pytest.mark.parametrize("shape", [(1, 300), (192, 257), (576, 130), WIDE])
@pytest.mark.parametrize("limit", [4096, 8192, 20_480, 1 << 20])
def test_tiles_of_any_size_give_the_same_bytes(
    case: Case, shape: tuple[int, int], limit: int
) -> None:
    """The cuts that the engine itself would make, down to pieces of a single row."""
    parts = case.make(*shape)
    known = stored(parts)
    nbytes = shape[0] * shape[1] * 2
    item = Item(Weight("w", case.codec, known), "BF16", 4096, nbytes)
    rects = (p.rect for t in tiles(Task("f", bytes(4096), (item,)), limit) for p in t.pieces)
    expected = to_bytes(case.oracle(parts, torch.bfloat16)).tobytes()
    assert decode(case, parts, rects, "BF16") == expected


def damaged(scale: float | None, code: int | None, target: str = "BF16") -> tuple[str | None, int]:
    """Damage and overflow count of a 130 x 130 weight with one odd scale or code at its end."""
    parts = [codes(130, 130), scales(130, 130)]
    if scale is not None:
        parts[1][1, 0] = scale
    if code is not None:
        parts[0].view(torch.uint8)[129, 128] = code
    known = stored(parts)
    out = np.empty(130 * 130, np.uint16 if target == "BF16" else np.float16)
    data = [to_bytes(p) for p in parts]
    found = Fp8Block((128, 128)).decode(known, Rect(0, 130, 0, 130), data, out, target)
    return found.damage, found.overflowed


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf"), -1.0, -1e-30])
def test_impossible_scales_are_named(scale: float) -> None:
    assert damaged(scale, None)[0] == (
        f"scale {float(np.float32(scale))} at block row 1, column 0, "
        "expected a finite number above 0"
    )


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_codes_are_named(code: int) -> None:
    assert damaged(None, code)[0] == "a NaN code at row 129, column 128"


def test_scale_zero_is_damage_only_over_codes_that_are_not_zero() -> None:
    assert damaged(0.0, None)[0] == (
        "scale 0 at block row 1, column 0, but the block's codes are not all zero"
    )
    parts = [codes(130, 130), scales(130, 130)]
    parts[0].view(torch.uint8)[128:, :128] = 0x80  # -0.0 is zero too
    parts[1][1, 0] = 0
    out = np.empty(130 * 130, np.uint16)
    data = [to_bytes(p) for p in parts]
    rect = Rect(0, 130, 0, 130)
    found = Fp8Block((128, 128)).decode(stored(parts), rect, data, out, "BF16")
    assert found.damage is None
    assert out.tobytes() == to_bytes(dequantize(parts[0], parts[1], torch.bfloat16)).tobytes()


def test_overflow_is_counted_element_by_element() -> None:
    huge = 3.0e38
    block = codes(130, 130)[128:, :128].float().abs()  # the two rows of block row 1, column 0
    expected = int(((block * torch.tensor(huge)).bfloat16()).isinf().sum())
    assert expected > 0
    assert damaged(huge, None) == (None, expected)
    assert damaged(200.0, None, "F16")[1] == int((block * 200.0).half().isinf().sum()) > 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("F8_E5M2", (4, 4)), ("F32", (1, 1))], "codes are F8_E5M2 [4, 4], expected F8_E4M3"),
        ([("F8_E4M3", (4,)), ("F32", (1,))], "codes are F8_E4M3 [4], expected F8_E4M3 with two"),
        ([("F8_E4M3", (2, 3, 4)), ("F32", (1, 1))], "with two axes"),
        ([("F8_E4M3", (576, 256)), ("F32", (4, 2))], "scales are F32 [4, 2], expected F32 [5, 2]"),
        ([("F8_E4M3", (576, 256)), ("F32", (2, 5))], "expected F32 [5, 2] for codes [576, 256]"),
        ([("F8_E4M3", (576, 256)), ("BF16", (5, 2))], "scales are BF16 [5, 2], expected F32"),
        ([("F8_E4M3", (576, 256)), ("F32", ())], "scales are F32 [], expected F32 [5, 2]"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    parts: list[tuple[str, tuple[int, ...]]], message: str
) -> None:
    known = [Stored(f"p{n}", d, s, 0, 0, 0) for n, (d, s) in enumerate(parts)]
    assert message in str(Fp8Block((128, 128)).check(known))
