"""Tiles: they cover the file once, in order, within the budget, and cut where blocks end."""

from __future__ import annotations

import random

import pytest

from fp8convert import header, tiles
from fp8convert import tile as tile_module
from fp8convert.codecs.awq import Awq
from fp8convert.codecs.base import Codec, Grid, Rect, Stored
from fp8convert.codecs.blocks import Blocks
from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Fp8Block, Int8Block
from fp8convert.codecs.gpt_oss import GptOss
from fp8convert.codecs.gptq import Gptq
from fp8convert.codecs.packed_int import PackedInt
from fp8convert.codecs.raw import Raw
from fp8convert.dtypes import DTYPES
from fp8convert.errors import Fp8ConvertError
from fp8convert.header import ALIGN as PAGE
from fp8convert.pieces import Source
from fp8convert.plan import Item, Task
from fp8convert.schemes.weight import Weight
from fp8convert.tile import Piece, Tile

WIDTH = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1, "F4": 1}
BLOCKS = ((128, 128), (1, 128), (64, 32), (3, 5), (1, 1), (1000, 1))


def coded(number: int, shape: tuple[int, ...], block: tuple[int, int], at: int) -> Weight:
    """A weight of two parts in two shards, at unaligned places; three axes are experts."""
    *lead, rows, columns = shape
    scales = (*lead, -(-rows // block[0]), -(-columns // block[1]))
    count, blocks = header.numel(shape), header.numel(scales)
    codes = Stored(f"w{number}", "F8_E4M3", shape, 0, at, at + count)
    begin = 3 * at + 4 * number
    extra = Stored(f"s{number}", "F32", scales, 1, begin, begin + 4 * blocks)
    return Weight(f"w{number}", Fp8Block(block), (codes, extra))


def other(rng: random.Random, number: int, at: int) -> Weight:
    """A weight of some other codec: packed, transposed, of experts, with parts read whole."""
    e, o, g = rng.randint(1, 4), 8 * rng.randint(1, 30), rng.randint(1, 9)
    i = 32 * g
    codec, parts = rng.choice(
        [
            (Int8Block((1, 32), zero_points=True),
             [("I8", (o, i)), ("BF16", (o, g)), ("I8", (o, g))]),
            (Int8Block((16, None)), [("I8", (o + 3, i)), ("F32", (-(-(o + 3) // 16), 1))]),
            (Fp4Block(32), [("U8", (o - 1, i // 2)), ("F8_E8M0", (o - 1, g))]),
            (Fp4Block(16, "multiply"),
             [("U8", (e, o, i // 2)), ("F8_E4M3", (e, o, 2 * g)), ("F32", ())]),
            (PackedInt(4, 32, ("zeros", "groups", "shape")),
             [("I32", (o, i // 8)), ("F16", (o, g)), ("I32", (o // 8, g)), ("I32", (i,)),
              ("I64", (2,))]),
            (GptOss(), [("U8", (e, o - 3, g, 16)), ("U8", (e, o - 3, g))]),
            (Gptq(4, 32, True, True),
             [("I32", (i // 8, o)), ("F16", (g, o)), ("I32", (g, o // 8)), ("I32", (i,))]),
            (Gptq(8, i, False), [("I32", (i // 4, o)), ("F16", (1, o)), ("I32", (1, o // 4))]),
            (Awq(32), [("I32", (i, o // 8)), ("F16", (g, o)), ("I32", (g, o // 8))]),
        ]
    )  # fmt: skip
    stored = []
    for shard, (dtype, shape) in enumerate(parts):
        begin = at if shard == 0 else 3 * at + 4 * number
        nbytes = header.numel(shape) * DTYPES[dtype].bits // 8
        stored.append(Stored(f"w{number}.{shard}", dtype, shape, shard, begin, begin + nbytes))
    weight = Weight(f"w{number}", codec, tuple(stored))
    assert codec.check(weight.parts) is None
    return weight


def raw(number: int, nbytes: int, dtype: str, at: int) -> Weight:
    shape = (nbytes // WIDTH[dtype],)
    return Weight(f"w{number}", Raw(), (Stored(f"w{number}", dtype, shape, 2, at, at + nbytes),))


def task(weights: list[tuple[Weight, str]]) -> Task:
    """One file of ``weights``, each in the dtype beside it."""
    head = header.build(((w.name, dtype, w.shape) for w, dtype in weights), {})
    items, at = [], len(head)
    for w, dtype in weights:
        nbytes = header.numel(w.shape) * WIDTH[dtype]
        items.append(Item(w, dtype, at, nbytes))
        at += nbytes
    return Task("f", head, tuple(items))


def random_task(rng: random.Random) -> Task:
    weights: list[tuple[Weight, str]] = []
    at = rng.randrange(9999)
    for number in range(rng.randint(1, 9)):
        kind = rng.random()
        if kind < 0.3:
            dtype = rng.choice(["BF16", "F32", "U8"])
            weight = raw(number, rng.choice([0, 1, 3, 700, 9000]) * WIDTH[dtype], dtype, at)
            weights.append((weight, dtype))
        elif kind < 0.6:
            weight = other(rng, number, at)
            weights.append((weight, rng.choice(["BF16", "F16", "F32"])))
        else:
            rows = rng.choice([1, 2, 127, 128, 129, 300, rng.randint(1, 600)])
            columns = rng.choice([1, 5, 128, 131, 400, rng.randint(1, 300)])
            if kind > 0.95:
                rows, columns = rng.choice([(0, 7), (7, 0)])
            experts = [rng.randint(2, 5)] if 0.6 < kind < 0.7 else []
            rows = min(rows, 150) if experts else rows
            weight = coded(number, (*experts, rows, columns), rng.choice(BLOCKS), at)
            weights.append((weight, rng.choice(["BF16", "F16", "F32"])))
        at = weight.parts[0].end
    return task(weights)


def pages(s: Source) -> int:
    """Room for the bytes of ``s``: its pages, or its runs without the gaps between them."""
    if s.times > 1:
        return -(-(s.end - s.begin) * s.times // PAGE) * PAGE
    return (-(-s.end // PAGE) - s.begin // PAGE) * PAGE


def check_cover(task: Task, found: list[Tile], limit: int) -> None:
    """Every byte of the file once and in order, no tile empty or too large."""
    at = 0
    out = b""
    for tile in found:
        assert tile.begin == at
        assert 0 < tile.nbytes <= limit
        for literal in tile.literals:
            assert literal.begin == at
            out += bytes(literal.data)
            at += len(literal.data)
        for piece in tile.pieces:
            assert piece.begin == at
            at += piece.nbytes
        assert tile.end == at
    assert out == task.header
    assert at == task.size


def check_reads(found: list[Tile], limit: int, slack: int) -> None:
    for tile in found:
        spans = [s for p in tile.pieces for read in p.reads for s in read.sources]
        cost = sum(pages(s) for s in spans)
        assert cost == tile.read_bytes
        assert cost <= limit + slack


def band(grid: Grid) -> int:
    """Rows of the largest row of blocks."""
    return min(grid.row_step, grid.period or grid.rows, grid.rows)


def band_fits(item: Item, limit: int, slack: int) -> bool:
    """Whether any row of blocks of the weight fits into a tile of its own."""
    codec, parts = item.weight.codec, item.weight.parts
    grid = codec.grid(parts)
    width = item.nbytes // (grid.rows * grid.columns)
    rows = band(grid)
    spans = codec.spans(parts, Rect(0, rows, 0, grid.columns))
    reads = sum(s.nbytes for s in spans) + 2 * PAGE * len(parts)
    return rows * grid.columns * width <= limit and (not codec.coded or reads <= limit + slack)


def check_item(item: Item, pieces: list[Piece], limit: int, slack: int) -> None:
    """The rectangles are the matrix, in order; cuts on block edges and single reads if they fit."""
    codec: Codec = item.weight.codec
    grid = codec.grid(item.weight.parts)
    at = 0
    for p in pieces:
        r0, r1, c0, c1 = p.rect
        assert r0 * grid.columns + c0 == at
        assert (c0, c1) == (0, grid.columns) or (r1 == r0 + 1 and 0 <= c0 < c1 <= grid.columns)
        assert c0 % grid.unit == 0
        assert c1 % grid.unit == 0
        # A piece that begins within a block ends where the block does, or before.
        assert not c0 % grid.column_step or c1 <= -(-c0 // grid.column_step) * grid.column_step
        assert r1 <= grid.period_end(r0)
        at += (r1 - r0) * (c1 - c0)
        assert len(p.reads) == len(item.weight.parts)
        assert tuple(read.span for read in p.reads) == codec.spans(item.weight.parts, p.rect)
    assert at == grid.rows * grid.columns
    fits = band_fits(item, limit, slack)
    if fits:
        for p in pieces:
            assert (p.rect.c0, p.rect.c1) == (0, grid.columns)
            first = p.rect.r0 - p.rect.r0 % grid.period if grid.period else 0
            assert (p.rect.r0 - first) % grid.row_step == 0
            end = grid.period_end(p.rect.r0)
            assert (p.rect.r1 - first) % grid.row_step == 0 or p.rect.r1 == end
    for number, part in enumerate(item.weight.parts):
        found = [p.reads[number].sources for p in pieces]
        for (s,) in found:
            last = s.begin + (s.times - 1) * s.stride + s.end - s.begin
            assert part.begin <= s.begin < s.end <= last <= part.end
            assert s.shard == part.shard
        in_order = isinstance(codec, Fp8Block) or codec.name == "raw"
        if in_order and (fits or number == 0):  # codes are never read twice, scales only of
            end = part.begin  # blocks that are cut
            for (s,) in found:
                assert (s.begin, s.times) == (end, 1)
                end = s.end
            assert end == part.end
        elif number == 0 and (fits or isinstance(codec, Blocks)):
            assert sum(s.nbytes for (s,) in found) == part.end - part.begin


def check(task: Task, limit: int, slack: int = tile_module.READ_SLACK) -> list[Tile]:
    found = list(tiles.tiles(task, limit))
    check_cover(task, found, limit)
    check_reads(found, limit, slack)
    by_item: dict[str, list[Piece]] = {i.weight.name: [] for i in task.items}
    for tile in found:
        for piece in tile.pieces:
            by_item[piece.item.weight.name].append(piece)
    for item in task.items:
        if item.nbytes:
            check_item(item, by_item[item.weight.name], limit, slack)
        else:
            assert not by_item[item.weight.name]
    return found


@pytest.mark.parametrize("seed", range(60))
def test_random_tasks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles and a small read buffer, so that both bounds bind."""
    rng = random.Random(seed)
    slack = rng.choice([9, 16]) * PAGE  # a weight may have five parts, each across a page's end
    monkeypatch.setattr(tile_module, "READ_SLACK", slack)
    made = random_task(rng)
    for limit in (PAGE, 3 * PAGE, 16 * PAGE, 256 * PAGE):
        check(made, limit, slack)


def test_random_tasks_reach_every_case() -> None:
    """The property test is not about trivial tasks: bands that fit, that do not, empty weights."""
    cases, codecs, experts = set(), set(), False
    for seed in range(60):
        for item in random_task(random.Random(seed)).items:
            fits = bool(item.nbytes) and band_fits(item, 3 * PAGE, 4 * PAGE)
            cases.add((item.weight.codec.coded, item.nbytes > 0, fits))
            codecs.add(type(item.weight.codec))
            parts = item.weight.parts
            experts |= item.weight.codec.grid(parts).period > 0 and isinstance(
                item.weight.codec, Fp8Block
            )
    assert experts
    assert len(codecs) == 8
    assert cases == {
        (True, True, True),
        (True, True, False),
        (True, False, False),
        (False, True, True),
        (False, False, False),
    }


def test_one_huge_row() -> None:
    """A row that fits no tile is cut within, on block edges."""
    found = check(task([(coded(0, (1, 1_000_003), (128, 128), 17), "BF16")]), 64 * PAGE)
    pieces = [p for t in found for p in t.pieces]
    assert len(pieces) >= 1_000_003 * 2 // (64 * PAGE)
    assert all(p.rect.c1 % 128 == 0 for p in pieces[:-1])


def test_rows_without_their_block_row() -> None:
    """A row of blocks that fits no tile is cut between rows; the scales alone are read again."""
    found = check(task([(coded(0, (300, 4000), (128, 128), 0), "BF16")]), 16 * PAGE)
    pieces = [p for t in found for p in t.pieces]
    assert {p.rect.r1 - p.rect.r0 for p in pieces} == {8, 4}  # 300 = 37 * 8 + 4
    assert all((p.rect.c0, p.rect.c1) == (0, 4000) for p in pieces)


def test_experts() -> None:
    """No piece holds rows of two experts, though their rows of blocks are ragged."""
    found = check(task([(coded(0, (7, 130, 64), (128, 128), 5), "BF16")]), 64 * PAGE)
    pieces = [p for t in found for p in t.pieces]
    assert {(p.rect.r0 // 130, (p.rect.r1 - 1) // 130) for p in pieces} == {
        (e, e) for e in range(7)
    }
    assert {p.rect.r1 - p.rect.r0 for p in pieces} <= {130, 128, 2}


def test_packed_codes_are_cut_between_bytes() -> None:
    """A row without a block edge that fits is cut at whole bytes, or words."""
    for codec, parts, unit in (
        (Fp4Block(100_000), [("U8", (1, 50_000)), ("F8_E8M0", (1, 1))], 2),
        (Gptq(4, 100_000, True), [("I32", (12_500, 8)), ("F16", (1, 8)), ("I32", (1, 1))], 8),
    ):
        stored = []
        for shard, (dtype, shape) in enumerate(parts):
            nbytes = header.numel(shape) * DTYPES[dtype].bits // 8
            stored.append(Stored("w", dtype, shape, shard, 1, 1 + nbytes))
        weight = Weight("w", codec, tuple(stored))
        found = check(task([(weight, "F32")]), PAGE + 12)
        columns = {p.rect.c1 for t in found for p in t.pieces}
        assert len(columns) > 90
        assert all(c % unit == 0 for c in columns)


def test_a_codec_that_asks_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources of one element that no tile can hold are an error, not an endless loop."""
    monkeypatch.setattr(tile_module, "READ_SLACK", 0)
    parts = (
        Stored("w", "I32", (1, 4096), 0, 0, 16_384),
        Stored("s", "F16", (1, 1), 1, 0, 2),
        Stored("g", "I32", (32_768,), 2, 0, 4 * 32_768),
    )
    codec = PackedInt(4, None, ("groups",))
    assert codec.check(parts) is None
    with pytest.raises(Fp8ConvertError, match="weight 'w': too much to read at once"):
        list(tiles.tiles(task([(Weight("w", codec, parts), "BF16")]), 4 * PAGE))


def test_one_column() -> None:
    check(task([(coded(0, (70_000, 1), (128, 128), 3), "F32")]), 4 * PAGE)


def test_more_read_than_written() -> None:
    """Blocks of one element: 5 bytes read for 2 written, still within the read buffer."""
    slack = tile_module.READ_SLACK
    found = check(task([(coded(0, (2000, 2000), (1, 1), 5), "BF16")]), 1024 * PAGE, slack)
    assert len(found) > 2000 * 2000 * 5 // (1024 * PAGE + slack)


def test_nothing_but_empty_tensors() -> None:
    made = task([(raw(0, 0, "F32", 0), "F32"), (coded(1, (0, 9), (128, 128), 0), "BF16")])
    (tile,) = check(made, PAGE)
    assert not tile.pieces


def test_header_longer_than_a_tile() -> None:
    made = task([(raw(n, 1, "U8", n), "U8") for n in range(300)])
    assert len(made.header) > 2 * PAGE
    found = check(made, PAGE)
    assert [len(t.literals) for t in found[:3]] == [1, 1, 1]
    assert sum(len(t.pieces) for t in found) == 300


def test_an_aligned_tensor_is_cut_in_equal_tiles() -> None:
    """Nothing is lost to rounding: a raw tensor fills its tiles to the last byte."""
    found = check(task([(raw(0, 1 << 20, "U8", 0), "U8")]), 16 * PAGE)
    assert {t.nbytes for t in found[:-1]} == {16 * PAGE}
