"""What may become of a file that should have stayed as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]


def flipped(data: bytes, at: int) -> bytes:
    """With one bit changed."""
    found = bytearray(data)
    found[at] ^= 4
    return bytes(found)


def truncated(path: Path) -> None:
    """One byte less."""
    os.truncate(path, path.stat().st_size - 1)


def grown(path: Path) -> None:
    """One byte more."""
    path.write_bytes(path.read_bytes() + b"\0")


def first_bit(path: Path) -> None:
    """One bit of the first byte."""
    path.write_bytes(flipped(path.read_bytes(), 0))


def last_bit(path: Path) -> None:
    """One bit of the last byte."""
    path.write_bytes(flipped(path.read_bytes(), -1))


def cut(path: Path) -> None:
    """Half of it."""
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    """None of its bytes."""
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    """Zeros in their place."""
    path.write_bytes(bytes(path.stat().st_size))


def garbage(path: Path) -> None:
    """What no program writes."""
    path.write_bytes(b"\0\xff" * 300)


def folder(path: Path) -> None:
    """A folder of that name."""
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    """A pipe of that name."""
    path.unlink()
    os.mkfifo(path)


def link_to_the_same(path: Path) -> None:
    """To the very bytes, elsewhere: what is not a file of its own is not to be published."""
    aside = path.with_name("aside")
    shutil.copy2(path, aside)
    path.unlink()
    path.symlink_to(aside)


def dangling(path: Path) -> None:
    """A link to nothing."""
    path.unlink()
    path.symlink_to("nowhere")


def touched(path: Path) -> None:
    """Another time, and no other byte."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def replaced(path: Path) -> None:
    """Another file, of the same bytes."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
