"""The simulator of fleets against arithmetic done by hand, and against list scheduling."""

from __future__ import annotations

import contextlib
import functools
import heapq
import io
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet import run
from benchmarks.fleet.__main__ import least, main, minutes
from benchmarks.fleet.inputs import GB, Fleet, Plan, Task, plan, read_plan
from benchmarks.fleet.run import simulate
from benchmarks.fleet.sharing import Flow, Resource, share

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
INF = math.inf
SHARD = 1_000_000_000

# Nothing limits, nothing takes time but what a test sets.
FREE = Fleet(files=1, cores=INF, core=1, file=INF, storage=INF, link=INF, scratch=INF,
             start=0, each=0, back=0)  # fmt: skip


def files(*sizes: float, reads: float = 0.5) -> Plan:
    """A plan of files of so many GB, each made of a shard of its own."""
    tasks = [Task(int(s * GB), {f"s{i}": int(s * reads * GB)}) for i, s in enumerate(sizes)]
    return Plan(tuple(tasks), {n: b for t in tasks for n, b in t.reads.items()})


def seconds(of: Plan, fleet: Fleet) -> float:
    """How long it takes; every task is done once, whatever happens."""
    found = simulate(of, fleet)
    assert sorted(t for done in found.done for t in done) == list(range(len(of.tasks)))
    assert sum(found.held.values()) == pytest.approx(1)
    assert all(0 <= used <= 1 + 1e-9 for used in found.used.values())
    return found.seconds


def test_one_lane_takes_the_sum() -> None:
    fleet = replace(FREE, cores=1, core=2, start=3, each=0.5)
    assert seconds(files(2, 4, 6), fleet) == pytest.approx(3 + 12 / 2 + 3 * 0.5)


@pytest.mark.parametrize("machines", [1, 3, 8, 40])
def test_storage_bound_is_bytes_by_rate(machines: int) -> None:
    fleet = replace(FREE, machines=machines, files=2, storage=5)
    of = files(*[2] * 24)  # 48 GB written, 24 GB read
    assert seconds(of, fleet) == pytest.approx(72 / 5)
    assert simulate(of, fleet).used["storage"] == pytest.approx(1)


def test_a_link_carries_reads_and_writes_at_the_same_time() -> None:
    assert seconds(files(*[2] * 8), replace(FREE, machines=2, link=1)) == pytest.approx(8)
    assert seconds(files(*[2] * 8, reads=3), replace(FREE, machines=2, link=1)) == 24


def test_files_hashed_in_order_bound_a_task_and_cores_a_machine() -> None:
    fleet = replace(FREE, files=4, file=1.5, cores=10, core=1)
    assert seconds(files(3), fleet) == pytest.approx(2)
    assert seconds(files(3, 3, 3, 3), fleet) == pytest.approx(2)
    assert seconds(files(3, 3, 3, 3), replace(fleet, cores=4)) == pytest.approx(3)


def test_files_at_a_time_are_the_programs() -> None:
    """4 in a process, but not more than cores; or a process a core."""
    assert [Fleet(cores=c).lanes for c in (1, 2, 4, 16, INF)] == [1, 2, 4, 4, 4]
    assert [Fleet(cores=c, hand="dynamic").lanes for c in (0.5, 2, 16)] == [1, 2, 16]
    assert Fleet(files=7).lanes == Fleet(files=7, hand="dynamic").lanes == 7


def test_an_infinitely_fast_fleet_takes_its_waits_only() -> None:
    assert seconds(files(1, 2, 3), replace(FREE, start=1, each=2)) == pytest.approx(1 + 3 * 2)


def test_more_tasks_than_machines_come_in_rounds() -> None:
    """163 equal files of 8 GB, 64 machines: two get none of the third round."""
    fleet = replace(FREE, machines=64, link=1)
    found = simulate(files(*[8] * 163), fleet)
    assert found.seconds == pytest.approx(3 * 8)
    assert found.held["idle"] == pytest.approx((64 * 3 - 163) / (64 * 3))
    assert sorted(map(len, found.done)) == [2] * 29 + [3] * 35


def test_more_machines_than_tasks() -> None:
    found = simulate(files(1, 1), replace(FREE, machines=5, link=1))
    assert found.seconds == pytest.approx(1)
    assert found.held["idle"] == pytest.approx(3 / 5)


def test_a_straggler_holds_up_static_shares_and_less_so_dynamic_ones() -> None:
    """Two machines, one 3 times slower, 12 files of a second: 6 x 3 s; or 9 and 3."""
    slow = replace(FREE, machines=2, link=1, slow=0.5, by=3)
    of = files(*[1] * 12)
    assert seconds(of, slow) == pytest.approx(18)
    assert seconds(of, replace(slow, hand="dynamic")) == pytest.approx(9)
    assert seconds(of, replace(slow, slow=0)) == pytest.approx(6)


def test_a_straggler_leaves_the_storage_to_the_others() -> None:
    """Of 4 GB/s the slow machine takes the 0.5 of its link, and the other one all the rest."""
    slow_first = next(s for s in range(99) if random.Random(s).sample(range(2), 1) == [0])
    fleet = replace(FREE, machines=2, storage=4, link=5, slow=0.5, by=10, seed=slow_first)
    found = simulate(Plan((Task(7 * SHARD, {}), Task(49 * SHARD, {})), {}), fleet)
    assert found.seconds == pytest.approx(14)
    assert found.used["storage"] == pytest.approx(1)


def test_a_lost_machine_static_comes_back_and_does_its_rest() -> None:
    """Machine 0 has files 0, 2, 4 of 10 s each. Lost after 15 s, it reads file 0 again, to see that
    it is sound, and begins file 2 again."""
    fleet = replace(FREE, machines=2, link=1, start=2, lose=17, back=100)
    of = files(*[10] * 6)
    assert seconds(of, replace(fleet, lose=INF)) == pytest.approx(2 + 30)
    assert seconds(of, fleet) == pytest.approx(17 + 100 + 2 + 10 + 20)
    hashed = replace(fleet, link=INF, cores=1, core=1, file=2)  # the half of the work
    assert seconds(of, hashed) == pytest.approx(17 + 100 + 2 + 5 + 20)


def test_a_lost_machine_dynamic_leaves_its_task_to_others() -> None:
    """Until 15 s: files 0 and 1 done, 2 lost, 3 half done. Machine 1 then has 2, 4 and 5."""
    fleet = replace(FREE, machines=2, link=1, hand="dynamic", lose=15, back=1000)
    found = simulate(files(*[10] * 6), fleet)
    assert found.seconds == pytest.approx(50)
    assert found.done == ((0,), (1, 3, 2, 4, 5))


def test_a_machine_lost_when_it_has_nothing_left_costs_nothing() -> None:
    fleet = replace(FREE, machines=2, link=1, lose=3, back=1000)
    assert seconds(files(2, 10), fleet) == pytest.approx(10)


def shared_shard(tasks: int) -> Plan:
    """Files of 1 GB, each of half of one shard: 0 and 1 of s0, 2 and 3 of s1 ..."""
    names = [f"s{i // 2}" for i in range(tasks)]
    return Plan(tuple(Task(SHARD, {n: SHARD // 2}) for n in names), dict.fromkeys(names, SHARD))


def test_downloads_are_whole_shards_once_a_process() -> None:
    """Statically one machine downloads each of 4 shards once; two machines, or processes, twice."""
    fleet = replace(FREE, hub=0.5)
    of = shared_shard(8)
    assert seconds(of, fleet) == pytest.approx(4 / 0.5)
    assert seconds(of, replace(fleet, hand="dynamic")) == pytest.approx(8 / 0.5)
    assert seconds(of, replace(fleet, machines=2)) == pytest.approx(4 / 0.5)


def test_a_download_lost_with_its_machine_is_made_again() -> None:
    """2 s for a download, 1 s for each file; lost in the second. The first is read again: 1 s."""
    fleet = replace(FREE, hub=0.5, link=1, lose=3.5)
    assert seconds(shared_shard(2), replace(fleet, lose=INF)) == pytest.approx(2 + 1 + 1)
    assert seconds(shared_shard(2), fleet) == pytest.approx(3.5 + 1 + 2 + 1)


def test_downloads_pass_through_scratch_and_not_the_storage() -> None:
    """A download of 1 GB, then half of it read from scratch while 1 GB is written."""
    of = Plan((Task(SHARD, {"s": SHARD // 2}),), {"s": SHARD})
    assert seconds(of, replace(FREE, hub=100, scratch=1)) == pytest.approx(1.5)
    assert seconds(of, replace(FREE, hub=1, storage=0.5)) == pytest.approx(1 + 2)


def listed(durations: Sequence[float], lanes: int) -> float:
    """List scheduling: the next task goes to whoever is free first."""
    free = [0.0] * lanes
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


@pytest.mark.parametrize("seed", range(20))
def test_without_anything_shared_it_is_list_scheduling(seed: int) -> None:
    chance = random.Random(seed)
    machines, lanes = chance.randint(1, 9), chance.randint(1, 4)
    sizes = [chance.randint(1, 50) / 4 for _ in range(chance.randint(1, 60))]
    fleet = replace(FREE, machines=machines, files=lanes, file=0.5, each=0.25)
    durations = [s / 0.5 + 0.25 for s in sizes]
    dynamic = seconds(files(*sizes), replace(fleet, hand="dynamic"))
    largest = sorted(durations, reverse=True)
    assert dynamic == pytest.approx(listed(largest, machines * lanes))
    static = max(listed(durations[i::machines], lanes) for i in range(machines))
    assert seconds(files(*sizes), fleet) == pytest.approx(static)


@pytest.mark.parametrize("seed", range(50))
def test_rates_are_max_min_fair(seed: int) -> None:
    """No resource gives more than it has, and each flow is the fastest on one that is full."""
    chance = random.Random(seed)
    capacity: dict[Resource, float] = {("r", i): chance.uniform(1, 9) for i in range(6)}
    flows = [
        Flow(1, {r: chance.uniform(0.1, 3) for r in chance.sample(list(capacity), 3)})
        for _ in range(chance.randint(1, 12))
    ]
    share(flows, capacity)
    load = {r: sum(f.rate * f.uses.get(r, 0) for f in flows) for r in capacity}
    assert all(load[r] <= most * (1 + 1e-6) for r, most in capacity.items())
    for flow in flows:
        full = [r for r in flow.uses if load[r] >= capacity[r] * (1 - 1e-6)]
        fastest = [max(f.rate for f in flows if r in f.uses) for r in full]
        assert any(flow.rate >= rate * (1 - 1e-6) for rate in fastest)


def unshared(flows: Sequence[Flow], capacity: Mapping[Resource, float]) -> None:
    """A wrong :func:`share`: each flow as if it were alone."""
    for flow in flows:
        share([flow], capacity)


def test_control_that_does_not_share_is_too_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "share", unshared)
    found = simulate(files(*[2] * 24), replace(FREE, machines=8, files=2, storage=5))
    assert found.seconds < 72 / 5 / 10
    assert found.used["storage"] > 10  # and it shows


def test_control_that_keeps_what_a_lost_machine_had_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.fleet.run._Run._lose", lambda self, machine: None)
    fleet = replace(FREE, machines=2, link=1, hand="dynamic", lose=15, back=1000)
    assert simulate(files(*[10] * 6), fleet).seconds == pytest.approx(30)


def test_least_is_the_slowest_resource_or_the_largest_file() -> None:
    of = files(1, 3, 4)  # 8 GB out, 4 GB in
    base = replace(FREE, start=5)
    assert least(of, replace(base, storage=2)) == (pytest.approx(5 + 12 / 2), "storage")
    assert least(of, replace(base, machines=2, link=1)) == (pytest.approx(5 + 4), "link out")
    assert least(of, replace(base, machines=99, link=1, file=0.5, each=1)) == (14, "file")
    assert least(of, replace(base, hub=0.25)) == (pytest.approx(5 + 16), "hub")
    for fleet in (replace(base, storage=2), replace(base, hub=0.25), replace(base, link=1)):
        assert seconds(of, fleet) >= least(of, fleet)[0] * (1 - 1e-9)


RECORD: dict[str, Any] = {
    "format": 1, "tool": "fp8convert", "plan": "00", "command": "to-bf16",
    "source": "SRC", "target": "DST", "options": {}, "bytes_in": 3, "bytes_out": 4,
    "tasks": [{"file": "a", "size": 4 * SHARD, "reads": {"s": 2 * SHARD}, "team": -1},
              {"file": "b", "size": 4 * SHARD, "reads": {"s": 2 * SHARD}, "team": -1}],
    "shards": {"s": 4 * SHARD},
}  # fmt: skip


def saved(folder: Path, **changes: Any) -> str:
    """A plan's file."""
    path = folder / "plan.json"
    path.write_text(json.dumps({**RECORD, **changes}))
    return str(path)


def test_command_prints_a_row_for_every_combination(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--machines", "1,2", "--storage", "6,inf", "--start", "0", "--file", "inf"]
    assert main([saved(tmp_path), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4
    assert lines[0].startswith("| machines | storage | time |")
    assert lines[2].startswith("| 1 | 6 | 2.77 s | 2.67 s link out |")  # 8 GB by 3 GB/s


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "--storage", "1", "--link", "inf", "--each", "0", "--start", "1"]
    assert main([saved(tmp_path), *arguments]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["seconds"] == pytest.approx(row["least"])
    assert row["least"] == pytest.approx(1 + 12)
    assert row["fleet"]["link"] == "inf"
    assert (row["bound"], row["most_tasks"], row["tasks"]) == ("storage", 2, 2)


@pytest.mark.parametrize(
    ("changes", "arguments", "said"),
    [
        ({"format": 2}, [], "format 2, expected 1"),
        ({"plan_format": 3, "source": {}}, [], "format 3, expected 1"),
        ({"shards": {}}, [], "tasks read 's', which is not among the shards"),
        ({}, ["--machines", "0"], "machines 0, expected more than 0"),
        ({}, ["--storage", "nan"], "storage nan, expected more than 0"),
        ({}, ["--each", "-1"], "each -1.0, expected 0 or more"),
        ({}, ["--slow", "2"], "slow 2.0, expected a fraction"),
        ({}, ["--hand", "out"], "hand 'out', expected static or dynamic"),
        ({}, ["--back", "inf"], "are to end"),
        ({"tasks": [{"size": 1}]}, [], "KeyError: 'reads'"),
    ],
)
def test_command_refuses(
    changes: dict[str, Any],
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as e:
        main([saved(tmp_path, **changes), *arguments])
    assert e.value.code == 2
    assert said in capsys.readouterr().err


def test_same_inputs_same_outcome() -> None:
    fleet = Fleet(machines=7, slow=0.4, lose=9, back=3, storage=3, seed=5, hand="dynamic")
    of = files(*range(1, 40))
    assert simulate(of, fleet) == simulate(of, fleet)
    assert simulate(of, fleet) != simulate(of, replace(fleet, seed=6))


def test_times_are_said_as_people_say_them() -> None:
    assert [minutes(s) for s in (9.4, 1032, 7260)] == ["9.4 s", "17.2 min", "2 h 01 min"]


def test_plan_is_read_from_its_file(tmp_path: Path) -> None:
    found = read_plan(Path(saved(tmp_path)))
    assert found == plan(RECORD)
    assert found.tasks[1] == (4 * SHARD, {"s": 2 * SHARD})


def fp8convert(*arguments: object, cwd: Path, out: str = "") -> None:
    """The command, as the page has it; its stdout goes to a file ``out``."""
    command = [str(Path(sys.executable).with_name("fp8convert")), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    if out:
        (cwd / out).write_bytes(done.stdout)


def test_dry_run_and_plan_of_the_real_commands_say_the_same(tmp_path: Path) -> None:
    """Which shards a file is made of, by the headers: of this sample, all bytes of all shards."""
    fp8convert("make-sample", "tiny", "--size", "tiny", cwd=tmp_path)
    fp8convert("to-bf16", "tiny", "OUT", "--dry-run", "--json", cwd=tmp_path, out="dry.json")
    fp8convert("plan", "to-bf16", "tiny", "OUT", "--out", "plan.json", cwd=tmp_path)
    dry, real = read_plan(tmp_path / "dry.json"), read_plan(tmp_path / "plan.json")
    shards = sorted((tmp_path / "tiny").glob("*.safetensors"))
    assert real.shards == {s.name: s.stat().st_size for s in shards}
    named = [{shards[int(n)].name: nbytes for n, nbytes in t.reads.items()} for t in dry.tasks]
    assert named == [t.reads for t in real.tasks]
    assert [t.size for t in dry.tasks] == [t.size for t in real.tasks]
    data = sum(s.stat().st_size - 8 - int.from_bytes(s.read_bytes()[:8], "little") for s in shards)
    assert sum(sum(t.reads.values()) for t in real.tasks) == data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plans of the page, made as it says."""
    folder = tmp_path_factory.mktemp("scale")
    (block,) = re.findall(r"```\n(fp8convert make-sample.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines():
        words, _, out = line.removeprefix("fp8convert ").partition(" > ")
        fp8convert(*words.split(), cwd=folder, out=out)
    return folder


TABLE = re.compile(r"```\n\$ python -m benchmarks\.fleet (.*)\n```\n\n((?:\|.*\n)+)")


def test_page_has_what_its_commands_print(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plan is read once, for all the commands that name it."""
    monkeypatch.chdir(full)
    monkeypatch.setattr("benchmarks.fleet.__main__.read_plan", functools.cache(read_plan))
    found = TABLE.findall(PAGE.read_text())
    assert len(found) == PAGE.read_text().count("python -m benchmarks.fleet ") >= 8
    for words, table in found:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(words.split()) == 0
        assert printed.getvalue() == table, words
