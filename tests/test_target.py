"""The place where a target goes: what is finished, what is somebody's, what differs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp8convert.errors import TargetError
from fp8convert.plan import Plan
from fp8convert.publish import JOB, Staging
from fp8convert.seal import sealed
from fp8convert.target import MANIFEST, MAX_DIFFERENCES, differences, resolve_target

from .crash import contents, marks
from .mini import SOURCE


@pytest.fixture
def plan(flat: Plan) -> Plan:
    return flat


def changed(plan: Plan, **options: Any) -> Plan:
    return replace(plan, options=replace(plan.options, **options))


def source_of(finished: Path) -> dict[str, Any]:
    """Sizes and times of the source, as the manifest has them."""
    found: dict[str, Any] = json.loads((finished / MANIFEST).read_bytes())["source"]
    return found


def test_finished_from_another_source_of_the_same_layout(finished: Path, plan: Plan) -> None:
    """Equal headers, other weights: two fine-tunes of one model. It is not this one's output."""
    before, source = marks(finished), source_of(finished)
    name = next(iter(source))
    source[name]["mtime_ns"] += 1
    with pytest.raises(TargetError, match=rf"made by another plan\n  {name}.mtime_ns: "):
        Staging(finished, plan).finished(source)
    assert marks(finished) == before


def test_finished_target_may_hold_more(finished: Path, plan: Plan) -> None:
    (finished / "notes.txt").write_text("mine")
    assert Staging(finished, plan).finished(source_of(finished)) is not None


def test_finished_with_a_manifest_that_lists_nothing(finished: Path, plan: Plan) -> None:
    source = source_of(finished)
    manifest = json.loads((finished / MANIFEST).read_bytes())
    (finished / MANIFEST).write_bytes(sealed({**manifest, "files": 5}))
    with pytest.raises(TargetError, match="without its list of files"):
        Staging(finished, plan).finished(source)


def test_finished(finished: Path, plan: Plan) -> None:
    found = Staging(finished, plan).finished(source_of(finished))
    assert found == json.loads((finished / MANIFEST).read_bytes())
    assert found is not None
    assert found["plan"] == plan.id


def test_not_finished(fast_path: Path, plan: Plan) -> None:
    assert Staging(fast_path / "dst", plan).finished(SOURCE) is None
    (fast_path / "dst").mkdir()
    assert Staging(fast_path / "dst", plan).finished(SOURCE) is None


def test_finished_by_another_plan(finished: Path, plan: Plan) -> None:
    before = marks(finished)
    with pytest.raises(TargetError) as e:
        Staging(finished, changed(plan, dtype="float32")).finished(source_of(finished))
    assert "exists and is not empty: it was made by another plan" in str(e.value)
    assert "options.dtype: 'bfloat16' then, 'float32' now" in str(e.value)
    assert marks(finished) == before


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"plan": 1}', '{"identity": 3}'])
def test_foreign_folder(fast_path: Path, plan: Plan, text: str | None) -> None:
    (fast_path / "dst").mkdir()
    (fast_path / "dst" / "mine").write_text("mine")
    if text is not None:
        (fast_path / "dst" / MANIFEST).write_text(text)
    end = "$" if text != "" else ": manifest.json: not valid JSON at byte 0"
    with pytest.raises(TargetError, match=f"exists and is not empty{end}"):
        Staging(fast_path / "dst", plan).finished(SOURCE)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_foreign_folder_with_an_odd_manifest(fast_path: Path, plan: Plan, make: Any) -> None:
    (fast_path / "dst").mkdir()
    make(fast_path / "dst" / MANIFEST)
    with pytest.raises(TargetError, match="exists and is not empty"):
        Staging(fast_path / "dst", plan).finished(SOURCE)


def test_finished_and_then_damaged(finished: Path, plan: Plan) -> None:
    name = plan.tasks[1].file
    os.truncate(finished / name, 5)
    with pytest.raises(TargetError, match=rf"{name}: '[0-9]+' then, '5' now"):
        Staging(finished, plan).finished(source_of(finished))
    (finished / name).unlink()
    hint = "\nIf --drop-uploaded removed them, give --push-to-hub again"
    with pytest.raises(TargetError, match=rf"{name}: '[0-9]+' then, 'None' now{hint}"):
        Staging(finished, plan).finished(source_of(finished))


def test_a_companion_that_is_gone_was_not_uploaded(finished: Path, plan: Plan) -> None:
    (finished / "config.json").unlink()
    with pytest.raises(TargetError, match=r"config\.json: '[0-9]+' then, 'None' now$"):
        Staging(finished, plan).finished(source_of(finished))


def test_target_is_a_file_or_a_loop(fast_path: Path, plan: Plan) -> None:
    (fast_path / "file").write_text("mine")
    (fast_path / "loop").symlink_to("loop")
    for name in ("file", "loop"):
        with pytest.raises(TargetError, match="is not a folder"):
            Staging(resolve_target(fast_path / name, fast_path / "src"), plan).finished(SOURCE)


def test_resolve_target(fast_path: Path) -> None:
    source = fast_path / "a" / "src"
    (source / "sub").mkdir(parents=True)
    (fast_path / "link").symlink_to(source / "sub")
    for bad in (source, source / "dst", source / "sub", fast_path / "a", fast_path, "/",
                fast_path / "link", fast_path / "a" / "x" / ".." / "src"):  # fmt: skip
        with pytest.raises(TargetError, match="must not contain each other"):
            resolve_target(bad, source)
    for good in (fast_path / "a" / "src2", fast_path / "a" / "sr", fast_path / "b" / "c"):
        assert resolve_target(good, source) == good


def test_target_is_a_mount_point(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the hour of work that the last rename would end in vain."""
    target = fast_path / "mnt"
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    with pytest.raises(TargetError, match="is a mount point"):
        resolve_target(target, fast_path / "src")
    assert resolve_target(target / "dst", fast_path / "src") == target / "dst"


def test_tidy_after_a_kill(finished: Path, plan: Plan) -> None:
    """Killed between the last rename and the clean-up: the next look removes what is left."""
    left = Staging(finished, plan)
    left.journal.mkdir(parents=True)
    (left.state / JOB).write_text("{}")
    left.tidy(SOURCE)
    assert os.listdir(finished.parent) == ["dst"]


def test_nothing_else_is_left(mini: Path, finished: Path, plan: Plan) -> None:
    assert os.listdir(finished.parent) == ["dst"]
    names = {t.file for t in plan.tasks} | {c.name for c in plan.copies} | set(plan.texts)
    assert set(contents(finished)) == names | {MANIFEST}


def test_differences() -> None:
    assert differences({"a": 1, "b": {"c": [1]}}, {"b": {"c": [1]}, "a": 1}) == []
    assert differences({"a": 1, "b": {"c": 1}, "gone": 2}, {"b": {"c": 2}, "a": 1, "new": 3}) == [
        "  b.c: '1' then, '2' now",
        "  gone: '2' then, 'None' now",
        "  new: 'None' then, '3' now",
    ]
    assert differences({"a": 1}, {"a": {"b": 1}}) == ["  a: '1' then, '{'b': 1}' now"]
    assert differences({"a": True}, {"a": 1}) == ["  a: 'True' then, '1' now"]


def test_differences_are_cut_and_escaped() -> None:
    many = {f"k{n}": n for n in range(100)}
    lines = differences(many, {})
    assert len(lines) == MAX_DIFFERENCES
    (line,) = differences({"k": "\x1b[2J" + "x" * 10_000}, {"k": ""})
    assert "\x1b" not in line
    assert len(line) < 300
