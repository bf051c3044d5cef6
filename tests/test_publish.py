"""Publishing, step by step: what is refused, what is kept, what is done again, in which order."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp8convert import durable
from fp8convert.convert import to_bf16
from fp8convert.errors import ResumableError, TargetError
from fp8convert.journal import Record
from fp8convert.plan import Plan
from fp8convert.publish import JOB, Staging, opened
from fp8convert.target import MANIFEST

from .crash import contents, kept, marks
from .mini import CUT, SOURCE


@pytest.fixture
def plan(flat: Plan) -> Plan:
    return flat


@pytest.fixture
def staging(fast_path: Path, plan: Plan) -> Iterator[Staging]:
    """A locked and begun staging folder."""
    made = Staging(fast_path / "dst", plan)
    with opened(made):
        made.begin(SOURCE)
        yield made


def finish_task(staging: Staging, number: int, data: bytes | None = None) -> Record:
    """Put a file in place of task ``number`` and journal it."""
    task = staging.plan.tasks[number]
    data = bytes(task.size) if data is None else data
    (staging.out / task.file).write_bytes(data)
    record = Record(task.file, task.size, "0" * 64, {"w": 3}, {"x": [0.5, 1.0, 2.0]})
    staging.record(record)
    return record


def job_of(staging: Staging) -> Any:
    return json.loads((staging.state / JOB).read_bytes())


def again(staging: Staging) -> Staging:
    """Another process's view of the same target, same plan; the first one has ended."""
    staging.fence.let_go()
    return Staging(staging.target, staging.plan)


def changed(plan: Plan, **options: Any) -> Plan:
    return replace(plan, options=replace(plan.options, **options))


# --- Beginning and going on


def test_begin_makes_a_job(staging: Staging) -> None:
    run = staging.fence.way.name
    job = job_of(staging)
    said = {"identity": staging.plan.identity, "source": SOURCE, "run": run}
    assert job == json.loads(json.dumps(said))
    made = ["job.json", "journal", "lock", "out", run]
    assert sorted(os.listdir(staging.state)) == made
    assert not staging.target.exists()


def test_begin_again_keeps_what_is_journaled(staging: Staging) -> None:
    record = finish_task(staging, 1)
    before = kept(staging.state)
    job = job_of(staging)
    other = again(staging)
    run = other.begin(SOURCE)
    assert other.recorded(other.plan.tasks[1]) == record
    assert [other.recorded(other.plan.tasks[n]) for n in (0, 2)] == [None, None]
    assert kept(staging.state) == before
    assert job_of(staging) == job | {"run": run}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "options.dtype: 'bfloat16' then, 'float16' now"),
        ({"max_shard_size": 7}, "options.max_shard_size: '34000' then, '7' now"),
        ({"max_shard_size": None}, "options.max_shard_size: '34000' then, 'None' now"),
        ({"checksum": "none"}, "options.checksum: 'sha256' then, 'none' now"),
        ({"copy_code": True}, "options.copy_code: 'False' then, 'True' now"),
        ({"strict": True}, "options.strict: 'False' then, 'True' now"),
    ],
)
def test_begin_with_other_options(staging: Staging, options: dict[str, Any], words: str) -> None:
    finish_task(staging, 0)
    before = marks(staging.state)
    with pytest.raises(TargetError) as e:
        Staging(staging.target, changed(staging.plan, **options)).begin(SOURCE)
    assert f"  {words}\n" in str(e.value)
    assert str(staging.state) in str(e.value)
    assert marks(staging.state) == before


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("size", 9, ".size: '1' then, '9' now"),
        ("mtime_ns", 9, ".mtime_ns: '2' then, '9' now"),
    ],
)
def test_begin_with_another_source(staging: Staging, field: str, value: int, words: str) -> None:
    ((name, state),) = SOURCE.items()
    before = marks(staging.state)
    with pytest.raises(TargetError) as e:
        again(staging).begin({name: {**state, field: value}})
    assert name + words in str(e.value)
    assert marks(staging.state) == before


def test_a_changed_header_is_named_whichever_shard_it_is_in(staging: Staging) -> None:
    """The message is about that shard, not the beginning of a list of all of them."""
    *first, (name, size, _) = staging.plan.source
    other = replace(staging.plan, source=(*first, (name, size, "f" * 64)))
    with pytest.raises(TargetError) as e:
        Staging(staging.target, other).begin(SOURCE)
    (line,) = [row for row in str(e.value).splitlines() if row.startswith("  ")]
    assert line.startswith(f"  source.{name}.header_sha256: ")
    assert line.endswith(f"then, '{'f' * 64}' now")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": {}, "identity": {}}'])
def test_begin_with_a_damaged_job(staging: Staging, text: str) -> None:
    """An absent or damaged job vouches for nothing; a job of nothing is not this one."""
    finish_task(staging, 0)
    (staging.state / JOB).write_text(text)
    if text == "[]":
        with pytest.raises(TargetError, match="is not this one"):
            again(staging).begin(SOURCE)
        return
    again(staging).begin(SOURCE)
    assert not os.listdir(staging.out)
    assert not os.listdir(staging.journal)
    again(staging).begin(SOURCE)  # and it is sound now


def test_an_unreadable_job_is_not_a_damaged_one(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An I/O error while reading the job must not throw hours of work away."""
    finish_task(staging, 0)
    before = marks(staging.state)
    real = os.open

    def fail(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith(JOB):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Input/output"):
        again(staging).begin(SOURCE)
    monkeypatch.undo()
    assert marks(staging.state) == before


def test_begin_sweeps_what_nothing_vouches_for(staging: Staging) -> None:
    """Temporaries, and files renamed but not journaled: their successors need the room."""
    record = finish_task(staging, 0)
    kept = sorted(os.listdir(staging.out)), sorted(os.listdir(staging.journal))
    task = staging.plan.tasks[1]
    (staging.out / task.file).write_bytes(bytes(task.size))
    for folder in (staging.out, staging.journal):
        staging.temporary(folder, "x").write_bytes(b"x")
    (staging.out / "config.json").write_text("{}")
    (staging.journal / f"{task.file}.json").write_text("")
    again(staging).begin(SOURCE)
    assert (sorted(os.listdir(staging.out)), sorted(os.listdir(staging.journal))) == kept
    assert staging.recorded(staging.plan.tasks[0]) == record


def test_begin_after_the_target_was_moved_away(staging: Staging) -> None:
    """Killed after the last rename, then the target is moved: the next run starts over."""
    finish_task(staging, 0)
    os.rename(staging.out, staging.target)
    os.rename(staging.target, staging.target.with_name("elsewhere"))
    again(staging).begin(SOURCE)
    assert os.listdir(staging.out) == os.listdir(staging.journal) == []


def test_temporaries_are_unique(staging: Staging) -> None:
    names = {staging.temporary(staging.out, "f") for _ in range(100)}
    assert len(names) == 100
    assert {n.parent for n in names} == {staging.out}


# --- The journal


def record_text(staging: Staging, number: int = 0, **fields: Any) -> str:
    task = staging.plan.tasks[number]
    whole = {"file": task.file, "size": task.size, "sha256": "0" * 64, "overflowed": {},
             "errors": {"w": [0.5, 1.0, 2.0]}}  # fmt: skip
    return json.dumps({**whole, **fields})


def test_a_sound_record(staging: Staging) -> None:
    record = finish_task(staging, 0)
    assert staging.recorded(staging.plan.tasks[0]) == record


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: "",
        lambda s: "null",
        lambda s: "[]",
        lambda s: record_text(s)[:-5],
        lambda s: record_text(s) + "x",
        lambda s: "\0" * 200,
        lambda s: record_text(s, 1),
        lambda s: record_text(s, size=1),
        lambda s: record_text(s, size=True),
        lambda s: record_text(s, overflowed=[]),
        lambda s: record_text(s, errors=[]),
        lambda s: record_text(s, errors={"w": [0.5, 1.0]}),
        lambda s: record_text(s, errors={"w": [0.5, 1, 2.0]}),
        lambda s: record_text(s, overflowed=None),
        lambda s: record_text(s, overflowed={"w": "3"}),
        lambda s: record_text(s, extra=1),
        lambda s: json.dumps({"file": s.plan.tasks[0].file}),
    ],
)
def test_a_damaged_record_is_no_record(staging: Staging, damage: Any) -> None:
    finish_task(staging, 0)
    (staging.journal / f"{staging.plan.tasks[0].file}.json").write_text(damage(staging))
    assert staging.recorded(staging.plan.tasks[0]) is None


def test_a_record_without_its_file(staging: Staging) -> None:
    task = staging.plan.tasks[0]
    finish_task(staging, 0)
    (staging.out / task.file).write_bytes(bytes(task.size - 1))
    assert staging.recorded(task) is None
    (staging.out / task.file).unlink()
    assert staging.recorded(task) is None


def test_a_record_that_is_a_fifo_does_not_hang(staging: Staging) -> None:
    task = staging.plan.tasks[0]
    os.mkfifo(staging.journal / f"{task.file}.json")
    assert staging.recorded(task) is None


# --- The lock


def test_second_run_is_refused(staging: Staging) -> None:
    before = marks(staging.state)
    with pytest.raises(TargetError, match="another run is writing"), opened(again(staging)):
        pytest.fail("locked twice")
    assert marks(staging.state) == before


def test_lock_is_released(fast_path: Path, plan: Plan) -> None:
    for _ in range(2):
        with opened(Staging(fast_path / "dst", plan)):
            pass


def test_lock_of_a_run_that_ends_meanwhile(
    fast_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock file was opened, then its run finished and removed it: it locks nothing now."""
    made = Staging(fast_path / "dst", plan)
    real = fcntl.flock

    def late(fd: int, how: int) -> None:
        shutil.rmtree(made.state)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(TargetError, match="has just finished"), opened(made):
        pytest.fail("locked a file that is gone")


def test_filesystem_without_locks(
    fast_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with opened(Staging(fast_path / "dst", plan)) as found:
        assert found is None


def test_opened_makes_parents_durably(
    fast_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of every folder that was made is synced: the target must not vanish with one."""
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    target = fast_path / "a" / "b" / "dst"
    with opened(Staging(target, plan)):
        assert synced == [fast_path, fast_path / "a", fast_path / "a" / "b"]


def test_folders_that_cannot_be_synced(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL means that the filesystem does not know it; anything else is an error."""

    def fail(code: int) -> None:
        def fsync(fd: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    fail(errno.EINVAL)
    durable.sync_folder(fast_path)
    fail(errno.EIO)
    with pytest.raises(OSError, match=str(fast_path)):
        durable.sync_folder(fast_path)


# --- Committing


def finish_all(staging: Staging) -> dict[str, Any]:
    for number in range(len(staging.plan.tasks)):
        finish_task(staging, number)
    return {"files": [{"name": t.file, "size": t.size} for t in staging.plan.tasks]}


@pytest.mark.parametrize("empty_there", [False, True])
def test_commit(staging: Staging, empty_there: bool) -> None:
    manifest = finish_all(staging)
    if empty_there:
        staging.target.mkdir()
    staging.commit(manifest)
    assert sorted(os.listdir(staging.target)) == sorted(
        [MANIFEST, *(t.file for t in staging.plan.tasks)]
    )
    assert os.listdir(staging.target.parent) == [staging.target.name]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_commit_over_something(staging: Staging, kind: str) -> None:
    """It came while we worked: refused, both it and the work stay."""
    manifest = finish_all(staging)
    if kind == "folder":
        staging.target.mkdir()
        (staging.target / "mine").write_text("mine")
    else:
        staging.target.write_text("mine")
    with pytest.raises(TargetError, match="has come to exist meanwhile"):
        staging.commit(manifest)
    mine = staging.target / "mine" if kind == "folder" else staging.target
    assert mine.read_text() == "mine"
    assert all(staging.recorded(t) for t in staging.plan.tasks)


def test_commit_and_the_disk_fails(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk is not a target in the way: it can be mended and the run resumed."""
    manifest = finish_all(staging)

    def fail(src: Any, dst: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        staging.commit(manifest)
    assert not staging.target.exists()


def test_commit_with_a_stranger(staging: Staging) -> None:
    manifest = finish_all(staging)
    (staging.out / "stranger").write_text("x")
    with pytest.raises(TargetError, match="stranger: 'None' then, '1' now"):
        staging.commit(manifest)
    assert not staging.target.exists()


def test_commit_with_a_file_missing(staging: Staging) -> None:
    """Where locks do not work another run may have swept it: it must not be published without."""
    manifest = finish_all(staging)
    (staging.out / staging.plan.tasks[0].file).unlink()
    with pytest.raises(TargetError, match="'None' now"):
        staging.commit(manifest)
    assert not staging.target.exists()


def test_clear_spares_unfinished_work(staging: Staging) -> None:
    """Only a state folder whose ``out`` has become the target is removed."""
    finish_task(staging, 0)
    before = marks(staging.state)
    staging.clear()
    assert marks(staging.state) == before


def test_tidy_leaves_another_run_alone(staging: Staging) -> None:
    os.rename(staging.out, staging.target)
    again(staging).tidy(SOURCE)
    assert (staging.state / JOB).exists()  # it is locked: its owner is about to remove it


# --- What stands in the files


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(mini: Path, fast_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        to_bf16(mini, fast_path / "dst", max_shard_size=CUT, workers=1)
    finally:
        os.umask(before)
    assert (fast_path / "dst").stat().st_mode & 0o7777 == 0o777 & ~mask
    modes = {p.name: p.stat().st_mode & 0o7777 for p in (fast_path / "dst").iterdir()}
    assert len(modes) > 5
    assert set(modes.values()) == {0o666 & ~mask}


def test_no_temporary_is_left_by_a_failed_write(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "sync", fail)
    with pytest.raises(OSError, match=r"'config\.json'"):
        staging.put_bytes("config.json", b"{}")
    assert not os.listdir(staging.out)


def test_a_run_that_lost_its_lock_cannot_spoil_the_bytes(
    mini: Path, fast_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks a second run sweeps the first one's files: it fails, and can be resumed."""

    def unlocked(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unlocked)
    real = Staging.install
    calls = 0

    def install(self: Staging, temporary: Path, final: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # in the middle of the first run, a whole second one
            to_bf16(mini, fast_path / "dst", max_shard_size=CUT, workers=1)
        real(self, temporary, final)

    monkeypatch.setattr(Staging, "install", install)
    with pytest.raises(ResumableError):
        to_bf16(mini, fast_path / "dst", max_shard_size=CUT, workers=1)
    assert calls > 8
    monkeypatch.undo()
    assert to_bf16(mini, fast_path / "dst", max_shard_size=CUT).already_done
    to_bf16(mini, fast_path / "alone", max_shard_size=CUT)
    assert contents(fast_path / "dst") == contents(fast_path / "alone")
