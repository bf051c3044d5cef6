"""Where scales wait: they are known with their codes, but lie behind all codes of their file.

Files are hashed in order, so the scales of a file are kept in another one, without a name, until
every code is written; then the tiles at the end of the file are read from it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from .calls import discard, let_go, naming
from .errors import DataError, ResumableError
from .plan import Task

if TYPE_CHECKING:
    from .codecs.base import Bytes


class Spool:
    """One task's. ``path`` is one that no one else uses; it is gone at once."""

    def __init__(self, task: Task, path: Path) -> None:
        parts = [i for i in task.items if i.part and i.encoding]
        self._begins = {(i.encoding.parts[0].name, i.part): i.begin for i in parts if i.encoding}
        self._first = min((i.begin for i in parts), default=0)
        self._missing = sum(i.nbytes for i in parts)
        self._name = path.name
        self._fd = _nameless(path) if parts else -1
        self._turn = threading.Condition()
        self._stopped = False

    def put(self, codes: str, part: int, offset: int, raw: Bytes) -> None:
        """Bytes from ``offset`` on of a part of the weight whose codes are named so."""
        at = self._begins[codes, part] - self._first + offset
        view, done = raw.data, 0
        with naming(self._name):
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], at + done)
        with self._turn:
            self._missing -= len(view)
            self._turn.notify_all()

    def read(self, begin: int, out: Bytes) -> None:
        """Fill ``out`` with the file's bytes from ``begin`` on, once all of them are there."""
        with self._turn:
            self._turn.wait_for(lambda: self._stopped or not self._missing)
            if self._stopped:
                raise ResumableError("stopped")
        got, view = 0, out.data
        while got < len(view):
            with naming(self._name):
                n = os.preadv(self._fd, [view[got:]], begin - self._first + got)
            if not n:
                raise DataError("the spool of scales ended too early")
            got += n

    def stop(self) -> None:
        """Wake whoever waits, with an error."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def close(self) -> None:
        """Give its room back; harmless when done twice. What was in it is not needed any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            let_go(fd)


def _nameless(path: Path) -> int:
    """A file that is gone when it is closed, or when the process dies."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(path)
    except BaseException:
        let_go(fd)
        discard(path)
        raise
    return fd
