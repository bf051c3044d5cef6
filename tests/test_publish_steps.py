"""Publishing, call by call: everything is durable before anything refers to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fp8convert.convert import to_bf16
from fp8convert.plan import Plan
from fp8convert.publish import JOB
from fp8convert.target import MANIFEST

from .crash import CHANGES, nothing, real, trace
from .mini import CUT


@pytest.fixture
def plan(flat: Plan) -> Plan:
    return flat


def path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


@pytest.fixture
def steps(mini: Path, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Every call of a whole run that changes something, with paths for descriptors."""
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no /proc to tell a descriptor's path")
    found: list[tuple[str, ...]] = []

    def before(name: str, args: tuple[Any, ...]) -> None:
        where = [path_of(args[0])] if isinstance(args[0], int) else [real(args[0])]
        if name in ("replace", "rename"):
            where.append(real(args[1]))
        found.append((name, *where))

    with monkeypatch.context() as patch:
        trace(patch.setattr, CHANGES, before, nothing)
        to_bf16(mini, fast_path / "dst", max_shard_size=CUT, workers=1)
    return found


def final_names(steps: list[tuple[str, ...]]) -> list[str]:
    return [Path(s[2]).name for s in steps if s[0] == "replace"]


def test_each_file_is_synced_before_its_rename(steps: list[tuple[str, ...]]) -> None:
    renames = [(at, s[1]) for at, s in enumerate(steps) if s[0] == "replace"]
    assert len(renames) == 1 + 2 * 3 + 2 + 3  # job; tasks and journal; companions; texts, manifest
    assert len({temporary for _, temporary in renames}) == len(renames)
    for at, temporary in renames:
        own = [s[0] for s in steps[:at] if s[1] == temporary]
        assert own[0] == "open"  # exclusively: see the test of temporary names
        assert own[-1] == "fsync"
        assert own.count("fsync") == 1
        assert not [s for s in steps[at + 1 :] if s[1] == temporary]


def test_tensors_are_preallocated(steps: list[tuple[str, ...]], plan: Plan) -> None:
    for task in plan.tasks:
        own = [s[0] for s in steps if Path(s[1]).name.startswith(f"{task.file}.") and "out" in s[1]]
        assert own[:2] == ["open", "posix_fallocate"]
        assert own[-3:] == ["ftruncate", "fsync", "replace"]
        assert "pwritev" in own


def test_each_folder_is_synced_after_its_rename(steps: list[tuple[str, ...]]) -> None:
    for at, step in enumerate(steps):
        if step[0] in ("replace", "rename"):
            assert steps[at + 1] == ("fsync", str(Path(step[2]).parent))


def test_journal_after_the_file_and_texts_last(steps: list[tuple[str, ...]], plan: Plan) -> None:
    names = final_names(steps)
    assert names[0] == JOB
    files = [t.file for t in plan.tasks]
    assert names[1 : 1 + 2 * len(files)] == [n for f in files for n in (f, f"{f}.json")]
    rest = names[1 + 2 * len(files) :]
    assert rest == [
        "LICENSE", "tokenizer.json", "config.json", "model.safetensors.index.json", MANIFEST,
    ]  # fmt: skip


def test_the_target_appears_last(steps: list[tuple[str, ...]], fast_path: Path) -> None:
    """One rename gives it its name; only the clean-up of the state folder follows."""
    state, target = str(fast_path / ".dst.fp8convert"), str(fast_path / "dst")
    (at,) = [at for at, s in enumerate(steps) if s[0] == "rename"]
    assert steps[at] == ("rename", f"{state}/out", target)
    assert steps[at - 1] == ("fsync", f"{state}/out")
    assert steps[at + 1] == ("fsync", str(fast_path))
    assert {s[0] for s in steps[at + 2 : -1]} == {"unlink", "rmdir"}
    assert steps[-1] == ("fsync", str(fast_path))
    touched = [p for s in steps[:at] for p in s[1:] if Path(p).is_relative_to(target)]
    assert not touched
