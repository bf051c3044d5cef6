"""What huggingface_hub takes as a file to add to a commit, where the file's SHA-256 is known.

Its own ``CommitOperationAdd`` hashes a file when it is made, or at the latest when it is committed:
of a checkpoint that would be all of it, read once more; and what has been removed here it cannot
name at all. So this is the one place that rests on what it keeps in an operation: ``upload_info``,
and the fields with an underscore, as huggingface_hub has had them from 1.0 to 2.4.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import CommitOperationAdd
from huggingface_hub.lfs import UploadInfo

SAMPLE = 512  # bytes that the hub looks at to choose how a file is kept


class Watched(io.FileIO):
    """A file that tells ``seen`` of the bytes read, whose error ends the reading."""

    def __init__(self, path: str, seen: Callable[[int], None]) -> None:
        super().__init__(path)
        self._seen = seen

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes."""
        data = super().read(-1 if size is None else size)
        self._seen(len(data))
        return data


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
        self.upload_info = UploadInfo(size, sample, bytes.fromhex(self.sha256))

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        """The open file."""
        with Watched(self.path, self.seen) as file:
            yield file


def addition(
    name: str, path: Path, sha256: str, seen: Callable[[int], None], plain: bool = False
) -> Known:
    """A file that is here, to be sent; ``plain``: by the protocol of LFS, whatever there is."""
    return Known(name, str(path), sha256=sha256, seen=seen, plain=plain)


def is_sent(operation: CommitOperationAdd) -> bool:
    """Whether it was kept in the hub's store when it was uploaded ahead; else a commit holds it."""
    return operation._is_uploaded


def is_ignored(operation: CommitOperationAdd) -> bool:
    """Whether a .gitignore of the repository would leave it out of a commit."""
    return bool(operation._should_ignore)


def info(size: int, sha256: str) -> UploadInfo:
    """What names an object of the hub's store."""
    return UploadInfo(size, b"", bytes.fromhex(sha256))


def sent(name: str, size: int, sha256: str) -> CommitOperationAdd:
    """A file that the hub's store has; what was here of it may be gone."""
    operation = CommitOperationAdd(name, b"")
    operation.upload_info = info(size, sha256)
    operation._upload_mode = "lfs"
    operation._should_ignore = False
    operation._is_uploaded = True
    return operation
