"""What huggingface_hub takes as a file to add to a commit, where the file's SHA-256 is known.

Its own ``CommitOperationAdd`` hashes a file when it is made, or at the latest when it is committed:
of a checkpoint that would be all of it, read once more; and what has been removed here it cannot
name at all. So this is the one place that rests on what it keeps in an operation: ``upload_info``,
and the fields with an underscore, as huggingface_hub has had them from 1.0 to 2.4.

A known sum is what the bytes must have, not what they are said to have: a file may have been
changed since it was made, and a hub that believes us would keep its bytes under the sum of others.
So they are summed as they are read, by us or by Xet.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import CommitOperationAdd, _commit_api
from huggingface_hub.lfs import UploadInfo

from ..errors import FormatError, shown

SAMPLE = 512  # bytes that the hub looks at to choose how a file is kept


class Watched(io.FileIO):
    """A file that tells ``seen`` of the bytes read, whose error ends the reading.

    So does FormatError, once all have been read, in parts and some of them again, and are others
    than ``sha256`` says: before whoever takes them has the last.
    """

    def __init__(self, path: str, sha256: str, seen: Callable[[int], None]) -> None:
        super().__init__(path)
        self._path, self._sha256, self._seen = path, sha256, seen
        self._hasher, self._summed = hashlib.sha256(), 0
        self._size = self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes."""
        begin = self.tell()
        data = super().read(-1 if size is None else size)
        if begin <= self._summed < begin + len(data):
            self._hasher.update(memoryview(data)[self._summed - begin :])
            self._summed = begin + len(data)
            if self._summed == self._size:
                check_sum(self._path, self._hasher.hexdigest(), self._sha256)
        self._seen(len(data))
        return data


def check_sum(path: str, found: str, sha256: str) -> None:
    """FormatError unless the sums are the same."""
    if found != sha256:
        raise FormatError(
            f"{shown(path)} was changed after it was written: SHA-256 is {found}, expected "
            f"{sha256}: run the same again, having removed a target that is finished"
        )


@dataclass
class Known(CommitOperationAdd):
    """A file whose SHA-256 is known, with ``seen`` called as it is read; and no progress bar."""

    sha256: str = ""
    seen: Callable[[int], None] = lambda nbytes: None
    plain: bool = False  # not by Xet, which takes paths only: a buffer here says so

    def __post_init__(self) -> None:
        self.path = str(self.path_or_fileobj)
        with open(self.path, "rb") as file:
            sample = file.read(SAMPLE)
            size = file.seek(0, io.SEEK_END)
        self.path_or_fileobj = io.BytesIO() if self.plain else self.path
        self.upload_info = _info(size, sample, self.sha256)
        # Xet sums what it reads, unless it is told of a sum, which it believes.
        if not self.plain and _commit_api.is_xet_available():  # type: ignore[attr-defined]
            self.upload_info = UploadInfo.from_path(self.path)

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        """The open file."""
        with Watched(self.path, self.sha256, self.seen) as file:
            yield file


def addition(
    name: str, path: Path, sha256: str, seen: Callable[[int], None], plain: bool = False
) -> Known:
    """A file that is here, to be sent; ``plain``: by the protocol of LFS, whatever there is."""
    return Known(name, str(path), sha256=sha256, seen=seen, plain=plain)


def is_sent(operation: CommitOperationAdd) -> bool:
    """Whether it was kept in the hub's store when it was uploaded ahead; else a commit holds it."""
    return operation._is_uploaded


def check_sent(operation: Known) -> None:
    """FormatError if it was kept in the hub's store as what it is not."""
    check_sum(operation.path, operation.upload_info.sha256.hex(), operation.sha256)


def is_ignored(operation: CommitOperationAdd) -> bool:
    """Whether a .gitignore of the repository would leave it out of a commit."""
    return bool(operation._should_ignore)


def info(size: int, sha256: str) -> UploadInfo:
    """What names an object of the hub's store."""
    return _info(size, b"", sha256)


def _info(size: int, sample: bytes, sha256: str) -> UploadInfo:
    """By name: these have been in another order."""
    return UploadInfo(size=size, sample=sample, sha256=bytes.fromhex(sha256))


def sent(name: str, size: int, sha256: str) -> CommitOperationAdd:
    """A file that the hub's store has; what was here of it may be gone."""
    operation = CommitOperationAdd(name, b"")
    operation.upload_info = info(size, sha256)
    operation._upload_mode = "lfs"
    operation._should_ignore = False
    operation._is_uploaded = True
    return operation
