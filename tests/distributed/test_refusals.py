"""What is refused: storage that is not shared, tasks that are missing, another plan than here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fp8convert import distributed
from fp8convert.convert import Job, execute, prepare
from fp8convert.distributed import (
    Planned,
    complete,
    finalize,
    numbers,
    read_plan,
    replanned,
    run_tasks,
    work,
    write_plan,
)
from fp8convert.errors import Fp8ConvertError, ResumableError, TargetError, UsageError
from fp8convert.journal import Record
from fp8convert.options import ToBf16
from fp8convert.publish import Staging
from fp8convert.settings import Settings
from fp8convert.stage import Stage

from ..crash import contents, marks, state_of

SMALL = 500  # max_shard_size that makes five files of mini
ONE = Settings(workers=1)
Both = Callable[[Path], Any]
BOTH: list[Both] = [lambda path: run_tasks(path, [0], ONE), finalize]


@pytest.fixture
def source(mini: Path, fast_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(mini, fast_path / "src"))


def job(source: Path, **options: Any) -> Job:
    options = {"max_shard_size": SMALL, **options}
    return prepare(source, source.with_name("dst"), ToBf16(**options))


@pytest.fixture
def path(source: Path) -> Path:
    """plan.json of a run that is begun."""
    write_plan(job(source), source.with_name("plan.json"))
    return source.with_name("plan.json")


def refused(call: Callable[[], Any], *words: str, code: int = 1) -> str:
    """The message, which holds all ``words``; nothing was changed."""
    with pytest.raises(Fp8ConvertError) as e:
        call()
    assert e.value.exit_code == code, e.value
    for word in words:
        assert word in str(e.value)
    return str(e.value)


def untouched(folder: Path, call: Callable[[], Any], *words: str, code: int = 1) -> str:
    """As :func:`refused`, and nothing in ``folder`` was made or changed."""
    before = marks(folder)
    message = refused(call, *words, code=code)
    assert marks(folder) == before
    return message


# --- Not on shared storage


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("seen", ["nothing", "its own folder", "another run", "no parent"])
def test_storage_that_is_not_shared(call: Both, seen: str, path: Path) -> None:
    """A machine that does not see the run ends at once; what it does see is left alone."""
    dst = path.with_name("dst")
    aside = state_of(dst).rename(path.with_name("elsewhere"))
    if seen == "its own folder":
        dst.mkdir()  # as a mount point is, of what is not mounted
    elif seen == "another run":
        write_plan(job(path.with_name("src")), path.with_name("other.json"))
    elif seen == "no parent":
        inner = path.with_name("gone")
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"target": str(inner / "dst")}))
        dst = inner / "dst"
    words = ["not to be seen from this machine", "storage that all machines share"]
    if seen == "another run":
        words = ["is not of the run that was planned", "plan again"]
    message = untouched(path.parent, lambda: call(path), *words)
    assert str(dst) in message or str(state_of(dst)) in message
    if seen == "nothing":  # it is seen again, and goes on
        aside.rename(state_of(dst))
        run_tasks(path, range(5), ONE)
        assert not finalize(path).already_done


# --- Missing tasks


def test_missing_tasks_are_listed(path: Path) -> None:
    """Numbers and files; the run goes on as if nobody had asked."""
    run_tasks(path, [1, 3], ONE)
    words = ["3 of 5 tasks are not done", "run them again (run-task)"]
    words += [f"  {n}  'model-0000{n + 1}-of-000005.safetensors'\n" for n in (0, 2, 4)]
    message = untouched(state_of(path.with_name("dst")), lambda: finalize(path), *words)
    assert len(message.splitlines()) == 5
    run_tasks(path, [0, 2, 4], ONE)
    assert not finalize(path).already_done


def test_many_missing_tasks(tiny_fp8: Path, fast_path: Path) -> None:
    """The first twenty, and how many more."""
    options = ToBf16(max_shard_size=1_000_000)
    file = write_plan(prepare(tiny_fp8, fast_path / "dst", options), fast_path / "plan.json")
    count = len(file.tasks)
    message = refused(lambda: finalize(fast_path / "plan.json"), f"{count} of {count} tasks")
    lines = message.splitlines()
    assert [line.split()[0] for line in lines[1:21]] == [str(n) for n in range(20)]
    assert lines[21] == f"  and {count - 20} more"


@pytest.mark.parametrize("harm", ["file", "size", "record"])
def test_what_is_recorded_and_not_there_is_missing(harm: str, path: Path) -> None:
    """A file by its size, a record by what it says."""
    run_tasks(path, range(5), ONE)
    state = state_of(path.with_name("dst"))
    file = "model-00004-of-000005.safetensors"
    if harm == "file":
        (state / "out" / file).unlink()
    elif harm == "size":
        with open(state / "out" / file, "ab") as f:
            f.write(b"\0")
    else:
        (state / "journal" / f"{file}.json").write_text("{")
    refused(lambda: finalize(path), "1 of 5 tasks are not done", f"  3  '{file}'")
    run_tasks(path, [3], ONE)
    assert not finalize(path).already_done


def test_a_tool_that_does_not_look_loses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with either check alone, nothing is published; without both, less than all."""
    run_tasks(path, range(4), ONE)
    monkeypatch.setattr(distributed, "_missing", lambda job, stage: None)
    refused(lambda: finalize(path), "have gone: plan again")

    def records(job: Job, stage: Stage) -> list[Record]:
        return [r for r in map(stage.recorded, job.plan.tasks) if r]

    monkeypatch.setattr(distributed, "_records", records)
    assert len([f for f in finalize(path).files if f["name"].endswith(".safetensors")]) == 4


# --- Another plan, another run


@pytest.mark.parametrize("call", BOTH)
def test_a_plan_that_was_made_again(call: Both, path: Path) -> None:
    """The earlier file is of a run that is no more."""
    old = path.rename(path.with_name("old.json"))
    run_tasks(old, [1], ONE)
    write_plan(job(path.with_name("src")), path)
    assert json.loads(old.read_text())["plan"] == json.loads(path.read_text())["plan"]
    words = ["is not of the run that was planned: expected 'run.1.", "found 'run.2.", "plan again"]
    untouched(path.parent, lambda: call(old), *words)
    assert work(replanned(path), range(5), ONE).there == 1
    finalize(path)
    assert run_tasks(old, [0], ONE) == []  # it is finished, whoever asks


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("change", ["header", "touched", "config", "companion", "gone"])
def test_a_source_that_has_changed(call: Both, change: str, path: Path) -> None:
    """Between the plan and a worker; the message names what."""
    src = path.with_name("src")
    shard = src / "model-00001-of-00002.safetensors"
    words = ["is not the plan of what is in", "Plan again"]
    if change == "header":
        data = shard.read_bytes()
        shard.write_bytes(data.replace(b'"format":"pt"', b'"format":"np"', 1))
        words += ["source.model-00001-of-00002.safetensors.header_sha256"]
    elif change == "touched":
        os.utime(shard, ns=(0, 0))
        words = ["is not this one", f"{shard.name}.mtime_ns: ", " then, '0' now"]
    elif change == "config":
        said = json.loads((src / "config.json").read_text())
        (src / "config.json").write_text(json.dumps(said | {"vocab_size": 5}))
        words += ["texts.config.json"]
    elif change == "companion":
        (src / "LICENSE").write_text("longer\n")
        words += ["copies.LICENSE: '4' then, '7' now"]
    else:
        src.rename(path.with_name("moved"))
        words = [f"'{src}' does not exist"]
    untouched(state_of(path.with_name("dst")), lambda: call(path), *words)


def test_a_source_that_changes_while_a_worker_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a local run: nothing of it is recorded."""
    planned = replanned(path)
    shard = path.with_name("src") / "model-00002-of-00002.safetensors"
    os.utime(shard, ns=(0, 0))
    refused(lambda: work(planned, [0, 1, 2, 3, 4], ONE), "changed since it was planned")
    assert not list(state_of(path.with_name("dst")).rglob("*.tmp"))


def test_other_options_on_one_target(path: Path) -> None:
    """Planned, begun and run elsewhere: the job there refuses all but its own plan."""
    other = job(path.with_name("src"), dtype="float16")
    words = ["is not this one", "options.dtype: 'bfloat16' then, 'float16' now"]
    untouched(path.parent, lambda: write_plan(other, path.with_name("other.json")), *words)
    untouched(state_of(path.with_name("dst")), lambda: execute(other, ONE), *words)
    run_tasks(path, range(5), ONE)
    finalize(path)
    untouched(path.parent, lambda: write_plan(other, path), "was made by another plan")


def test_a_plan_of_a_finished_target(path: Path, source: Path) -> None:
    """It is written, of no run, and says that all is done; not so when the target has gone."""
    run_tasks(path, range(5), ONE)
    before = contents(finalize(path).path)  # type: ignore[arg-type]
    assert write_plan(job(source), path).run == ""
    assert work(replanned(path), [0], ONE).manifest is not None
    assert finalize(path).already_done
    assert contents(path.with_name("dst")) == before
    shutil.rmtree(path.with_name("dst"))
    for call in BOTH:
        refused(lambda call=call: call(path), "was finished when it was planned", "plan again")
    assert write_plan(job(source), path).run.startswith("run.1.")
    assert len(run_tasks(path, range(5), ONE)) == 5


@pytest.mark.parametrize("call", BOTH)
def test_a_target_that_is_finished_meanwhile(
    call: Both, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks of a worker that comes late: it is not told that it cannot see the run."""
    run_tasks(path, range(5), ONE)
    looks, found = [], Staging.finished

    def finished(self: Staging, source: dict[str, Any]) -> dict[str, Any] | None:
        looks.append(found(self, source))
        if len(looks) == 1:
            monkeypatch.setattr(Staging, "finished", found)
            finalize(path)
        return looks[0]

    monkeypatch.setattr(Staging, "finished", finished)
    message = refused(lambda: call(path), "has just finished", "run again")
    assert looks == [None]
    assert "shared" not in message
    late = call(path)
    assert late == [] or late.already_done


@pytest.mark.parametrize("call", BOTH)
def test_a_target_that_is_finished_before_the_look(
    call: Both, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is gone when the target is looked for: it is done."""
    run_tasks(path, range(5), ONE)
    left = Staging.left

    def later(self: Staging) -> str | None:
        seen = left(self)
        monkeypatch.setattr(Staging, "left", left)
        finalize(path)
        return seen

    monkeypatch.setattr(Staging, "left", later)
    late = call(path)
    assert late == [] or late.already_done


def test_a_local_run_goes_on_with_what_is_there(path: Path, written: list[str]) -> None:
    """It is exclusive from then on."""
    run_tasks(path, [0, 4], ONE)
    execute(job(path.with_name("src")), ONE)
    assert sorted(written) == [f"model-0000{n}-of-000005.safetensors" for n in range(1, 6)]
    assert finalize(path).already_done


# --- What cannot be begun


def test_places_where_no_plan_may_lie(path: Path, source: Path) -> None:
    """Where only a checkpoint or a run's state is, or nothing can be."""
    state = state_of(path.with_name("dst"))
    for place in (source / "plan.json", path.with_name("dst") / "plan.json", state / "plan.json"):
        untouched(path.parent, lambda p=place: write_plan(job(source), p), "is not to lie in",
                  code=2)  # fmt: skip
    new = prepare(source, path.with_name("new"), ToBf16())  # a run that is not begun
    (source / "plan.json").symlink_to(path)  # what would be replaced is the link
    for place in (state_of(path.with_name("new")) / "plan.json", source / "plan.json"):
        untouched(path.parent, lambda p=place: write_plan(new, p), "is not to lie in", code=2)
    (source / "plan.json").unlink()
    refused(lambda: write_plan(job(source), path.with_name("no") / "plan.json"), "no/", code=75)
    assert not list(path.parent.glob("*.tmp"))
    assert read_plan(path).run.startswith("run.1.")  # as it was


def test_not_enough_disk(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by who plans, before anything is made."""
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1))
    with pytest.raises(ResumableError, match="not enough disk"):
        write_plan(job(source), source.with_name("plan.json"))
    assert os.listdir(source.parent) == ["src"]


def test_a_plan_that_is_written_fails_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before stays, and nothing beside it."""
    before = path.read_bytes()

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(ResumableError):
            write_plan(job(path.with_name("src")), path)
    assert path.read_bytes() == before
    assert not [p for p in path.parent.iterdir() if p.name.endswith(".tmp")]


def test_a_target_that_is_not_text(source: Path) -> None:
    """No other machine could be told: said before plan.json is written."""
    odd = os.fsdecode(os.fsencode(source.parent) + b"/\xff")
    target = prepare(source, odd, ToBf16())
    with pytest.raises((Fp8ConvertError, UsageError), match="surrogate"):
        write_plan(target, source.with_name("plan.json"))
    assert not source.with_name("plan.json").exists()


def test_memory_that_is_too_little(path: Path) -> None:
    with pytest.raises(UsageError, match="memory"):
        run_tasks(path, [0], Settings(workers=1, memory=1 << 20))


def test_what_a_control_needs(path: Path) -> None:
    """The state is where these tests look for it, or ``untouched`` would say nothing."""
    planned: Planned = replanned(path)
    state = state_of(path.with_name("dst"))
    before = marks(state)
    work(planned, numbers(5, 0, 5), ONE)
    assert marks(state) != before
    with pytest.raises(TargetError):
        complete(planned)
