"""Targets, state folders, sources that are not what they should be: nobody's files are touched."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ..crash import marks
from .damages import cut, grown, last_bit, replaced, touched
from .lab import temporaries
from .scenes import COMMANDS, MINE, Scene, Scenes

ANY = pytest.mark.parametrize("command", COMMANDS)
PRECIOUS = "precious"
Make = Callable[[Scene], object]


def yours(scene: Scene) -> Path:
    """A folder of the user's, called as ours are within."""
    folder = scene.parent / "yours"
    for name in ("out", "journal"):
        (folder / name).mkdir(parents=True)
        (folder / name / PRECIOUS).write_text(PRECIOUS)
    return folder


# --- The target


def foreign(scene: Scene) -> None:
    scene.target.mkdir()
    (scene.target / PRECIOUS).write_text(PRECIOUS)


def a_file(scene: Scene) -> None:
    scene.target.write_text(PRECIOUS)


def a_fifo(scene: Scene) -> None:
    os.mkfifo(scene.target)


def link_to_a_file(scene: Scene) -> None:
    scene.target.symlink_to(scene.parent / MINE)


def link_to_itself(scene: Scene) -> None:
    scene.target.symlink_to(scene.target)


def link_to_a_folder(scene: Scene) -> None:
    scene.target.symlink_to(yours(scene))


def unfinished_by_others(scene: Scene) -> None:
    """A manifest, and none of ours."""
    scene.target.mkdir()
    (scene.target / "manifest.json").write_text('{"identity": 1}')


TAKEN = (foreign, a_file, a_fifo, link_to_a_file, link_to_itself, link_to_a_folder,
         unfinished_by_others)  # fmt: skip


@ANY
@pytest.mark.parametrize("make", TAKEN)
def test_a_target_that_is_taken(scenes: Scenes, command: str, make: Make) -> None:
    """Before anything was begun, and when it is about to get its name."""
    scene, begun = scenes.new(command), scenes.killed(command)
    for of in (scene, begun):
        make(of)
        of.refused(["exists and is not"])
    assert not scene.state.exists()


def test_damage_to_a_finished_target_is_seen(scenes: Scenes) -> None:
    """As far as sizes tell: it is not called done."""
    scene = scenes.finished("shard-hf")
    os.truncate(scene.target / scene.data_files(scene.target)[0], 100)
    scene.refused(["does not hold what its manifest says", "100"])


@ANY
def test_a_finished_target(scenes: Scenes, command: str) -> None:
    scene = scenes.finished(command)
    before = marks(scene.parent)
    ended = scene.run()
    assert (ended.code, "already done" in ended.out) == (0, True)
    assert marks(scene.parent) == before


@pytest.mark.parametrize("make", [os.mkdir, lambda path: None])
@ANY
def test_an_empty_folder_is_as_good_as_none(
    scenes: Scenes, command: str, make: Callable[[Path], object]
) -> None:
    scene = scenes.new(command)
    make(scene.target)
    scene.ends_right()


@pytest.mark.parametrize("there", [False, True])
def test_a_link_to_where_the_target_shall_be(scenes: Scenes, there: bool) -> None:
    """Nothing there yet, or an empty folder: the link stays, and what it leads to is the target."""
    scene = scenes.new("to-bf16")
    elsewhere = scene.parent / "elsewhere"
    if there:
        elsewhere.mkdir()
    scene.target.symlink_to(elsewhere)
    scene.ends_right(["elsewhere"])
    assert scene.target.is_symlink()
    assert scene.work.ended_right(elsewhere)


@ANY
def test_a_mount_point(scenes: Scenes, command: str) -> None:
    scene = scenes.new(command)
    scene.target = Path("/proc")
    ended = scene.run()
    assert (ended.code, ended.out) == (1, "")
    assert "'/proc' is a mount point" in ended.err


@ANY
@pytest.mark.parametrize("make", [foreign, a_file, a_fifo, link_to_itself, link_to_a_folder])
def test_a_target_that_comes_to_exist(scenes: Scenes, command: str, make: Make) -> None:
    """While the run is at work: refused at the end. It ends right once that is out of the way."""
    scene = scenes.new(command)
    ended = scene.stopped(("publish", "Staging", "commit"), lambda: make(scene))
    assert ended.code == 1, ended
    assert "has come to exist meanwhile" in ended.err
    assert scene.target.is_symlink() or scene.target.is_fifo() or _has_precious(scene.target)
    aside = scene.parent / "aside"
    scene.target.rename(aside)
    scene.ends_right(set(os.listdir(scene.parent)) & {"aside", "yours"})


def _has_precious(path: Path) -> bool:
    return (path / PRECIOUS if path.is_dir() else path).read_text() == PRECIOUS


# --- Target and source


@ANY
@pytest.mark.parametrize("place", [".", "sub", "sub/sub", "..", "link", "link/sub", "../link"])
def test_target_and_source_overlap(scenes: Scenes, command: str, place: str) -> None:
    """Equal, within, around, by a link in either."""
    scene = scenes.new(command)
    source = scene.copied()
    (scene.parent / "link").symlink_to(source)
    (source / "link").symlink_to(source)
    for given in (source, scene.parent / "link"):
        scene.target = source / place
        scene.refused(["must not contain each other"], source=given)


# --- The state folder


def state_file(scene: Scene) -> None:
    scene.state.write_text(PRECIOUS)


def state_link(scene: Scene) -> None:
    scene.state.symlink_to(yours(scene))


def state_nowhere(scene: Scene) -> None:
    scene.state.symlink_to(scene.parent / "nowhere")


def state_foreign(scene: Scene) -> None:
    yours(scene).rename(scene.state)
    (scene.state / PRECIOUS).write_text(PRECIOUS)


def stranger_in_the_state(scene: Scene) -> None:
    shutil.rmtree(scene.state, ignore_errors=True)
    scene.state.mkdir()
    for name in ("lock", PRECIOUS):
        (scene.state / name).write_text(PRECIOUS)


STATES = (state_file, state_link, state_nowhere, state_foreign, stranger_in_the_state)


@ANY
@pytest.mark.parametrize("make", STATES)
def test_a_state_folder_that_is_not_ours(scenes: Scenes, command: str, make: Make) -> None:
    scene = scenes.new(command)
    make(scene)
    scene.refused(["is where unfinished work goes", "move it"])


@ANY
@pytest.mark.parametrize(
    "names", [(), ("lock",), ("lock", "job.json.1234.tmp"), ("out/x.tmp",), (".nfs01",)]
)
def test_a_state_folder_of_a_run_hardly_begun(
    scenes: Scenes, command: str, names: tuple[str, ...]
) -> None:
    scene = scenes.new(command)
    scene.state.mkdir()
    for name in names:
        (scene.state / name).parent.mkdir(exist_ok=True)
        (scene.state / name).write_text("x")
    scene.ends_right()


@ANY
@pytest.mark.parametrize("name", ["out", "journal"])
@pytest.mark.parametrize("job", [True, False])
def test_a_link_in_the_state_folder(scenes: Scenes, command: str, name: str, job: bool) -> None:
    """Nothing is written or removed through it."""
    scene = scenes.killed(command)
    mine = yours(scene)
    before = marks(mine)
    shutil.rmtree(scene.state / name)
    (scene.state / name).symlink_to(mine / name)
    if not job:
        (scene.state / "job.json").unlink()
    scene.ends_right(["yours"])
    assert marks(mine) == before


@ANY
@pytest.mark.parametrize("name", ["out", "journal"])
def test_a_file_in_the_place_of_a_folder_of_the_state(
    scenes: Scenes, command: str, name: str
) -> None:
    scene = scenes.killed(command)
    shutil.rmtree(scene.state / name)
    (scene.state / name).write_text("x")
    scene.ends_right()


@ANY
def test_a_lock_that_is_a_link(scenes: Scenes, command: str) -> None:
    """It is not followed: what it leads to would be made."""
    scene = scenes.new(command)
    scene.state.mkdir()
    (scene.state / "lock").symlink_to(scene.parent / "nowhere")
    scene.refused([str(scene.state / "lock")], code=75)


# --- A source that changes while it is read


BEGUN, DONE = ("taskrun", "TaskRun", "make"), ("taskrun", "TaskRun", "finish")
CHANGES = [
    *((BEGUN, change) for change in (touched, last_bit, grown, cut, replaced, Path.unlink)),
    *((DONE, change) for change in (touched, last_bit, grown, cut)),
]


@ANY
@pytest.mark.parametrize(("when", "change"), CHANGES)
def test_a_source_that_changes(
    scenes: Scenes, command: str, when: tuple[str, str, str], change: Callable[[Path], None]
) -> None:
    """Before its first byte is read, or after its last: no file of it is kept as finished."""
    scene = scenes.new(command)
    source = scene.copied()
    shards = sorted(source.rglob("*.safetensors"))
    ended = scene.stopped(when, lambda: [change(shard) for shard in shards], source=source)
    assert (ended.code, ended.out) == (1, ""), ended
    assert any(shard.name in ended.err for shard in shards), ended
    assert not scene.target.exists()
    assert not temporaries(scene.parent)
    assert not list(scene.out.rglob("*.safetensors"))
    scene.refused([], source=source)


@ANY
def test_a_companion_that_changes(scenes: Scenes, command: str) -> None:
    scene = scenes.new(command)
    source = scene.copied()

    def change() -> None:
        for path in source.rglob("tokenizer.json"):
            grown(path)

    ended = scene.stopped(BEGUN, change, source=source)
    assert (ended.code, ended.out) == (1, ""), ended
    assert "tokenizer.json' has 15 bytes, expected at most 14" in ended.err
    assert not scene.target.exists()
    scene.refused(["tokenizer.json: '14' then, '15' now"], source=source)


# --- The tests themselves


def test_a_forgetful_tool_is_found_out(scenes: Scenes) -> None:
    scene = scenes.killed("to-bf16")
    with pytest.raises(AssertionError, match="code=0"):
        scene.refused(["then"], "--dtype", "float16", tamper=("breaks:broken", "forgetful"))


def test_a_careless_tool_is_found_out(scenes: Scenes) -> None:
    scene = scenes.new("to-bf16")
    state_foreign(scene)
    with pytest.raises(AssertionError, match="code=0"):
        scene.refused([], tamper=("breaks:broken", "careless"))
    assert not scene.state.exists()


def test_an_unwatchful_tool_is_found_out(scenes: Scenes) -> None:
    scene = scenes.new("to-bf16")
    source = scene.copied()
    shards = list(source.rglob("*.safetensors"))
    ended = scene.stopped(DONE, lambda: [touched(s) for s in shards], source, "unwatchful")
    assert ended.code == 0, ended


def test_a_stopped_run_goes_on(scenes: Scenes) -> None:
    scene = scenes.new("to-bf16")
    assert scene.stopped(BEGUN, lambda: None).code == 0
    assert scene.work.ended_right(scene.target)
    assert scene.run(tamper=("breaks:at", *BEGUN, signal.SIGSTOP)).code == 0  # it is finished
