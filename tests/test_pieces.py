"""Tensors cut over files: sources and joined against plain slices of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from fp8convert.codecs.base import COPIES, Span, Stored
from fp8convert.dtypes import DTYPES
from fp8convert.errors import DataError
from fp8convert.pieces import Source, joined, sources

Shards = dict[int, np.ndarray]


def whole(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random bytes of a tensor, [rows, bytes of a row]."""
    rows = shape[0]
    width = int(np.prod(shape[1:], dtype=int)) * DTYPES[dtype].bits // 8
    return np.random.default_rng(rows + width).integers(0, 256, (rows, width), np.uint8)


def stored(shape: tuple[int, ...], dtype: str, cuts: Sequence[int], axis: int):
    """A tensor cut at ``cuts`` along ``axis``, each piece somewhere in a shard of its own."""
    data = whole(shape, dtype)
    shards: Shards = {}
    pieces = []
    for number, (a, b) in enumerate(zip((0, *cuts), (*cuts, shape[axis]), strict=True)):
        unit = data.shape[1] // shape[1] if axis == 1 else 0
        part = data[a:b] if axis == 0 else data[:, a * unit : b * unit]
        begin = 7 + 3 * number
        shard = np.full(begin + part.size + 5, 0xEE, np.uint8)
        shard[begin : begin + part.size] = part.reshape(-1)
        shards[number] = shard
        cut = tuple(b - a if k == axis else n for k, n in enumerate(shape))
        pieces.append(Stored("w", dtype, cut, number, begin, begin + part.size))
    return Stored("w", dtype, shape, 0, 0, data.size, tuple(pieces), axis), data, shards


def fetch(part: Stored, span: Span, shards: Shards) -> tuple[np.ndarray, tuple[Source, ...]]:
    """What a codec is given: the sources, read from their shards, and joined."""
    found = sources(part, span)
    data = []
    for s in found:
        starts = range(s.begin, s.begin + s.times * s.stride + 1, s.stride or 1)
        runs = [shards[s.shard][b : b + s.end - s.begin] for b, _ in zip(starts, range(s.times))]  # noqa: B905
        data.append(np.concatenate(runs))
        assert len(data[-1]) == s.nbytes
    return joined(part, span, data), found


def spans(part: Stored, data: np.ndarray) -> Iterator[Span]:
    """All that a codec may ask of a tensor: whole rows, anything along one row, all of it."""
    rows, width = data.shape
    yield Span(0, data.size)
    for r0 in range(rows):
        for r1 in range(r0 + 1, rows + 1):
            yield Span(r0 * width, r1 * width)
    for r in range(rows):
        for a in range(width):
            for b in range(a + 1, width + 1):
                yield Span(r * width + a, r * width + b)


ROWS = [((6, 5), "U8", (2, 4)), ((7, 3), "U8", (1, 2, 6)), ((5, 2), "F16", (4,)),
        ((9,), "F32", (3, 6)), ((6, 2, 2), "U8", (1, 5))]  # fmt: skip
COLUMNS = [((4, 6), "U8", (2, 4)), ((3, 7), "U8", (1, 2, 6)), ((3, 4), "F16", (1,)),
           ((1, 8), "U8", (3,)), ((2, 4, 3), "U8", (1, 3))]  # fmt: skip


@pytest.mark.parametrize(("shape", "dtype", "cuts"), ROWS)
def test_cut_by_rows(shape: tuple[int, ...], dtype: str, cuts: tuple[int, ...]) -> None:
    part, data, shards = stored(shape, dtype, cuts, 0)
    flat = data.reshape(-1)
    for begin in range(data.size):  # any bytes at all
        for end in range(begin + 1, data.size + 1):
            got, found = fetch(part, Span(begin, end), shards)
            assert got.tolist() == flat[begin:end].tolist()
            assert all(s.begin < s.end for s in found)


@pytest.mark.parametrize(("shape", "dtype", "cuts"), COLUMNS)
def test_cut_by_columns(shape: tuple[int, ...], dtype: str, cuts: tuple[int, ...]) -> None:
    """Whole rows, and spans within one row."""
    part, data, shards = stored(shape, dtype, cuts, 1)
    flat = data.reshape(-1)
    for span in spans(part, data):
        got, found = fetch(part, span, shards)
        assert got.tolist() == flat[span.begin : span.end].tolist()
        assert sum(s.nbytes for s in found) == span.nbytes
        for s in found:
            piece = part.pieces[s.shard]
            assert piece.begin <= s.begin <= s.end <= piece.end


@pytest.mark.parametrize("axis", [0, 1])
def test_ragged_and_empty_pieces(axis: int) -> None:
    """A rank may have less than the others of a tensor, or nothing."""
    for cuts in ((0, 3), (3, 3), (3, 5), (0, 0, 5), (1, 4)):
        part, data, shards = stored((5, 5), "U8", cuts, axis)
        flat = data.reshape(-1)
        for span in spans(part, data):
            got, _ = fetch(part, span, shards)
            assert got.tolist() == flat[span.begin : span.end].tolist()


def test_a_tensor_that_is_not_cut_may_be_asked_for_runs() -> None:
    data = np.arange(60, dtype=np.uint8)
    part = Stored("w", "U8", (6, 10), 3, 4, 64)
    shards = {3: np.concatenate([np.full(4, 0xEE, np.uint8), data])}
    for span in (Span(0, 60), Span(7, 9), Span(2, 5, 6, 10), Span(0, 1, 3, 20), Span(9, 9)):
        got, found = fetch(part, span, shards)
        at = span.begin + span.stride * np.arange(span.times)[:, None]
        assert got.tolist() == data[at + np.arange(span.end - span.begin)].reshape(-1).tolist()
        assert found == (Source(3, 4 + span.begin, 4 + span.end, span.times, span.stride),)
        assert found[0].nbytes == span.nbytes


@pytest.mark.parametrize("axis", [0, 1, COPIES])
def test_runs_of_a_tensor_that_is_cut(axis: int) -> None:
    """As codecs ask that transpose: whatever the runs and their distance."""
    if axis == COPIES:
        part, shards = copies(*3 * [bytes(range(10))])
    else:
        part, _, shards = stored((4, 6), "U8", (1, 3), axis)
    flat = fetch(part, Span(0, part.end), shards)[0]
    for begin in range(part.end):
        for length in range(1, part.end - begin):
            for stride in range(length, part.end - begin - length + 1):
                for times in range(2, (part.end - begin - length) // stride + 2):
                    got, found = fetch(part, Span(begin, begin + length, times, stride), shards)
                    at = begin + stride * np.arange(times)[:, None] + np.arange(length)
                    assert got.tolist() == flat[at].reshape(-1).tolist()
                    assert all(s.begin < s.end for s in found)


def copies(*contents: bytes) -> tuple[Stored, Shards]:
    """Copies of a tensor of ten bytes in several shards, at different places."""
    pieces = tuple(Stored("n.w", "U8", (2, 5), k, k, k + 10) for k in range(len(contents)))
    shards = {k: np.frombuffer(bytes(k) + c, np.uint8) for k, c in enumerate(contents)}
    return Stored("n.w", "U8", (2, 5), 0, 0, 10, pieces, COPIES), shards


def test_equal_copies_are_one() -> None:
    part, shards = copies(b"0123456789", b"0123456789", b"0123456789")
    for begin in range(10):
        for end in range(begin + 1, 11):
            got, found = fetch(part, Span(begin, end), shards)
            assert got.tobytes() == b"0123456789"[begin:end]
            assert [s.shard for s in found] == [0, 1, 2]  # all are read, and compared


def test_copies_that_differ_are_named() -> None:
    """In any byte of the span, in any of the shards; elsewhere it does not matter yet."""
    for shard in (1, 2):
        for at in range(10):
            contents = [bytearray(b"0123456789") for _ in range(3)]
            contents[shard][at] ^= 1
            part, shards = copies(*map(bytes, contents))
            for span in (Span(0, 10), Span(at, at + 1), Span(max(at - 1, 0), at + 1)):
                with pytest.raises(DataError, match=rf"'n\.w' differs .* 0 and {shard}$"):
                    fetch(part, span, shards)
            if at:
                assert fetch(part, Span(0, at), shards)[0].tobytes() == b"0123456789"[:at]


def test_one_piece_is_the_whole() -> None:
    part, shards = copies(b"0123456789")
    assert fetch(part, Span(2, 8), shards)[0].tobytes() == b"234567"
