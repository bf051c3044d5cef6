"""The lock of a state folder, and whether a folder of that name is one."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from .calls import let_go
from .errors import TargetError, listed, shown
from .fence import is_link

TEMPORARY = ".tmp"
REMOVED = (".nfs", ".fuse_hidden")  # what is removed while it is open, on such filesystems


class BusyError(TargetError):
    """Another run is at work."""


@contextlib.contextmanager
def locked(state: Path, target: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a state folder: alone, or with others that share it."""
    lock = state / "lock"
    finished = TargetError(f"another run has just finished {shown(target)}; run again")
    try:
        fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:  # it has removed the folder
        raise finished from None
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another run is writing {shown(target)}") from None
        except OSError:  # a filesystem without locks: unique names keep the bytes right
            pass
        if not _same_file(lock, fd):
            raise finished
        yield
    finally:
        let_go(fd)


def check_own(state: Path) -> None:
    """Refuse what has the state folder's name and was not made by a run: it would be emptied."""
    if not os.path.lexists(state):
        return
    if state.is_symlink() or not state.is_dir():
        raise TargetError(f"{shown(state)} is where unfinished work goes, and no folder: move it")
    if odd := [name for name in sorted(os.listdir(state)) if not _is_own(name)]:
        raise TargetError(
            f"{shown(state)} is where unfinished work goes, and holds {listed(odd)}, "
            "which no run has made: move it"
        )


def _is_own(name: str) -> bool:
    made = name in ("lock", "job.json", "journal", "out") or is_link(name)
    return made or name.endswith(TEMPORARY) or name.startswith(REMOVED)


def _same_file(path: Path, fd: int) -> bool:
    """Whether ``path`` is still the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
