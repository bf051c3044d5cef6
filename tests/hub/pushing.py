"""What the tests of uploads share: a push in this process, and what must be true of the hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fp8convert.convert import Manifest, to_bf16
from fp8convert.hub import errors
from fp8convert.hub.push import Push

from ..mini import CUT
from . import Commit, Hub

REPO = "org/made"
TOKEN = "hf_me"
CARD = "README.md"
OWN = (".gitattributes", CARD)  # of a repository, beside what a target holds
MOST_SECONDS = 20  # to wait for what is to happen; then the test fails
# huggingface_hub sends the content of files in a way that its own client finds outdated.
SENDING = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@contextlib.contextmanager
def calm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user who is logged in; nobody pauses between attempts. What is still being sent at the end,
    of a run that has failed, ends before the hub does."""
    from huggingface_hub.utils import _http

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(errors, "WAITS", (0.0, 0.0))
    clock = SimpleNamespace(sleep=lambda seconds: None, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", clock)
    yield
    for thread in threading.enumerate():
        if thread.name == "fp8convert-upload":
            thread.join(MOST_SECONDS)
            assert not thread.is_alive()


def push(
    source: Path | str, target: Path, options: dict[str, Any] | None = None, **to: Any
) -> Manifest:
    """Three files of mini, converted and uploaded."""
    kept = {"max_shard_size": CUT, "workers": 2, **(options or {})}
    return to_bf16(source, target, push=Push(to.pop("repo", REPO), **to), **kept)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, by path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def on_hub(hub: Hub, revision: str = "main", repo: str = REPO) -> dict[str, bytes]:
    """Every file of a branch that a target may hold."""
    return {
        path: hub.read(repo, path, revision) for path in hub.tree(repo, revision) if path not in OWN
    }


def weights(files: dict[str, bytes]) -> set[str]:
    return {name for name in files if name.endswith(".safetensors")}


def sent(hub: Hub) -> list[int]:
    """Bytes of every object that was sent to the hub's store."""
    return [r.received for r in hub.log if r.path.startswith("/s3/") and r.method == "PUT"]


def commits(hub: Hub, repo: str = REPO) -> int:
    """How many were posted."""
    return sum(r.method == "POST" and f"/{repo}/commit/" in r.path for r in hub.log)


def check_visible(hub: Hub, revision: str = "main", repo: str = REPO) -> None:
    """At no moment could a reader have seen a part of a target: AssertionError."""
    if not hub.has(repo):
        return
    for commit in hub.commits(repo, revision):
        _check_whole(hub, commit, repo)


def _check_whole(hub: Hub, commit: Commit, repo: str) -> None:
    held = set(commit.tree) - set(OWN)
    if not held:
        return
    assert "manifest.json" in held, f"{sorted(held)} without a manifest"
    listed = json.loads(hub.read(repo, "manifest.json", commit.sha))["files"]
    assert held == {"manifest.json"} | {f["name"] for f in listed}
    for f in listed:
        found = hashlib.sha256(hub.read(repo, f["name"], commit.sha)).hexdigest()
        assert found == f["sha256"], f["name"]
