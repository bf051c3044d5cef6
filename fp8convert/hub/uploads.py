"""Finished files on their way to the hub, by a few threads, while others are being written."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import ResumableError, listed
from ..fileio import hash_file
from ..journal import Record
from . import xet
from .branch import Branch

THREADS = 2
MOST_WAITING = 2  # finished files, beyond which none is begun if they are to be dropped
TELL_EVERY_S = 0.2


class File(NamedTuple):
    """A finished file; its SHA-256 is taken if there is none. ``drop``: it goes once it is sent."""

    name: str
    path: Path
    size: int
    sha256: str | None
    drop: bool = False


class Uploads:
    """Files that are sent ahead of the commit that makes them visible.

    ``there``: sums of objects that the hub's store has. ``sums``: of the files that were sent, or
    are to be in the commit itself. ``gone``: those that are on the hub only.
    """

    def __init__(self, branch: Branch) -> None:
        self.branch = branch
        self.there: set[str] = set()
        self.sums: dict[str, str] = {}
        self.gone: dict[str, Record] = {}
        self._changed = threading.Condition()  # holds everything here
        self._queue: deque[File] = deque()
        self._going: list[File] = []
        self._moved: dict[str, int] = {}  # bytes sent, by name
        self._total = 0
        self._threads = 0
        self._error: BaseException | None = None

    def look(self, sizes: dict[str, int]) -> None:
        """Ask which objects, by SHA-256, need not be sent."""
        if unknown := {s: size for s, size in sizes.items() if s not in self.there}:
            self.there |= self.branch.holds(unknown)

    def add(self, file: File) -> None:
        """Send it when its turn comes."""
        with self._changed:
            self._queue.append(file)
            self._total += file.size
            if self._threads < THREADS:
                self._threads += 1
                # A daemon: whoever ends the process does not wait for gigabytes to be sent.
                threading.Thread(target=self._work, name="fp8convert-upload", daemon=True).start()
            self._changed.notify_all()

    def has_room(self) -> bool:
        """Whether another file may be begun; raises what went wrong with one before."""
        with self._changed:
            self._check()
            waiting = [*self._queue, *self._going]
            return sum(file.drop for file in waiting) < MOST_WAITING

    def wait_for_room(self) -> None:
        """Until one may."""
        while not self.has_room():
            self._pause()

    def settle(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Until everything is there, also what is here no more."""
        while self._left():
            if progress:
                progress(*self._so_far())
            self._pause()
        sizes = sizes_of(self.gone.values())
        self.there = (self.there - sizes.keys()) | self.branch.holds(sizes)
        if lost := [r.file for r in self.gone.values() if r.sha256 not in self.there]:
            raise ResumableError(f"the hub has lost {listed(sorted(lost))}: they are made again")

    def stop(self) -> None:
        """Nothing more is sent; whoever waits is told so."""
        with self._changed:
            self.branch.stopped.set()
            self._changed.notify_all()
            sending = bool(self._going)
        if sending:
            xet.abort()  # it does not ask whether to go on

    def _left(self) -> bool:
        with self._changed:
            self._check()
            return bool(self._queue or self._going)

    def _so_far(self) -> tuple[int, int]:
        with self._changed:
            return sum(self._moved.values()), self._total

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait(TELL_EVERY_S)

    def _check(self) -> None:
        if self._error:
            raise self._error
        if self.branch.stopped.is_set():
            raise ResumableError("interrupted")

    def _work(self) -> None:
        while file := self._next():
            try:
                self._send(file)
            except BaseException as e:
                with self._changed:
                    self._error = self._error or e
            with self._changed:
                self._going.remove(file)
                self._changed.notify_all()

    def _next(self) -> File | None:
        with self._changed:
            while not self._queue and not self._over():
                self._changed.wait()
            if self._over():
                return None
            self._going.append(self._queue.popleft())
            return self._going[-1]

    def _over(self) -> bool:
        return self._error is not None or self.branch.stopped.is_set()

    def _send(self, file: File) -> None:
        sha256 = file.sha256 or hash_file(file.path, self.branch.stopped.is_set)
        kept = sha256 in self.there
        if not kept:
            with self._changed:
                self._moved[file.name] = 0
            seen = lambda nbytes: self._seen(file, nbytes)  # noqa: E731
            kept = self.branch.send(file.name, file.path, sha256, seen, plain=file.drop)
        with self._changed:
            self._moved[file.name] = file.size
            self.sums[file.name] = sha256
            if kept:
                self.there.add(sha256)
            if kept and file.drop:
                self.gone[file.name] = Record(file.name, file.size, sha256, {}, {})
                os.unlink(file.path)

    def _seen(self, file: File, nbytes: int) -> None:
        if self.branch.stopped.is_set():
            raise ResumableError("interrupted")
        with self._changed:
            self._moved[file.name] = min(self._moved[file.name] + nbytes, file.size)


def sizes_of(records: Iterable[Record]) -> dict[str, int]:
    """By SHA-256, of those that have one."""
    return {r.sha256: r.size for r in records if r.sha256}
