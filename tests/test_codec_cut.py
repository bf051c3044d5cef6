"""A slice of a weight is a weight: cut at a codec's steps, each part as if it had been packed so.

Cases and their oracles are those of ``test_codec_cases``; slices inside blocks are in
``test_codec_window``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch

from fp8convert.codecs.base import Codec, Findings, Grid, Rect, Span, Stored
from fp8convert.codecs.fp8_block import Fp8Block
from fp8convert.codecs.gptq import Gptq
from fp8convert.codecs.raw import Raw
from fp8convert.codecs.window import Window
from fp8convert.dtypes import DTYPES
from fp8convert.encoding.carried import Copied, Floats
from fp8convert.errors import SchemeError
from fp8convert.pieces import joined, sources

from .formats import make
from .test_codec_cases import (
    CODED,
    TORCH,
    Case,
    Numbers,
    Parts,
    Shape,
    awq,
    gptq,
    made,
    packed,
    rounded,
    span_bytes,
    stored,
    to_bytes,
)
from .test_codecs import column_cuts, plain_rows, row_cuts, same

ONE_GROUP = {
    "gptq-one-group": gptq(4, True, group=96),
    "gptq-one-group-trivial": gptq(8, False, group=96, shuffled=False),
    "awq-one-group": awq(True, group=96),
    "packed-one-group": packed(4, 96, "shape"),
}
CASES = CODED | ONE_GROUP
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Held(NamedTuple):
    """A weight, or a slice of one: its codec, its parts, and the bytes of their shards."""

    codec: Codec
    parts: tuple[Stored, ...]
    shards: list[np.ndarray]

    def cut(self, axis: int, begin: int, end: int) -> Held:
        codec, parts = self.codec.cut(self.parts, axis, begin, end)
        return Held(codec, parts, self.shards)

    @property
    def shape(self) -> Shape:
        return self.codec.shape(self.parts)

    @property
    def grid(self) -> Grid:
        return self.codec.grid(self.parts)

    def bytes_of(self, part: Stored, span: Span) -> np.ndarray:
        """As the engine reads them."""
        found = [
            span_bytes(self.shards[s.shard], Span(s.begin, s.end, s.times, s.stride))
            for s in sources(part, span)
        ]
        return joined(part, span, found)

    def whole(self, part: Stored) -> bytes:
        return self.bytes_of(part, Span(0, part.end - part.begin)).tobytes()

    def decode(self, rects: Iterable[Rect] | None = None, target: str = "BF16"):
        """Bytes and findings, rectangle by rectangle; expert by expert, if none are given."""
        grid, total, out = self.grid, Findings(), []
        dtype = DTYPES[self.codec.out_dtype(self.parts, target)]
        for rect in rects or grid.split(Rect(0, grid.rows, 0, grid.columns)):
            spans = self.codec.spans(self.parts, rect)
            data = [self.bytes_of(p, s) for p, s in zip(self.parts, spans, strict=True)]
            piece = np.full((rect.r1 - rect.r0) * (rect.c1 - rect.c0), 77, dtype.numpy)
            total.add(self.codec.decode(self.parts, rect, data, piece, target))
            out.append(piece.tobytes())
        return b"".join(out), total


def held(codec: Codec, tensors: Parts) -> Held:
    """Each part somewhere in a shard of its own."""
    parts, shards = [], []
    for number, (part, tensor) in enumerate(zip(stored(tensors), tensors, strict=True)):
        raw, at = to_bytes(tensor), 3 + 8 * number
        parts.append(part._replace(begin=at, end=at + raw.size))
        shards.append(np.pad(raw, (at, 9), constant_values=0xEE))
    return Held(codec, tuple(parts), shards)


def weight(case: Case, shape: Shape) -> tuple[Held, torch.Tensor]:
    """A weight of a case, and its float32 value by the published formula."""
    parts, value = made(case, shape)
    return held(case.codec, parts), value


def shapes(case: Case) -> list[Shape]:
    """Several steps of every axis, and what is left over where that may be."""
    if case in ONE_GROUP.values():
        return [(64, 96)]
    return case.fitting(*[(300, 290), (5, 40, 70)] if case.block[0] else [(20, 30), (3, 4, 5)])


def mixed(case: Case) -> bool:
    """Whether a column may be in any group."""
    return "groups" in case.codec.roles


def axes(shape: Shape) -> range:
    return range(len(shape))


def legal(size: int, step: int) -> list[tuple[int, int]]:
    """A few cuts at multiples of ``step``: at either end, and between them."""
    points = [*range(0, size, step), size]
    last = len(points) - 1
    pairs = {(0, 1), (0, last - 1), (1, last), (last - 1, last), (last // 3, last // 3 + 1),
             (last // 2, last), (0, last)}  # fmt: skip
    return sorted({(points[a], points[b]) for a, b in pairs if a < b})


def cuts(weight: Held) -> Iterator[tuple[int, int, int]]:
    """Axis, begin and end of legal cuts."""
    for axis in axes(weight.shape):
        step = weight.codec.step(weight.parts, axis)
        for begin, end in legal(weight.shape[axis], step):
            yield axis, begin, end


@ALL
def test_a_slice_decodes_to_the_slice_of_the_whole(case: Case) -> None:
    for shape in shapes(case):
        whole, value = weight(case, shape)
        for axis, begin, end in cuts(whole):
            piece = whole.cut(axis, begin, end)
            assert piece.codec.check(piece.parts) is None
            assert type(piece.codec) is type(case.codec)
            wanted = value.narrow(axis, begin, end - begin)
            assert piece.shape == tuple(wanted.shape)
            ours, found = piece.decode()
            assert found == Findings()
            same(ours, rounded(wanted), (shape, axis, begin, end))


@ALL
@pytest.mark.parametrize("kernels", ["numba", "numpy"])
@pytest.mark.parametrize("target", list(TORCH))
def test_whatever_way_the_slice_is_read(
    case: Case, target: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, in rows of blocks, within rows; to every dtype, by either kernel."""
    monkeypatch.setenv("FP8CONVERT_KERNELS", kernels)
    shape = (24, 96) if case in ONE_GROUP.values() else case.fitting((40, 70), (3, 40, 70))[0]
    whole, value = weight(case, shape)
    for axis in axes(shape):
        step = whole.codec.step(whole.parts, axis)
        begin, end = legal(shape[axis], step)[-2:][0]
        piece, wanted = whole.cut(axis, begin, end), value.narrow(axis, begin, end - begin)
        grid = piece.grid
        for rects in (
            row_cuts(grid, 1), plain_rows(grid, 7), column_cuts(grid, grid.column_step, False),
            column_cuts(grid, 3 * grid.unit, True),
        ):  # fmt: skip
            ours, found = piece.decode(rects, target)
            assert found.damage is None
            same(ours, rounded(wanted, target), (axis, begin, end), target)


def narrowed(case: Case, n: Numbers, axis: int, begin: int, end: int) -> Numbers:
    """The numbers of a slice, sliced one by one."""
    shape, length = tuple(n.codes.shape), end - begin
    at = axis - len(shape)
    block = case.blocks(shape)[at] if at >= -2 else 1
    lo, hi = begin // block, -(-end // block)
    grids, groups = [n.scales, n.zeros], n.groups
    if not (mixed(case) and at == -1):
        grids = [None if g is None else g.narrow(axis, lo, hi - lo) for g in grids]
    elif groups is not None:
        groups = groups.narrow(0, begin, length)
    return Numbers(n.codes.narrow(axis, begin, length), *grids, n.whole, groups)


@ALL
def test_parts_are_as_if_the_slice_had_been_packed(case: Case) -> None:
    """Byte by byte; but the shape that packed integers carry is no part of a slice, and groups of
    inputs have their numbers in the whole weight."""
    for shape in shapes(case):
        n = case.numbers(shape)
        whole = held(case.codec, case.pack(n))
        for axis, begin, end in cuts(whole):
            piece = whole.cut(axis, begin, end)
            if piece.codec is whole.codec and (begin, end) == (0, shape[axis]):
                assert piece.parts == whole.parts
                continue
            expected = dict(
                zip(case.codec.roles, case.pack(narrowed(case, n, axis, begin, end)), strict=True)
            )
            expected.pop("shape", None)
            if "groups" in expected and n.groups is None and axis:  # in their order
                expected["groups"] = (torch.arange(begin, end) // case.blocks(shape)[1]).int()
            assert piece.codec.roles == tuple(expected)
            for part, (role, tensor) in zip(piece.parts, expected.items(), strict=True):
                what = (shape, axis, begin, end, role)
                assert part.shape == tuple(tensor.shape), what
                assert part.end - part.begin == tensor.numel() * tensor.element_size(), what
                assert piece.whole(part) == to_bytes(tensor).tobytes(), what


@ALL
def test_a_part_that_is_for_all_of_an_axis_stays_itself(case: Case) -> None:
    (shape, *_) = shapes(case)
    whole, _ = weight(case, shape)
    for axis in axes(shape):
        begin, end = legal(shape[axis], whole.codec.step(whole.parts, axis))[0]
        if (begin, end) == (0, shape[axis]):
            continue
        piece = whole.cut(axis, begin, end)
        named = dict(zip(piece.codec.roles, piece.parts, strict=True))
        before = dict(zip(whole.codec.roles, whole.parts, strict=True))
        one = axis >= len(shape) - 2 and case.blocks(shape)[axis - len(shape)] >= shape[axis]
        for role in ("scales", "zeros"):
            if role in named:
                all_groups = mixed(case) and axis == 1
                assert (named[role] is before[role]) == (one or all_groups), (axis, role)
        if "global" in named:
            assert named["global"] is before["global"]
        if "groups" in named:
            assert (named["groups"] is before["groups"]) == (axis == 0)
        assert named["codes"] is not before["codes"]


def everything(weight: Held) -> tuple[object, ...]:
    """Its codec, and the bytes of its parts."""
    return (weight.codec, *map(weight.whole, weight.parts))


@ALL
def test_cuts_compose(case: Case) -> None:
    """Along one axis, and along another."""
    for shape in shapes(case):
        whole, value = weight(case, shape)
        for axis, begin, end in cuts(whole):
            once = whole.cut(axis, begin, end)
            for other in axes(shape):
                if other != axis and len(shape) == 3 and 0 not in (axis, other):
                    continue  # two strides
                step = once.codec.step(once.parts, other)
                b, e = legal(once.shape[other], step)[-1]
                twice = once.cut(other, b, e)
                assert twice.codec.check(twice.parts) is None
                wanted = value.narrow(axis, begin, end - begin).narrow(other, b, e - b)
                same(twice.decode()[0], rounded(wanted), (shape, axis, begin, end, other, b, e))
                first = whole.codec.step(whole.parts, axis)  # 1 in a slice of one block
                if other == axis and b % first == 0:
                    at_once = whole.cut(axis, begin + b, begin + e)
                    assert everything(twice) == everything(at_once)


STEPS = [
    ("fp8-128", (300, 290), (128, 128)),
    ("fp8-128", (128, 129), (128, 128)),  # a block is whole also where it is alone
    ("fp8-128", (129, 128), (128, 128)),
    ("fp8-128", (4, 300, 64), (1, 128, 128)),
    ("fp8-32-e8m0", (64, 96), (32, 32)),
    ("fp8-mx-u8", (64, 96), (1, 32)),
    ("fp8-row-bf16", (64, 96), (1, 1)),
    ("fp8-matrix", (64, 96), (1, 1)),
    ("fp8-odd-block", (7, 11), (3, 5)),
    ("int8-square-asym", (64, 96), (16, 32)),
    ("mxfp4", (64, 96), (1, 32)),
    ("mxfp4", (64, 32), (1, 32)),  # a group is whole also where it is alone
    ("mxfp4", (3, 64, 96), (1, 1, 32)),
    ("nvfp4-divide", (64, 96), (1, 16)),
    ("packed-4", (64, 96), (1, 32)),
    ("packed-4-asym", (64, 96), (8, 32)),
    ("packed-4-row", (64, 96), (1, 8)),
    ("packed-4-row-asym", (64, 96), (8, 8)),
    ("packed-4-reordered", (64, 96), (1, 8)),
    ("packed-8", (64, 96), (1, 32)),
    ("packed-8-reordered-asym", (64, 96), (4, 4)),
    ("gpt-oss", (4, 96, 20), (1, 32, 1)),
    ("gptq-4-v1", (64, 96), (8, 32)),
    ("gptq-4-v1-trivial", (64, 96), (8, 8)),  # groups may be in any order, so far
    ("gptq-8-v2-shuffled", (64, 96), (4, 4)),
    ("gptq-one-group", (64, 96), (8, 8)),
    ("awq", (64, 96), (8, 32)),
    ("awq-one-group", (64, 96), (8, 1)),
]


@pytest.mark.parametrize(("name", "shape", "steps"), STEPS)
def test_where_a_weight_may_be_cut(name: str, shape: Shape, steps: Shape) -> None:
    whole, _ = weight(CASES[name], shape)
    assert tuple(whole.codec.step(whole.parts, axis) for axis in axes(shape)) == steps


def test_scales_of_every_shape_that_is_read() -> None:
    """[o] for [o, 1], ModelOpt's [down, 1, across, 1], one for all with any number of ones."""
    codes = make.codes("cut", 64, 96)
    for block, grid, forms in (
        ((1, None), (64, 1), [(64,), (64, 1), (64, 1, 1, 1)]),
        ((32, 32), (2, 3), [(2, 3), (2, 1, 3, 1)]),
        ((None, None), (1, 1), [(), (1,), (1, 1), (1, 1, 1)]),
        ((32, None), (2, 1), [(2,), (2, 1), (2, 1, 1, 1)]),
    ):
        scales = make.scales("cut", *grid)
        case = Case(Fp8Block(block), lambda n: [], torch.empty(0), block)
        wide = case._spread(scales, Numbers(codes.float(), scales))
        value = torch.from_numpy(np.asarray(codes.float())) * wide
        for form in forms:
            whole = held(Fp8Block(block), [codes, scales.reshape(form)])
            assert whole.codec.check(whole.parts) is None
            for axis, begin, end in ((0, 32, 64), (1, 32, 96)):
                piece = whole.cut(axis, begin, end)
                assert piece.codec.check(piece.parts) is None, (form, axis)
                wanted = value.narrow(axis, begin, end - begin)
                same(piece.decode()[0], rounded(wanted), (form, axis))


# Groups of inputs that are numbered in the whole weight


def in_order(first: int) -> Gptq:
    return Gptq(4, 32, True, True, True, first)


def test_groups_in_order_are_expected_as_numbered_in_the_whole() -> None:
    case = CODED["gptq-4-v1-trivial"]
    n = case.numbers((16, 128))
    parts = case.pack(n)
    whole = held(in_order(0), parts)
    assert [whole.codec.step(whole.parts, axis) for axis in (0, 1)] == [8, 32]
    piece = whole.cut(1, 32, 128).cut(1, 32, 96)
    assert piece.codec == in_order(64)
    same(piece.decode()[0], rounded(case.value(n)[:, 64:128]), "groups 2 and 3")
    assert piece.whole(piece.parts[3]) == to_bytes((torch.arange(64, 128) // 32).int()).tobytes()
    group = whole.cut(1, 64, 96)  # one of several: it has the number 2 still
    assert group.codec.step(group.parts, 1) == 32
    same(group.cut(1, 8, 24).decode()[0], rounded(case.value(n)[:, 72:88]), "inside group 2")
    parts[3][70] = 3
    _, found = held(in_order(0), parts).cut(1, 64, 128).decode()
    assert "reorders inputs, but desc_act is false" in str(found.damage)
    parts[3][70] = 1  # of a group that is another's
    _, found = held(in_order(0), parts).cut(1, 64, 128).decode()
    assert found.damage == "its columns are in groups 1 to 3, expected 2 to 3"


@pytest.mark.parametrize("name", ["gptq-4-v1-shuffled", "packed-4-reordered-asym"])
def test_reordered_inputs_keep_all_groups(name: str) -> None:
    """Whatever group they are in, in range of all."""
    case = CODED[name]
    n = case.numbers((16, 128))
    assert n.groups is not None
    whole = held(case.codec, case.pack(n))
    piece = whole.cut(1, 40, 96).cut(1, 8, 48)
    assert piece.codec.check(piece.parts) is None
    assert piece.codec.total == 4  # type: ignore[attr-defined]
    same(piece.decode()[0], rounded(case.value(n)[:, 48:88]), name)
    groups = n.groups.clone()
    groups[50] = 4
    _, found = held(case.codec, case.pack(n._replace(groups=groups))).cut(1, 40, 96).decode()
    assert found.damage == "its columns are in groups 0 to 4, expected 0 to 3"


# What cannot be cut


def refused(piece: Held, axis: int, begin: int, end: int) -> str:
    with pytest.raises(SchemeError) as caught:
        piece.cut(axis, begin, end)
    return str(caught.value)


def test_stacks_are_not_cut_inside_blocks() -> None:
    whole, _ = weight(CODED["fp8-128"], (2, 300, 290))
    message = refused(whole, 1, 0, 100)
    assert message == (
        "'part0': axis 1 of a stack of matrices cannot be cut at 0 and 100, expected multiples of "
        "128, where blocks end"
    )
    assert "axis 2 of a stack" in refused(whole, 2, 64, 290)
    assert whole.cut(0, 1, 2).shape == (1, 300, 290)


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("packed-4", 8), ("packed-8", 4), ("packed-4-row", 8), ("packed-4-reordered", 8),
     ("mxfp4", 2), ("nvfp4-divide", 2), ("gptq-4-v1", 8), ("gptq-8-v1", 4)],
)  # fmt: skip
def test_words_and_bytes_are_not_cut(name: str, multiple: int) -> None:
    whole, _ = weight(CODED[name], (64, 96))
    for begin, end in ((1, 32), (0, 32 + multiple // 2), (multiple, 95)):
        message = refused(whole, 1, begin, end)
        wanted = f"columns cannot be cut at {begin} and {end}, expected multiples of {multiple}, "
        assert wanted in message
    assert whole.cut(1, multiple, 96 - multiple).shape == (64, 96 - 2 * multiple)


# Tensors that are not coded


@pytest.mark.parametrize("codec", [Raw(), Floats(), Copied()], ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(7,), (6, 10), (3, 4, 5)])
def test_plain_tensors_are_cut_anywhere(codec: Codec, shape: Shape) -> None:
    tensor = make.bf16("cut", *shape)
    whole = held(codec, [tensor])
    for axis in axes(shape):
        assert codec.step(whole.parts, axis) == 1
        for begin in range(shape[axis]):
            for end in range(begin + 1, shape[axis] + 1):
                piece = whole.cut(axis, begin, end)
                wanted = tensor.narrow(axis, begin, end - begin)
                assert piece.shape == tuple(wanted.shape)
                target = piece.codec.out_dtype(piece.parts, "BF16")
                wanted = wanted.float() if target == "F32" else wanted
                for rects in (None, list(plain_rows(piece.grid, 2))):
                    ours, _ = piece.decode(rects, target)
                    assert ours == to_bytes(wanted).tobytes(), (axis, begin, end)


@pytest.mark.parametrize(
    ("dtype", "shape", "steps"),
    [("F4", (4, 6), (1, 2)), ("F4", (4, 3), (2, 2)), ("F6_E2M3", (4, 8), (1, 4)),
     ("F6_E2M3", (4, 6), (2, 4)), ("U8", (4, 6), (1, 1)), ("BOOL", (4,), (1,))],
)  # fmt: skip
def test_elements_below_a_byte_are_cut_between_bytes(
    dtype: str, shape: Shape, steps: Shape
) -> None:
    part = Stored("w", dtype, shape, 0, 0, 0)
    assert tuple(Raw().step([part], axis) for axis in axes(shape)) == steps


def test_a_slice_of_a_weight_in_pieces() -> None:
    """Cut over files by a layout, and cut again elsewhere."""
    case = CODED["fp8-128"]
    whole, value = weight(case, (512, 290))
    halves = [whole.cut(0, 0, 256), whole.cut(0, 256, 512)]
    parts = tuple(
        Stored(p.name, p.dtype, p.shape, p.shard, 0, p.end - p.begin, (a, b), 0)
        for p, a, b in zip(whole.parts, *(h.parts for h in halves), strict=True)
    )
    again = Held(case.codec, parts, whole.shards)
    for axis, begin, end in ((0, 128, 384), (1, 128, 290)):
        piece = again.cut(axis, begin, end)
        assert not isinstance(piece.codec, Window)
        same(piece.decode()[0], rounded(value.narrow(axis, begin, end - begin)), axis)
