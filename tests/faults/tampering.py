"""What can be done to a child of :class:`tests.crash.Forker` before its command begins."""

from __future__ import annotations

import os
import resource
from typing import Any

from .shim import arm

__all__ = ["arm", "join_cgroup", "limit", "several", "umask"]


def several(*tamperings: list[Any]) -> None:
    """One after the other; each is a name and its arguments."""
    for name, *args in tamperings:
        globals()[name](*args)


def limit(name: str, value: int) -> None:
    """A resource limit such as RLIMIT_FSIZE."""
    resource.setrlimit(getattr(resource, name), (value, value))


def umask(mode: int) -> None:
    """Of the files to be made."""
    os.umask(mode)


def join_cgroup(folder: str) -> None:
    """Be accounted there from now on."""
    with open(f"{folder}/cgroup.procs", "w") as f:
        f.write(str(os.getpid()))
