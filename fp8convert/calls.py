"""System calls on one descriptor or path, with what their plain form leaves to the caller."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

MOST = 1 << 30  # bytes a call: macOS and Linux refuse or cut 2 GiB and more


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors of calls on a descriptor say which file it was."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or name
        raise


def close(fd: int) -> None:
    """Close; once, as Python does not retry it either: interrupted, it has closed all the same."""
    with contextlib.suppress(InterruptedError):
        os.close(fd)


def let_go(fd: int) -> None:
    """Close a descriptor that has written nothing: if that fails nothing is lost."""
    with contextlib.suppress(OSError):
        os.close(fd)


def discard(temporary: Path) -> None:
    """Remove a file that is not to be kept, if that is possible: the next run sweeps.

    Called after something else went wrong, which is what the user must hear of.
    """
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def read_all(fd: int, nbytes: int, begin: int, name: str) -> bytes:
    """``nbytes`` from ``begin`` on; fewer only where the file ends, whatever one call brings."""
    found = bytearray()
    with naming(name):
        while len(found) < nbytes:
            got = os.pread(fd, min(nbytes - len(found), MOST), begin + len(found))
            if not got:
                break
            found += got
    return bytes(found)


def sync(fd: int) -> None:
    """fsync that reaches the medium (on macOS plain fsync does not)."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # network filesystems do not know it
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)
