"""What every kind of source does: where a checkpoint's files are, how its shards come to be read.

A folder (:mod:`.folder`), a repository of the hub (:mod:`.hub`), a place in an object store
(:mod:`.stores`). Nothing that one says is trusted before it has been checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .errors import UsageError, shown

_ADDRESS = re.compile("[a-z][a-z0-9+.-]*:/")  # also what a Path makes of one


class Shard(NamedTuple):
    """One safetensors file as it was when its header was read.

    ``mtime_ns`` of a file in a folder; elsewhere 0, and ``etag`` is what the store says of the
    content: its SHA-256, or whatever changes with it. (In a cache of the hub there are both.)
    """

    name: str
    size: int
    mtime_ns: int
    header_sha256: str
    apart: bool = False  # a rank's, with scales of its own: see shards.APART
    etag: str = ""

    @property
    def stamp(self) -> dict[str, Any]:
        """What tells that it has changed."""
        return {
            "size": self.size,
            **({"etag": self.etag} if self.etag else {"mtime_ns": self.mtime_ns}),
        }


class Peek(Protocol):
    """A file of which some bytes are looked at; see the fields of :class:`Shard`."""

    @property
    def size(self) -> int: ...

    @property
    def mtime_ns(self) -> int: ...

    @property
    def etag(self) -> str: ...

    def read(self, nbytes: int, begin: int) -> bytes:
        """``nbytes`` from ``begin`` on; fewer only where the file ends."""


class Readable(Protocol):
    """A shard, open. FormatError if it is not the one that was planned."""

    def read(self, view: memoryview, begin: int, end: int) -> None:
        """Fill ``view`` (aligned, whole pages) from page-aligned ``begin``, at least to ``end``."""

    def gather(self, view: memoryview, begin: int, count: int, stride: int) -> None:
        """Fill ``view`` with ``count`` runs of equal length, ``stride`` apart from ``begin`` on."""

    def check_unchanged(self) -> None:
        """FormatError if it has changed since it was planned."""

    def close(self) -> None:
        """Let go of it; harmless when done twice."""


class Wanted(NamedTuple):
    """Output files that are written together, and the numbers of the shards they are made of."""

    files: tuple[str, ...]
    shards: frozenset[int]


@dataclass(frozen=True)
class Scratch:
    """Where what is downloaded waits until it is converted. None: chosen from target and plan."""

    folder: Path | None = None
    size: int | None = None  # bytes, at most
    keep: bool = False  # whether what is there is left there
    own: bool = False  # whether the folder is for one target, and goes when it is empty

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        text = os.fspath(self.folder)  # from Python a str may come, too
        if _ADDRESS.match(text):
            raise UsageError(f"scratch {shown(text)}: expected a folder of this machine")
        object.__setattr__(self, "folder", Path(text))


class Feed(Protocol):
    """Shards for the output files of a run, in the order in which those are begun.

    Output files are named by their ``file``. Called by any thread. ``room`` and ``memory`` are
    bytes: of a disk that it may fill in the scratch, of memory that it takes.
    """

    @property
    def room(self) -> int: ...

    @property
    def memory(self) -> int: ...

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """Start to fetch. ``leaving`` is called with a shard that is to go, and nobody reads;
        ``arrived`` with numbers of bytes."""

    def ready(self, file: str) -> bool:
        """Whether all shards that ``file``, and those written with it, are made of are there."""

    def wait(self, file: str) -> None:
        """Until they are. Whatever went wrong with them is raised; ResumableError when stopped."""

    def opened(self, shard: int, io: str) -> Readable:
        """A shard that some file begun is made of."""

    def done(self, file: str) -> None:
        """It is finished: shards that no other one needs may go."""

    def stop(self) -> None:
        """Wake whoever waits, with an error; nothing more is fetched."""

    def close(self) -> None:
        """The end of the run, finished or not."""


class Origin(Protocol):
    """The files of a checkpoint. Names are plain, or ``folder/name``; FormatError for others.

    What the network or the disk refuses is OSError or ResumableError.
    """

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    @property
    def provenance(self) -> dict[str, str]:
        """What a manifest says of it: the repository and the commit; empty for a folder."""

    @property
    def asked(self) -> str:
        """The branch or tag that was asked for, which may move; empty where nothing does."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user wants to hear of how it was found."""

    @property
    def lanes(self) -> int:
        """How many files are looked at at once."""

    def names(self, sub: str = "") -> list[str]:
        """Names of everything directly in it, or in its folder ``sub``, sorted."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def is_folder(self, name: str) -> bool:
        """Whether there is a folder of that name."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def read(self, name: str, limit: int, why: str) -> bytes:
        """The whole of a small file, at most ``limit`` bytes; ``why`` says who named it."""

    def peek(self, name: str) -> AbstractContextManager[Peek]:
        """A shard, before it is planned."""

    def opened(self, shard: Shard, io: str) -> Readable:
        """A shard to be read where it is; UsageError if this kind of source cannot."""

    def feed(self, shards: Sequence[Shard], wanted: Iterable[Wanted], scratch: Scratch) -> Feed:
        """For a run that writes the files of ``wanted``, in this order."""


class Direct:
    """The :class:`Feed` of what is read where it is."""

    room = memory = 0

    def __init__(self, origin: Origin, shards: Sequence[Shard]) -> None:
        self._origin, self._shards = origin, shards

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """Nothing has to be fetched."""

    def ready(self, file: str) -> bool:
        """It always is."""
        return True

    def wait(self, file: str) -> None:
        """Nothing to wait for."""

    def opened(self, shard: int, io: str) -> Readable:
        """As :meth:`Origin.opened`."""
        return self._origin.opened(self._shards[shard], io)

    def done(self, file: str) -> None:
        """Nothing goes."""

    def stop(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is held."""
