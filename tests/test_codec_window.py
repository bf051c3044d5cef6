"""Slices that cut through blocks, groups or words: the slice of the whole weight, bit by bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fp8convert.codecs.base import Findings, Grid, Rect, Stored
from fp8convert.codecs.blocks import Blocks
from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Fp8Block, Int8Block
from fp8convert.codecs.packed_int import PackedInt
from fp8convert.codecs.transposed import Excerpt
from fp8convert.codecs.window import Window, whole_codec
from fp8convert.plan import Item, Task
from fp8convert.schemes.weight import Weight
from fp8convert.tiles import tiles

from .test_codec_cases import (
    CODED,
    TORCH,
    Case,
    Numbers,
    Shape,
    fp8,
    infinite,
    int8,
    rounded,
    stored,
)
from .test_codec_cut import Held, held, refused, weight
from .test_codecs import same

KERNELS = pytest.mark.parametrize("kernels", ["numba", "numpy"])
# By rows and by columns, the units that a window may begin at.
CASES: dict[str, tuple[Case, Shape, tuple[int, int]]] = {
    "fp8-odd-block": (CODED["fp8-odd-block"], (11, 17), (1, 1)),
    "fp8-4x6": (fp8((4, 6)), (13, 19), (1, 1)),
    "fp8-1x4": (fp8((1, 4)), (5, 14), (1, 1)),
    "fp8-row-blocks": (fp8((4, None)), (10, 9), (1, 1)),
    "fp8-column-blocks": (fp8((None, 4), scale=torch.bfloat16), (10, 9), (1, 1)),
    "e4m3fnuz-4x6": (fp8((4, 6), "e4m3fnuz"), (13, 19), (1, 1)),
    "int8-3x4-asym": (int8((3, 4), True), (8, 11), (1, 1)),
    "int8-4x6": (int8((4, 6), False), (9, 13), (1, 1)),
    "mxfp4": (CODED["mxfp4-unsigned-zero"], (5, 96), (1, 2)),
    "nvfp4-multiply": (CODED["nvfp4-multiply"], (3, 48), (1, 2)),
    "nvfp4-divide": (CODED["nvfp4-divide"], (3, 48), (1, 2)),
    "packed-4-asym": (CODED["packed-4-asym"], (26, 96), (1, 8)),
    "packed-4-row-asym": (CODED["packed-4-row-asym"], (20, 24), (1, 8)),
    "packed-4": (CODED["packed-4"], (5, 96), (1, 8)),
    "packed-8-asym": (CODED["packed-8-asym"], (11, 96), (1, 4)),
    "packed-4-reordered-asym": (CODED["packed-4-reordered-asym"], (20, 96), (1, 8)),
    "packed-8-reordered-asym": (CODED["packed-8-reordered-asym"], (10, 64), (1, 4)),
    "gptq": (CODED["gptq-4-v1"], (24, 96), (1, 8)),
    "gptq-8": (CODED["gptq-8-v1"], (12, 96), (1, 4)),
    "gptq-shuffled": (CODED["gptq-4-v1-shuffled"], (24, 96), (1, 8)),
    "awq": (CODED["awq"], (24, 64), (1, 1)),
    "awq-without-zeros": (CODED["awq-without-zeros"], (16, 64), (1, 1)),
}
ALL = pytest.mark.parametrize("name", CASES)


def at(size: int, unit: int) -> Iterator[tuple[int, int]]:
    """Every place where a slice may begin, with a few ends."""
    for begin in range(0, size, unit):
        ends = {begin + unit, begin + 3 * unit, begin + (size - begin) // unit // 2 * unit, size}
        yield from ((begin, e) for e in sorted(ends) if begin < e <= size)


def is_legal(whole: Held, axis: int, begin: int, end: int) -> bool:
    step = whole.codec.step(whole.parts, axis)
    return begin % step == 0 and (end % step == 0 or end == whole.shape[axis])


@ALL
def test_a_slice_anywhere_is_the_slice_of_the_whole(name: str) -> None:
    """At every offset, along both axes; inside steps it is a window."""
    case, shape, units = CASES[name]
    whole, value = weight(case, shape)
    met = set()
    for axis in (0, 1):
        for begin, end in at(shape[axis], units[axis]):
            piece = whole.cut(axis, begin, end)
            assert piece.codec.check(piece.parts) is None
            legal = is_legal(whole, axis, begin, end)
            met.add(legal)
            inside = isinstance(piece.codec, Window | Excerpt)
            assert inside is not legal, (axis, begin, end)
            wanted = value.narrow(axis, begin, end - begin)
            assert piece.shape == tuple(wanted.shape)
            ours, found = piece.decode()
            assert found == Findings()
            same(ours, rounded(wanted), (axis, begin, end))
            if inside:
                assert [piece.codec.step(piece.parts, a) for a in (0, 1)] == [0, 0]
    assert met == {False, True}


def random_rects(grid: Grid, rng: np.random.Generator) -> Iterator[Rect]:
    """All of a weight, in order: some rows at once, or one in runs."""
    r = 0
    while r < grid.rows:
        if rng.integers(2):
            end = min(r + int(rng.integers(1, 9)), grid.period_end(r))
            yield Rect(r, end, 0, grid.columns)
            r = end
            continue
        units = grid.columns // grid.unit
        cuts = rng.choice(units + 1, min(units, 3), replace=False) * grid.unit
        points = sorted({0, *map(int, cuts), grid.columns})
        yield from (Rect(r, r + 1, a, b) for a, b in itertools.pairwise(points))
        r += 1


def random_slice(rng: np.random.Generator, size: int, unit: int) -> tuple[int, int]:
    a, b = sorted(rng.choice(size // unit + 1, 2, replace=False))
    end = size if size % unit and b == size // unit else int(b) * unit
    return int(a) * unit, end


@KERNELS
@ALL
@pytest.mark.parametrize("target", list(TORCH))
def test_whatever_way_a_window_is_read(
    name: str, target: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of windows, along both axes, in rectangles of any kind."""
    monkeypatch.setenv("FP8CONVERT_KERNELS", kernels)
    case, shape, units = CASES[name]
    whole, value = weight(case, shape)
    rng = np.random.default_rng(7)
    for _ in range(25):
        piece, wanted = whole, value
        for axis in rng.permutation(2).tolist() * int(rng.integers(1, 3)):
            if piece.shape[axis] > units[axis]:
                begin, end = random_slice(rng, piece.shape[axis], units[axis])
                piece = piece.cut(axis, begin, end)
                wanted = wanted.narrow(axis, begin, end - begin)
        assert piece.codec.check(piece.parts) is None
        assert piece.shape == tuple(wanted.shape)
        for rects in (None, random_rects(piece.grid, rng), random_rects(piece.grid, rng)):
            ours, found = piece.decode(rects, target)
            expected = rounded(wanted, target)
            assert (found.damage, found.overflowed) == (None, infinite(expected, target))
            same(ours, expected, piece.codec, target)


LARGE = {
    "fp8-128": (CODED["fp8-128"], (300, 9000)),
    "fp8-wide": (fp8((3, 8000)), (7, 9000)),
    "int8-square-asym": (CODED["int8-square-asym"], (100, 9000)),
    "mxfp4": (CODED["mxfp4"], (40, 9000)),
    "packed-4-asym": (CODED["packed-4-asym"], (40, 9000)),
}


@KERNELS
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("target", list(TORCH))
def test_rows_longer_than_a_pass_of_the_kernels(
    name: str, target: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets that have a large divisor in common with the block, and none."""
    monkeypatch.setenv("FP8CONVERT_KERNELS", kernels)
    case, shape = LARGE[name]
    (shape,) = case.fitting(shape)
    whole, value = weight(case, shape)
    unit = whole.grid.unit if name != "packed-4-asym" else 8
    for skip in (64, 3 * unit):
        piece = whole.cut(1, skip, shape[1] - unit).cut(0, 5, shape[0])
        wanted = value[5:, skip : shape[1] - unit]
        same(piece.decode(None, target)[0], rounded(wanted, target), skip, target)


def test_many_rows_of_blocks_are_spread_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As there may be a scale for every element then."""
    monkeypatch.setattr("fp8convert.codecs.coded.SCRATCH", 40)
    for name in ("fp8-odd-block", "fp8-1x4", "int8-3x4-asym", "packed-4-asym"):
        case, shape, units = CASES[name]
        whole, value = weight(case, shape)
        for target in TORCH:
            piece, wanted = (
                whole.cut(0, 1, shape[0]).cut(1, units[1], shape[1]),
                value[1:, units[1] :],
            )
            same(piece.decode(None, target)[0], rounded(wanted, target), name, target)


@pytest.mark.parametrize(
    ("limit", "shape"), [(4096, (40, 300)), (4096, (5, 6000)), (8192, (300, 70))]
)
@pytest.mark.parametrize(
    "name", ["fp8-odd-block", "int8-3x4-asym", "mxfp4", "packed-4-asym", "awq"]
)
def test_tiles_of_a_window(name: str, limit: int, shape: Shape) -> None:
    """The cuts that the engine makes; every code is read once."""
    case, _, units = CASES[name]
    (shape,) = case.fitting(shape)
    whole, value = weight(case, shape)
    piece = whole.cut(0, 2, shape[0] - 1).cut(1, units[1], shape[1] - units[1])
    wanted = value[2 : shape[0] - 1, units[1] : shape[1] - units[1]]
    item = Item(Weight("w", piece.codec, piece.parts), "BF16", 4096, 2 * wanted.numel())
    task = Task("f", bytes(4096), (item,))
    found = [p for tile in tiles(task, limit) for p in tile.pieces]
    same(piece.decode([p.rect for p in found])[0], rounded(wanted), name)
    assert len(found) > 2
    if isinstance(piece.codec, Window):
        codes = piece.parts[0]
        assert sum(p.reads[0].span.nbytes for p in found) == codes.end - codes.begin


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("target", list(TORCH))
def test_experts_with_transposed_codes(axis: int, target: str) -> None:
    """At every offset, also of the groups of inputs; and all three axes."""
    shape = (3, 96, 10)
    whole, value = weight(CODED["gpt-oss"], shape)
    for begin, end in at(shape[axis], 1):
        piece = whole.cut(axis, begin, end)
        assert isinstance(piece.codec, Excerpt) is not is_legal(whole, axis, begin, end)
        wanted = value.narrow(axis, begin, end - begin)
        same(piece.decode(None, target)[0], rounded(wanted, target), (axis, begin, end), target)
    rng = np.random.default_rng(axis)
    for _ in range(10):
        piece, wanted = whole.cut(0, 1, 3), value[1:]
        for _ in range(2):
            begin, end = random_slice(rng, piece.shape[1], 1)
            piece, wanted = piece.cut(1, begin, end), wanted[:, begin:end]
        ours, _ = piece.decode(random_rects(piece.grid, rng), target)
        same(ours, rounded(wanted, target), piece.codec, target)


# Damage, and where


def with_codes(n: Numbers, where: tuple[int, int], code: int) -> Numbers:
    codes = n.codes.clone()
    codes[where] = code
    return n._replace(codes=codes)


def with_scale(n: Numbers, where: tuple[int, int], value: float) -> Numbers:
    scales = n.scales.clone()
    scales[where] = value
    return n._replace(scales=scales)


def of(case: Case, n: Numbers) -> Held:
    return held(case.codec, case.pack(n))


def test_odd_codes_are_where_they_are_in_the_window() -> None:
    case = fp8((4, 6))
    n = case.numbers((13, 19))
    for row, column in itertools.product((2, 5, 9), (1, 6, 14)):
        whole = of(case, with_codes(n, (row, column), 0x7F))
        piece = whole.cut(0, 1, 11).cut(1, 1, 16)
        message = f"a NaN code at row {row - 1}, column {column - 1}"
        assert piece.decode()[1].damage == message
        assert (
            piece.decode(random_rects(piece.grid, np.random.default_rng(row)))[1].damage == message
        )
        for axis, begin, end in (
            (0, 0, row),
            (0, row + 1, 13),
            (1, 0, column),
            (1, column + 1, 19),
        ):
            if begin < end:
                assert whole.cut(axis, begin, end).decode()[1].damage is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_scales_are_where_they_are_in_the_window(value: float) -> None:
    """By block: the first one that the window sees has number 0, and may be cut off."""
    case = fp8((4, 6))
    n = case.numbers((13, 19))
    n = n._replace(codes=torch.full_like(n.codes, 0x38))
    for row, column in itertools.product(range(4), range(4)):
        whole = of(case, with_scale(n, (row, column), value))
        piece = whole.cut(0, 5, 11).cut(1, 7, 18)  # blocks 1 and 2 down, 1 and 2 across
        for rects in (None, random_rects(piece.grid, np.random.default_rng(row))):
            damage = piece.decode(rects)[1].damage
            if row in (1, 2) and column in (1, 2):
                assert f"at block row {row - 1}, column {column - 1}" in str(damage)
            else:
                assert damage is None


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_scale_of_0_counts_for_the_codes_that_are_seen(kind: str) -> None:
    """A block whose codes are all zero in the window is sound there, whatever lies outside."""
    case = fp8((4, 6)) if kind == "fp8" else int8((4, 6), True)
    n = with_scale(case.numbers((13, 19)), (1, 2), 0.0)  # rows 4 to 7, columns 12 to 17
    zero = 0 if kind == "fp8" else 5
    if n.zeros is not None:
        n.zeros[1, 2] = zero
    codes = n.codes.clone()
    codes[4:8, 12:18], codes[4, 12], codes[7, 17] = zero, 0x38, 0x38
    whole = of(case, n._replace(codes=codes))
    damage = "scale 0 at block row {}, column {}, but the block's codes are not all zero"
    sound = [((5, 13), (0, 19)), ((0, 7), (13, 19)), ((5, 7), (12, 18)), ((4, 7), (13, 18))]
    for rows, columns in sound:
        piece = whole.cut(0, *rows).cut(1, *columns)
        if rows[1] > 7 or rows == (4, 7):
            piece = piece.cut(1, 0, 17 - columns[0])
        for rects in (None, random_rects(piece.grid, np.random.default_rng(1))):
            assert piece.decode(rects)[1].damage is None, (rows, columns)
    for rows, columns, where in (
        ((4, 9), (12, 19), (0, 0)),
        ((3, 9), (11, 19), (1, 1)),
        ((7, 9), (17, 19), (0, 0)),
        ((5, 9), (7, 19), (0, 1)),
    ):
        piece = whole.cut(0, *rows).cut(1, *columns)
        assert piece.decode()[1].damage == damage.format(*where), (rows, columns)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_the_global_scale_is_looked_at_in_every_window(value: float) -> None:
    case = CODED["nvfp4-divide"]
    n = case.numbers((3, 48))._replace(whole=torch.tensor([value]))
    piece = of(case, n).cut(1, 8, 40)
    message = f"global scale {value}, expected a finite number above 0"
    assert piece.decode()[1].damage == message
    assert isinstance(piece.codec, Window)
    data = [
        piece.bytes_of(p, s)
        for p, s in zip(piece.parts, piece.codec.spans(piece.parts, Rect(0, 3, 0, 32)), strict=True)
    ]
    assert piece.codec.damage(piece.parts, Rect(0, 3, 0, 32), data) == message


def test_groups_that_are_not_there_are_named_in_windows() -> None:
    """Rows of a word of zero points apart, of reordered columns."""
    case = CODED["packed-4-reordered-asym"]
    n = case.numbers((20, 96))
    assert n.groups is not None
    groups = n.groups.clone()
    groups[3] = 7
    piece = of(case, n._replace(groups=groups)).cut(0, 3, 13)
    assert isinstance(piece.codec, Window)
    assert "columns are in groups 0 to 7, expected 0 to 2" in str(piece.decode()[1].damage)


@pytest.mark.parametrize("target", list(TORCH))
def test_overflow_is_counted_in_the_window(target: str) -> None:
    case = fp8((4, 6))
    n = with_scale(case.numbers((13, 19)), (1, 1), 3.0e38 if target != "F16" else 3.0e4)
    piece, value = of(case, n).cut(0, 5, 13).cut(1, 7, 19), case.value(n)[5:, 7:]
    wanted = rounded(value, target)
    for rects in (None, random_rects(piece.grid, np.random.default_rng(2))):
        ours, found = piece.decode(rects, target)
        assert found == Findings(infinite(wanted, target))
        assert found.overflowed
        same(ours, wanted, "overflow", target)


# What a window says of itself


def test_a_window_describes_itself() -> None:
    whole, _ = weight(CODED["fp8-odd-block"], (11, 17))
    piece = whole.cut(0, 2, 9).cut(1, 6, 17)
    codec = piece.codec
    assert isinstance(codec, Window)
    assert (codec.top, codec.left, codec.phase) == (2, 1, (2, 1))
    of = Fp8Block((3, 5)).to_dict()
    assert codec.to_dict() == {"codec": "window", "of": of, "top": 2, "left": 1}
    assert codec == Window(Fp8Block((3, 5)), 2, 1)
    assert hash(codec) == hash(Window(Fp8Block((3, 5)), 2, 1))
    assert (codec.coded, codec.out_dtype(piece.parts, "F16")) == (True, "F16")
    assert whole_codec(codec) == Fp8Block((3, 5))
    assert whole_codec(Fp8Block((3, 5))) == Fp8Block((3, 5))
    assert codec.block_of(piece.shape) == (3, 5)
    assert [p.shape for p in piece.parts] == [(7, 11), (3, 3)]


def test_an_excerpt_describes_itself() -> None:
    whole, _ = weight(CODED["awq"], (24, 64))
    codec = whole.cut(0, 3, 20).cut(1, 33, 64).codec
    said = {"codec": "excerpt", "of": whole.codec.to_dict(), "begin": [3, 1], "size": [17, 31]}
    assert codec.to_dict() == said
    assert hash(codec) == hash(Excerpt(whole.codec, (3, 1), (17, 31)))  # type: ignore[arg-type]


PARTS = [
    (Fp8Block((4, 6)), [("F8_E4M3", (7, 11)), ("F32", (3, 2))], (2, 1)),
    (
        Int8Block((4, 6), zero_points=True),
        [("I8", (7, 11)), ("F32", (3, 2)), ("I8", (3, 2))],
        (2, 1),
    ),
    (Fp4Block(32), [("U8", (7, 20)), ("U8", (7, 2))], (0, 2)),
    (PackedInt(4, 32, ("zeros",)), [("I32", (7, 5)), ("F16", (9, 2)), ("I32", (2, 2))], (2, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "facts", "skip"), PARTS, ids=lambda p: getattr(p, "name", ""))
def test_parts_of_other_shapes_do_not_fit(
    codec: Blocks, facts: list[tuple[str, Shape]], skip: tuple[int, int]
) -> None:
    """Each axis of each part beside the codes, longer and shorter by one."""
    parts = [Stored(f"p{k}", d, s, k, 0, 0) for k, (d, s) in enumerate(facts)]
    window = Window(codec, *skip)
    assert window.check(parts) is None
    for k, part in enumerate(parts[1:], 1):
        for axis, size in enumerate(part.shape):
            for other in (size - 1, size + 1):
                shape = (*part.shape[:axis], other, *part.shape[axis + 1 :])
                wrong = [*parts[:k], part._replace(shape=shape), *parts[k + 1 :]]
                assert f"'p{k}'" in str(window.check(wrong)), (k, shape)


def test_windows_of_words_begin_at_words() -> None:
    whole, _ = weight(CODED["packed-4-asym"], (26, 96))
    piece = whole.cut(0, 3, 20)
    assert "expected multiples of 8" in refused(piece, 1, 4, 96)
    whole, _ = weight(CODED["gptq-4-v1"], (24, 96))
    piece = whole.cut(0, 3, 20)
    assert "expected multiples of 8" in refused(piece, 1, 4, 96)


def test_all_of_a_window_is_itself() -> None:
    for name in ("fp8-odd-block", "awq"):
        case, shape, _ = CASES[name]
        piece = weight(case, shape)[0].cut(0, 2, 9)
        assert piece.cut(0, 0, 7) == piece
        assert piece.cut(1, 0, shape[1]) == piece


def test_stored_is_not_changed_by_helpers() -> None:
    """The oracle is of the whole weight: a wrong offset would show."""
    case, shape, _ = CASES["fp8-4x6"]
    whole, value = weight(case, shape)
    piece = whole.cut(0, 1, 9)
    assert isinstance(piece.codec, Window)
    wrong = piece._replace(codec=Window(piece.codec.of, 2, 0))
    assert wrong.decode()[0] != rounded(value[1:9])
    assert stored(case.pack(case.numbers(shape)))[0].shape == shape
