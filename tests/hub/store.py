"""What the hub keeps: a folder per repository, with its blobs, its commits and one file of refs.

    ROOT/repos/org/name/repo.json            heads, tags, who may see it
    ROOT/repos/org/name/commits/SHA.json     a commit, with its whole tree
    ROOT/repos/org/name/blobs/KEY            content, by the SHA-256 (LFS) or git's SHA-1

A commit is written before a head names it, and each file under a temporary name before it is
renamed, so a reader sees the whole of a commit or nothing of it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .files import File, git_oid, is_lfs, lfs_file, sha256_of
from .replies import RefusedError

LINKED_SIZE = 16 << 20  # bytes from which on a file is linked into the hub, not copied
MOVED = "A commit has happened since. Please refresh and try again."
NAME = re.compile(r"[\w.-]+/[\w.-]+")
FULL_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Commit:
    """A commit and its whole tree: path -> file."""

    sha: str
    parent: str | None
    message: str
    description: str
    date: str
    tree: dict[str, File] = field(repr=False)


@dataclass(frozen=True)
class State:
    """All of a repository that may change."""

    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    members: tuple[str, ...] = ()  # tokens that may see a private repository
    accepted: tuple[str, ...] = ()  # tokens that may read a gated one


def now() -> str:
    """The time as the hub writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Repo:
    """One repository on disk. What changes it holds ``lock``."""

    def __init__(self, name: str, folder: Path) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"a repository is called organization/name, not {name!r}")
        self.name = name
        self.folder = folder
        self.lock = threading.RLock()
        for below in ("blobs", "commits"):
            (folder / below).mkdir(parents=True, exist_ok=True)

    @property
    def state(self) -> State:
        """As it stands on disk."""
        path = self.folder / "repo.json"
        return State(**json.loads(path.read_bytes())) if path.exists() else State()

    def change(self, **fields: Any) -> None:
        """Set some fields of the state, all at once."""
        with self.lock:
            _write(self.folder / "repo.json", asdict(replace(self.state, **fields)))

    def blob(self, file: File) -> Path:
        """Where the content of a file is."""
        return self.folder / "blobs" / file.key

    def commit(self, revision: str) -> Commit:
        """By branch, tag or full SHA.

        Raises:
            RefusedError: there is none, as the hub says it.
        """
        state = self.state
        sha = state.heads.get(revision) or state.tags.get(revision) or revision
        if FULL_SHA.fullmatch(sha) and (path := self.folder / "commits" / f"{sha}.json").exists():
            return _commit(path)
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def keep(self, path: str, content: bytes | Path, sha256: str = "") -> File:
        """Take in the content of a file; a large one is linked where it can be.

        Args:
            path: in the repository: decides whether it goes to LFS.
            content: bytes, or a file on this machine.
            sha256: of a file for LFS, if it is known: it isn't read then.
        """
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if not is_lfs(path, size):
            return self.keep_regular(
                content if isinstance(content, bytes) else content.read_bytes()
            )
        file = lfs_file(sha256 or sha256_of(content), size)
        if not self.blob(file).exists():
            _place(content, self.blob(file), size)
        return file

    def keep_regular(self, content: bytes) -> File:
        """Take in a file that isn't for LFS."""
        file = File(len(content), git_oid(content))
        if not self.blob(file).exists():
            _place(content, self.blob(file), file.size)
        return file

    def advance(
        self,
        branch: str,
        change: Callable[[Mapping[str, File]], dict[str, File]],
        message: str,
        description: str = "",
        parent: str | None = None,
    ) -> Commit:
        """A new commit on a branch: its tree is ``change`` of the last one's.

        Args:
            parent: the SHA, or its beginning, that the branch must be at.

        Raises:
            RefusedError: the branch is elsewhere, or there is no such branch; nothing is changed.
        """
        with self.lock:
            heads = self.state.heads
            if heads and branch not in heads:
                raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            head = heads.get(branch)
            if parent is not None and not (head or "").startswith(parent):
                raise RefusedError(
                    412, "A commit has happened since. Please refresh and try again."
                )
            tree = change(self.commit(head).tree if head else {})
            made = _sealed(Commit("", head, message, description, now(), tree))
            _write(self.folder / "commits" / f"{made.sha}.json", asdict(made))
            self.change(heads={**heads, branch: made.sha})
            return made

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        found = [self.commit(revision)]
        while (parent := found[-1].parent) is not None:
            found.append(self.commit(parent))
        return found


def _sealed(commit: Commit) -> Commit:
    """With the SHA that its content gives; two commits are never one, even of the same moment."""
    fields = json.dumps([asdict(commit), secrets.token_hex(8)])
    return replace(commit, sha=git_oid(fields.encode(), "commit"))


@functools.lru_cache(maxsize=64)
def _commit(path: Path) -> Commit:
    fields = json.loads(path.read_bytes())
    tree = {name: File(**file) for name, file in fields.pop("tree").items()}
    return Commit(tree=tree, **fields)


def _place(content: bytes | Path, blob: Path, size: int) -> None:
    """Under its final name in one step; a link where the filesystem and the size are for it."""
    temporary = blob.with_name(f"{blob.name}.{secrets.token_hex(4)}.tmp")
    if isinstance(content, bytes):
        temporary.write_bytes(content)
    elif size < LINKED_SIZE or not _linked(content, temporary):
        shutil.copyfile(content, temporary)
    os.replace(temporary, blob)


def _linked(content: Path, name: Path) -> bool:
    try:
        os.link(content.resolve(), name)
    except OSError:
        return False
    return True


def _write(path: Path, value: object) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)
