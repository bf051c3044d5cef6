"""A file of the target: under a name of its own until it is whole, then under its own; or gone."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fp8convert import fileio, staged
from fp8convert.errors import ResumableError
from fp8convert.fileio import aligned_buffer
from fp8convert.journal import Record
from fp8convert.plan import Plan
from fp8convert.publish import Staging, opened
from fp8convert.staged import StagedFile

from .crash import CHANGES, marks, nothing, real, trace
from .mini import SOURCE
from .nested import nested
from .test_publish import changed


@pytest.fixture(params=["flat", "nested"])
def staging(request: pytest.FixtureRequest, fast_path: Path, flat: Plan) -> Iterator[Staging]:
    """A locked and begun staging folder, of files beside each other or in folders."""
    made = Staging(fast_path / "dst", flat if request.param == "flat" else nested(flat))
    with opened(made):
        made.begin(SOURCE)
        yield made


def files(staging: Staging) -> dict[str, bytes]:
    """All that is in what becomes the target."""
    found = sorted(p for p in staging.out.rglob("*") if p.is_file())
    return {p.relative_to(staging.out).as_posix(): p.read_bytes() for p in found}


def fill(file: StagedFile, data: bytes) -> None:
    """Write and hash it all."""
    view = memoryview(aligned_buffer(len(data)))[: len(data)]
    view[:] = data
    file.write(view, 0)
    file.hash(view, 0)


def data_of(staging: Staging, number: int) -> bytes:
    return (b"\0\1\2\3\4\5\6" * staging.plan.tasks[number].size)[: staging.plan.tasks[number].size]


# --- From its making to its end


def test_it_has_its_name_when_it_is_whole(staging: Staging) -> None:
    task, data = staging.plan.tasks[0], data_of(staging, 0)
    file = staging.create(task, "auto")
    (name,) = files(staging)
    assert name.startswith(f"{task.file}.")
    assert name.endswith(".tmp")
    fill(file, data)
    assert list(files(staging)) == [name]
    assert file.finish() == hashlib.sha256(data).hexdigest()
    assert files(staging) == {name: data}
    file.install()
    assert files(staging) == {task.file: data}


def test_without_a_checksum(fast_path: Path, flat: Plan) -> None:
    made = Staging(fast_path / "dst", changed(flat, checksum="none"))
    with opened(made):
        made.begin(SOURCE)
        file = made.create(flat.tasks[0], "auto")
        fill(file, data_of(made, 0))
        assert file.finish() is None
        file.install()


def test_it_is_durable_before_it_has_its_name_and_the_name_after(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = staging.plan.tasks[0]
    final = real(staging.out / task.file)
    steps: list[tuple[str, str]] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        at = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else args[-1]
        steps.append((name, real(at)))

    file = staging.create(task, "buffered")
    fill(file, data_of(staging, 0))
    trace(monkeypatch.setattr, CHANGES, before, nothing)
    file.finish()
    file.install()
    temporary = real(file.path)
    wanted = [("ftruncate", temporary), ("fsync", temporary), ("replace", final),
              ("fsync", str(Path(final).parent))]  # fmt: skip
    assert steps == wanted


def test_it_takes_the_place_of_what_has_its_name(staging: Staging) -> None:
    """Of a task done twice the later file stays; nothing else is touched."""
    task, data = staging.plan.tasks[0], data_of(staging, 0)
    one, two = staging.create(task, "auto"), staging.create(task, "auto")
    assert one.path != two.path
    for file in (one, two):
        fill(file, data)
        file.finish()
    one.install()
    inode = (staging.out / task.file).stat().st_ino
    two.install()
    assert files(staging) == {task.file: data}
    assert (staging.out / task.file).stat().st_ino != inode


@pytest.mark.parametrize("when", ["made", "written", "finished"])
def test_nothing_is_left_of_one_that_is_abandoned(staging: Staging, when: str) -> None:
    """Also if that is said twice; what has the final name already stays."""
    task, data = staging.plan.tasks[0], data_of(staging, 0)
    (staging.out / task.file).write_bytes(b"before")
    file = staging.create(task, "auto")
    if when != "made":
        fill(file, data)
    if when == "finished":
        file.finish()
    for _ in range(2):
        file.abandon()
        assert file.fd == -1
        assert files(staging) == {task.file: b"before"}


def test_one_that_is_installed_is_not_abandoned_any_more(staging: Staging) -> None:
    task, data = staging.plan.tasks[0], data_of(staging, 0)
    file = staging.create(task, "auto")
    fill(file, data)
    file.finish()
    file.install()
    file.abandon()
    assert files(staging) == {task.file: data}


def test_abandoning_never_fails(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done after something else went wrong, which is what is told."""
    file = staging.create(staging.plan.tasks[0], "auto")
    shutil.rmtree(staging.state)
    file.abandon()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(StagedFile, "close", fail)
        patch.setattr(os, "unlink", fail)
        file.abandon()


def test_one_that_cannot_be_made_leaves_nothing(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fileio, "_preallocate", fail)
    with pytest.raises(OSError, match="No space left"):
        staging.create(staging.plan.tasks[0], "auto")
    assert files(staging) == {}


def test_an_overtaken_run_installs_nothing(staging: Staging) -> None:
    file = staging.create(staging.plan.tasks[0], "auto")
    fill(file, data_of(staging, 0))
    file.finish()
    staging.fence.way.unlink()
    with pytest.raises(FileNotFoundError):
        file.install()
    file.abandon()
    assert staging.plan.tasks[0].file not in files(Staging(staging.target, staging.plan))


def test_names_of_spools_are_the_runs_own(staging: Staging) -> None:
    task = staging.plan.tasks[0]
    names = {staging.spool(task) for _ in range(100)}
    assert len(names) == 100
    assert {n.parent for n in names} == {(staging.out / task.file).parent}
    assert all(n.name.endswith(".tmp") for n in names)


# --- Whether it is still what was written


def recorded(staging: Staging, number: int = 0) -> Record:
    """A file that is written and journaled."""
    task = staging.plan.tasks[number]
    file = staging.create(task, "auto")
    fill(file, data_of(staging, number))
    record = Record(task.file, task.size, file.finish(), {}, {})
    file.install()
    staging.record(record)
    return record


def never() -> bool:
    return False


def test_a_sound_file_stays(staging: Staging) -> None:
    record, other = recorded(staging), recorded(staging, 1)
    before = marks(staging.state)
    assert staging.is_sound(record, never)
    assert staging.is_sound(other, never)
    assert marks(staging.state) == before


@pytest.mark.parametrize("at", [0, -1])
def test_a_spoiled_file_goes(staging: Staging, at: int) -> None:
    """It alone; its record vouches for nothing then."""
    record, other = recorded(staging), recorded(staging, 1)
    data = bytearray(data_of(staging, 0))
    data[at] ^= 1
    (staging.out / record.file).write_bytes(data)
    assert not staging.is_sound(record, never)
    assert list(files(staging)) == [other.file]
    assert staging.recorded(staging.plan.tasks[0]) is None


def test_a_file_that_another_one_has_removed(staging: Staging) -> None:
    """Two that have joined one run find the same file spoiled."""
    record = recorded(staging)
    (staging.out / record.file).unlink()
    assert not staging.is_sound(record, never)


def test_a_file_that_another_one_removes_just_then(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = recorded(staging)

    def removed(path: Path, stopped: Any) -> str:
        path.unlink()
        return "0" * 64

    monkeypatch.setattr(staged, "hash_file", removed)
    assert not staging.is_sound(record, never)


def test_looking_can_be_stopped(staging: Staging) -> None:
    record = recorded(staging)
    with pytest.raises(ResumableError, match="stopped"):
        staging.is_sound(record, lambda: True)
    assert list(files(staging)) == [record.file]


def test_without_sums_a_file_is_believed(
    fast_path: Path, flat: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Staging(fast_path / "dst", changed(flat, checksum="none"))
    with opened(made):
        made.begin(SOURCE)
        record = recorded(made)
        monkeypatch.setattr(staged, "hash_file", lambda *args: pytest.fail("read"))
        assert record.sha256 is None
        assert made.is_sound(record, never)


# --- Room


def test_room_is_of_the_folder_that_there_is(
    fast_path: Path, flat: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    usage = shutil.disk_usage(fast_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: asked.append(p) or usage)
    assert Staging(fast_path / "a" / "b" / "dst", flat).free() == usage.free
    (fast_path / "a").mkdir()
    assert Staging(fast_path / "a" / "b" / "dst", flat).free() == usage.free
    assert asked == [fast_path, fast_path / "a"]
