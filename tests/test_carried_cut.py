"""Scales that go with a slice: repeated for smaller blocks, or taken over where it is encoded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fp8convert.codecs.base import Findings, Grid, Rect, Stored
from fp8convert.codecs.fp8_block import Fp8Block
from fp8convert.codecs.window import Window
from fp8convert.coderun import _group
from fp8convert.codetiles import groups
from fp8convert.dtypes import DTYPES
from fp8convert.encoding.band import CHUNK, Bench
from fp8convert.encoding.carried import CARRIED, CopiedShape, Repeated
from fp8convert.encoding.encoder import covering, nested
from fp8convert.encoding.lossless import encoding, way
from fp8convert.encoding.targets import Target
from fp8convert.schemes.weight import Weight
from fp8convert.tile import Chunk

from .test_codec_cases import CODED, Shape, fp8, packed, rounded, to_bytes
from .test_codec_cut import Held, held, weight
from .test_codec_window import random_rects

Array = npt.NDArray[Any]
Pair = tuple[int, int]

# --- Repeated

BLOCK = (4, 6)
DTYPE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8,
         "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3": torch.float8_e4m3fn}  # fmt: skip
SLICES: list[tuple[Pair, Pair, Shape]] = [  # smaller blocks, place in the first block, shape
    ((4, 6), (0, 0), (13, 19)),
    ((2, 6), (0, 0), (13, 19)),
    ((1, 1), (3, 5), (9, 14)),
    ((2, 3), (2, 3), (10, 15)),
    ((2, 2), (2, 4), (7, 11)),
    ((4, 3), (0, 3), (5, 4)),
    ((3, 5), (1, 0), (3, 5)),  # both within one block
    ((1, 6), (1, 0), (6, 12)),
    ((2, 3), (2, 3), (3, 10, 15)),
    ((4, 2), (0, 2), (2, 4, 10)),
]


def scales_of(phase: Pair, size: Shape, dtype: str) -> torch.Tensor:
    """Random bytes for each of the blocks around a slice."""
    grid = [-(-(at + n) // b) for b, at, n in zip(BLOCK, phase, size[-2:], strict=True)]
    width = DTYPES[dtype].bits // 8
    raw = torch.randint(0, 256, (*size[:-2], *grid, width), dtype=torch.uint8)
    return raw.view(DTYPE[dtype]).reshape(*size[:-2], *grid)


def elements(scales: torch.Tensor, block: Pair, phase: Pair, size: Shape) -> Array:
    """The scale of every element of a slice, as bytes in the last axis."""
    raw = to_bytes(scales).reshape(*scales.shape, -1)
    wide = np.repeat(np.repeat(raw, block[0], axis=-3), block[1], axis=-2)
    rows, columns = (slice(at, at + n) for at, n in zip(phase, size[-2:], strict=True))
    return wide[..., rows, columns, :]


def cut_anyhow(grid: Grid) -> Iterator[list[Rect]]:
    yield list(grid.split(Rect(0, grid.rows, 0, grid.columns)))
    yield [Rect(r, r + 1, 0, grid.columns) for r in range(grid.rows)]
    for seed in range(4):
        yield list(random_rects(grid, np.random.default_rng(seed)))


@pytest.mark.parametrize("dtype", DTYPE)
@pytest.mark.parametrize(("to", "phase", "size"), SLICES)
def test_each_smaller_block_has_the_scale_of_its_elements(
    to: Pair, phase: Pair, size: Shape, dtype: str
) -> None:
    scales = scales_of(phase, size, dtype)
    source = held(Repeated(BLOCK, to, phase, size), [scales])
    assert source.codec.check(source.parts) is None
    by_element = elements(scales, BLOCK, phase, size)
    expected = by_element[..., :: to[0], :: to[1], :]
    assert source.shape == expected.shape[:-1]
    assert source.codec.out_dtype(source.parts, "BF16") == source.parts[0].dtype == dtype
    for rects in cut_anyhow(source.grid):
        assert source.decode(rects) == (expected.tobytes(), Findings())
    again = np.repeat(np.repeat(expected, to[0], axis=-3), to[1], axis=-2)
    np.testing.assert_array_equal(again[..., : size[-2], : size[-1], :], by_element)


@pytest.mark.parametrize(
    ("to", "skip", "shape"),
    [((2, 3), (2, 3), (13, 19)), ((4, 2), (0, 4), (13, 19)), ((1, 1), (3, 5), (13, 19)),
     ((2, 6), (6, 6), (13, 19))],
)  # fmt: skip
def test_codes_with_repeated_scales_are_the_same_weight(to: Pair, skip: Pair, shape: Shape) -> None:
    """On their smaller blocks, which may be stored."""
    case = fp8(BLOCK)
    whole, value = weight(case, shape)
    piece = whole.cut(0, skip[0], shape[0]).cut(1, skip[1], shape[1])
    phase = piece.codec.phase if isinstance(piece.codec, Window) else (0, 0)
    codes, scales = piece.parts
    repeated = Held(Repeated(BLOCK, to, phase, piece.shape), (scales,), whole.shards)
    assert repeated.codec.check(repeated.parts) is None
    written, _ = repeated.decode()
    shards = [np.frombuffer(piece.whole(codes), np.uint8), np.frombuffer(written, np.uint8)]
    parts = (
        Stored("codes", codes.dtype, piece.shape, 0, 0, shards[0].size),
        Stored("scales", "F32", repeated.shape, 1, 0, shards[1].size),
    )
    ours = Held(Fp8Block(to), parts, shards)
    assert ours.codec.check(parts) is None
    for target in ("BF16", "F32"):
        expected = rounded(value[skip[0] :, skip[1] :], target)
        assert ours.decode(None, target)[0] == piece.decode(None, target)[0] == expected


def test_scales_without_trailing_ones() -> None:
    scales = torch.arange(3, dtype=torch.float32)
    source = held(Repeated((4, 6), (2, 6), (2, 0), (10, 6)), [scales])
    assert source.codec.check(source.parts) is None
    ours, _ = source.decode()
    assert np.frombuffer(ours, np.float32).tolist() == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("to", "phase", "size", "grid", "words"),
    [
        ((3, 6), (0, 0), (13, 19), (4, 4), "blocks of [3, 6] are not within those of [4, 6]"),
        ((4, 6), (2, 0), (8, 12), (3, 2), "where [8, 12] begins [2, 0] into one"),
        ((2, 4), (2, 3), (8, 12), (3, 3), "where [8, 12] begins [2, 3] into one"),
        (
            (2, 3),
            (2, 3),
            (8, 12),
            (2, 3),
            "are F32 [2, 3], expected F32 [3, 3] for [8, 12]",
        ),
        ((2, 3), (2, 3), (2, 8, 12), (3, 3), "expected F32 [2, 3, 3] for [2, 8, 12]"),
    ],
)
def test_scales_that_cannot_be_repeated(
    to: Pair, phase: Pair, size: Shape, grid: Shape, words: str
) -> None:
    source = held(Repeated(BLOCK, to, phase, size), [torch.ones(grid)])
    assert words in str(source.codec.check(source.parts))


def test_it_says_what_it_does() -> None:
    """With every fact, since plans tell codecs apart by them."""
    codec = Repeated(BLOCK, (2, 3), (2, 0), (10, 15))
    assert codec.to_dict() == {
        "codec": "repeated", "block": [4, 6], "to": [2, 3], "phase": [2, 0], "size": [10, 15],
    }  # fmt: skip
    assert hash(codec) == hash(Repeated(BLOCK, (2, 3), (2, 0), (10, 15)))
    assert not codec.coded
    assert isinstance(codec, CARRIED)


# --- The shape that packed integers carry


@pytest.mark.parametrize(("dtype", "kind"), [("I32", np.int32), ("I64", np.int64)])
@pytest.mark.parametrize("said", [(300, 96), (300, 95)])
def test_the_shape_of_a_slice_is_written(dtype: str, kind: Any, said: Pair) -> None:
    """In the dtype that is asked for; what is read must be the shape of the whole."""
    part = Stored("t", dtype, (2,), 0, 0, 2 * np.dtype(kind).itemsize)
    codec = CopiedShape((300, 96), (75, 96))
    raw = np.array(said, kind).view(np.uint8)
    damage = None if said == (300, 96) else "[300, 95], expected [300, 96]"
    for wide in (kind, np.int64):
        out = np.zeros(2, wide)
        assert codec.decode((part,), Rect(0, 2, 0, 1), [raw], out, "I64").damage == damage
        assert out.tolist() == [75, 96]
    one = np.zeros(1, kind)  # a tile may end anywhere
    half = raw.size // 2
    assert codec.decode((part,), Rect(1, 2, 0, 1), [raw[half:]], one, dtype).damage == (
        damage and "[95], expected [96]"
    )
    assert one.tolist() == [96]
    assert codec.to_dict() == {"codec": "copied-shape", "expected": [300, 96], "written": [75, 96]}


# --- Scales around smaller blocks


def test_blocks_within_blocks() -> None:
    """Against each block's elements, one by one."""
    for source, block, size in itertools.product(range(1, 9), range(1, 9), range(1, 21)):
        for phase in range(source):
            of = (phase + np.arange(size)) // source
            whole = all(len(set(of[b : b + block])) == 1 for b in range(0, size, block))
            assert nested(source, phase, block, size) is whole, (source, phase, block, size)


def test_covering_takes_the_scale_of_each_blocks_elements() -> None:
    rng = np.random.default_rng(1)
    for to, phase, size in ((s[0], s[1], s[2]) for s in SLICES if len(s[2]) == 2):
        grid = [-(-(at + n) // b) for b, at, n in zip(BLOCK, phase, size, strict=True)]
        scales = rng.random(grid).astype(np.float32)
        rows, columns = (
            ((at + np.arange(n)) // b)[::t]
            for b, at, n, t in zip(BLOCK, phase, size, to, strict=True)
        )
        expected = [[scales[r, c] for c in columns] for r in rows]
        found = covering(scales, BLOCK, phase, to, (size[0], size[1]))
        np.testing.assert_array_equal(found, np.array(expected, np.float32))


# --- A slice that is encoded with its own scales


def encoded(piece: Held, to: Target, rows: int = 1 << 20) -> tuple[bytes, bytes, float]:
    """Codes, scales and the largest error, in groups of at most so many rows."""
    w = Weight("m.weight", piece.codec, piece.parts)
    found = encoding(w, to, False, way((w,), to, powers=False), ())
    bench, codes, scales, top = Bench(CHUNK), b"", b"", 0.0

    def load(weight: Weight, chunk: Chunk, x: Array) -> list[Array]:
        spans = [r.span for r in chunk.reads]
        data = [piece.bytes_of(p, s) for p, s in zip(weight.parts, spans, strict=True)]
        weight.codec.decode(weight.parts, chunk.rect, data, x.reshape(-1), "F32")
        return data

    row = found.parts[0].nbytes // piece.shape[0]
    for chunks in groups(w, found.encoder.row_step(piece.shape), rows, 1 << 20):
        group = _group(found, w, chunks, load, bench)
        out = np.zeros(row * (group.r1 - group.r0), np.uint8)
        made = group.encode(0.0, out)
        codes, scales, top = (
            codes + out.tobytes(),
            scales + made.scales.tobytes(),
            max(top, made.errors.top),
        )
    return codes, scales, top


def inherits(piece: Held, to: Target) -> bool:
    w = Weight("m.weight", piece.codec, piece.parts)
    return way((w,), to, powers=False).inherit


INHERITED: list[tuple[Pair, Pair, Pair, bool]] = [  # place, end, block, whether scales will do
    ((2, 3), (13, 19), (2, 3), True),
    ((2, 3), (13, 19), (1, 1), True),
    ((6, 9), (13, 19), (2, 3), True),
    ((2, 0), (13, 19), (2, 6), True),
    ((0, 3), (13, 19), (4, 3), True),
    ((2, 3), (13, 19), (4, 3), False),
    ((2, 3), (13, 19), (2, 6), False),
    ((1, 3), (13, 19), (2, 3), False),
    ((1, 7), (4, 12), (128, 128), True),  # within one block
    ((1, 7), (4, 13), (128, 128), False),
    ((1, 0), (3, 18), (2, 2), True),
]


@pytest.mark.parametrize(("begin", "end", "block", "fine"), INHERITED)
@pytest.mark.parametrize("rows", [1 << 20, 1])
def test_a_window_keeps_its_scales_where_blocks_are_within_its_own(
    begin: Pair, end: Pair, block: Pair, fine: bool, rows: int
) -> None:
    """Then codes are the source's, and scales those of their elements."""
    case, shape = fp8(BLOCK), (13, 19)
    n = case.numbers(shape)
    whole = held(case.codec, case.pack(n))
    piece = whole.cut(0, begin[0], end[0]).cut(1, begin[1], end[1])
    assert isinstance(piece.codec, Window)
    to = Target("fp8-block", block)
    assert inherits(piece, to) is fine
    codes, scales, top = encoded(piece, to, rows)
    if fine:
        inside = (slice(begin[0], end[0]), slice(begin[1], end[1]))
        assert codes == to_bytes(n.codes[inside].to(torch.uint8)).tobytes()
        wide = elements(n.scales, BLOCK, (0, 0), shape)[inside]
        assert scales == wide[:: block[0], :: block[1]].tobytes()
        assert top == 0
    else:
        assert top > 0


INT4 = Target("int4-group", group=32)
HALF = torch.float16
FORMS = [
    ("mxfp8", Target("mxfp8"), fp8((32, 64), scale=torch.uint8), (70, 160), (3, 32), True),
    ("mxfp8-inside", Target("mxfp8"), fp8((32, 64), scale=torch.uint8), (70, 160), (3, 16), False),
    ("int4", INT4, packed(4, 64, "shape", scale=HALF), (9, 192), (2, 32), True),
    ("int4-inside", INT4, packed(4, 64, "shape", scale=HALF), (9, 192), (2, 40), False),
    ("int4-zeros", INT4, packed(4, 64, "zeros", "shape"), (17, 192), (3, 32), False),
    ("mxfp4", Target("mxfp8"), CODED["mxfp4"], (9, 128), (2, 16), False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("to", "case", "shape", "skip", "fine"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS]
)
def test_windows_of_other_forms(
    to: Target, case: Any, shape: Shape, skip: Pair, fine: bool
) -> None:
    n = case.numbers(shape)
    if case.scale == torch.uint8:
        n.scales[n.scales == 0] = 100  # 2**-127, which is rounded
    whole = held(case.codec, case.pack(n))
    end = shape[1] - 32 if skip[1] % 32 == 0 else shape[1] - 64 + skip[1]
    piece = whole.cut(0, skip[0], shape[0]).cut(1, skip[1], end)
    assert isinstance(piece.codec, Window)
    assert inherits(piece, to) is fine
    _, _, top = encoded(piece, to)
    assert (top == 0) is fine
    kept = to.parts(Weight("m.weight", piece.codec, piece.parts))[1].dtype
    if to.scheme == "int4-group":  # they say what the model's dtype is
        assert kept == piece.parts[1].dtype
