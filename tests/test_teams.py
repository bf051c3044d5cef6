"""Files written together: the same bytes however many there are, and the source read once."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp8convert import fileio, header, sources, taskrun, teams
from fp8convert.codecs.base import Span, Stored
from fp8convert.codecs.gptq import Gptq
from fp8convert.errors import DataError, FormatError, ResumableError
from fp8convert.header import ALIGN as PAGE
from fp8convert.jobs import Jobs
from fp8convert.origin import Direct
from fp8convert.pieces import sources as sources_of
from fp8convert.places import Places
from fp8convert.plan import Item, Task
from fp8convert.quantizer import needs_of
from fp8convert.schemes.weight import Weight
from fp8convert.settings import Progress, Settings
from fp8convert.teams import MOST_TOGETHER, least_tile, sharing
from fp8convert.tile import MIN_TILE, READ_SLACK, Read, Tile
from fp8convert.tiles import tiles

from .crash import temporaries
from .mini import write_shards
from .quantized.small import in_time
from .teamwork import SHARDS, Counted, Ranks, Run, columns, make_source

MIB = 1 << 20
COUNTS = (1, 2, 3, 8, 17, 40)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Read only."""
    folder = tmp_path_factory.mktemp("teams") / "src"
    return folder, make_source(folder)


Source = tuple[Path, dict[str, Any]]
WAYS: dict[str, dict[str, Any]] = {
    "one worker": {"workers": 1},
    "least": {"workers": 3, "memory": 0},
    "least, buffered": {"workers": 2, "memory": 0, "io": "buffered"},
    "many": {"workers": 16, "memory": 600 * MIB},
}


def settings_of(run: Run, workers: int, memory: int = 512 * MIB, io: str = "auto") -> Settings:
    """``memory`` 0 is the least that so many workers can do with."""
    if not memory:
        needs = Settings(workers=1, needs=run.plan.needs)
        memory = needs._base + workers * needs._buffers(needs._least)
    return Settings(workers=workers, memory=memory, io=io)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", COUNTS)
def test_any_number_of_files_has_the_bytes_of_a_plain_loop(
    count: int, way: str, source: Source, fast_path: Path
) -> None:
    ranks = Ranks(source[0], count, source[1]).add_all()
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    in_time(lambda: run(settings_of(run, **WAYS[way])))
    run.check(ranks.expected)
    assert not temporaries(fast_path)


def test_without_compiled_kernels(
    source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FP8CONVERT_KERNELS", "numpy")
    ranks = Ranks(source[0], 5, source[1]).add_all()
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    run(Settings(workers=2))
    run.check(ranks.expected)


@pytest.mark.parametrize("tile", [PAGE, 5 * PAGE, 40 * PAGE])
def test_tiles_too_small_for_some_bands(
    tile: int, source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of all files may not fit; then each reads its own."""
    ranks = Ranks(source[0], 3, source[1])
    for rank in range(3):
        ranks._add_kept(rank)
        ranks._add_decoded(rank)
    monkeypatch.setattr(Settings, "tile", tile)
    monkeypatch.setattr(teams, "READ_SLACK", 8 * PAGE)
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    in_time(lambda: run(Settings(workers=3)))
    run.check(ranks.expected)


# --- What is shared, and how it is cut


def shared_names(tasks: Sequence[Task], limit: int = MIB) -> set[str]:
    return {name for of in sharing(tasks, limit) for name in of}


def test_what_is_worth_it(source: Source) -> None:
    """Large slices of columns, and what is the same; not what is small, or apart."""
    ranks = Ranks(source[0], 8, source[1]).add_all()
    tasks = ranks.tasks()
    assert shared_names(tasks) == {
        "o", "far", "d", "stack", "both", "middle", "gate", "dense.weight", "kv",
    }  # fmt: skip
    found = sharing(tasks, MIB)
    assert len({id(of["o"]) for of in found}) == 1
    assert found[0]["kv"] is found[3]["kv"] is not found[4]["kv"]
    assert found[0]["kv"].files == 4
    assert shared_names(tasks[:1]) == set()
    assert shared_names(tasks[3:5]) == {"o", "far", "d", "gate", "dense.weight"}


def test_long_runs_are_read_apart(source: Source) -> None:
    ranks = Ranks(source[0], 2, source[1])
    stored = ranks.catalogue.tensors["far"]
    for rank in range(2):
        row = columns(stored, 10_000 * rank, 10_000 * rank + 10_000)
        ranks.add(rank, "far", row._replace(run=row.run), source[1]["far"])
    assert shared_names(ranks.tasks()) == {"far"}
    ranks.items = [
        [i._replace(weight=i.weight._replace(parts=(long(i.weight.parts[0]),))) for i in items]
        for items in ranks.items
    ]
    assert shared_names(ranks.tasks()) == set()


def long(part: Any) -> Any:
    """As if two rows were one."""
    return part._replace(shape=(18, 20_000), run=80_000, pitch=160_000, end=part.begin + 1_440_000)


@pytest.mark.parametrize("limit", [MIN_TILE, 3 * MIN_TILE, 8 * MIB])
@pytest.mark.parametrize("count", COUNTS[1:])
def test_bands(count: int, limit: int, source: Source) -> None:
    """The same rows in all files, all of them once; together they fit a worker's buffers."""
    ranks = Ranks(source[0], count, source[1]).add_all()
    limit = max(limit, needs_of([i for items in ranks.items for i in items]).tile)
    for team in teams.teams(ranks.tasks()):
        found: dict[Any, list[Tile]] = {}
        for task, shared in zip(team, sharing(team, limit), strict=True):
            at = 0
            for tile in tiles(task, limit, shared):
                assert tile.begin == at
                assert 0 < tile.nbytes <= limit
                at = tile.end
                if tile.band:
                    found.setdefault(tile.band, []).append(tile)
            assert at == task.size
        assert found
        for (shared, row), band in found.items():
            assert len(band) == shared.files > 1
            assert len({ends_of(t) for t in band}) == 1
            assert ends_of(band[0])[0] == row
            assert Places([t.reads() for t in band]).need <= limit + READ_SLACK + PAGE


def ends_of(tile: Tile) -> tuple[int, int]:
    """First and last row of a band, in which there is nothing else."""
    assert not tile.literals
    assert not tile.spooled
    if tile.codings:
        (coding,) = tile.codings
        return coding.groups[0][0].rect.r0, coding.groups[-1][-1].rect.r1
    (piece,) = tile.pieces
    return piece.rect.r0, piece.rect.r1


def test_bands_end_where_blocks_do(source: Source) -> None:
    """Of the source's codec, and of the target's."""
    ranks = Ranks(source[0], 4, source[1]).add_all()
    (team,) = teams.teams(ranks.tasks())
    found = sharing(team, 8 * MIB)[0]
    assert found["d"].rows % 128 == 0
    assert found["dense.weight"].rows % 128 == 0


def test_the_least_tile_for_encoded_weights(source: Source) -> None:
    """That is what a plan has to ask for: bands from there on, none below."""
    ranks = Ranks(source[0], 9, source[1]).add_all()
    tasks = ranks.tasks()
    least = least_tile(tasks)
    assert 128 * 5200 * 2 - READ_SLACK < least < 128 * 5200 * 3 - READ_SLACK
    assert "dense.weight" in shared_names(tasks, least)
    assert "dense.weight" not in shared_names(tasks, least - 1)
    assert least_tile(tasks[:1]) == least_tile(ranks.tasks(team=-1)) == 0
    assert least_tile(tasks[:2]) < least


def test_rows_too_long_to_ask_for(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan needs more memory than it would without teams, or not much."""
    tasks = Ranks(source[0], 9, source[1]).add_all().tasks()
    monkeypatch.setattr(teams, "MOST_TILE", least_tile(tasks) - 1)
    assert least_tile(tasks) == 0


def test_codes_that_are_stored_transposed_are_read_apart(source: Source) -> None:
    """A band of rows would be some columns of what is stored, from all over the file."""
    ranks = Ranks(source[0], 2, source[1])
    shapes = {"I32": (512, 4096), "F16": (32, 4096)}
    for rank in range(2):
        stored = [
            Stored(f"g{d}", d, shape, 0, 0, shape[0] * shape[1] * (4 if d == "I32" else 2))
            for d, shape in shapes.items()
        ]
        parts = tuple(columns(s, 2048 * rank, 2048 * rank + 2048) for s in stored)
        zeros = Stored("z", "I32", (32, 256), 0, 0, 32 * 256 * 4)
        weight = Weight("g", Gptq(4, 128, True), (*parts, zeros))
        assert weight.codec.check(weight.parts) is None
        size = 2 * header.numel(weight.shape)
        ranks.items[rank].append(Item(weight, "BF16", 0, size))
    assert shared_names(ranks.tasks()) == set()


def test_items_that_do_not_go_together(source: Source) -> None:
    """Of different height: each file cuts its own."""
    ranks = Ranks(source[0], 2, source[1])
    for rank in range(2):
        lo, hi = ranks.part(4096, rank)
        stored = columns(ranks.catalogue.tensors["o"], lo, hi)
        size = stored.run * (300 + rank)
        stored = stored._replace(shape=(300 + rank, hi - lo), end=stored.begin + size)
        ranks.add(rank, "o", stored, source[1]["o"][: 300 + rank, lo:hi])
    assert shared_names(ranks.tasks()) == set()


# --- How much is read, and held


@pytest.mark.parametrize("io", ["auto", "buffered"])
@pytest.mark.parametrize(("count", "most"), [(2, 1.1), (16, 1.25), (32, 2.2)])
def test_bytes_read(
    count: int, most: float, io: str, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of matrices cut into columns, and a table that all have, hardly more than there are."""
    size = make_large(fast_path / "src")
    ranks = large_ranks(fast_path / "src", count)
    run, counted = (
        Run(ranks.catalogue, ranks.tasks(), fast_path / "dst"),
        Counted(monkeypatch.setattr),
    )
    seen: list[Any] = []
    run(Settings(workers=4, io=io), seen=seen)
    run.check(ranks.expected)
    assert size < counted.nbytes < most * size
    twice = 2 * 2000 * 1024 if count > MOST_TOGETHER else 0  # the table, by two groups of files
    assert seen[0]._read == size + twice  # as progress tells


def test_bytes_read_in_the_least_memory(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = make_large(fast_path / "src")
    ranks = large_ranks(fast_path / "src", 16)
    run, counted = (
        Run(ranks.catalogue, ranks.tasks(), fast_path / "dst"),
        Counted(monkeypatch.setattr),
    )
    run(settings_of(run, 4, 0))
    run.check(ranks.expected)
    assert counted.nbytes < 1.25 * size


@pytest.mark.parametrize("memory", [0, 512 * MIB])
def test_bytes_read_to_decode_and_to_encode(
    memory: int, source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bands of blocks, with their scales."""
    ranks = Ranks(source[0], 16, source[1])
    for rank in range(16):
        ranks._add_decoded(rank)
        ranks._add_encoded(rank)
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    counted, of = Counted(monkeypatch.setattr), ranks.catalogue.tensors
    run(settings_of(run, 3, memory))
    run.check(ranks.expected)
    size = sum(of[name].end - of[name].begin for name in ("d", "d_scale_inv", "dense"))
    assert size < counted.nbytes < 1.1 * size


def test_without_a_team_it_is_read_for_each(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the counts above are of what teams are for."""
    size = make_large(fast_path / "src")
    ranks = large_ranks(fast_path / "src", 16)
    run = Run(ranks.catalogue, ranks.tasks(team=-1), fast_path / "dst")
    counted = Counted(monkeypatch.setattr)
    run(Settings(workers=4))
    run.check(ranks.expected)
    assert counted.nbytes > 8 * size


LARGE = {"odd": (1, 1001), "o": (1000, 8192), "far": (300, 32_768), "table": (2000, 1024)}  # BF16


def make_large(folder: Path) -> int:
    """40 MB; bytes of the tensors."""
    rng = np.random.default_rng(5)
    tensors = {name: ("BF16", shape, rng.bytes(2 * shape[0] * shape[1]))
               for name, shape in LARGE.items()}  # fmt: skip
    write_shards(folder, [tensors], {"model_type": "llama"})
    return sum(2 * a * b for a, b in LARGE.values()) - 2 * 1001


def large_ranks(folder: Path, count: int) -> Ranks:
    ranks = Ranks(folder, count, {})
    data = (folder / "model-00001-of-00001.safetensors").read_bytes()
    for name, shape in list(LARGE.items())[1:]:
        stored = ranks.catalogue.tensors[name]
        array = np.frombuffer(data[stored.begin : stored.end], "<u2").reshape(shape)
        for rank in range(count):
            lo, hi = ranks.part(shape[1], rank) if name != "table" else (0, shape[1])
            ranks.add(rank, name, columns(stored, lo, hi), array[:, lo:hi])
    return ranks


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc")
def test_descriptors_are_bounded(
    source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 128 files no more are open than of 16, and those that are being finished."""
    real, found = fileio.TargetFile.hash, list[int]()

    def hashed(self: Any, *args: Any) -> None:
        found.append(len(os.listdir("/proc/self/fd")))
        real(self, *args)

    monkeypatch.setattr(fileio.TargetFile, "hash", hashed)
    before = len(os.listdir("/proc/self/fd"))
    for count, spools in ((16, 16), (128, 0)):
        ranks = Ranks(source[0], count, source[1])
        for rank in range(count):
            ranks._add_kept(rank)
            if spools:
                ranks._add_encoded(rank)
        run = Run(ranks.catalogue, ranks.tasks(), fast_path / f"{count}")
        found.clear()
        run(Settings(workers=4))
        run.check(ranks.expected)
        assert len(os.listdir("/proc/self/fd")) == before
        most = MOST_TOGETHER + spools + 2 * SHARDS + 1  # and the lock
        being_finished = 4 if count > 16 else 0  # of those before
        assert MOST_TOGETHER <= max(found) - before <= most + being_finished + 2


def test_begun_together(source: Source, fast_path: Path) -> None:
    """All files of a small team; of a large one nearly equal parts."""
    ranks = Ranks(source[0], 40, source[1]).add_all()
    tasks = ranks.tasks()
    assert [len(t) for t in teams.teams(tasks)] == [13, 13, 14]
    assert [len(t) for t in teams.teams(tasks[:16])] == [16]
    assert [len(t) for t in teams.teams(ranks.tasks(team=-1)[:3])] == [1, 1, 1]
    two = [*ranks.tasks(team=1)[:3], *tasks[3:5]]
    assert [[t.file for t in found] for found in teams.teams(two)] == [
        ["rank0", "rank1", "rank2"],
        ["rank3", "rank4"],
    ]


# --- Order


class Silent:
    """Instead of a file."""

    def __init__(self, task: Task) -> None:
        self.task = task


HERE = Direct(None, ())  # type: ignore[arg-type]  # everything is there


@pytest.mark.parametrize("seed", range(30))
def test_jobs_keep_the_order_of_each_file(seed: int, source: Source) -> None:
    """Whatever the order of items, also where it differs from file to file; nothing is left out."""
    rng = random.Random(seed)
    count, limit = rng.choice([2, 5, 16, 20]), rng.choice([MIN_TILE, MIB])
    ranks = Ranks(source[0], count, source[1]).add_all()
    for items in ranks.items:
        if rng.random() < 0.3:
            rng.shuffle(items)
        if rng.random() < 0.3:
            del items[rng.randrange(len(items) - 3)]
    tasks = ranks.tasks()
    at: dict[str, int] = {}
    alone = 0
    for job in Jobs(tasks, Silent, rng.randint(1, 4), limit, HERE):  # type: ignore[arg-type]
        assert len({run.task.file for run, _ in job}) == len(job)
        assert len({tile.band for _, tile in job}) == 1
        alone += len(job) == 1 and job[0][1].band is not None
        for run, tile in job:
            assert tile.begin == at.get(run.task.file, 0)
            at[run.task.file] = tile.end
        open_files = [t for t in tasks if 0 < at.get(t.file, 0) < t.size]
        assert len(open_files) <= MOST_TOGETHER
    assert at == {t.file: t.size for t in tasks}


def test_other_orders_give_the_same_bytes(source: Source, fast_path: Path) -> None:
    """Files that do not wait for each other, for they would wait for ever."""
    ranks = Ranks(source[0], 6, source[1]).add_all()
    for rank, items in enumerate(ranks.items):
        random.Random(rank).shuffle(items)
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    in_time(lambda: run(Settings(workers=3)))
    run.check(ranks.expected)


def test_a_band_that_turns_out_too_large_is_read_by_each(
    source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teams, "_need", lambda items, rows: 0)
    monkeypatch.setattr(teams, "AT_ONCE", 99)
    ranks = Ranks(source[0], 8, source[1])
    for rank in range(8):
        ranks._add_kept(rank)
        ranks._add_decoded(rank)
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    in_time(lambda: run(settings_of(run, 2, 0)))
    run.check(ranks.expected)


# --- Resuming, and errors


@pytest.mark.parametrize("done", [(0,), (0, 3, 6), (0, 1, 2, 3, 4, 5, 6), ()])
def test_resume(done: tuple[int, ...], source: Source, fast_path: Path, written: list[str]) -> None:
    ranks = Ranks(source[0], 8, source[1]).add_all()
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    first = run(Settings(workers=2), [run.tasks[n] for n in done])
    written.clear()
    records = run(Settings(workers=3))
    run.check(ranks.expected)
    assert sorted(written) == [f"rank{n}" for n in range(8) if n not in done]
    assert [records[n] for n in done] == first
    assert len({r.sha256 for r in records}) == 8


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("where", ["write", "hash", "finish"])
def test_an_error_of_one_file_ends_all(
    where: str, workers: int, source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None waits for what will not come; another run goes on."""
    ranks = Ranks(source[0], 8, source[1]).add_all()
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    real = getattr(fileio.TargetFile, where)

    def failing(self: Any, *args: Any) -> Any:
        if self.path.name.startswith("rank5.") and self.written > 200_000:
            raise OSError(5, "Input/output error")
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(fileio.TargetFile, where, failing)
        with pytest.raises(OSError, match="Input/output error"):
            in_time(lambda: run(Settings(workers=workers)))
    assert not temporaries(fast_path)
    run(Settings(workers=workers))
    run.check(ranks.expected)


@pytest.mark.parametrize("workers", [1, 4])
def test_damage_in_one_ranks_columns(workers: int, fast_path: Path) -> None:
    """Named with its weight, from a band that all read."""
    arrays = make_source(fast_path / "src")
    ranks = Ranks(fast_path / "src", 8, arrays).add_all()
    stored = ranks.catalogue.tensors["d"]
    shard = ranks.catalogue.shards[stored.shard]
    path = fast_path / "src" / shard.name
    with path.open("r+b") as f:
        f.seek(stored.begin + 400 * 4096 + 5 * 512 + 7)
        f.write(b"\x7f")
    os.utime(path, ns=(shard.mtime_ns, shard.mtime_ns))
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    words = "weight 'd': a NaN code at row 400, column 7"
    with pytest.raises(DataError, match=words):
        in_time(lambda: run(Settings(workers=workers)))
    assert not temporaries(fast_path)


def test_a_source_that_changes(source: Source, fast_path: Path) -> None:
    arrays = make_source(fast_path / "src")
    ranks = Ranks(fast_path / "src", 4, arrays).add_all()
    stored = ranks.catalogue.tensors["o"]
    path = fast_path / "src" / ranks.catalogue.shards[stored.shard].name
    os.truncate(path, path.stat().st_size - 1)
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    with pytest.raises(FormatError, match="changed since it was planned"):
        in_time(lambda: run(Settings(workers=3)))


def test_a_source_that_changes_while_it_is_read(fast_path: Path) -> None:
    """Also if only bands are read from it."""
    make_large(fast_path / "src")
    ranks = large_ranks(fast_path / "src", 4)
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")

    def touch(now: Progress) -> None:
        if now.read:
            os.utime(fast_path / "src" / ranks.catalogue.shards[0].name)

    with pytest.raises(FormatError, match="changed since it was planned"):
        run(Settings(workers=2, progress=touch))


def test_interrupted(source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(source[0], 8, source[1]).add_all()
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    real, calls = taskrun.TaskRun.make, []

    def make(*args: Any) -> int:
        calls.append(1)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(taskrun.TaskRun, "make", make)
        with pytest.raises(ResumableError, match="interrupted"):
            in_time(lambda: run(Settings(workers=4)))
    run(Settings(workers=4))
    run.check(ranks.expected)


def test_constant_bytes_are_read_from_no_file(
    source: Source, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of padding; also where they are all of a tensor."""
    opened: list[int] = []
    real = sources.Sources.borrowed
    monkeypatch.setattr(
        sources.Sources, "borrowed", lambda self, n: opened.append(n) or real(self, n)
    )
    ranks = Ranks(source[0], 40, source[1])
    for rank in range(40):
        ranks._add_kept(rank)
    assert any(p.shard < 0 for i in ranks.items[-1] for p in i.weight.parts)
    run = Run(ranks.catalogue, ranks.tasks(), fast_path / "dst")
    run(Settings(workers=2))
    run.check(ranks.expected)
    assert min(opened) == 0
    padding = sources_of(Stored("", "U8", (9, 9), ~7, 0, 81), Span(0, 81))
    found = Places([[Read(Span(0, 81), padding)]] * 2)
    assert (found.shards, found.nbytes, found.need) == (set(), 0, PAGE)
