"""The repositories of a hub, as a test fills them and looks into them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from .files import File
from .store import Commit, Repo


class Repositories:
    """All that a hub keeps, below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self._repos: dict[str, Repo] = {}
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, name: str) -> Path:
        """Where a repository is kept."""
        return self.root / "repos" / name

    def found(self, name: str) -> Repo | None:
        """A repository, if there is one."""
        with self.lock:
            if name not in self._repos and (self.folder(name) / "repo.json").exists():
                self._repos[name] = Repo(name, self.folder(name))
            return self._repos.get(name)

    def repo(self, name: str) -> Repo:
        """A repository that there is."""
        if (repo := self.found(name)) is None:
            raise KeyError(f"the hub has no {name}")
        return repo

    def add(
        self, name: str, folder: Path | str, *, branch: str = "main",
        sums: Mapping[str, str] | None = None, message: str = "",
    ) -> str:  # fmt: skip
        """Make a branch of a repository what a folder is, in one commit.

        Files of 16 MiB and more are linked if they can be: don't write into them afterwards.

        Args:
            sums: SHA-256 of files by name, so that those aren't read.

        Returns:
            The commit's SHA.
        """
        root = Path(folder)
        files = {str(p.relative_to(root)): p for p in sorted(root.rglob("*")) if p.is_file()}
        hidden = (".git/", ".cache/")
        kept = {path: file for path, file in files.items() if not path.startswith(hidden)}
        return self.put(
            name, kept, branch=branch, sums=sums, message=message or f"add {root.name}", clean=True
        )

    def put(
        self, name: str, files: Mapping[str, bytes | Path], *, branch: str = "main",
        delete: Iterable[str] = (), clean: bool = False, sums: Mapping[str, str] | None = None,
        message: str = "put",
    ) -> str:  # fmt: skip
        """Set and delete some files, in one commit; ``clean``: nothing else stays.

        Returns:
            The commit's SHA.
        """
        gone = set(delete)
        with self.lock:
            repo = self.found(name) or Repo(name, self.folder(name))
            kept = {p: repo.keep(p, c, (sums or {}).get(p, "")) for p, c in files.items()}

            def changed(tree: Mapping[str, File]) -> dict[str, File]:
                stay = {} if clean else {p: f for p, f in tree.items() if p not in gone}
                return {**stay, **kept}

            with repo.lock:
                heads = repo.state.heads
                if heads and branch not in heads:
                    self.branch(name, branch)
                made = repo.advance(
                    branch,
                    lambda tree: (
                        {
                            **({} if clean else {p: f for p, f in tree.items() if p not in gone}),
                            **kept,
                        }
                    ),
                    message,
                )
            self._repos[name] = repo
        return made.sha

    def branch(self, name: str, branch: str, revision: str = "main") -> None:
        """Make a branch, or move it."""
        repo = self.repo(name)
        with repo.lock:
            sha = repo.commit(revision).sha
            repo.change(heads={**repo.state.heads, branch: sha})

    def tag(self, name: str, tag: str, revision: str = "main") -> None:
        """Name a commit."""
        repo = self.repo(name)
        repo.change(tags={**repo.state.tags, tag: repo.commit(revision).sha})

    def branches(self, name: str) -> dict[str, str]:
        """Branch -> SHA."""
        return dict(self.repo(name).state.heads)

    def tree(self, name: str, revision: str = "main") -> dict[str, File]:
        """Path -> file."""
        return dict(self.repo(name).commit(revision).tree)

    def read(self, name: str, path: str, revision: str = "main") -> bytes:
        """The content of a file."""
        repo = self.repo(name)
        return repo.blob(repo.commit(revision).tree[path]).read_bytes()

    def blob(self, name: str, path: str, revision: str = "main") -> Path:
        """Where the content of a file is on this machine."""
        repo = self.repo(name)
        return repo.blob(repo.commit(revision).tree[path])

    def commits(self, name: str, revision: str = "main") -> list[Commit]:
        """The history, newest first."""
        return self.repo(name).history(revision)

    def has(self, name: str) -> bool:
        """Whether there is such a repository."""
        return self.found(name) is not None

    def is_private(self, name: str) -> bool:
        """Whether it is."""
        return self.repo(name).state.private

    def private(self, name: str, *tokens: str) -> None:
        """Only who has one of these tokens may see it."""
        self.repo(name).change(private=True, members=tokens)

    def gate(self, name: str, *tokens: str) -> None:
        """Only who has one of these tokens may read its files; everybody may list them."""
        self.repo(name).change(gated=True, accepted=tokens)

    def delete(self, name: str) -> None:
        """A repository, with all it holds."""
        with self.lock:
            self._repos.pop(name, None)
            shutil.rmtree(self.folder(name))
