"""Files as git and LFS see them: names that content gives, pointers, which files go where."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

LFS_SIZE = 10_000_000  # bytes from which on the hub wants a file in LFS, whatever its name
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".npy", ".npz", ".gz", ".zip")
ATTRIBUTES = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS_SUFFIXES)


@dataclass(frozen=True)
class File:
    """One file of a commit."""

    size: int  # bytes of the content
    oid: str  # git's SHA-1: of the content, or of the pointer to it
    lfs: str | None = None  # the SHA-256 of the content, if it is in LFS

    @property
    def key(self) -> str:
        """The name of its blob, and what the hub gives as its ETag."""
        return self.lfs or self.oid


def is_lfs(path: str, size: int) -> bool:
    """Whether the hub wants this file in LFS; empty files never are."""
    return size > 0 and (size >= LFS_SIZE or path.endswith(LFS_SUFFIXES))


def git_oid(data: bytes, kind: str = "blob") -> str:
    """The name that git gives these bytes."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git has in place of a file that is in LFS."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256}", f"size {size}")
    return "".join(line + "\n" for line in lines).encode()


def lfs_file(sha256: str, size: int) -> File:
    """The file of a commit whose content is in LFS."""
    return File(size, git_oid(pointer(sha256, size)), sha256)


def sha256_of(content: bytes | Path) -> str:
    """In hexadecimal."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    total, space = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(content, "rb", buffering=0) as file:
        while count := file.readinto(space):
            total.update(space[:count])
    return total.hexdigest()
