"""What the hub's listing says of a file: its size, and the sum that its bytes must have."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hashlib import _Hash

_SHA1, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class Held(NamedTuple):
    """A file of a commit; ``lfs`` is its SHA-256 if it is in LFS, where large files are; otherwise
    ``git`` is the sum of its bytes."""

    size: int
    git: str
    lfs: str | None

    @classmethod
    def of(cls, entry: Any) -> Held:
        """From an entry of huggingface_hub's listing; ValueError if that makes no sense."""
        lfs = entry.lfs.sha256 if entry.lfs else None
        size = entry.lfs.size if entry.lfs else entry.size
        whole = type(size) is int and size >= 0
        if not whole or not _SHA1.fullmatch(entry.blob_id) or not (lfs is None or is_sha256(lfs)):
            raise ValueError(f"size {size}, oid {entry.blob_id}, LFS {lfs}")
        return cls(size, entry.blob_id, lfs)

    @property
    def sum(self) -> str:
        """What :meth:`hasher` must come to."""
        return self.lfs or self.git

    def hasher(self) -> _Hash:
        """To be fed with all bytes."""
        if self.lfs:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def fits(self, data: bytes) -> bool:
        """Whether these are its bytes."""
        hasher = self.hasher()
        hasher.update(data)
        return len(data) == self.size and hasher.hexdigest() == self.sum


def is_sha256(text: str) -> bool:
    """Whether it may be one, in hexadecimal."""
    return _SHA256.fullmatch(text) is not None
