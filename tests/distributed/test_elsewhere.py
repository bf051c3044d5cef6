"""Sources and targets that are no folders: the hub, object stores; plan.json says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fp8convert import distributed
from fp8convert.convert import execute, prepare, to_bf16
from fp8convert.distributed import finalize, numbers, read_plan, run_tasks, write_plan
from fp8convert.errors import TargetError
from fp8convert.options import ToBf16
from fp8convert.origin import Scratch
from fp8convert.settings import Settings

from ..crash import contents
from ..hub import Hub
from ..hub.conftest import hub

__all__ = ["hub"]

OPTIONS = ToBf16(max_shard_size=500)
ONE = Settings(workers=1)
SECRET = "hf_of_the_reader"


@pytest.fixture
def expected(mini: Path, tmp_path: Path) -> dict[str, bytes]:
    """What a local run makes of the same files, weights only."""
    to_bf16(mini, tmp_path / "expected", max_shard_size=500, workers=1)
    return weights(contents(tmp_path / "expected"))


def weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """All that does not tell where the source was."""
    return {name: data for name, data in files.items() if name != "manifest.json"}


def test_a_repository_is_pinned(
    hub: Hub, mini: Path, tmp_path: Path, expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Workers read the commit that was planned, wherever the branch has gone since; the token that
    they need is in no file."""
    commit = hub.add("org/mini", mini)
    hub.private("org/mini", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    path = tmp_path / "plan.json"
    file = write_plan(prepare("hf://org/mini", tmp_path / "dst", OPTIONS), path)
    assert file.source == f"hf://org/mini@{commit}"
    assert hub.put("org/mini", {"config.json": b"{}"}) != commit
    count = len(file.tasks)
    for index in range(2):
        run_tasks(path, numbers(count, index, 2), ONE)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(hub.root)]
    assert {"plan.json", "job.json"} <= {p.name for p in files}
    assert [p for p in files if SECRET.encode() in p.read_bytes()] == []
    manifest = finalize(path)
    assert SECRET not in json.dumps(manifest.data)
    assert weights(contents(tmp_path / "dst")) == expected
    assert manifest.data["identity"]["origin"] == {"hub": "org/mini", "commit": commit}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "expected", "hub", "plan.json"]


@pytest.mark.parametrize("on", ["folder", "memory"])
def test_the_end_is_stopped_and_a_local_run_goes_on(
    on: str, hub: Hub, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends it has asked for the commit; that the branch was asked for is still known."""
    hub.add("org/mini", mini)
    path, target = tmp_path / "plan.json", str(tmp_path / "dst")
    target = target if on == "folder" else f"memory://{tmp_path.name}/asked"
    scratch = Scratch(tmp_path / "scratch")
    file = write_plan(prepare("hf://org/mini", target, OPTIONS), path)
    run_tasks(path, range(len(file.tasks)), Settings(workers=1, scratch=scratch))
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finalize(path)
    hub.put("org/mini", {"config.json": b"{}"})
    manifest = execute(prepare("hf://org/mini", target, OPTIONS), Settings(scratch=scratch))
    assert f"hf://org/mini@{manifest.data['identity']['origin']['commit']}" == file.source


def test_a_place_in_an_object_store(mini: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    """State and files are objects; a worker that sees other ones is refused."""
    import fsspec

    store, path = fsspec.filesystem("memory"), tmp_path / "plan.json"
    target = f"memory://{tmp_path.name}/dst"
    file = write_plan(prepare(mini, target, OPTIONS), path)
    assert file.target == target
    assert read_plan(path) == file
    run_tasks(path, [0, 3], ONE)
    with pytest.raises(TargetError, match="3 of 5 tasks are not done"):
        finalize(path)
    run_tasks(path, [1, 2, 4], ONE)
    kept = {name: store.store[name] for name in list(store.store) if tmp_path.name in name}
    for name in kept:
        del store.store[name]
    for call in (lambda: run_tasks(path, [0], ONE), lambda: finalize(path)):
        with pytest.raises(TargetError, match="not to be seen from this machine"):
            call()
    store.store.update(kept)
    finalize(path)
    found = {Path(n).name: store.cat_file(n) for n in store.find(f"/{tmp_path.name}/dst")}
    assert weights(found) == expected
    assert finalize(path).already_done
