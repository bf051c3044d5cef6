"""Finished files, records and jobs that are not what they were: what is not sound is done again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ..crash import marks
from .damages import (
    Damage,
    cut,
    dangling,
    emptied,
    fifo,
    first_bit,
    folder,
    garbage,
    grown,
    last_bit,
    link_to_the_same,
    truncated,
    zeroed,
)  # fmt: skip
from .lab import tree
from .scenes import COMMANDS, Scene, Scenes, same_files

ANY = pytest.mark.parametrize("command", COMMANDS)


# --- Finished files


FILES: tuple[Damage, ...] = (truncated, grown, first_bit, last_bit, emptied, zeroed, Path.unlink,
                             folder, fifo, link_to_the_same, dangling)  # fmt: skip


def redone(scene: Scene, files: set[str]) -> None:
    """The next run writes these of the tensor files again, and no other; then all is right."""
    before = {
        name: mark for name, mark in marks(scene.out).items() if name.endswith(".safetensors")
    }
    scene.ends_right()
    kept = same_files(before, marks(scene.target))
    assert set(scene.data_files(scene.target)) - kept == files


@ANY
@pytest.mark.parametrize("damage", FILES)
def test_a_damaged_file_is_redone(scenes: Scenes, command: str, damage: Damage) -> None:
    """And only that."""
    scene = scenes.killed(command)
    file = scene.data_files()[-2]
    damage(scene.out / file)
    redone(scene, {file})


@ANY
def test_files_that_changed_places_are_redone(scenes: Scenes, command: str) -> None:
    """Also if they are equally large; of ranks, files of one name in two folders."""
    scene = scenes.killed(command)
    a, *others = scene.data_files()
    b = next((f for f in others if Path(f).name == Path(a).name), others[0])
    for here, there in ((a, "aside"), (b, a), ("aside", b)):
        os.rename(scene.out / here, scene.out / there)
    redone(scene, {a, b})


@ANY
def test_nothing_is_redone_in_vain(scenes: Scenes, command: str) -> None:
    redone(scenes.killed(command), set())


def test_without_sums_sizes_are_believed(scenes: Scenes) -> None:
    begun = ("--max-shard-size", "150KB", "--checksum", "none")
    scene = scenes.killed("to-bf16", begun)
    damaged, short, gone, *_ = scene.data_files()
    last_bit(scene.out / damaged)
    truncated(scene.out / short)
    (scene.out / gone).unlink()
    before = marks(scene.out)
    assert scene.run().code == 0
    assert short not in same_files(before, marks(scene.target))
    assert damaged in same_files(before, marks(scene.target))
    found, expected = tree(scene.target), scene.work.expected
    assert found.keys() == expected.keys()
    assert {n for n in found if found[n] != expected[n]} == {damaged, "manifest.json"}


@ANY
@pytest.mark.parametrize("record", [False, True])
def test_a_folder_with_something_in_it_stays(scenes: Scenes, command: str, record: bool) -> None:
    """In the place of a file or a record: it is named, and nobody's file removed with it."""
    scene = scenes.killed(command)
    file = scene.data_files()[0]
    path = scene.record(file) if record else scene.out / file
    folder(path)
    (path / "mine").write_text("mine")
    ended = scene.run()
    assert (ended.code, ended.out) == (75, ""), ended
    assert path.name in ended.err
    assert (path / "mine").read_text() == "mine"
    assert not scene.target.exists()
    shutil.rmtree(path)
    scene.ends_right()


# --- Records


def a_list(path: Path) -> None:
    path.write_text("[]")


def no_fields(path: Path) -> None:
    path.write_text("{}")


def twice(path: Path) -> None:
    """A key that is there two times."""
    path.write_text(path.read_text().replace("{", '{"size": 1,', 1))


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def huge(path: Path) -> None:
    """More than is ever read, and it takes no room."""
    os.truncate(path, 1 << 40)


def of_another_task(path: Path) -> None:
    shutil.copy(next(p for p in path.parent.iterdir() if p != path), path)


def other_sum(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"sha256": "0" * 64}))


def other_size(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"size": record["size"] + 1}))


def odd_counts(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"overflowed": {"x": "1"}}))


RECORDS: tuple[Damage, ...] = (
    emptied, garbage, cut, a_list, no_fields, twice, deep, huge, of_another_task, other_sum,
    other_size, odd_counts, Path.unlink, folder, fifo, link_to_the_same, dangling,
)  # fmt: skip


@ANY
@pytest.mark.parametrize("damage", RECORDS)
def test_a_file_without_a_sound_record_is_redone(
    scenes: Scenes, command: str, damage: Damage
) -> None:
    scene = scenes.killed(command)
    file = scene.data_files()[-1]
    damage(scene.record(file))
    redone(scene, {file})


# --- The job


@ANY
@pytest.mark.parametrize("damage", [emptied, garbage, cut, Path.unlink, dangling])
def test_without_a_job_all_is_redone(scenes: Scenes, command: str, damage: Damage) -> None:
    """Nothing says what the files are of."""
    scene = scenes.killed(command)
    damage(scene.state / "job.json")
    redone(scene, set(scene.data_files()))
