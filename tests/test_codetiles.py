"""Tiles of encoded weights: every code once and in order, whole rows of blocks, within a buffer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fp8convert import codetiles, header, planner, tile, tiles, writers
from fp8convert.codecs.awq import Awq
from fp8convert.codecs.base import Codec, Rect, Stored
from fp8convert.codecs.fp4_block import Fp4Block
from fp8convert.codecs.fp8_block import Fp8Block
from fp8convert.codecs.gptq import Gptq
from fp8convert.codecs.packed_int import PackedInt
from fp8convert.codecs.raw import Raw
from fp8convert.codetiles import least_tile
from fp8convert.convert import prepare
from fp8convert.dtypes import DTYPES
from fp8convert.encoding.lossless import copied, decodable, encoding, way
from fp8convert.encoding.targets import Target
from fp8convert.header import ALIGN as PAGE
from fp8convert.options import Quantize
from fp8convert.pieces import Source
from fp8convert.plan import Item, Task
from fp8convert.schemes.weight import Weight
from fp8convert.settings import Settings
from fp8convert.tile import Chunk, Tile

SCRATCH = 1 << 19  # elements of a chunk, as the contract has it
SLACK = 1 << 20
Parts = list[tuple[str, tuple[int, ...]]]


class Kind(NamedTuple):
    """A form of source: its codec, and its parts for a weight [o, i] in groups of 32."""

    codec: Codec
    parts: Callable[[int, int], Parts]


KINDS: dict[str, Kind] = {
    "F32": Kind(Raw(), lambda o, i: [("F32", (o, i))]),
    "BF16": Kind(Raw(), lambda o, i: [("BF16", (o, i))]),
    "F16": Kind(Raw(), lambda o, i: [("F16", (o, i))]),
    "fp8": Kind(Fp8Block((128, 128)),
                lambda o, i: [("F8_E4M3", (o, i)), ("F32", (-(-o // 128), -(-i // 128)))]),
    "fp8-rows": Kind(Fp8Block((1, 32)), lambda o, i: [("F8_E4M3", (o, i)), ("F32", (o, i // 32))]),
    "mxfp4": Kind(Fp4Block(32), lambda o, i: [("U8", (o, i // 2)), ("F8_E8M0", (o, i // 32))]),
    "int4": Kind(PackedInt(4, 32, ("zeros", "shape")),
                 lambda o, i: [("I32", (o, i // 8)), ("BF16", (o, i // 32)),
                               ("I32", (o // 8, i // 32)), ("I64", (2,))]),
    "gptq": Kind(Gptq(4, 32, True, True),
                 lambda o, i: [("I32", (i // 8, o)), ("F16", (i // 32, o)),
                               ("I32", (i // 32, o // 8)), ("I32", (i,))]),
    "awq": Kind(Awq(32), lambda o, i: [("I32", (i, o // 8)), ("F16", (i // 32, o)),
                                       ("I32", (i // 32, o // 8))]),
}  # fmt: skip
RUNS = ("F32", "BF16", "F16", "fp8", "fp8-rows", "mxfp4")  # a row's codes lie together, in order
SCHEMES = ("fp8-block", "fp8-block-ue8m0", "fp8-channel", "fp8-tensor", "int8-channel",
           "int4-group", "nvfp4", "mxfp4", "mxfp8")  # fmt: skip
SHARED = ("fp8-tensor", "nvfp4")  # a scale of the whole tensor, measured before


def weight(name: str, kind: str, rows: int, columns: int, at: int = 0) -> Weight:
    """Parts in shards of their own, at unaligned places."""
    codec, parts = KINDS[kind]
    stored = []
    for shard, (dtype, shape) in enumerate(parts(rows, columns)):
        begin = at * (shard + 1) + 3 * shard
        nbytes = header.numel(shape) * DTYPES[dtype].bits // 8
        stored.append(Stored(f"{name}.{shard}", dtype, shape, shard, begin, begin + nbytes))
    made = Weight(name, codec, tuple(stored))
    assert codec.check(made.parts) is None
    assert made.shape == (rows, columns)
    return made


def items_of(
    to: Target, fused: list[Weight], search: bool = False, kept: tuple[Item, ...] = ()
) -> list[Item]:
    """What is written for ``fused`` weights, which share a scale if the target has one."""
    how = way(fused, to, powers=False)
    members = tuple(map(decodable, fused)) if to.shares else ()
    found = list(kept)
    for w in fused:
        if how.copied:
            found += [writers.whole(part, dtype) for part, dtype in copied(w, w, to)]
            continue
        made = encoding(w, to, search, how, members)
        parts = enumerate(made.parts)
        found += [Item(decodable(w), p.dtype, 0, p.nbytes, made, k) for k, p in parts]
    return found


def task(items: list[Item]) -> Task:
    """One file, in the planner's order."""
    return planner.task("f", items)


# --- What must hold of any tiles


def pages(s: Source) -> int:
    """Room for the bytes of ``s``: its pages, or its runs without the gaps between them."""
    if s.times > 1:
        return -(-(s.end - s.begin) * s.times // PAGE) * PAGE
    return (-(-s.end // PAGE) - s.begin // PAGE) * PAGE


def cost(chunk: Chunk) -> int:
    return sum(pages(s) for read in chunk.reads for s in read.sources)


def chunks_of(t: Tile) -> list[Chunk]:
    measured = [t.measure.chunk] if t.measure else []
    return [*measured, *(chunk for c in t.codings for g in c.groups for chunk in g)]


def check(
    made: Task, limit: int, scratch: int = SCRATCH, slack: int = SLACK, enough: bool = True
) -> list[Tile]:
    """All that holds of the tiles of ``made``; ``enough``: ``limit`` is no less than it needs."""
    found = list(tiles.tiles(made, limit))
    check_all(made, found, limit, scratch, slack, enough)
    return found


def check_all(
    made: Task, found: list[Tile], limit: int, scratch: int, slack: int, enough: bool
) -> None:
    check_cover(made, found)
    check_sizes(found, limit, enough)
    check_reads(found, limit, slack, enough)
    check_measures(made, found, scratch)
    for item in made.items:
        if item.encoding and not item.part:
            check_codes(item, found, scratch)


def check_cover(made: Task, found: list[Tile]) -> None:
    """Every byte of the file once and in order; scales behind all codes."""
    at, last_code, first_spooled = 0, 0, made.size
    for t in found:
        assert t.begin == at
        spans = [(x.begin, len(x.data)) for x in t.literals]
        spans += [(x.begin, x.nbytes) for x in (*t.pieces, *t.codings, *t.spooled)]
        for begin, nbytes in sorted(spans):
            assert begin == at
            assert nbytes > 0
            at += nbytes
        assert t.end == at
        if t.measure:
            assert spans == []
        last_code = max([last_code, *(c.begin + c.nbytes for c in t.codings)])
        first_spooled = min([first_spooled, *(s.begin for s in t.spooled)])
    assert at == made.size
    assert last_code <= first_spooled
    spooled = sum(s.nbytes for t in found for s in t.spooled)
    assert spooled == made.spool == sum(i.nbytes for i in made.items if i.part)


def check_sizes(found: list[Tile], limit: int, enough: bool) -> None:
    """None empty; none too large, but for one row of blocks that is."""
    for t in found:
        assert t.nbytes > 0 or t.measure
        if t.nbytes > limit:
            assert not enough
            (coding,) = t.codings
            (group,) = coding.groups
            assert [*t.literals, *t.pieces, *t.spooled] == []
            assert group[-1].rect.r1 - group[0].rect.r0 <= step_of(coding.item)


def check_reads(found: list[Tile], limit: int, slack: int, enough: bool) -> None:
    """Piecemeal exactly where all reads together do not fit; no read that does not."""
    for t in found:
        together = sum(map(cost, chunks_of(t)))
        together += sum(pages(s) for p in t.pieces for r in p.reads for s in r.sources)
        assert t.read_bytes == together
        if t.measure is None:
            assert t.piecemeal == (together > limit + slack)
        if enough:
            each = [cost(chunk) for chunk in chunks_of(t)] if t.piecemeal else [together]
            assert max(each, default=0) <= limit + slack + PAGE  # a worker's buffer


def step_of(item: Item) -> int:
    """Rows that share scales, by the scheme's definition."""
    assert item.encoding
    encoder = item.encoding.encoder
    if not isinstance(encoder.codec, Fp8Block) or encoder.one_scale:
        return 1
    return encoder.codec.block[0] or item.shape[0]


def check_codes(item: Item, found: list[Tile], scratch: int) -> None:
    """The weight's rows once and in order: in groups of whole rows of blocks, in small chunks."""
    rows, columns = item.weight.shape
    row, step, at = item.nbytes // rows, step_of(item), 0
    for coding in (c for t in found for c in t.codings if c.item is item):
        assert coding.begin == item.begin + row * at
        for group in coding.groups:
            assert at % step == 0
            for chunk in group:
                assert (chunk.rect.c0, chunk.rect.c1) == (0, columns)
                assert chunk.rect.r0 == at < chunk.rect.r1
                height = chunk.rect.r1 - at
                assert height == 1 or height * columns <= scratch
                check_chunk(item.weight, chunk)
                at = chunk.rect.r1
            assert at % step == 0 or at == rows
        assert coding.begin + coding.nbytes == item.begin + row * at
    assert at == rows


def check_chunk(w: Weight, chunk: Chunk) -> None:
    """A read of each part, of what its codec asks for, within the part."""
    spans = tuple(read.span for read in chunk.reads)
    assert spans == w.codec.spans(w.parts, chunk.rect)
    for part, read in zip(w.parts, chunk.reads, strict=True):
        (s,) = read.sources
        last = s.begin + (s.times - 1) * s.stride + s.end - s.begin
        assert part.begin <= s.begin < s.end <= last <= part.end
        assert s.shard == part.shard


def check_measures(made: Task, found: list[Tile], scratch: int) -> None:
    """Once for each shared scale: all members' rows, before the codes; then trials, if any."""
    seen: dict[tuple[str, bool], dict[str, int]] = {}
    coded: set[str] = set()
    for t in found:
        if t.measure is None:
            coded |= {c.item.encoding.shared for c in t.codings
                      if c.item.encoding and c.item.encoding.members}  # fmt: skip
            continue
        m = t.measure
        rows = seen.setdefault((m.encoding.shared, m.trial), {})
        assert m.encoding.shared not in coded
        assert m.chunk.rect.r0 == rows.get(m.weight.name, 0)
        rows[m.weight.name] = m.chunk.rect.r1
        height = m.chunk.rect.r1 - m.chunk.rect.r0
        assert height == 1 or height * m.weight.shape[1] <= scratch
        check_chunk(m.weight, m.chunk)
        if not m.trial:
            assert (m.encoding.shared, True) not in seen
    wanted: dict[tuple[str, bool], dict[str, int]] = {}
    for item in made.items:
        if item.encoding and item.encoding.members:
            every = {w.name: w.shape[0] for w in item.encoding.members}
            wanted[item.encoding.shared, False] = every
            if item.encoding.encoder.search and item.encoding.encoder.one_scale:
                wanted[item.encoding.shared, True] = every
    assert seen == wanted


# --- Shapes

SHAPES = [
    (300, 416),  # ragged
    (129, 160),
    (1, 512),
    (8, 32),
    (2000, 1024),  # several chunks
    (24, 131_072),  # 128 rows would be more than a scratch
    (136, 8192),
    (8, 600_064),  # a row is
]


def least_of(made: Task) -> int:
    """What the plan would ask for, in whole pages."""
    every = [least_tile(i) for i in made.items if i.encoding and not i.part]
    return max(-(-max(every, default=0) // PAGE) * PAGE, PAGE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(kind: str, shape: tuple[int, int]) -> None:
    """Every scheme and source, in the least tile that will do, and in larger ones."""
    if kind in ("int4", "gptq", "awq") and shape[0] % 8:
        shape = (8 * -(-shape[0] // 8), shape[1])
    for scheme in SCHEMES:
        source = [weight("w", kind, *shape, at=1001)]
        for search in (False, True):
            if Target(scheme).misfit(source[0]):
                continue
            made = task(items_of(Target(scheme), source, search))
            least = max(least_of(made), 1 << 18)
            for limit in (least, 1 << 21, 8 << 20):
                if limit >= least:
                    check(made, limit)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_that_are_too_small(shape: tuple[int, int]) -> None:
    """Larger than asked for only where one row of blocks is."""
    found = 0
    for scheme in ("fp8-block", "mxfp8"):
        made = task(items_of(Target(scheme), [weight("w", "BF16", *shape)]))
        for limit in (PAGE, 16 * PAGE):
            for t in check(made, limit, enough=False):
                found += t.nbytes > limit
    assert found or shape[0] * shape[1] <= PAGE or shape == (129, 160)


def test_codes_are_read_once() -> None:
    """Of sources that keep rows together; of scales' rows some are shared by chunks."""
    for kind in RUNS:
        to = Target("fp8-block", (32, 32))
        made = task(items_of(to, [weight("w", kind, 2000, 1024, at=77)]))
        at = 77
        for t in check(made, 1 << 20):
            for chunk in chunks_of(t):
                (s,) = chunk.reads[0].sources
                assert s.begin == at
                at = s.end
        assert at == made.items[0].weight.parts[0].end


def test_piecemeal_is_met_and_avoided() -> None:
    """A row of blocks of 4 MiB as F32: together only in a large buffer."""
    made = task(items_of(Target("fp8-block"), [weight("w", "F32", 256, 8192)]))
    assert [t.piecemeal for t in check(made, 1 << 20) if t.codings] == [True, True]
    assert [t.piecemeal for t in check(made, 8 << 20) if t.codings] == [False]


@pytest.mark.parametrize(("rows", "chunks"), [(128, [64, 64]), (200, [64, 64, 64, 8]), (5, [5])])
def test_a_row_of_blocks_larger_than_a_scratch(rows: int, chunks: list[int]) -> None:
    made = task(items_of(Target("fp8-block"), [weight("w", "BF16", rows, 8192)]))
    found = [c.rect.r1 - c.rect.r0 for t in check(made, 1 << 20) for c in chunks_of(t)]
    assert found == chunks


# --- A scale of the whole tensor

FUSED = ("q", "k", "v")


def fused(kind: str = "BF16", rows: tuple[int, ...] = (600, 96, 96)) -> list[Weight]:
    sizes = zip(FUSED, rows, strict=True)
    return [weight(name, kind, r, 4096, at=5_000_001 * n) for n, (name, r) in enumerate(sizes)]


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_measures_come_first_and_once(scheme: str, search: bool) -> None:
    """And only where a scheme has such a scale; trials only of one that is all there is."""
    found = check(task(items_of(Target(scheme), fused(), search)), 1 << 20)
    measures = [t.measure for t in found if t.measure]
    stages = [m.trial for m in measures]
    count = 5 + 1 + 1 if scheme in SHARED else 0  # chunks of 128 rows
    trials = count if scheme == "fp8-tensor" and search else 0
    assert stages == [False] * count + [True] * trials
    codes = [n for n, t in enumerate(found) if t.codings]
    assert not measures or max(n for n, t in enumerate(found) if t.measure) < codes[0]


def test_tensors_that_share_nothing_are_measured_apart() -> None:
    """Each before its own codes, which may be after another's."""
    to = Target("fp8-tensor")
    items = [i for w in fused() for i in items_of(to, [w])]
    found = check(task(items), 1 << 19)
    order = [t.measure.weight.name if t.measure else t.codings[0].item.weight.name.upper()
             for t in found if t.measure or t.codings]  # fmt: skip
    assert "".join(dict.fromkeys(order)) == "qQkKvV"


def test_members_of_other_files_are_measured_in_each() -> None:
    """A file needs nothing of another's run."""
    items = items_of(Target("nvfp4"), fused())
    for name in FUSED:
        found = check(task([i for i in items if i.weight.name == name]), 1 << 20)
        assert {t.measure.weight.name for t in found if t.measure} == set(FUSED)
        assert {c.item.weight.name for t in found for c in t.codings} == {name}


def test_kept_tensors_lie_among_codes() -> None:
    """Decoded and copied ones too; a tile may hold some of each."""
    raw = [Weight(n, Raw(), (Stored(n, "BF16", (300,), 7, 1, 601),)) for n in ("a", "z")]
    kept = tuple(Item(w, "BF16", 0, 600) for w in raw)
    decoded = Item(weight("d", "fp8", 300, 416), "BF16", 0, 300 * 416 * 2)
    made = task(items_of(Target("fp8-tensor"), fused(), kept=(*kept, decoded)))
    found = check(made, 1 << 20)
    assert {p.item.name for t in found for p in t.pieces} == {"a", "z", "d"}
    assert any(t.pieces and t.codings for t in found) or any(t.literals and t.pieces for t in found)
    assert any(t.codings and t.spooled for t in found)


# --- Many small ones, with a scratch and a buffer as small

SEEDS = 60


def random_task(rng: random.Random) -> Task:
    items: list[Item] = []
    for number in range(rng.randint(1, 5)):
        kind = rng.choice(list(KINDS))
        plain = kind in RUNS and kind != "mxfp4" and kind != "fp8-rows"
        rows = rng.choice([1, 7, 8, 127, 128, 129, 300]) if plain else 8 * rng.randint(1, 30)
        columns = 32 * rng.choice([1, 2, 5, 9, rng.randint(1, 60)])
        if kind in ("F32", "BF16") and rng.random() < 0.2:
            rows, columns = rng.choice([(3, 7), (130, 1), (1, 9000), (3, 20_000)])
        block = rng.choice([(128, 128), (1, 128), (32, 32), (3, 5), (1, 1)])
        to = Target(rng.choice(SCHEMES), block, group=32)
        many = rng.randint(1, 3)
        made = [weight(f"w{number}.{n}", kind, rows, columns, rng.randrange(99_999))
                for n in range(many)]  # fmt: skip
        if to.misfit(made[0]):
            to = Target("fp8-block", block)
        items += items_of(to, made, rng.random() < 0.5)
    return task(items)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """A scratch and what a buffer has beside a tile, both 1/32 of the real ones."""
    scratch, slack = SCRATCH // 32, SLACK // 32
    monkeypatch.setattr(codetiles, "CHUNK", scratch)
    for module in (codetiles, tile):
        monkeypatch.setattr(module, "READ_SLACK", slack)
    return scratch, slack


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_tasks(seed: int, small: tuple[int, int]) -> None:
    rng = random.Random(seed)
    made = random_task(rng)
    least = least_of(made)
    for limit in (least, least + PAGE, 4 * least, 1 << 20):
        check(made, limit, *small)
    check(made, PAGE, *small, enough=False)


def test_random_tasks_reach_every_case(small: tuple[int, int]) -> None:
    """The property test is not about trivial tasks."""
    cases: set[str] = set()
    for seed in range(SEEDS):
        made = random_task(random.Random(seed))
        for t in tiles.tiles(made, least_of(made)):
            cases |= {"piecemeal"} if t.piecemeal else set()
            cases |= {f"trial {t.measure.trial}"} if t.measure else set()
            cases |= {"several groups" for c in t.codings if len(c.groups) > 1}
            cases |= {"several chunks" for c in t.codings for g in c.groups if len(g) > 1}
            cases |= {"several codings"} if len(t.codings) > 1 else set()
            cases |= {"codes and scales"} if t.codings and t.spooled else set()
            cases |= {"a long row" for k in chunks_of(t) if k.rect.c1 > small[0]}
            cases |= {"runs" for k in chunks_of(t) for r in k.reads if r.span.times > 1}
        cases |= {type(i.weight.codec).__name__ for i in made.items if i.encoding}
    codecs = {"Floats", "Fp8Block", "Fp4Block", "PackedInt", "Gptq", "Awq"}
    assert cases == codecs | {
        "piecemeal",
        "trial False",
        "trial True",
        "several groups",
        "several chunks",
        "several codings",
        "codes and scales",
        "a long row",
        "runs",
    }


# --- Controls


def swap(found: list[Tile]) -> None:
    found[-1], found[-2] = found[-2], found[-1]


def drop_group(found: list[Tile]) -> None:
    t = next(t for t in found if t.codings)
    t.codings[0] = t.codings[0]._replace(groups=t.codings[0].groups[1:])


def shift_rows(found: list[Tile]) -> None:
    t = next(t for t in found if t.codings)
    chunk = t.codings[0].groups[0][0]
    moved = chunk._replace(rect=chunk.rect._replace(r0=1))
    t.codings[0] = t.codings[0]._replace(groups=((moved,), *t.codings[0].groups[1:]))


def other_reads(found: list[Tile]) -> None:
    first, second, *_ = [t for t in found if t.codings]
    chunk, other = first.codings[0].groups[0][0], second.codings[0].groups[0][0]
    wrong = chunk._replace(reads=other.reads)
    first.codings[0] = first.codings[0]._replace(groups=((wrong,),))


def no_measure(found: list[Tile]) -> None:
    del found[next(n for n, t in enumerate(found) if t.measure)]


def late_measure(found: list[Tile]) -> None:
    n = next(n for n, t in enumerate(found) if t.measure)
    late = found.pop(n)
    late.begin = late.end = found[-1].begin
    found.insert(len(found) - 1, late)


def measured_twice(found: list[Tile]) -> None:
    n = next(n for n, t in enumerate(found) if t.measure)
    found.insert(n, found[n])


def piecemeal(found: list[Tile]) -> None:
    next(t for t in found if t.codings).piecemeal = True


def short_spool(found: list[Tile]) -> None:
    found[-1].spooled.pop()


@pytest.mark.parametrize(
    "wrong",
    [swap, drop_group, shift_rows, other_reads, no_measure, late_measure, measured_twice,
     piecemeal, short_spool],
)  # fmt: skip
def test_wrong_tiles_are_noticed(wrong: Callable[[list[Tile]], None]) -> None:
    made = task(items_of(Target("fp8-tensor"), fused()))
    found = check(made, 1 << 18)
    wrong(found)
    with pytest.raises(AssertionError):
        check_all(made, found, 1 << 18, SCRATCH, SLACK, True)


def test_wrong_bounds_are_noticed() -> None:
    made = task(items_of(Target("fp8-block"), [weight("w", "BF16", 256, 8192)]))
    found = list(tiles.tiles(made, 1 << 20))
    check_all(made, found, 1 << 20, SCRATCH, SLACK, True)
    for limit, scratch, slack in ((1 << 19, SCRATCH, SLACK), (1 << 20, SCRATCH - 1, SLACK),
                                  (1 << 20, SCRATCH, 1 << 19)):  # fmt: skip
        with pytest.raises(AssertionError):
            check_all(made, found, limit, scratch, slack, True)


# --- Of a plan


def sparse(folder: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    """A checkpoint of headers and holes: planning reads no more."""
    folder.mkdir()
    rows = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    head = header.build(rows, {"format": "pt"})
    size = sum(header.numel(s) * DTYPES[d].bits // 8 for _, d, s in rows)
    with (folder / "model.safetensors").open("wb") as f:
        f.write(head)
        f.truncate(len(head) + size)
    (folder / "config.json").write_text('{"model_type": "llama", "torch_dtype": "bfloat16"}')
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_plans_least_tile_is_enough(scheme: str, tmp_path: Path) -> None:
    """As it will be run by as little memory as it takes."""
    layer = "model.layers.0.mlp"
    src = sparse(
        tmp_path / "src",
        {
            f"{layer}.gate_proj.weight": ("F32", (300, 2_000_000)),
            f"{layer}.up_proj.weight": ("BF16", (131, 2_000_000)),
            f"{layer}.down_proj.weight": ("BF16", (4096, 4096)),
            "model.layers.0.self_attn.o_proj.weight": ("F32", (2048, 2048)),
        },
    )
    made: Any = {"max_shard_size": 10**8} if scheme.startswith("fp8-block") else {}
    plan = prepare(src, tmp_path / "dst", Quantize(scheme=scheme, **made)).plan
    settings = Settings(workers=1, memory=8 << 30).fitted(plan.needs)
    least = max(-(-plan.needs.tile // PAGE) * PAGE, 1 << 18)
    assert settings.tile >= least
    assert plan.needs.scratch == 2_000_000
    for t in plan.tasks:
        check(t, least)


def test_rect_is_of_whole_rows() -> None:
    """What the checks above take for granted of a chunk."""
    made = task(items_of(Target("mxfp8"), [weight("w", "BF16", 3, 64)]))
    (chunk,) = [c for t in tiles.tiles(made, PAGE) for c in chunks_of(t)]
    assert chunk.rect == Rect(0, 3, 0, 64)
