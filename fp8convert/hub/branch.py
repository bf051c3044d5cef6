"""A branch of the hub that is written to: what is there, what is sent, one commit at the end.

All by huggingface_hub: its endpoint, tokens, proxies and retries are the user's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import FormatError, ResumableError, TargetError, UsageError, shown
from .address import Address
from .client import LIBRARY, commit_of, fetched, listing
from .errors import patiently
from .held import Held
from .push import Push

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

BATCH = 256  # objects asked for at once
MOVED = 412
Answer = TypeVar("Answer")


class Head(NamedTuple):
    """The last commit of a branch, and its files."""

    commit: str
    files: Mapping[str, Held]


class Branch:
    """One branch; every call is tried several times, until ``stopped`` is set."""

    def __init__(self, push: Push, stopped: threading.Event) -> None:
        from huggingface_hub import HfApi

        self.push, self.repo, self.name = push, push.repo, push.branch
        self.stopped = stopped
        self.api = HfApi(**LIBRARY)

    @property
    def url(self) -> str:
        """For a reader."""
        return f"{self.api.endpoint}/{self.repo}/tree/{self.name}"

    def open(self) -> None:
        """Make the repository and the branch, where they are not there; see that both are so as
        is asked."""
        self._asked("looking it up, or making it", self._create)
        refs = self._asked("looking up its branches", lambda: self.api.list_repo_refs(self.repo))
        if self.name in [ref.name for ref in refs.branches]:
            return
        if self.name in [ref.name for ref in refs.tags]:
            raise UsageError(f"--revision {shown(self.name)} is a tag, expected a branch")
        self._asked("making the branch", self._branch)

    def _create(self) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            found = self.api.repo_info(self.repo)
        except RepositoryNotFoundError:  # for this user, or for all
            self.api.create_repo(self.repo, private=self.push.private or None, exist_ok=True)
            return
        if self.push.private and not found.private:
            raise TargetError(
                f"{self.repo} is there, and public: make it private in its settings, or leave "
                "--private out"
            )

    def _branch(self) -> None:
        """From the first commit on: what another branch holds is not this one's."""
        first = self.api.list_repo_commits(self.repo)[-1].commit_id
        self.api.create_branch(self.repo, branch=self.name, revision=first, exist_ok=True)

    def head(self) -> Head:
        """As it is now."""
        commit = commit_of(Address(self.repo, self.name))
        return Head(commit, listing(Address(self.repo, commit)))

    def read(self, head: Head, name: str, limit: int) -> bytes:
        """A small file of a commit."""
        size = head.files[name].size
        if size > limit:
            raise FormatError(f"{shown(name)} of {self.push.place} is larger than {limit:,} bytes")
        return fetched(Address(self.repo, head.commit), name, 0, size, size)

    def holds(self, sizes: Mapping[str, int]) -> set[str]:
        """Of objects by SHA-256, those that the hub's store has; refused if nobody may write."""
        sums = list(sizes)
        found: set[str] = set()
        for begin in range(0, len(sums), BATCH):
            some = {s: sizes[s] for s in sums[begin : begin + BATCH]}
            found |= self._asked("asking to write to it", lambda some=some: self._holds(some))  # type: ignore[misc]
        return found

    def _holds(self, sizes: Mapping[str, int]) -> set[str]:
        from huggingface_hub.lfs import post_lfs_batch_info

        from .known import info

        objects = [info(size, sha256) for sha256, size in sizes.items()]
        found, odd, *_ = post_lfs_batch_info(
            objects, None, "model", self.repo, endpoint=self.api.endpoint
        )
        if odd:
            raise FormatError(f"{self.repo}: {shown(odd[0].get('error'))}")
        return {answer["oid"] for answer in found if answer.get("actions") is None}

    def send(
        self, name: str, path: Path, sha256: str, seen: Callable[[int], None], plain: bool
    ) -> bool:
        """Upload a file ahead of its commit; False if it is of those that a commit holds itself.

        ``plain``: by the protocol of LFS, in which the hub says what it has that no commit names.
        """
        how = (name, path, sha256, seen, plain)
        return self._asked(f"sending {shown(name)}", lambda: self._send(*how))

    def _send(
        self, name: str, path: Path, sha256: str, seen: Callable[[int], None], plain: bool
    ) -> bool:
        from .known import addition, check_sent, is_ignored, is_sent

        operation = addition(name, path, sha256, seen, plain)
        with _unwrapped():
            self.api.preupload_lfs_files(self.repo, [operation], revision=self.name)
        if is_ignored(operation):
            raise TargetError(f"a .gitignore of {self.push.place} leaves {shown(name)} out")
        if is_sent(operation):
            check_sent(operation)
        return is_sent(operation)

    def commit(self, parent: str, files: Sequence[CommitOperationAdd], words: str) -> str | None:
        """Make one commit; None if the branch is not at ``parent`` any more."""
        return self._asked("committing", lambda: self._commit(parent, files, words))

    def _commit(self, parent: str, files: Sequence[CommitOperationAdd], words: str) -> str | None:
        from huggingface_hub.errors import HfHubHTTPError

        title, _, rest = words.partition("\n")
        try:
            made = self.api.create_commit(
                self.repo, files, commit_message=title, commit_description=rest.strip(),
                revision=self.name, parent_commit=parent,
            )  # fmt: skip
        except HfHubHTTPError as e:
            if e.response.status_code == MOVED:
                return None
            raise
        except JSONDecodeError as e:  # an error that is a page, where the card is checked
            raise ResumableError(f"{self.push.place}: committing: the answer is no JSON") from e
        except ValueError as e:
            said = shown(" ".join(str(e).split()))
            raise FormatError(f"{self.push.place}: the hub refuses the model card: {said}") from e
        return made.oid

    def _asked(self, what: str, call: Callable[[], Answer]) -> Answer:
        return patiently(call, f"{self.push.place}: {what}", self._pause)

    def _pause(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise ResumableError("interrupted")


@contextmanager
def _unwrapped() -> Iterator[None]:
    """What went wrong with an upload: huggingface_hub says RuntimeError to all of it."""
    try:
        yield
    except RuntimeError as e:
        cause = e.__cause__
        if isinstance(cause, RuntimeError):  # another thread has met an error, and closed it
            raise ResumableError(f"the connection was closed: {cause}") from e
        if isinstance(cause, Exception):
            raise cause from None
        raise
