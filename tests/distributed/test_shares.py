"""Every task exactly once, however many workers there are, in whatever order they come."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8convert import distributed
from fp8convert.convert import prepare, to_bf16
from fp8convert.distributed import (
    Planned,
    complete,
    numbers,
    read_plan,
    replanned,
    run_tasks,
    work,
    write_plan,
)
from fp8convert.errors import UsageError
from fp8convert.journal import record_name
from fp8convert.options import ToBf16
from fp8convert.settings import Settings

from ..crash import contents, state_of

SMALL = 500  # max_shard_size that makes five files of mini
TASKS = 5
ONE = Settings(workers=1)


@pytest.fixture(scope="module")
def undisturbed(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one machine makes of it."""
    dst = tmp_path_factory.mktemp("undisturbed") / "dst"
    to_bf16(mini, dst, max_shard_size=SMALL, workers=1)
    return contents(dst)


def planned(mini: Path, folder: Path) -> Planned:
    """A plan that is begun."""
    write_plan(prepare(mini, folder / "dst", ToBf16(max_shard_size=SMALL)), folder / "plan.json")
    return replanned(folder / "plan.json")


def exactly_once(files: list[str], of: Planned) -> bool:
    """Whether ``files``, in any order, are those of all tasks, each once."""
    return Counter(files) == Counter(t.file for t in of.job.plan.tasks)


@given(st.integers(0, 500), st.integers(1, 600))
def test_numbers(tasks: int, count: int) -> None:
    """By brute force: task t is worker t mod count's."""
    shares = [numbers(tasks, index, count) for index in range(count)]
    assert [[*share] for share in shares] == [
        [t for t in range(tasks) if t % count == index] for index in range(count)
    ]


@pytest.mark.parametrize(("index", "count"), [(0, 0), (-1, 2), (2, 2), (5, 2), (0, -1)])
def test_numbers_of_no_worker(index: int, count: int) -> None:
    with pytest.raises(UsageError, match=f"index {index} of {count} workers"):
        numbers(7, index, count)


def shares_of(of: Planned, count: int, rng: random.Random, number: object = numbers) -> None:
    """All workers' shares, in random order."""
    assert callable(number)
    order = rng.sample(range(count), count)
    for index in order:
        mine = number(len(of.job.plan.tasks), index, count)
        done = work(of, mine, ONE)
        assert [r.file for r in done.records] == [of.job.plan.tasks[n].file for n in mine]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 20])
def test_every_task_exactly_once(
    count: int, mini: Path, fast_path: Path, written: list[str], undisturbed: dict[str, bytes]
) -> None:
    """Workers 1, 3, N, more than N: by the files that were begun, and by their bytes."""
    of = planned(mini, fast_path)
    assert len(of.job.plan.tasks) == TASKS
    shares_of(of, count, random.Random(count))
    assert exactly_once(written, of)
    complete(of)
    assert exactly_once(written, of)  # the end writes none again
    assert contents(fast_path / "dst") == undisturbed
    assert sorted(p.name for p in fast_path.iterdir()) == ["dst", "plan.json"]


@pytest.mark.parametrize(
    "broken",
    [
        lambda tasks, index, count: range(index, tasks - 1, count),  # not the last
        lambda tasks, index, count: range(0, tasks, count),  # some of them, and no others
    ],
)
def test_broken_shares_are_seen(
    broken: Callable[..., range], mini: Path, fast_path: Path, written: list[str]
) -> None:
    """The control of the one above: it would fail."""
    of = planned(mini, fast_path)
    shares_of(of, 3, random.Random(1), broken)
    assert not exactly_once(written, of)


def test_what_is_there_is_not_done_again(mini: Path, fast_path: Path, written: list[str]) -> None:
    """The same share again: nothing is written, the records are the same."""
    of = planned(mini, fast_path)
    first, again = work(of, [2, 4], ONE), work(of, [2, 3, 4], ONE)
    assert (first.there, again.there) == (0, 2)
    assert [again.records[n] for n in (0, 2)] == first.records
    assert written == [of.job.plan.tasks[n].file for n in (2, 4, 3)]


def test_a_damaged_file_is_done_again(
    mini: Path, fast_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """By whoever has that task, whether its bytes, its size or its record are wrong."""
    of = planned(mini, fast_path)
    tasks = range(len(of.job.plan.tasks))
    work(of, tasks, ONE)
    out, journal = state_of(fast_path / "dst") / "out", state_of(fast_path / "dst") / "journal"
    files = [t.file for t in of.job.plan.tasks]
    data = bytearray((out / files[0]).read_bytes())
    data[-1] ^= 1
    (out / files[0]).write_bytes(data)
    (out / files[1]).write_bytes(data[:-1])
    (journal / record_name(files[2])).write_text("{}")
    (out / files[3]).unlink()
    assert work(of, tasks, ONE).there == len(files) - 3  # a flip is found by the sum only
    complete(of)
    assert contents(fast_path / "dst") == undisturbed


def test_the_simple_way(mini: Path, fast_path: Path, undisturbed: dict[str, bytes]) -> None:
    """The functions that take a path; once it is finished there is nothing to be done."""
    path = fast_path / "plan.json"
    file = write_plan(prepare(mini, fast_path / "dst", ToBf16(max_shard_size=SMALL)), path)
    assert read_plan(path) == file
    assert len(file.tasks) == TASKS
    records = run_tasks(path, range(TASKS), ONE)
    assert [(r.file, r.size) for r in records] == [(t["file"], t["size"]) for t in file.tasks]
    manifest = distributed.finalize(path)
    assert not manifest.already_done
    assert manifest.files[:TASKS] == [
        {"name": r.file, "size": r.size, "sha256": r.sha256} for r in records
    ]
    assert run_tasks(path, [1, 2], ONE) == []
    assert distributed.finalize(path).already_done
    assert distributed.finalize(path).data == manifest.data
    assert contents(fast_path / "dst") == undisturbed


def test_tasks_that_are_not_there(mini: Path, fast_path: Path) -> None:
    of = planned(mini, fast_path)
    for number in (-1, TASKS):
        with pytest.raises(UsageError, match=f"task {number}, expected 0 to 4"):
            work(of, [0, number], ONE)
    assert not list((state_of(fast_path / "dst") / "journal").iterdir())
    assert work(of, [], ONE).records == []


def test_progress_is_of_the_share(mini: Path, fast_path: Path) -> None:
    """As in a local run: bytes written of all that are this worker's."""
    of = planned(mini, fast_path)
    size = sum(of.job.plan.tasks[n].size for n in (1, 4))
    for _ in range(2):  # what is there counts as well
        seen: list[tuple[int, int]] = []
        work(of, [1, 4], Settings(workers=1, progress=lambda p, to=seen: to.append(p[:2])))
        assert seen[-1] == (size, size)
        assert [n for n, _ in seen] == sorted({n for n, _ in seen})


def test_read_bytes_are_those_of_the_plan(mini: Path, fast_path: Path) -> None:
    """What plan.json says that a task reads is read for it, and no other shard."""
    of = planned(mini, fast_path)
    for n, said in enumerate(of.file.tasks):
        seen: list[int] = []
        work(of, [n], Settings(workers=1, progress=lambda p, to=seen: to.append(p.read)))
        assert seen[-1] >= sum(said["reads"].values())
        assert set(said["reads"]) <= set(of.file.shards)
    shutil.rmtree(state_of(fast_path / "dst"))
