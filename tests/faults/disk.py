"""Filesystems of our own: small ext4 images on loop devices, in a mount namespace of their own.

What is mounted in a namespace goes with its last process, the loop device with its mount: nothing
is left behind by a test that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
TOOLS = ("mkfs.ext4", "e2fsck", "mount", "umount", "losetup")
MEGABYTES = 24
# Without these, ext4 writes out what was renamed over a file or has waited for five seconds: a
# forgotten fsync would rarely be seen.
STRICT = "noauto_da_alloc,commit=300"

_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def missing() -> str:
    """Why there are no such filesystems here, or nothing."""
    if os.uname().sysname != "Linux" or os.geteuid():
        return "mounting a filesystem needs Linux and root"
    if lost := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"not installed: {', '.join(lost)}"
    try:
        with private_mounts(), tempfile.TemporaryDirectory() as folder:
            image = new_image(Path(folder) / "image")
            with mounted(image, Path(folder) / "mounted"):
                return ""
    except (OSError, subprocess.CalledProcessError) as e:
        return f"an ext4 image cannot be mounted: {getattr(e, 'stderr', None) or e!r}"


def _checked(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """What this thread and its children mount meanwhile is seen by nobody else, and ends."""
    before, here = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), os.getcwd()
    try:
        _checked(_libc.unshare(CLONE_NEWNS), "unshare")
        try:
            run("mount", "--make-rprivate", "/")
            yield
        finally:
            _move(before)
            os.chdir(here)
    finally:
        os.close(before)


def _move(namespace: int) -> None:
    _checked(_libc.unshare(CLONE_FS), "unshare")  # or a thread that is just ending is in the way
    _checked(_libc.setns(namespace, CLONE_NEWNS), "setns")


def enter(pid: int) -> None:
    """See what a process has mounted for itself."""
    here = os.getcwd()
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _move(fd)
    os.close(fd)
    os.chdir(here)


def run(*command: object, pass_fds: Sequence[int] = ()) -> None:
    """Run a program that must succeed."""
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, pass_fds=pass_fds)


def new_image(path: Path, megabytes: int = MEGABYTES) -> Path:
    """An ext4 filesystem in a file; everything it will ever write by itself is written."""
    lazy = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    words = ("mkfs.ext4", "-q", "-F", "-b", 4096, "-J", "size=4", "-E", lazy)
    run(*words, path, f"{megabytes}M")
    return path


@contextlib.contextmanager
def mounted(image: Path, where: Path, options: str = "", kind: str = "ext4") -> Iterator[Path]:
    """Mount an image on the folder ``where``, replaying its journal."""
    where.mkdir(exist_ok=True)
    run("mount", "-t", kind, "-o", ",".join(filter(None, ("loop,noatime", options))), image, where)
    try:
        yield where
    except BaseException:
        run("umount", "-l", where)
        raise
    run("umount", where)


def broken(image: Path) -> str:
    """What e2fsck finds wrong with an image that is not mounted, or nothing."""
    words = ["e2fsck", "-fn", str(image)]
    found = subprocess.run(words, capture_output=True, text=True)
    return f"e2fsck: {found.stdout}" if found.returncode else ""


def copy_sparse(image: Path, to: Path) -> None:
    """Copy what is allocated of a file, as it is now."""
    with open(image, "rb") as f, open(to, "wb") as out:
        for begin, data in _extents(f):
            os.pwrite(out.fileno(), data, begin)
        out.truncate(os.fstat(f.fileno()).st_size)


def sum_of(image: Path) -> str:
    """The SHA-256 of what is allocated of a file, and where."""
    sha = hashlib.sha256()
    with open(image, "rb") as f:
        for begin, data in _extents(f):
            sha.update(begin.to_bytes(8, "little") + data)
    return sha.hexdigest()


def _extents(f: BinaryIO) -> Iterator[tuple[int, bytes]]:
    end, size = 0, os.fstat(f.fileno()).st_size
    while end < size:
        try:
            begin = os.lseek(f.fileno(), end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        end = os.lseek(f.fileno(), begin, os.SEEK_HOLE)
        yield begin, os.pread(f.fileno(), end - begin, begin)
