"""Memory limits that the kernel enforces: a control group, version 1 or 2."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
_numbers = itertools.count()


class Group(NamedTuple):
    """A control group; what enters it (see :func:`tests.faults.tampering.join_cgroup`) is held to
    its limit, and killed if it cannot keep to it."""

    folder: Path
    version: int

    def limit(self, nbytes: int) -> None:
        """Set it; swap does not help."""
        one = self.version == 1
        (self.folder / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(nbytes))
        swap = self.folder / ("memory.memsw.limit_in_bytes" if one else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(nbytes if one else 0))

    def kills(self) -> int:
        """Processes killed for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        lines = (line.split() for line in (self.folder / name).read_text().splitlines())
        return sum(int(line[1]) for line in lines if line[0] == "oom_kill")


@functools.cache
def missing() -> str:
    """Why no control group can be had here, or nothing."""
    if os.uname().sysname != "Linux" or os.geteuid():
        return "a memory limit needs Linux and root"
    try:
        with group() as made:
            made.limit(1 << 30)
            made.kills()
            return ""
    except OSError as e:
        return f"no control group for memory: {e}"


@contextlib.contextmanager
def group() -> Iterator[Group]:
    """A new one, without a limit; removed at the end."""
    parent, version = _parent()
    folder = parent / f"fp8convert-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    try:
        yield Group(folder, version)
    finally:
        _remove(folder)


def _parent() -> tuple[Path, int]:
    if (ROOT / "memory" / "cgroup.procs").exists():
        return ROOT / "memory", 1
    wanted = ROOT / "cgroup.subtree_control"
    if "memory" not in wanted.read_text().split():
        wanted.write_text("+memory")
    return ROOT, 2


def _remove(folder: Path) -> None:
    """Once the kernel has done with the processes that were in it."""
    for _ in range(200):
        try:
            folder.rmdir()
            return
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
            time.sleep(0.01)
    folder.rmdir()
