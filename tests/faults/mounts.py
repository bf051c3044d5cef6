"""Small filesystems in memory, and folders that are read-only, for a test and its children alone.

They are of a mount namespace of their own (see :mod:`.disk`), so a test that is killed leaves none.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError

from .disk import private_mounts, run

PAGE = 4096  # what tmpfs counts in, on most machines; a larger one leaves less room, not more


@functools.cache
def missing() -> str:
    """Why nothing can be mounted here, or nothing."""
    if os.uname().sysname != "Linux" or os.geteuid():
        return "mounting a filesystem needs Linux and root"
    if not shutil.which("mount"):
        return "mount is not installed"
    try:
        with (
            private_mounts(),
            tempfile.TemporaryDirectory() as folder,
            tmpfs(Path(folder) / "some", 1 << 20) as made,
            read_only(made),
        ):
            return ""
    except (OSError, CalledProcessError) as e:
        return f"a tmpfs cannot be mounted: {getattr(e, 'stderr', None) or e!r}"


@contextlib.contextmanager
def tmpfs(where: Path, size: int, inodes: int = 0) -> Iterator[Path]:
    """A filesystem of ``size`` bytes and, if given, so many inodes."""
    where.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", _options(size, inodes), "tmpfs", where)
    try:
        yield where
    finally:
        run("umount", "-l", where)


def resize(where: Path, size: int, inodes: int = 0) -> None:
    """Give a tmpfs another size; without ``inodes`` it has as many as it had."""
    run("mount", "-o", f"remount,{_options(size, inodes)}", where)


@contextlib.contextmanager
def read_only(where: Path) -> Iterator[Path]:
    """A folder that cannot be written to, whoever asks."""
    run("mount", "--bind", where, where)
    try:
        run("mount", "-o", "remount,bind,ro", where)
        yield where
    finally:
        run("umount", "-l", where)


def free(where: Path) -> int:
    """Bytes that can be written."""
    return shutil.disk_usage(where).free


def fill(where: Path, left: int) -> Path:
    """Write a file of zeros that leaves about ``left`` bytes free."""
    ballast = where / "ballast"
    with open(ballast, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, max(free(where) - left, PAGE))
    return ballast


def fill_inodes(where: Path, left: int) -> Path:
    """Make empty files until ``left`` more can be made."""
    ballast = where / "ballast"
    ballast.mkdir()
    for n in range(max(os.statvfs(where).f_favail - left, 0)):
        (ballast / str(n)).touch()
    return ballast


def remove(ballast: Path) -> None:
    """Take it away."""
    if ballast.is_dir():
        shutil.rmtree(ballast)
    else:
        ballast.unlink()


def _options(size: int, inodes: int) -> str:
    return f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
