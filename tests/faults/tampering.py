"""What can be done to a child of :class:`tests.crash.Forker` before its command begins."""

from __future__ import annotations

import importlib
import os
import resource
from typing import Any

from .disk import enter
from .shim import arm, pretend

__all__ = ["arm", "bound", "enter", "join_cgroup", "limit", "pretend", "record_early", "several",
           "umask"]  # fmt: skip


def several(*tamperings: list[Any]) -> None:
    """One after the other; each is a name and its arguments."""
    for name, *args in tamperings:
        module, _, function = name.rpartition(":")
        where = f"{__package__}.{module}" if module else __name__
        getattr(importlib.import_module(where), function)(*args)


def limit(name: str, value: int) -> None:
    """A resource limit such as RLIMIT_FSIZE."""
    resource.setrlimit(getattr(resource, name), (value, value))


def bound(memory: int = 1 << 30, seconds: int = 10) -> None:
    """So much more address space than the process has, and so much processor time."""
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    limit("RLIMIT_AS", now + memory)
    limit("RLIMIT_CPU", seconds)


def umask(mode: int) -> None:
    """Of the files to be made."""
    os.umask(mode)


def join_cgroup(folder: str) -> None:
    """Be accounted there from now on."""
    with open(f"{folder}/cgroup.procs", "w") as f:
        f.write(str(os.getpid()))


def record_early() -> None:
    """A broken tool: journals each file of tensors first, and makes its bytes durable then.

    Nor does it drop its pages, which has the kernel write them.
    """
    from fp8convert import fileio
    from fp8convert.journal import Record
    from fp8convert.publish import Staging

    record, durable = Staging.record, fileio.sync

    def recorded(self: Staging, made: Record) -> None:
        record(self, made)
        with open(self.out / made.file, "rb") as f:
            durable(f.fileno())

    vars(fileio)["sync"] = lambda fd: None  # durable has its own name for the real one
    setattr(fileio._File, "_drop", lambda self, begin, length: None)  # noqa: B010
    setattr(Staging, "record", recorded)  # noqa: B010 (a method is not to be assigned to)
