"""The end of an upload: one commit that has the whole target, and nothing of anyone else's lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import FormatError, ResumableError, TargetError, listed, shown
from ..fileio import hash_file
from ..target import MANIFEST
from . import card
from .branch import Branch, Head
from .foreign import refuse_foreign
from .held import Held
from .push import Push, Pushed
from .results import Parity, parity
from .uploads import File, Uploads

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

    from ..job import Job

MOST_CARD = 1 << 20  # bytes
ATTEMPTS = 3  # of a commit, while others commit to the branch


class Part(NamedTuple):
    """A file of the commit; ``content`` if it is no file here."""

    name: str
    size: int
    sha256: str
    content: bytes | None = None

    def is_as(self, held: Held | None, folder: Path) -> bool:
        """Whether the hub has just that."""
        if held is None or held.size != self.size:
            return False
        if held.lfs:
            return held.lfs == self.sha256
        path, data = folder / self.name, self.content
        if data is None and path.is_file():
            data = path.read_bytes()
        return data is not None and held.fits(data)


class Delivery:
    """What is to be on the branch when a job is done."""

    def __init__(self, job: Job, push: Push, target: Path, uploads: Uploads) -> None:
        self.job, self.push, self.target = job, push, target
        self.uploads, self.branch = uploads, uploads.branch
        self._parity: Parity | None = parity(push.parity, target) if push.parity else None
        self._licence = self._read_licence()

    def check(self) -> None:
        """Before the work: the branch is there, may be written to, and holds nothing foreign."""
        self.branch.open()
        text = next(iter(self.job.plan.texts.values()), "").encode()
        self.branch.holds({hashlib.sha256(text).hexdigest(): len(text)})  # who may ask may write
        head = self.branch.head()
        refuse_foreign(self.branch, head, self.job)
        self._card(head)

    def deliver(self, folder: Path, manifest: Mapping[str, Any]) -> Pushed:
        """Commit what is in ``folder``, and what was dropped there; all at once, or nothing."""
        for attempt in range(ATTEMPTS):
            head = self.branch.head()
            refuse_foreign(self.branch, head, self.job)
            readme = card.merged(self._card(head), self._facts(manifest)).encode()
            parts = list(self._parts(folder, manifest, readme))
            left = [p for p in parts if not p.is_as(head.files.get(p.name), folder)]
            if not left:
                return self._pushed(head.commit, already=not attempt)
            operations = self._operations(left, folder)
            made = self.branch.commit(head.commit, operations, self._words(manifest))
            if made:
                return self._pushed(made, already=False)
        raise ResumableError(f"{self.push.place}: others commit to it all the time")

    def _card(self, head: Head) -> str | None:
        """The one that is there."""
        if card.NAME not in head.files:
            return None
        try:
            return self.branch.read(head, card.NAME, MOST_CARD).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{card.NAME} of {self.push.place} is not UTF-8") from None

    def _facts(self, manifest: Mapping[str, Any]) -> card.Facts:
        origin = self.job.catalogue.folder
        name = origin.place.rstrip("/").rsplit("/", 1)[-1]
        return card.Facts(
            self.push.repo, self.push.branch, manifest, origin.provenance, name, self._licence,
            self._parity,
        )  # fmt: skip

    def _read_licence(self) -> dict[str, str]:
        origin = self.job.catalogue.folder
        try:
            if origin.has(card.NAME):
                return card.licence(origin.read(card.NAME, MOST_CARD, "licence").decode())
        except (FormatError, UnicodeDecodeError):  # as good as none
            pass
        return {}

    def _parts(self, folder: Path, manifest: Mapping[str, Any], readme: bytes) -> Iterator[Part]:
        for entry in manifest["files"]:
            name = entry["name"]
            sums = self.uploads.sums
            if not (sha256 := entry["sha256"] or sums.get(name)):
                sha256 = sums[name] = hash_file(folder / name)
            yield Part(name, entry["size"], sha256)
        path = folder / MANIFEST
        yield Part(MANIFEST, path.stat().st_size, hash_file(path))
        yield Part(card.NAME, len(readme), hashlib.sha256(readme).hexdigest(), readme)

    def _operations(self, parts: list[Part], folder: Path) -> list[CommitOperationAdd]:
        """Of a commit, having sent ahead what is to be."""
        from huggingface_hub import CommitOperationAdd

        from .known import sent

        weights = {task.file for task in self.job.plan.tasks}
        self.uploads.look({p.sha256: p.size for p in parts if p.name in weights})
        here = [p for p in parts if p.content is None and p.sha256 not in self.uploads.there]
        if gone := [p.name for p in here if not (folder / p.name).is_file()]:
            raise TargetError(
                f"{listed(gone)} of {shown(self.target)}: neither here nor on the hub any more: "
                "remove that folder, and run the same again"
            )
        for p in here:
            self.uploads.add(File(p.name, folder / p.name, p.size, p.sha256))
        self.uploads.settle(self.push.progress)
        return [
            sent(p.name, p.size, p.sha256)
            if p.sha256 in self.uploads.there
            else CommitOperationAdd(p.name, p.content or self._small(folder, p))
            for p in parts
        ]

    def _small(self, folder: Path, part: Part) -> bytes:
        """The bytes of a file that the commit itself holds: those that it had, or FormatError."""
        from .known import check_sum

        path = folder / part.name
        data = path.read_bytes()
        check_sum(str(path), hashlib.sha256(data).hexdigest(), part.sha256)
        return data

    def _words(self, manifest: Mapping[str, Any]) -> str:
        origin = self.job.catalogue.folder.provenance
        source = f"Source: {origin['hub']} at {origin['commit']}\n" if origin else ""
        return (
            f"{manifest['identity']['command']} by {manifest['tool']}\n\n"
            f"{source}Plan: {manifest['plan']}"
        )

    def _pushed(self, commit: str, already: bool) -> Pushed:
        branch: Branch = self.branch
        return Pushed(self.push.repo, self.push.branch, commit, branch.url, already, 0)
