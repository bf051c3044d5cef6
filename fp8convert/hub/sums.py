"""Sums of downloads: while they come in, so that a shard can be used as soon as it is there."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from ..calls import let_go
from ..errors import DataError, shown
from ..header import header_length
from ..origin import Shard
from .held import Held

STEP = 1 << 20  # bytes
PAUSE = 0.01  # seconds, when nothing more has come
INCOMPLETE = "*.incomplete"  # what huggingface_hub writes to


def sum_of(path: Path, held: Held, stopped: Callable[[], None]) -> str:
    """The sum of a file. Its pages stay cached: it is read next. ``stopped`` may raise."""
    hasher, buffer = held.hasher(), memoryview(bytearray(STEP))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            stopped()
            hasher.update(buffer[:n])
    return hasher.hexdigest()


def check_header(fd: int, shard: Shard) -> None:
    """DataError unless an open shard, whose sum is right, has the header that it was planned by:
    that came by itself, and nothing was known of its bytes."""
    length = header_length(os.pread(fd, 8, 0), shard.size, shown(shard.name))
    if hashlib.sha256(os.pread(fd, length, 8)).hexdigest() != shard.header_sha256:
        raise DataError(
            f"{shown(shard.name)} has another header than came when it was planned: that was "
            "damaged on its way; remove the unfinished work, and run the same again"
        )


class Follower:
    """Sums what comes into ``folder`` as it does, in a thread.

    It takes it that bytes are written once, in order. Where they are not the sum is wrong, and says
    nothing: whoever gets one that is not the expected one sums the file itself. But a file that is
    begun again might get, where it was summed before, other bytes: then there is no sum.
    """

    def __init__(self, folder: Path, held: Held) -> None:
        self._folder, self._hasher = folder, held.hasher()
        self.found, self._ended = threading.Event(), threading.Event()
        self._again = False  # whether it was begun again
        self._thread = threading.Thread(target=self._run, name="sums", daemon=True)
        self._thread.start()

    def begun_again(self) -> None:
        """Bytes that have come were thrown away."""
        self._again = True

    def end(self) -> str:
        """The sum of what came, and nothing more will; none if it was too short to be seen, or
        was begun again."""
        self._ended.set()
        self._thread.join()
        return self._hasher.hexdigest() if self.found.is_set() and not self._again else ""

    def _run(self) -> None:
        fd = -1
        try:
            while fd < 0 and not self._ended.wait(PAUSE):
                fd = self._opened()
            if fd >= 0:
                self.found.set()
                self._follow(fd)
        except OSError:
            pass  # the sum is wrong then
        finally:
            if fd >= 0:
                let_go(fd)

    def _opened(self) -> int:
        for path in self._folder.rglob(INCOMPLETE):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return -1

    def _follow(self, fd: int) -> None:
        buffer, at = memoryview(bytearray(STEP)), 0
        while True:
            last = self._ended.is_set()  # before what may be the last look
            if os.fstat(fd).st_size < at:
                self.begun_again()
            if n := os.preadv(fd, [buffer], at):
                self._hasher.update(buffer[:n])
                at += n
            elif last:
                return
            else:
                self._ended.wait(PAUSE)
