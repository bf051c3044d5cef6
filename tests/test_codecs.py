"""The conformance suite of codecs: whole weights, every legal cut, the engine's own tiles.

Cases are in ``test_codec_cases``, a new codec must add one; values, damage and what does not fit
are in ``test_codec_values``, ``test_codec_damage`` and ``test_codec_check``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fp8convert.codecs.base import Grid, Rect, Stored
from fp8convert.codecs.raw import Raw
from fp8convert.dtypes import DTYPES
from fp8convert.plan import Item, Task
from fp8convert.schemes.weight import Weight
from fp8convert.tiles import Piece, tiles

from .formats import make
from .test_codec_cases import (
    CODED,
    TORCH,
    Case,
    Parts,
    Shape,
    decode,
    infinite,
    made,
    rounded,
    span_bytes,
    stored,
    to_bytes,
    whole,
)  # fmt: skip

ALL = pytest.mark.parametrize("case", CODED.values(), ids=CODED.keys())
SHAPES: list[Shape] = [
    (1, 1), (1, 300), (300, 1), (128, 128), (192, 257), (129, 127), (320, 33),
    (1, 1, 1), (3, 5, 96), (2, 130, 129), (3, 40, 1), (4, 1, 70), (2, 33, 33),
]  # fmt: skip
WIDE: list[Shape] = [(1, 14_100), (2, 1, 14_100)]  # a short last block, cut before it
LIMITS = [4096, 8192, 20_480, 1 << 20]


def same(ours: bytes, wanted: bytes, what: object, target: str = "BF16") -> None:
    """Equal bytes, or where the first differing element is."""
    if ours != wanted:
        assert len(ours) == len(wanted), what
        kind = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}[target]
        a, b = np.frombuffer(ours, kind), np.frombuffer(wanted, kind)
        at = np.flatnonzero(a != b)
        pytest.fail(f"{what}: {len(at)} differ, first {at[0]}: {a[at[0]]:#x}, not {b[at[0]]:#x}")


@ALL
@pytest.mark.parametrize("kernels", ["numba", "numpy"])
@pytest.mark.parametrize("target", list(TORCH))
def test_whole_weight_equals_the_oracle(
    case: Case, target: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With either kernel: so they equal each other."""
    monkeypatch.setenv("FP8CONVERT_KERNELS", kernels)
    for shape in case.fitting(*SHAPES):
        parts, value = made(case, shape)
        known = stored(parts)
        assert case.codec.check(known) is None, shape
        assert case.codec.shape(known) == shape
        ours, found = decode(case.codec, parts, whole(case.codec, parts), target)
        assert found.damage is None, shape
        wanted = rounded(value, target)
        assert found.overflowed == infinite(wanted, target), shape
        same(ours, wanted, shape, target)


def row_cuts(grid: Grid, steps: int) -> Iterator[Rect]:
    """Every ``steps`` row steps, counted anew in each expert."""
    r = 0
    while r < grid.rows:
        end = min(r + steps * grid.row_step, grid.period_end(r))
        yield Rect(r, end, 0, grid.columns)
        r = end


def plain_rows(grid: Grid, count: int) -> Iterator[Rect]:
    """Every ``count`` rows, wherever blocks end: where a row of blocks fits into no tile."""
    r = 0
    while r < grid.rows:
        end = min(r + count, grid.period_end(r))
        yield Rect(r, end, 0, grid.columns)
        r = end


def column_cuts(grid: Grid, width: int, inside: bool) -> Iterator[Rect]:
    """A few rows cut every ``width`` columns, and where a block ends; the others whole.

    ``inside`` blocks, or at multiples of blocks.
    """
    some = {0, min(1, grid.rows - 1), grid.rows - 1, grid.period % grid.rows}
    r = 0
    while r < grid.rows:
        if r not in some:
            end = min([s for s in some if s > r] + [grid.period_end(r)])
            yield Rect(r, end, 0, grid.columns)
            r = end
            continue
        c = 0
        while c < grid.columns:
            edge = c - c % grid.column_step + grid.column_step if inside else grid.columns
            end = min(c + width, edge, grid.columns)
            yield Rect(r, r + 1, c, end)
            c = end
        r += 1


CUTS: list[Shape] = [(1, 70), (40, 1), (19, 67), (3, 5, 33), (2, 33, 9)]


@ALL
@pytest.mark.parametrize("steps", [1, 2])
def test_cuts_at_every_legal_point_give_the_same_bytes(case: Case, steps: int) -> None:
    for shape in case.fitting(*CUTS):
        parts, value = made(case, shape)
        grid = case.codec.grid(stored(parts))
        wanted = rounded(value)
        kinds = {
            "row steps": row_cuts(grid, steps),
            "rows": plain_rows(grid, 2 * steps - 1),
            "column steps": column_cuts(grid, steps * grid.column_step, inside=False),
            "units": column_cuts(grid, (2 * steps - 1) * grid.unit, inside=True),
        }
        for kind, rects in kinds.items():
            ours, found = decode(case.codec, parts, rects)
            assert found.damage is None
            same(ours, wanted, f"{shape}, {kind}")


@ALL
def test_cuts_of_a_larger_weight_give_the_same_bytes(case: Case) -> None:
    for shape in case.fitting((129, 127), (2, 130, 129)):
        parts, value = made(case, shape)
        grid = case.codec.grid(stored(parts))
        for rects in (row_cuts(grid, 1), plain_rows(grid, 50)):
            same(decode(case.codec, parts, rects)[0], rounded(value), shape)


@ALL
def test_what_a_grid_says(case: Case) -> None:
    """It is the weight as a matrix; experts are periods; blocks are whole bytes."""
    for shape in case.fitting(*SHAPES):
        grid = case.codec.grid(stored(made(case, shape)[0]))
        assert grid.rows * grid.columns == torch.Size(shape).numel()
        assert grid.columns == shape[-1]
        assert grid.period == (shape[-2] if len(shape) == 3 else 0)
        assert min(grid.row_step, grid.column_step, grid.unit) >= 1
        assert grid.column_step % grid.unit == 0
        assert grid.columns % grid.unit == 0


def pieces(case: Case, parts: Parts, limit: int, target: str) -> Iterator[Piece]:
    """The cuts that the engine itself would make."""
    known = stored(parts)
    shape = case.codec.shape(known)
    nbytes = torch.Size(shape).numel() * DTYPES[target].bits // 8
    item = Item(Weight("w", case.codec, known), target, 4096, nbytes)
    for tile in tiles(Task("f", bytes(4096), (item,)), limit):
        assert tile.nbytes <= limit
        yield from tile.pieces


@ALL
@pytest.mark.parametrize("limit", LIMITS)
def test_tiles_of_any_size_give_the_same_bytes(case: Case, limit: int) -> None:
    """Down to pieces of a single row, from the sources that a piece names."""
    target = "F32" if limit == 20_480 else "BF16"
    for shape in case.fitting((576, 130), (3, 40, 96), *WIDE):
        parts, value = made(case, shape)
        known, raw = stored(parts), [to_bytes(p) for p in parts]
        found = b""
        for piece in pieces(case, parts, limit, target):
            assert len(list(case.codec.grid(known).split(piece.rect))) == 1  # within one expert
            data = []
            for number, read in enumerate(piece.reads):
                (source,) = read.sources
                assert source == (number, *read.span)
                data.append(span_bytes(raw[source.shard], read.span))
            out = np.full(piece.nbytes // (DTYPES[target].bits // 8), 77, DTYPES[target].numpy)
            assert not case.codec.decode(known, piece.rect, data, out, target).damage
            found += out.tobytes()
        same(found, rounded(value, target), shape, target)


def test_wide_rows_are_cut_within_a_row() -> None:
    """The test above is not about whole rows only."""
    for case in CODED.values():
        for shape in case.fitting(WIDE[0]):
            parts, _ = made(case, shape)
            assert any(p.rect.c0 for p in pieces(case, parts, 4096, "BF16")), case.codec


@ALL
def test_no_byte_of_codes_is_read_twice(case: Case) -> None:
    """Codes are read once, and all of them, however tiles are cut on their steps."""
    (shape,) = case.fitting((140, 300))
    parts, _ = made(case, shape)
    grid = case.codec.grid(stored(parts))
    read = np.zeros(parts[0].numel() * parts[0].element_size(), int)
    for rect in row_cuts(grid, 1):
        span = case.codec.spans(stored(parts), rect)[0]
        for k in range(span.times):
            read[span.begin + k * span.stride : span.end + k * span.stride] += 1
    assert (read == 1).all()


# --- tensors that are not coded ------------------------------------------------------------------

RAW = {
    "bf16": lambda *s: make.bf16("raw", *s),
    "f32": lambda *s: make.f32("raw", *s),
    "i64": lambda *s: make.integers("raw", 0, 1 << 60, *s),
    "u8": lambda *s: make.integers("raw", 0, 256, *s).to(torch.uint8),
}


@pytest.mark.parametrize("make_one", RAW.values(), ids=RAW.keys())
@pytest.mark.parametrize("target", list(TORCH))
def test_raw_bytes_pass_as_they_are(make_one, target: str) -> None:
    codec = Raw()
    for shape in ((), (1,), (7, 3), (2, 3, 4), (4097,)):
        part = make_one(*shape)
        known = stored([part])
        assert codec.check(known) is None
        assert codec.shape(known) == shape
        assert codec.out_dtype(known, target) == known[0].dtype
        wanted = to_bytes(part).tobytes()
        grid = codec.grid(known)
        for rects in (whole(codec, [part]), row_cuts(grid, 1), plain_rows(grid, 1000)):
            ours, found = decode(codec, [part], rects, target)
            assert (ours, found.damage, found.overflowed) == (wanted, None, 0)


@pytest.mark.parametrize(("dtype", "count"), [("F4", 6), ("F6_E2M3", 9), ("F6_E3M2", 9)])
def test_raw_elements_below_a_byte(dtype: str, count: int) -> None:
    """They are cut between bytes, and pass."""
    known = (Stored("w", dtype, (12,), 0, 0, count),)
    grid = Raw().grid(known)
    assert (grid.rows, grid.columns) == (count, 1)
    data, out = np.arange(count, dtype=np.uint8), np.zeros(count, np.uint8)
    for rect in plain_rows(grid, 4):
        (span,) = Raw().spans(known, rect)
        Raw().decode(known, rect, [span_bytes(data, span)], out[rect.r0 : rect.r1], "BF16")
    assert out.tolist() == data.tolist()
