"""Tools broken on purpose, or stopped at some method: tamperings.

A campaign that does not lose with a broken one proves nothing.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

from fp8convert import engine, fileio, plan, publish, taskrun
from fp8convert.journal import Record
from fp8convert.plan import Task
from fp8convert.publish import Staging
from fp8convert.target import MANIFEST

from .. import crash
from ..crash import CHANGES, nothing, trace


def broken(how: str, name: str = "", *args: Any) -> None:
    """A tampering: break the tool, then tamper as another one does."""
    globals()[how]()
    if name:
        (globals().get(name) or crash._tampering(name))(*args)


def slowly(seconds: float) -> None:
    """A tampering: sleep before every call that changes something."""
    trace(setattr, CHANGES, lambda name, args: time.sleep(seconds), nothing)


def at(module: str, owner: str, method: str, signum: int, number: int = 1) -> None:
    """A tampering: a signal right before the ``number``-th call of a method."""
    of = getattr(importlib.import_module(f"fp8convert.{module}"), owner)
    real, counted = getattr(of, method), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted == number:  # to this thread: nothing more is done in it, whichever it is
            signal.pthread_kill(threading.get_ident(), signum)
        return real(*args, **kwargs)

    setattr(of, method, call)


def version(number: str) -> None:
    """A tampering: be another version of the tool."""
    plan.VERSION = number


def in_place() -> None:
    """The target is built under its final name."""
    Staging.out = property(lambda self: self.target)
    Staging.finished = lambda self, source: None
    Staging.clear = lambda self: shutil.rmtree(self.state)


def manifest_last() -> None:
    """The target gets its final name before it has its manifest."""
    real = Staging._write

    def write(self: Staging, path: Path, data: bytes) -> None:
        if path.name != MANIFEST:
            return real(self, path, data)
        os.rename(self.out, self.target)
        real(self, self.target / path.name, data)
        os.rename(self.target, self.out)

    Staging._write = write


def believing() -> None:
    """Files are written under their final names, and believed by their sizes without a record."""

    def recorded(self: Staging, task: Task) -> Record | None:
        path = self.out / task.file
        errors = {i.weight.name: [0.0] * 3 for i in task.items if i.encoding}
        if not path.exists() or path.stat().st_size != task.size:
            return None
        return Record(task.file, task.size, fileio.hash_file(path), {}, errors)

    Staging.recorded = recorded
    Staging.temporary = lambda self, folder, name: folder / name


def unsweeping() -> None:
    """A resumption leaves the temporaries of the run before."""
    Staging._sweep = lambda self: None


def untidy() -> None:
    """What a run killed after the last rename has left stays."""
    Staging.tidy = lambda self, *args: None


def unhashing() -> None:
    """A resumption believes a journaled file by its size."""
    engine.Engine._sound = lambda self, record: True


def deaf() -> None:
    """Signals do nothing."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal = lambda *args: None


def messy() -> None:
    """A run that is interrupted leaves its temporaries."""
    taskrun.TaskRun.abandon = lambda self: None


def forgetful() -> None:
    """A resumption goes on with whatever was begun."""
    publish.differences = lambda before, now, path="": []


def unwatchful() -> None:
    """Nobody looks whether the source is still the one that was planned."""
    fileio.SourceFile.check_unchanged = lambda self: None


def careless() -> None:
    """Whatever has the state folder's name is taken for one."""
    publish.check_own = lambda state: None
