"""Files of an untrusted checkpoint folder: a name is believed only after it has been checked.

Every open goes through :meth:`Folder.open`: a plain file name or ``folder/name``, a regular file,
and not outside the folder (a Hugging Face cache, whose snapshots link to blobs of the same
repository, is known).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .calls import let_go, read_all
from .errors import FormatError, UsageError, shown
from .fileio import SourceFile
from .origin import Direct, Scratch, Shard, Wanted

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a loop of links",
}


@dataclass(frozen=True, slots=True)
class Folder:
    """A checkpoint folder. ``root`` is resolved; ``inside`` is the tree its links may point to."""

    root: Path
    inside: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Folder:
        """The folder at ``path``; FormatError if it is not one."""
        root = Path(os.path.realpath(path))  # Path.resolve raises on a loop of links
        if not root.is_dir():
            if re.match("[a-z0-9+.-]+://", os.fsdecode(path)):
                raise UsageError(
                    f"{shown(path)} is an address, and this command reads folders only"
                )
            what = "is not a folder" if root.exists() else "does not exist"
            what = "is an address, which is not read here" if "://" in str(path) else what
            raise FormatError(f"{shown(path)} {what}, expected a checkpoint folder")
        in_cache = root.parent.name == "snapshots" and (root.parents[1] / "blobs").is_dir()
        return cls(root, root.parents[1] if in_cache else root)

    @property
    def place(self) -> str:
        """Its path."""
        return str(self.root)

    @property
    def provenance(self) -> dict[str, str]:
        """Nothing: a path says nothing elsewhere."""
        return {}

    @property
    def asked(self) -> str:
        """Nothing that moves."""
        return ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def lanes(self) -> int:
        """One: what headers cost is to parse them."""
        return 1

    def names(self, sub: str = "") -> list[str]:
        """Names of everything directly in the folder, or in its folder ``sub``, sorted."""
        if not sub:
            return sorted(os.listdir(self.root))
        check_plain_name(sub, "folder")
        real = self._resolved(sub, "folder")
        if not real.is_dir():
            what = "is not a folder" if real.exists() else "is missing"
            raise FormatError(f"{shown(sub)} {what}, expected a folder of {shown(self.root)}")
        return sorted(os.listdir(real))

    def has(self, name: str) -> bool:
        """Whether there is a file of that name (a dangling link counts, and fails at open)."""
        check_name(name, "looked for")
        return os.path.lexists(self.root / name)

    def is_folder(self, name: str) -> bool:
        """Whether there is a folder of that name."""
        return (self.root / name).is_dir()

    def open(self, name: str, why: str) -> int:
        """A read-only descriptor of the regular file ``name``; ``why`` says who named it.

        Raises FormatError for anything that is not a plain name, or ``folder/name``, of a regular
        file in the tree. Nothing else is opened, so a FIFO or device cannot hang or act; one
        swapped in between the check and the open cannot hang either.
        """
        check_name(name, why)
        return _opened(self._resolved(name, why), name, why, self.root)

    def _resolved(self, name: str, why: str) -> Path:
        real = Path(os.path.realpath(self.root / name))
        if not real.is_relative_to(self.inside):
            raise FormatError(f"{shown(name)} ({why}) is a link out of {shown(self.root)}")
        return real

    def size(self, name: str) -> int:
        """Bytes of the regular file ``name``."""
        fd = self.open(name, "companion file")
        try:
            return os.fstat(fd).st_size
        finally:
            let_go(fd)

    def read(self, name: str, limit: int, why: str) -> bytes:
        """The whole of a small file, at most ``limit`` bytes."""
        return _read(self.open(name, why), name, limit)

    @contextlib.contextmanager
    def peek(self, name: str) -> Iterator[OpenFile]:
        """A shard, before it is planned."""
        fd = self.open(name, "shard")
        try:
            state = os.fstat(fd)
            yield OpenFile(fd, name, state.st_size, state.st_mtime_ns)
        finally:
            let_go(fd)

    def opened(self, shard: Shard, io: str) -> SourceFile:
        """A shard as it was planned."""
        fd = self.open(shard.name, "shard")
        return SourceFile(fd, shard.name, io, shard.size, shard.mtime_ns)

    def feed(self, shards: Sequence[Shard], wanted: Iterable[Wanted], scratch: Scratch) -> Direct:
        """Everything is there already."""
        return Direct(self, shards)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file being looked at; the descriptor is another's."""

    fd: int
    name: str
    size: int
    mtime_ns: int
    etag: str = ""

    def read(self, nbytes: int, begin: int) -> bytes:
        """``nbytes`` from ``begin`` on; fewer only where the file ends."""
        return read_all(self.fd, nbytes, begin, self.name)


def read_named(path: str | os.PathLike[str], limit: int, why: str) -> bytes:
    """The whole of a small file that the user has named, wherever it is and links lead; FormatError
    as :meth:`Folder.open` raises it."""
    real = Path(os.path.realpath(path))
    return _read(_opened(real, real.name, why, real.parent), real.name, limit)


def _opened(real: Path, name: str, why: str, where: Path) -> int:
    try:
        mode = os.lstat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{shown(name)} ({why}) is missing from {shown(where)}") from None
    _check_regular(mode, name, why)
    fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(os.fstat(fd).st_mode, name, why)
    except BaseException:
        let_go(fd)
        raise
    return fd


def _read(fd: int, name: str, limit: int) -> bytes:
    """The whole of what is open, which is closed."""
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise FormatError(f"{shown(name)} has {size:,} bytes, expected at most {limit:,}")
        return read_all(fd, min(limit, size + 1), 0, name)
    finally:
        let_go(fd)


def _check_regular(mode: int, name: str, why: str) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise FormatError(f"{shown(name)} ({why}) is {kind}, expected a regular file")


def check_plain_name(name: str, why: str) -> None:
    """Raise FormatError unless ``name`` is one plain path component on every platform."""
    if not _is_plain(name):
        raise FormatError(f"{shown(name)} ({why}) is not a plain file name")


def check_name(name: str, why: str) -> None:
    """Raise FormatError unless ``name`` is a plain one, or two joined: ``folder/name``."""
    parts = name.split("/")
    if len(parts) > 2 or not all(map(_is_plain, parts)):
        raise FormatError(f"{shown(name)} ({why}) is not a plain file name, or one in a folder")


def _is_plain(name: str) -> bool:
    odd = any(c in name for c in "/\\:") or not name.isprintable()  # NUL, lone surrogates: not
    return not odd and name not in ("", ".", "..") and len(name.encode("utf-8")) <= 255
