"""Slices, stacks, copies and constants of stored tensors: bytes against NumPy's own slicing.

Every tensor is made twice, by the functions under test and as an array of its elements' bits; the
array alone decides what a span must give.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fp8convert
from fp8convert.codecs.base import COPIES, Rect, Span, Stored
from fp8convert.codecs.raw import Raw
from fp8convert.codecs.slices import copies, filled, literal, sliced, stacked
from fp8convert.errors import DataError, Fp8ConvertError, SchemeError
from fp8convert.pieces import Source, joined, sources

BITS = {"F4": 4, "U8": 8, "F8_E4M3": 8, "BF16": 16, "F32": 32, "I64": 64}
RAW = Raw()


class Pair(NamedTuple):
    """A tensor as the code has it, and the bits of its elements."""

    stored: Stored
    bits: np.ndarray

    @property
    def data(self) -> np.ndarray:
        return np.frombuffer(content(self.bits, self.stored.dtype), np.uint8)


def content(bits: np.ndarray, dtype: str) -> bytes:
    """The bytes of a tensor; of two in a byte the first is in the low half."""
    if dtype == "F4":
        flat = bits.reshape(-1)
        return bytes(int(a) | int(b) << 4 for a, b in zip(flat[::2], flat[1::2], strict=True))
    return bits.astype(f"<u{BITS[dtype] // 8}").tobytes()


class Disk:
    """Shards: each tensor somewhere in one, between bytes that are no tensor's."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shards: list[bytearray] = [bytearray(b"\xee" * n) for n in (3, 1, 8)]

    def new(self, dtype: str, shape: tuple[int, ...], shard: int | None = None) -> Pair:
        high = 1 << BITS[dtype]
        bits = np.array([self.random.randrange(high) for _ in range(math.prod(shape))], object)
        return self.put(dtype, bits.reshape(shape), shard)

    def put(self, dtype: str, bits: np.ndarray, shard: int | None = None) -> Pair:
        number = self.random.randrange(len(self.shards)) if shard is None else shard
        file, data = self.shards[number], content(bits, dtype)
        begin = len(file)
        file += data + b"\xee" * self.random.randrange(5)
        return Pair(Stored("t.w", dtype, bits.shape, number, begin, begin + len(data)), bits)

    def read(self, s: Source) -> np.ndarray:
        found = bytearray()
        for k in range(s.times):
            at, length = s.begin + k * s.stride, s.end - s.begin
            if s.shard < 0:
                found += bytes([~s.shard]) * length
            else:
                assert 0 <= at <= at + length <= len(self.shards[s.shard])
                found += self.shards[s.shard][at : at + length]
        assert len(found) == s.nbytes
        return np.frombuffer(bytes(found), np.uint8)

    def fetch(self, part: Stored, span: Span) -> np.ndarray:
        return joined(part, span, [self.read(s) for s in sources(part, span)])


def cut(p: Pair, axis: int, begin: int, end: int) -> Pair:
    where = (slice(None),) * axis + (slice(begin, end),)
    return Pair(sliced(p.stored, axis, begin, end), p.bits[where])


def stack(pairs: list[Pair], axis: int) -> Pair:
    return Pair(
        stacked([p.stored for p in pairs], axis), np.concatenate([p.bits for p in pairs], axis)
    )


def constant(dtype: str, shape: tuple[int, ...], value: int) -> Pair:
    bits = BITS[dtype]
    each = [value & 15, value >> 4] if bits == 4 else [int.from_bytes([value] * (bits // 8), "big")]
    flat = np.resize(np.array(each, object), math.prod(shape))
    return Pair(filled("t.w", dtype, shape, value), flat.reshape(shape))


def spans(size: int, shape: tuple[int, ...], chance: random.Random) -> Iterator[Span]:
    """All of a small tensor; some of a larger one; and runs, at strides of its rows or any."""
    every = [(a, b) for a in range(size + 1) for b in range(a, size + 1)]
    for a, b in every if len(every) < 150 else chance.sample(every, 100):
        yield Span(a, b)
    yield Span(0, size)
    strides = [size // math.prod(shape[: k + 1]) for k in range(len(shape))] if size else []
    for _ in range(30):
        if size < 2:
            return
        stride = chance.choice([*strides, *strides, chance.randrange(1, size)])
        begin, length = chance.randrange(size), chance.randint(1, max(stride, 1))
        most = (size - begin - length) // stride + 1 if stride else 0
        if most > 1:
            yield Span(begin, begin + length, chance.randint(2, most), stride)


def expected(data: np.ndarray, span: Span) -> bytes:
    starts = [span.begin + k * span.stride for k in range(span.times)]
    return b"".join(data[a : a + span.end - span.begin].tobytes() for a in starts)


def check(disk: Disk, p: Pair) -> None:
    """Everything that may be asked of ``p``."""
    s, data = p.stored, p.data
    assert s.shape == p.bits.shape
    assert s.end - s.begin == data.size
    for span in spans(data.size, s.shape, disk.random):
        found = disk.fetch(s, span)
        assert found.dtype == np.uint8
        assert found.ndim == 1
        assert found.tobytes() == expected(data, span), (s, span)
        if not copied(s):  # no byte is read twice
            assert sum(x.nbytes for x in sources(s, span)) == span.nbytes
        assert all(x.nbytes for x in sources(s, span)) or not span.nbytes
        assert all(x.times > 1 or not x.stride for x in sources(s, span))
    check_raw(disk, p)


def copied(s: Stored) -> bool:
    return bool(s.pieces) and (s.axis == COPIES or any(map(copied, s.pieces)))


def check_raw(disk: Disk, p: Pair) -> None:
    """As the engine copies it: whole rows, several or one, and a row in two."""
    parts, data = (p.stored,), p.data
    grid = RAW.grid(parts)
    width = data.size // max(grid.rows * grid.columns, 1)
    assert grid.rows * grid.columns * width == data.size
    out = np.empty_like(data)
    for r0 in range(0, grid.rows, 2):
        r1 = min(r0 + 2, grid.rows)
        halves = (0, grid.columns // 2, grid.columns) if r1 == r0 + 1 else (0, grid.columns)
        for c0, c1 in itertools.pairwise(halves):
            rect = Rect(r0, r1, c0, c1)
            (span,) = RAW.spans(parts, rect)
            first = (r0 * grid.columns + c0) * width
            to = out[first : first + (r1 - r0) * (c1 - c0) * width]
            RAW.decode(parts, rect, [disk.fetch(p.stored, span)], to, "BF16")
    assert out.tobytes() == data.tobytes()


SHAPES = [(6,), (5, 4), (1, 6), (4, 1), (3, 4, 2), (2, 1, 4), (2, 3, 2, 2), (3, 2, 2, 4), (0, 4),
          (2, 0, 4)]  # fmt: skip


def grown(disk: Disk, dtype: str, shape: tuple[int, ...], depth: int) -> Pair:
    """A random tensor of ``shape``: from a file, or made of others, ``depth`` deep."""
    chance = disk.random
    kind = chance.choice(["cut", "cut", "stack", "stack", "copies", "fill"]) if depth else "new"
    axis = chance.randrange(len(shape))
    if kind == "cut":
        before, after = chance.randint(0, 2), chance.randint(0, 2)
        if dtype == "F4" and axis == len(shape) - 1:
            before, after = 2 * before, 2 * after
        longer = (*shape[:axis], before + shape[axis] + after, *shape[axis + 1 :])
        return cut(grown(disk, dtype, longer, depth - 1), axis, before, before + shape[axis])
    if kind == "stack":
        unit = 2 if dtype == "F4" and axis == len(shape) - 1 else 1
        stops = sorted(unit * chance.randint(0, shape[axis] // unit) for _ in range(2))
        sizes = [b - a for a, b in itertools.pairwise([0, *stops, shape[axis]])]
        shapes = [(*shape[:axis], n, *shape[axis + 1 :]) for n in sizes]
        return stack([grown(disk, dtype, s, chance.randrange(depth)) for s in shapes], axis)
    if kind == "copies":
        one = grown(disk, dtype, shape, depth - 1)
        others = [disk.put(dtype, one.bits).stored for _ in range(chance.randint(0, 2))]
        return one._replace(stored=copies([one.stored, *others]))
    if kind == "fill":
        return constant(dtype, shape, chance.randrange(256))
    return disk.new(dtype, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["U8", "BF16", "F32", "F4"])
def test_tensors_made_of_tensors(dtype: str, shape: tuple[int, ...]) -> None:
    """Random trees; then slices of them along every axis."""
    if dtype == "F4" and shape[-1] % 2:
        shape = (*shape[:-1], shape[-1] + 1)
    made = sliced_again = 0
    for seed in range(16):
        disk = Disk(seed)
        p = allowed(grown, disk, dtype, shape, 1 + seed % 4)
        if p is None:
            continue
        check(disk, p)
        made += 1
        for axis, size in enumerate(shape):
            unit = 2 if dtype == "F4" and axis == len(shape) - 1 else 1
            lo, hi = sorted(unit * disk.random.randint(0, size // unit) for _ in range(2))
            if (again := allowed(cut, p, axis, lo, hi)) is not None:
                check(disk, again)
                sliced_again += 1
    assert made > 8
    assert sliced_again > 8 * len(shape) * 0.7


def allowed(make: Callable[..., Pair], *facts: Any) -> Pair | None:
    """What ``make`` gives; None if it is refused as test_two_strides_are_refused says."""
    try:
        return make(*facts)
    except Fp8ConvertError as e:
        if "two strides" not in str(e):
            raise
        return None


def addresses(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)


def one_stride(at: np.ndarray) -> bool:
    """Whether ascending addresses are runs of one length, one distance apart."""
    edges = np.flatnonzero(np.diff(at) != 1) + 1
    runs = np.split(at, edges)
    starts = np.diff([r[0] for r in runs])
    return len({len(r) for r in runs}) == 1 and len(set(starts)) < 2


def slices_of(shape: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    for axis, size in enumerate(shape):
        yield from ((axis, a, b) for a in range(size) for b in range(a + 1, size + 1))


TWO_STRIDES = {(3, 4): False, (1, 3, 4): False, (3, 1, 4): False, (3, 2, 3): False,
               (2, 3, 3): True, (2, 2, 2, 3): True}  # fmt: skip


@pytest.mark.parametrize("shape", TWO_STRIDES, ids=str)
def test_two_strides_are_refused(shape: tuple[int, ...]) -> None:
    """A slice of a slice is refused when its bytes are not runs at one distance, and only then."""
    whole = Stored("t.w", "U8", shape, 0, 10, 10 + math.prod(shape))
    refused = 0
    for first in slices_of(shape):
        one = sliced(whole, *first)
        at = addresses(shape)[(slice(None),) * first[0] + (slice(*first[1:]),)]
        assert one_stride(at.reshape(-1))
        for axis, a, b in slices_of(one.shape):
            if (a, b) == (0, one.shape[axis]):
                continue
            two = at[(slice(None),) * axis + (slice(a, b),)].reshape(-1)
            if one_stride(two):
                found = sources(sliced(one, axis, a, b), Span(0, two.size))
                runs = [range(s.begin + k * s.stride, s.end + k * s.stride) for s in found
                        for k in range(s.times)]  # fmt: skip
                assert [n - 10 for run in runs for n in run] == two.tolist()
                assert len(found) == 1
            else:
                refused += 1
                with pytest.raises(Fp8ConvertError, match=r"^internal: 't\.w'.* two strides"):
                    sliced(one, axis, a, b)
    assert (refused > 0) == TWO_STRIDES[shape]


def test_a_slice_is_runs() -> None:
    """The fields that the engine reads."""
    w = Stored("w", "BF16", (6, 10), 3, 100, 220)
    assert sliced(w, 0, 2, 5) == Stored("w", "BF16", (3, 10), 3, 140, 200)
    columns = sliced(w, 1, 4, 7)
    assert columns == Stored("w", "BF16", (6, 3), 3, 108, 144, run=6, pitch=20)
    assert sliced(columns, 1, 1, 3) == Stored("w", "BF16", (6, 2), 3, 110, 134, run=4, pitch=20)
    rows = sliced(columns, 0, 1, 3)
    assert rows == Stored("w", "BF16", (2, 3), 3, 128, 140, run=6, pitch=20)
    assert sliced(sliced(w, 0, 1, 3), 1, 4, 7) == rows
    assert sliced(rows, 0, 1, 2) == Stored("w", "BF16", (1, 3), 3, 148, 154)
    experts = sliced(w._replace(shape=(2, 3, 10)), 1, 1, 3)
    assert experts == Stored("w", "BF16", (2, 2, 10), 3, 120, 200, run=40, pitch=60)
    assert sliced(columns, 1, 1, 1).run == 0


def test_all_of_a_tensor_is_itself() -> None:
    disk = Disk(1)
    plain = disk.new("U8", (4, 6)).stored
    both = stacked([plain, sliced(plain, 1, 1, 3)], 1)
    for s in (plain, sliced(plain, 1, 1, 3), both, copies([plain, plain])):
        assert sliced(s, 0, 0, s.shape[0]) is s
        assert sliced(s, 1, 0, s.shape[1]) is s


def test_pieces_that_give_nothing_are_dropped() -> None:
    disk = Disk(2)
    a, b, c = (disk.new("U8", (4, n)).stored for n in (2, 3, 4))
    for axis, more in ((1, ()), (2, (1,))):
        pieces = [p._replace(shape=(*p.shape[:1], *more, *p.shape[1:])) for p in (a, b, c)]
        whole = stacked(pieces, axis)
        assert whole.shape == (4, *more, 9)
        assert (whole.begin, whole.end, whole.shard) == (0, 36, a.shard)
        assert sliced(whole, axis, 2, 5) == pieces[1]  # stands for itself
        assert sliced(whole, axis, 3, 4) == sliced(pieces[1], axis, 1, 2)
        two = sliced(whole, axis, 1, 5)
        assert two.pieces == (sliced(pieces[0], axis, 1, 2), pieces[1])
        nothing = sliced(whole, axis, 5, 5)
        assert (nothing.shape, nothing.pieces, nothing.end) == ((4, *more, 0), (), 0)
        assert sliced(whole, 0, 1, 2).pieces == tuple(sliced(p, 0, 1, 2) for p in pieces)
        assert stacked([sliced(pieces[0], axis, 0, 0), pieces[1]], axis) == pieces[1]


def test_names_are_the_first_piece_s_and_stay() -> None:
    disk = Disk(3)
    a, b = (disk.new("U8", (2, 4)).stored._replace(name=n) for n in "ab")
    both = stacked([a, b], 0)._replace(name="both")
    for s in (sliced(both, 0, 1, 3), sliced(both, 0, 2, 4), sliced(both, 1, 0, 1)):
        assert s.name == "both"
    assert sliced(copies([a, b])._replace(name="same"), 0, 0, 1).name == "same"
    assert stacked([sliced(a, 0, 0, 0), b], 0).name == "a"


def test_a_shard_that_is_a_file_stands_for_all() -> None:
    """Messages name it."""
    table = Disk(4).new("BF16", (2, 4), shard=2).stored
    zeros = filled("t.w", "BF16", (3, 4), 0)
    assert stacked([zeros, table], 0).shard == 2
    assert zeros.shard == -1
    assert filled("t.w", "U8", (2,), 200).shard == ~200
    assert sliced(filled("t.w", "F32", (2, 3), 7), 1, 1, 3) == filled("t.w", "F32", (2, 2), 7)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cuts_within_a_byte_are_refused(axis: int) -> None:
    """Of two elements in a byte: wherever a run of the slice would begin or end in between."""
    for shape in ((2, 3, 4), (4, 3, 1), (1, 2, 3), (2, 1, 3)):
        size = math.prod(shape)
        whole = Stored("t.w", "F4", shape, 0, 0, size // 2)
        for a, b in itertools.combinations(range(shape[axis] + 1), 2):
            at = addresses(shape)[(slice(None),) * axis + (slice(a, b),)].reshape(-1)
            runs = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
            if all(r[0] % 2 == 0 and len(r) % 2 == 0 for r in runs):
                assert sliced(whole, axis, a, b).end - sliced(whole, axis, a, b).begin == (
                    len(at) // 2
                )
            else:
                with pytest.raises(SchemeError, match=r"'t\.w', F4 .* cut within a byte"):
                    sliced(whole, axis, a, b)
    with pytest.raises(SchemeError, match="within a byte"):
        filled("t.w", "F4", (3, 3), 0)
    odd = [Stored("t.w", "F4", (2, 3), 0, 0, 3)] * 2
    with pytest.raises(SchemeError, match="within a byte"):
        stacked(odd, 1)
    assert stacked(odd, 0).shape == (4, 3)


def test_what_does_not_fit_together_is_refused() -> None:
    a = Stored("a", "U8", (2, 4), 0, 0, 8)
    for b in (a._replace(dtype="I8"), a._replace(shape=(2, 3)), a._replace(shape=(2, 4, 1))):
        with pytest.raises(Fp8ConvertError, match=r"^internal: 'a' .* do not fit together"):
            stacked([a, b], 0)
        with pytest.raises(Fp8ConvertError, match=r"^internal: 'a' .* do not fit together"):
            copies([a, b])
    for axis, lo, hi in ((0, -1, 1), (0, 1, 3), (1, 3, 2), (-1, 0, 1)):
        with pytest.raises(Fp8ConvertError, match=r"^internal: 'a': elements"):
            sliced(a, axis, lo, hi)


def test_a_literal() -> None:
    """The integers that packed codes carry as their shape."""
    for numbers in ([4096, 7168], [0, 0], [1], [2**40 + 1, 255, 0]):
        data = np.array(numbers, "<i8").tobytes()
        s = literal("t.shape", "I64", (len(numbers),), data)
        assert (s.dtype, s.shape, s.end - s.begin) == ("I64", (len(numbers),), len(data))
        disk = Disk(5)
        check(disk, Pair(s, np.array([n % 2**64 for n in numbers], object)))
        assert all(x.shard < 0 for x in sources(s, Span(0, len(data))))
    assert literal("n", "U8", (0,), b"").end == 0
    with pytest.raises(Fp8ConvertError, match="internal: 'n': 3 bytes for 4"):
        literal("n", "I32", (1,), b"abc")
    with pytest.raises(Fp8ConvertError, match=r"internal: 't\.shape': a slice of a literal"):
        sliced(literal("t.shape", "I64", (2,), bytes(range(16))), 0, 0, 1)


# How many sources: each is a call to the system, and whole pages of a buffer.


def test_any_bytes_of_a_slice_are_at_most_three_sources() -> None:
    s = sliced(Disk(6).new("U8", (6, 9)).stored, 1, 2, 7)
    for a, b in itertools.combinations(range(31), 2):
        found = sources(s, Span(a, b))
        assert len(found) <= (1 if a // 5 == (b - 1) // 5 or a % 5 == b % 5 == 0 else 3)
    assert sources(s, Span(5, 25)) == (Source(s.shard, s.begin + 9, s.begin + 14, 4, 9),)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_whole_rows_are_one_source_of_each_piece(axis: int) -> None:
    """A row: the elements of one element of the axes before."""
    disk = Disk(7)
    shape = (2, 3, 4, 5)
    sizes = {0: (1, 1), 1: (1, 2), 2: (3, 1), 3: (2, 3)}[axis]
    shapes = [(*shape[:axis], n, *shape[axis + 1 :]) for n in sizes]
    plain = [disk.new("BF16", s) for s in shapes]
    wider = [disk.new("BF16", (*s[:-1], s[-1] + 2)) for s in shapes]
    cuts = [cut(p, 3, 1, 1 + s[-1]) for p, s in zip(wider, shapes, strict=True)]
    row = 2 * math.prod(shape[axis:])
    for whole in (stack(plain, axis), stack(cuts, axis)):
        data = whole.data
        if axis == 3:  # and where it begins or ends within a row, the rest of that one, in pieces
            for a, b in itertools.combinations(range(0, data.size + 1, 3), 2):
                assert len(sources(whole.stored, Span(a, b))) <= 6
        for r0, r1 in itertools.combinations(range(math.prod(shape[:axis]) + 1), 2):
            span = Span(r0 * row, r1 * row)
            assert disk.fetch(whole.stored, span).tobytes() == data[r0 * row : r1 * row].tobytes()
            assert len(sources(whole.stored, span)) == 2


def test_the_same_bytes_of_many_rows_are_one_source_of_each_piece() -> None:
    """As codecs ask that transpose: thousands of runs must not be as many sources."""
    disk = Disk(8)
    by_columns = stack([disk.new("U8", (500, n)) for n in (6, 4)], 1)
    by_rows = stack([disk.new("U8", (n, 10)) for n in (300, 200)], 0)
    columns_of = cut(disk.new("U8", (500, 20)), 1, 5, 15)
    for p, most in ((by_columns, 2), (by_rows, 24), (columns_of, 1)):
        for span in (Span(2, 9, 500, 10), Span(31, 35, 400, 10), Span(0, 1, 500, 10)):
            found = sources(p.stored, span)
            assert len(found) <= most
            assert disk.fetch(p.stored, span).tobytes() == expected(p.data, span)


# What the engine cuts by


def columns_of(s: Stored) -> int:
    grid = RAW.grid((s,))
    width = max(BITS[s.dtype] // 8, 1)
    assert (grid.row_step, grid.column_step, grid.period, grid.unit) == (1, 1, 0, 1)
    assert grid.rows * grid.columns * width == s.end - s.begin
    return grid.columns


def test_rows_of_what_is_copied() -> None:
    disk = Disk(9)

    def new(*shape: int, dtype: str = "BF16") -> Stored:
        return disk.new(dtype, shape).stored

    assert columns_of(new(4, 6)) == 1
    assert columns_of(stacked([new(4, 6), new(2, 6)], 0)) == 1
    assert columns_of(filled("z", "BF16", (4, 6), 0)) == 1
    assert columns_of(sliced(new(4, 6), 0, 1, 3)) == 1
    assert columns_of(copies([new(4, 6), new(4, 6)])) == 1
    assert columns_of(sliced(new(4, 6), 1, 1, 3)) == 2
    assert columns_of(sliced(new(4, 6, 5), 1, 1, 3)) == 10
    assert columns_of(sliced(new(4, 6, 5), 2, 1, 3)) == 2
    assert columns_of(sliced(new(4, 8, dtype="F4"), 1, 2, 6)) == 2  # bytes
    assert columns_of(stacked([new(4, 6), new(4, 1)], 1)) == 7
    assert columns_of(stacked([new(4, 3, 5), new(4, 3, 1)], 2)) == 6
    assert columns_of(stacked([new(4, 8, dtype="F4"), new(4, 4, dtype="F4")], 1)) == 6
    same = [sliced(new(4, 6), 1, 1, 3), new(4, 2)]
    assert columns_of(copies(same)) == columns_of(copies(same[::-1])) == 2
    assert columns_of(stacked([*same, filled("t.w", "BF16", (9, 2), 0)], 0)) == 2
    nested = stacked([sliced(new(4, 6, 5), 1, n, n + 2) for n in (0, 3)], 2)
    assert columns_of(nested) == 20  # a row of columns would be a part of a run
    nested = stacked([sliced(new(4, 6, 5), 2, n, n + 2) for n in (0, 3)], 1)
    assert columns_of(nested) == 24
    assert columns_of(stacked([nested, nested], 0)) == 24
    assert columns_of(sliced(nested, 0, 1, 2)) == 24
    assert columns_of(sliced(new(4, 0, 6), 2, 1, 3)) == 1
    assert columns_of(new()) == 1


# Copies


def test_copies_of_slices_are_compared() -> None:
    """In what is asked for, wherever a copy lies; the message names tensor and shards."""
    disk = Disk(10)
    bits = disk.new("U8", (3, 4)).bits
    left, right = disk.new("U8", (3, 2)), disk.new("U8", (3, 1))
    wide = np.concatenate([left.bits, bits, right.bits], 1)
    one = sliced(disk.put("U8", wide, 0).stored, 1, 2, 6)
    two = stacked([disk.put("U8", bits[:, :1], 1).stored, disk.put("U8", bits[:, 1:], 1).stored], 1)
    three = disk.put("U8", bits, 2).stored
    both = stacked([copies([one, two, three])._replace(name="n.w"), right.stored], 1)
    assert both.pieces[0].name == "n.w"
    check(disk, Pair(both, np.concatenate([bits, right.bits], 1)))
    at, data = three.begin + 6, disk.shards[2]  # row 1, column 2
    data[at] ^= 1
    spans = [Span(a, b) for a, b in itertools.combinations(range(16), 2)]
    for span in [*spans, Span(2, 3, 3, 5), Span(1, 2, 3, 5), Span(2, 4, 2, 5)]:
        hit = any(k * span.stride + span.begin <= 7 < k * span.stride + span.end
                  for k in range(span.times))  # fmt: skip
        if hit:
            with pytest.raises(DataError, match=r"^tensor 'n\.w' differs .* number 0 and 2$"):
                disk.fetch(both, span)
        else:
            disk.fetch(both, span)


def test_one_copy_is_read_as_it_is() -> None:
    plain = Disk(11).new("U8", (3, 4)).stored
    assert copies([plain]) is plain


# Read


def test_constant_bytes_are_read_by_rows(tmp_path: Path) -> None:
    """A table with rows of zeros below, as a padded vocabulary has."""
    table = torch.randn((6, 4), generator=torch.Generator().manual_seed(1))
    save_file({"w": table}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    opened = fp8convert.open_checkpoint(tmp_path)
    weight = opened._weights["w"]
    (part,) = weight.parts
    for padded, want in (
        (stacked([part, filled("w", "F32", (3, 4), 0)], 0), torch.cat([table, torch.zeros(3, 4)])),
        (stacked([sliced(part, 1, 1, 3), filled("w", "F32", (6, 1), 0)], 1),
         torch.cat([table[:, 1:3], torch.zeros(6, 1)], 1)),
        (sliced(part, 1, 1, 3), table[:, 1:3]),
        (filled("w", "F32", (6, 2), 0x42), torch.full((6, 2), 48.564705)),
    ):  # fmt: skip
        opened._weights["w"] = weight._replace(parts=(padded,))
        for rows in (None, slice(0, 2), slice(4, 6), slice(5, len(want))):
            found = opened.read("w", rows)
            assert torch.equal(torch.from_numpy(found), want[rows or slice(None)])
