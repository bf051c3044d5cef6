"""Runs on a cluster: the bytes of a local run, whoever is lost on the way; refusals; resumption."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fp8convert.errors import DataError, Fp8ConvertError, ResumableError, TargetError, UsageError
from fp8convert.executors import tasks, totals, working
from fp8convert.executors.totals import Count, Tally
from fp8convert.executors.working import Report
from fp8convert.options import Options, Quantize, ShardForTp
from fp8convert.settings import Progress

from .conftest import NODE
from .gate import Gate
from .runs import (
    MANY,
    MOST_SECONDS,
    Command,
    Driver,
    contents,
    locally,
    on_ray,
    parents,
    raylet_of,
    temporaries,
    wait_for_end,
)  # fmt: skip

COMMANDS: dict[str, Options] = {
    "to-bf16": MANY,
    "quantize": Quantize(scheme="nvfp4", max_shard_size=1_000_000),
    "deepseek": ShardForTp(tp=4, layout="deepseek", misaligned="bf16"),
    "hf": ShardForTp(tp=2, layout="hf", misaligned="bf16", weights="bf16"),
}


@pytest.fixture(scope="module")
def expected(tiny_fp8: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a local run makes of the sample."""
    return locally(tiny_fp8, tmp_path_factory.mktemp("local") / "dst")


def test_progress_by_bytes_once_a_run_takes_a_while(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "AFTER_S", 0)
    monkeypatch.setattr(working, "EVERY_S", 0)
    told: list[Progress] = []
    tally = Tally(connection, "totals of a test", [100, 10], told.append)

    def tell_until(written: int) -> None:
        until = time.monotonic() + MOST_SECONDS
        while not told or told[-1].written != written:
            assert time.monotonic() < until, told
            tally.tell()

    def report(number: int, now: Progress) -> None:
        """As a worker does, again and again: the actor may not be known to all at once."""
        worker, until = Report(tally.name, number), time.monotonic() + MOST_SECONDS
        while worker._keeper is None:
            assert time.monotonic() < until, "nobody keeps the totals"
            worker(now)

    tell_until(0)
    report(0, Progress(60, 100, 30))  # begun by a worker that is lost
    tell_until(60)
    report(0, Progress(20, 100, 10))  # and by another one
    report(1, Progress(5, 10, 2))
    tell_until(65)
    tally.done(1, Count(10, 4))
    tell_until(70)
    tally.done(0, Count(0, 50, 7))
    tell_until(110)
    assert told[-1] == Progress(110, 110, 54, 7)
    assert [p.written for p in told] == sorted(p.written for p in told)


def test_progress_by_bytes_whatever_becomes_of_nodes_and_of_its_actor(
    cluster: Any, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "AFTER_S", 0)
    told: list[Progress] = []
    tallies = [Tally(connection, f"of {n}", [100], told.append) for n in range(5)]

    def tell_until(tally: Tally, written: int) -> None:
        until = time.monotonic() + MOST_SECONDS
        while not told or told[-1].written != written:
            assert time.monotonic() < until, told[-1]
            tally._actor.note.remote(0, Count(written))  # a new one may have been made
            tally.tell()
            time.sleep(0.05)

    (other,) = cluster.list_all_nodes()[1:]
    os.kill(raylet_of(other), signal.SIGSTOP)  # as one that is lost, and not yet known to be
    try:
        for tally in tallies:
            tally.tell()
        for n, tally in enumerate(tallies):
            tell_until(tally, n + 1)
    finally:
        os.kill(raylet_of(other), signal.SIGCONT)
    connection.kill(tallies[0]._actor, no_restart=False)  # as where its process is lost
    tell_until(tallies[0], 50)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_bytes_of_a_local_run_each_task_once(
    command: str, tiny_fp8: Path, tmp_path: Path, cluster: Any, connection: Any, gate: Gate
) -> None:
    local = locally(tiny_fp8, tmp_path / "local", COMMANDS[command])
    with gate.shut():  # both nodes are to take part, however fast one of them is
        driver = Driver(tiny_fp8, tmp_path / "dst", COMMANDS[command])
        raylets = parents(gate.waiting(2))
    assert driver.ended() is None
    assert contents(tmp_path / "dst") == local
    begun = gate.begun()
    assert set(begun) == {name for name in local if name.endswith(".safetensors")}
    assert set(begun.values()) == {1}
    assert set(raylets) == {raylet_of(n) for n in cluster.list_all_nodes()}
    assert temporaries(tmp_path / "dst") == []


def test_a_worker_killed(
    tiny_fp8: Path, tmp_path: Path, connection: Any, gate: Gate, expected: dict[str, bytes]
) -> None:
    with gate.shut():
        driver = Driver(tiny_fp8, tmp_path / "dst")
        killed, _ = gate.waiting(2)
        os.kill(killed, signal.SIGKILL)
    assert driver.ended() is None
    assert contents(tmp_path / "dst") == expected
    assert sorted(gate.begun().values())[-2:] == [1, 2]  # its task was begun again, no other
    _check_progress(driver, expected)


def test_a_node_lost(
    tiny_fp8: Path,
    tmp_path: Path,
    cluster: Any,
    connection: Any,
    gate: Gate,
    expected: dict[str, bytes],
) -> None:
    lost = cluster.add_node(**NODE)
    with gate.shut():
        driver = Driver(tiny_fp8, tmp_path / "dst")
        workers = gate.waiting(3)
        worker = workers[parents(workers).index(raylet_of(lost))]
        cluster.remove_node(lost, allow_graceful=False)
        wait_for_end(worker)  # or it may yet finish its task, which is as good
    assert driver.ended() is None
    assert contents(tmp_path / "dst") == expected
    assert sorted(gate.begun().values())[-2:] == [1, 2]
    _check_progress(driver, expected)


def _check_progress(driver: Driver, files: dict[str, bytes]) -> None:
    """What has been lost counts once."""
    total = sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    told = [p.written for p in driver.told]
    assert told == sorted(told)
    assert driver.told[-1].written == driver.told[-1].total == total


def test_a_worker_lost_too_often(
    tiny_fp8: Path, tmp_path: Path, connection: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "RETRIES", 0)
    with gate.shut():
        driver = Driver(tiny_fp8, tmp_path / "dst")
        killed, _ = gate.waiting(2)
        os.kill(killed, signal.SIGKILL)
        error = driver.ended()
    assert isinstance(error, ResumableError)
    assert "Ray lost its worker" in str(error)
    assert not (tmp_path / "dst").exists()
    assert temporaries(tmp_path / "dst") == []


def test_a_refusal_ends_it_and_is_the_local_one(
    tiny_fp8: Path, tmp_path: Path, connection: Any, gate: Gate
) -> None:
    source = _with_a_nan(tiny_fp8, tmp_path / "src")
    errors = []
    for convert in (locally, on_ray):
        with pytest.raises(Fp8ConvertError) as raised:
            convert(source, tmp_path / convert.__name__)
        errors.append(raised.value)
    local, ray = errors
    assert type(ray) is type(local) is DataError
    assert str(ray) == str(local)
    assert not (tmp_path / "on_ray").exists()
    assert temporaries(tmp_path / "on_ray") == []
    assert set(gate.begun().values()) == {1}  # nobody has tried again


def _with_a_nan(source: Path, target: Path) -> Path:
    """The sample with a scale that no weight has."""
    from fp8convert import header

    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    shard = sorted(target.glob("*.safetensors"))[-1]
    data = bytearray(shard.read_bytes())
    length = header.header_length(bytes(data[:64]), len(data), shard.name)
    entries = header.parse(bytes(data[8 : 8 + length]), len(data), shard.name).entries
    begin = next(e.begin for e in entries if e.name.endswith("_scale_inv"))
    data[begin : begin + 4] = b"\xff\xff\xff\x7f"
    shard.write_bytes(data)
    return target


def test_interrupted_and_resumed(
    tiny_fp8: Path, tmp_path: Path, connection: Any, gate: Gate, expected: dict[str, bytes]
) -> None:
    def tell(now: Any) -> None:
        if now.written > now.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(ResumableError, match=r"^interrupted$"):
        on_ray(tiny_fp8, tmp_path / "dst", progress=tell)
    assert not (tmp_path / "dst").exists()
    assert temporaries(tmp_path / "dst") == []
    done = {p.name for p in (tmp_path / ".dst.fp8convert/out").glob("*.safetensors")}
    assert len(done) > len(gate.begun()) / 4
    gate.clear()
    assert not on_ray(tiny_fp8, tmp_path / "dst").already_done
    assert contents(tmp_path / "dst") == expected
    every = {name for name in expected if name.endswith(".safetensors")}
    assert set(gate.begun()) == every - done
    gate.clear()
    assert on_ray(tiny_fp8, tmp_path / "dst").already_done
    assert not gate.begun()


def test_a_finished_file_that_was_damaged_is_made_again(
    tiny_fp8: Path, tmp_path: Path, connection: Any, gate: Gate, expected: dict[str, bytes]
) -> None:
    def tell(now: Any) -> None:
        if now.written:
            raise KeyboardInterrupt

    with pytest.raises(ResumableError):
        on_ray(tiny_fp8, tmp_path / "dst", progress=tell)
    file = next((tmp_path / ".dst.fp8convert/out").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    gate.clear()
    on_ray(tiny_fp8, tmp_path / "dst")
    assert gate.begun()[file.name] == 1
    assert contents(tmp_path / "dst") == expected


def test_another_run_meanwhile_is_refused(
    tiny_fp8: Path, tmp_path: Path, connection: Any, gate: Gate, expected: dict[str, bytes]
) -> None:
    with gate.shut():
        driver = Driver(tiny_fp8, tmp_path / "dst")
        worker, _ = gate.waiting(2)
        for again in (on_ray, locally):
            with pytest.raises(TargetError, match="another run is writing"):
                again(tiny_fp8, tmp_path / "dst")
        os.kill(worker, signal.SIGKILL)  # its successor has not planned yet
    assert driver.ended() is None
    assert contents(tmp_path / "dst") == expected
    assert temporaries(tmp_path / "dst") == []


def test_a_target_that_only_this_process_sees(tiny_fp8: Path, connection: Any) -> None:
    with pytest.raises(TargetError, match="on storage that all machines share"):
        on_ray(tiny_fp8, "memory://of-one-process/dst")


def test_no_node_is_large_enough(
    tiny_fp8: Path, tmp_path: Path, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "CPUS", 2)  # a node has one
    with pytest.raises(UsageError, match="no node of the Ray cluster has 2 CPU and"):
        on_ray(tiny_fp8, tmp_path / "dst")
    assert list(tmp_path.iterdir()) == []


def test_nodes_without_the_package(
    tiny_fp8: Path, tmp_path: Path, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'fp8convert'")

    monkeypatch.setattr(tasks, "work_on", absent)
    with pytest.raises(Fp8ConvertError, match="installed on all nodes") as raised:
        on_ray(tiny_fp8, tmp_path / "dst")
    assert raised.value.exit_code == 1
    assert not (tmp_path / "dst").exists()


def test_the_command_on_the_cluster_of_ray_address(
    tiny_fp8: Path, tmp_path: Path, cluster: Any, gate: Gate, expected: dict[str, bytes]
) -> None:
    with gate.shut():
        command = Command(tiny_fp8, tmp_path / "dst", RAY_ADDRESS=cluster.address)
        raylets = parents(gate.waiting(2))
    code, out, err = command.ended()
    assert (code, err) == (0, "")
    assert out.endswith(f"done: {tmp_path / 'dst'}\n")
    assert contents(tmp_path / "dst") == expected
    assert set(raylets) == {raylet_of(n) for n in cluster.list_all_nodes()}
    code, out, err = Command(tiny_fp8, tmp_path / "dst", RAY_ADDRESS=cluster.address).ended()
    assert (code, err) == (0, "")
    assert out.startswith("already done")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stopped(
    signum: signal.Signals,
    tiny_fp8: Path,
    tmp_path: Path,
    cluster: Any,
    gate: Gate,
    expected: dict[str, bytes],
) -> None:
    with gate.shut():
        command = Command(tiny_fp8, tmp_path / "dst", RAY_ADDRESS=cluster.address)
        gate.waiting(2)
        command.send(signum)
        code, out, err = command.ended()
    assert (code, out) == (75, "")
    assert err.startswith("error: interrupted\nUnfinished work is in ")
    assert err.endswith("Run the same command again to resume.\n")
    assert temporaries(tmp_path / "dst") == []
    assert locally(tiny_fp8, tmp_path / "dst") == expected
