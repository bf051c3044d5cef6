"""Folders, names and small files made durable; and removed without leaving a thing behind."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from .calls import MOST, close, discard, let_go, naming, sync


def make_folder(folder: Path) -> None:
    """``mkdir -p``, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the filesystem can be asked to (EINVAL)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(str(folder)):
            os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    finally:
        let_go(fd)


def write(fd: int, data: bytes, name: str) -> None:
    """Write, sync and close, however little one call takes; after an error it is closed as well.

    Nothing is tried twice: what is in a file whose sync has failed nobody knows.
    """
    view = memoryview(data)
    with naming(name):
        try:
            while view:
                view = view[os.write(fd, view[:MOST]) :]
            sync(fd)
        except BaseException:
            let_go(fd)
            raise
        close(fd)


def remove(state: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as that is possible.

    Not by shutil.rmtree: it closes a descriptor twice if the first time is interrupted.
    """
    if state.is_symlink() or not state.is_dir():
        discard(state)
        return
    for folder, folders, files in os.walk(state, topdown=False):
        for name in [*files, *(n for n in folders if os.path.islink(Path(folder, n)))]:
            discard(Path(folder, name))
        with contextlib.suppress(OSError):
            os.rmdir(folder)
