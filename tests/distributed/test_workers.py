"""Workers in processes of their own, at once: bytes of every command as one writes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fp8convert.convert import prepare, shard_for_tp
from fp8convert.distributed import numbers, read_plan
from fp8convert.options import ShardForTp
from fp8convert.settings import MAX_TILE
from fp8convert.teams import sharing, teams

from ..faults.lab import SIZES, Lab, Work, tree
from ..faults.together import Stage
from ..sharded.deepseek import deepseek
from ..sharded.forms import bf16
from .fleet import Fleet, at_once

PROGRAM = Path(sys.executable).with_name("fp8convert")
WORKS = ("to-bf16", "quantize", "quantize-nvfp4", "shard-deepseek", "shard-hf",
         "unshard-deepseek", "unshard-hf")  # fmt: skip


def test_works_are_all_there_are(made: Lab) -> None:
    assert tuple(made.by_name) == WORKS


@pytest.mark.parametrize("name", WORKS)
def test_workers_at_once(name: str, machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """Three at a time, of 2, of as many as tasks and more; no file has two records."""
    for count in (2, 9):
        one = fleet(name)
        found = at_once(machines.forkers, [one.share(i, count) for i in range(count)])
        assert [ended.code for ended in found] == [0] * count, found
        records = [p.name for p in (one.state / "journal").iterdir()]
        assert len(records) == one.tasks
        assert not list(one.state.rglob("*.tmp"))
        assert not list(one.state.glob("run.*"))
        assert one.finished() == ""


@pytest.fixture(scope="module")
def ranks(made: Lab) -> list[Work]:
    """Ranks of a model whose matrices are large enough to be read once for all of a team."""
    sizes = {**SIZES, "hidden_size": 512, "intermediate_size": 1024}
    source = deepseek("wide", bf16, None, **sizes).write(made.root / "wide")
    found = []
    for layout in ("deepseek", "hf"):
        target = made.root / f"expected-wide-{layout}"
        shard_for_tp(source, target, 4, layout=layout, workers=2)
        options = ("--tp", "4", "--layout", layout)
        found.append(Work(layout, ("shard-for-tp",), source, options, tree(target)))
    return found


def test_teams(machines: Stage, made: Lab, ranks: list[Work], tmp_path: Path) -> None:
    """Files that one machine writes together are cut over workers, some together, some alone."""
    for work, count in ((ranks[0], 2), (ranks[1], 2), (ranks[1], 3)):
        options = ShardForTp(tp=4, layout=work.name)
        tasks = prepare(work.source, tmp_path / "dst", options).plan.tasks
        mine = [tasks[n] for n in numbers(len(tasks), 0, count)]
        for some in (tasks, mine):  # or this would test nothing
            assert any(len(t) > 1 and any(sharing(t, MAX_TILE)) for t in teams(some))
        one = Fleet(made, work).plan()
        found = at_once(machines.forkers, [one.share(i, count) for i in range(count)])
        assert [ended.code for ended in found] == [0] * count, found
        assert one.finished() == ""


def test_the_console_script(fleet: Callable[..., Fleet]) -> None:
    """Nothing forked: three programs at once, and one that ends it; what each of them prints."""
    one = fleet()
    count = 3
    argvs = [[str(PROGRAM), *map(str, one.share(i, count))] for i in range(count)]
    running = [subprocess.Popen(a, stdout=subprocess.PIPE, text=True) for a in argvs]
    said = [program.communicate()[0] for program in running]
    assert [program.returncode for program in running] == [0] * count
    assert [" ".join(s.split()[:7]) for s in said] == [
        "3 of 7 tasks are this worker's,",
        "2 of 7 tasks are this worker's,",
        "2 of 7 tasks are this worker's,",
    ]
    last = subprocess.run([str(PROGRAM), "finalize", str(one.file)], capture_output=True, text=True)
    assert last.returncode == 0
    assert last.stdout.endswith(f"written\ndone: {one.target}\n")
    assert last.stderr == ""
    assert one.work.ended_right(one.target)


def test_a_wrong_byte_is_seen(machines: Stage, fleet: Callable[..., Fleet]) -> None:
    """The control of the judge."""
    one = fleet()
    found = at_once(machines.forkers, [one.share(i, 2) for i in range(2)])
    assert [ended.code for ended in found] == [0, 0]
    file = one.state / "out" / one.said["tasks"][1]["file"]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert one.finished() == "bytes"


def test_plan_is_the_same_for_all(fleet: Callable[..., Fleet]) -> None:
    """plan.json says of tasks what the plan has: files, bytes, what they read."""
    one = fleet("shard-hf")
    file = read_plan(one.file)
    job = prepare(file.source, one.target, file.chosen)
    names = job.catalogue.shard_names
    assert [(t["file"], t["size"], t["team"]) for t in file.tasks] == [
        (t.file, t.size, t.team) for t in job.plan.tasks
    ]
    assert [{names.index(name): n for name, n in t["reads"].items()} for t in file.tasks] == [
        t.reads for t in job.plan.tasks
    ]
    assert (file.bytes_in, file.bytes_out) == (job.plan.bytes_in, job.plan.bytes_out)
    assert file.shards == {p.name: p.stat().st_size for p in one.work.source.glob("*.safetensors")}
