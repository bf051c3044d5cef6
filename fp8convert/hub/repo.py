"""A checkpoint on the hub, at one commit: small files and headers are read by range requests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError, Fp8ConvertError, ResumableError, UsageError, shown
from ..fileio import SourceFile
from ..folder import Folder, check_name, check_plain_name
from ..origin import Origin, Scratch, Shard, Wanted
from . import client
from .address import Address
from .cached import Snapshot, in_cache, without_asking
from .feed import HubFeed
from .held import Held

LANES = 8  # headers asked for at once


def at(address: Address, before: Mapping[str, str], bare: str = "") -> Origin:
    """The checkpoint at ``address``, pinned to a commit; in the cache if the hub may not be asked.

    ``before``: what an unfinished run for the same target reads; a branch that has moved since is
    read as it was then. ``bare`` is what was given in place of an address, if it was.
    """
    if not bare:
        return _at(address, before, ())
    try:
        return _at(address, before, (f"{shown(bare)} is no folder here: read from the hub",))
    except Fp8ConvertError as e:
        raise type(e)(f"{shown(bare)} is no folder here; and on the hub, {e}") from e


def _at(address: Address, before: Mapping[str, str], said: tuple[str, ...]) -> Origin:
    began = before.get("commit") if _same(address, before) else None
    if client.is_offline():
        return Snapshot.of(address if began is None else address._replace(revision=began))
    try:
        return _asked(address, began, said)
    except ResumableError as e:
        here = without_asking(address if began is None else address._replace(revision=began))
        raise ResumableError(f"{e}{here}") from e


def _asked(address: Address, began: str | None, said: tuple[str, ...]) -> HubRepo:
    commit = client.commit_of(address)
    if began is not None and began != commit:
        said += (f"{address} is at {commit} now; this goes on with {began}, with which it began",)
        commit = began
    pinned = Address(address.repo, commit)
    asked = "" if address.pinned else address.revision
    try:
        return HubRepo(pinned, client.listing(pinned), asked, said)
    except FormatError as e:
        if commit != began:
            raise
        raise FormatError(
            f"{e}: the unfinished run for this target began with that commit; "
            "remove its work to begin anew"
        ) from e


def _same(address: Address, before: Mapping[str, str]) -> bool:
    """Whether the unfinished run was asked for this, which may have moved."""
    return (before.get("hub"), before.get("asked")) == address and not address.pinned


@dataclass(frozen=True)
class HubRepo:
    """See the module. ``files`` by path; ``asked`` is the branch or tag, if it was one."""

    pinned: Address
    files: dict[str, Held]
    asked: str
    remarks: tuple[str, ...]

    @property
    def place(self) -> str:
        """Its address, with the commit."""
        return str(self.pinned)

    @property
    def provenance(self) -> dict[str, str]:
        """Repository and commit."""
        return {"hub": self.pinned.repo, "commit": self.pinned.revision}

    @property
    def lanes(self) -> int:
        """Several."""
        return LANES

    def names(self, sub: str = "") -> list[str]:
        """Names of everything directly in it, or in its folder ``sub``, sorted."""
        if sub:
            check_plain_name(sub, "folder")
            if not self.is_folder(sub):
                raise FormatError(f"{shown(sub)} is no folder of {self.place}")
        above = f"{sub}/" if sub else ""
        below = (path.removeprefix(above) for path in self.files if path.startswith(above))
        return sorted({path.split("/")[0] for path in below})

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        check_name(name, "looked for")
        return name in self.files or self.is_folder(name)

    def is_folder(self, name: str) -> bool:
        """Whether there is a folder of that name."""
        return any(path.startswith(f"{name}/") for path in self.files)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.held(name, "companion file").size

    def held(self, name: str, why: str) -> Held:
        """What the hub says of a file; FormatError if it is not there."""
        check_name(name, why)
        if name not in self.files:
            raise FormatError(f"{shown(name)} ({why}) is missing from {self.place}")
        return self.files[name]

    def cached(self, name: str) -> Path | None:
        """Where the cache of huggingface_hub has it; None if it does not."""
        return in_cache(self.pinned, name, self.held(name, "shard"))

    def read(self, name: str, limit: int, why: str) -> bytes:
        """The whole of a small file, at most ``limit`` bytes, of which the hub's sum is right."""
        held = self.held(name, why)
        if held.size > limit:
            raise FormatError(f"{shown(name)} has {held.size:,} bytes, expected at most {limit:,}")
        with contextlib.suppress(OSError):
            if (path := self.cached(name)) and held.fits(data := path.read_bytes()):
                return data
        for _ in range(2):
            data = client.fetched(self.pinned, name, 0, held.size, held.size)
            if held.fits(data):
                return data
        raise FormatError(
            f"{shown(name)} of {self.place} came, twice, with another sum than it has"
        )

    @contextlib.contextmanager
    def peek(self, name: str) -> Iterator[Glance]:
        """A shard, before it is planned: nothing but what is asked for is transferred."""
        yield Glance(self, name, self.held(name, "shard"))

    def opened(self, shard: Shard, io: str) -> SourceFile:
        """A shard in the cache; UsageError if it is not there: weights are not read from afar."""
        path = self.cached(shard.name)
        if path is None:
            repo, commit = self.pinned
            raise UsageError(
                f"{shown(shard.name)} of {self.place} is not here, and only conversions download "
                f"weights: `hf download {repo} --revision {commit}` first"
            )
        fd = Folder(path.parent, path.parent).open(path.name, "shard")
        return SourceFile(fd, shard.name, io, shard.size, os.fstat(fd).st_mtime_ns)

    def feed(self, shards: Sequence[Shard], wanted: Iterable[Wanted], scratch: Scratch) -> HubFeed:
        """Downloads what is not in the cache."""
        return HubFeed(self, shards, list(wanted), scratch)


class Glance:
    """A file being looked at, here if the cache has it."""

    def __init__(self, repo: HubRepo, name: str, held: Held) -> None:
        self._repo, self._name = repo, name
        self._here = repo.cached(name)
        self.size, self.mtime_ns, self.etag = held.size, 0, held.sum

    def read(self, nbytes: int, begin: int) -> bytes:
        """``nbytes`` from ``begin`` on; fewer only where the file ends."""
        end = min(begin + nbytes, self.size)
        if self._here is not None:
            with self._here.open("rb") as file:
                file.seek(begin)
                return file.read(max(end - begin, 0))
        return client.fetched(self._repo.pinned, self._name, begin, end, self.size)
