"""Feeds that bring shards late, in any order, or not at all."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fp8convert.errors import ResumableError
from fp8convert.fileio import SourceFile
from fp8convert.folder import Folder
from fp8convert.origin import Direct, Scratch, Shard, Wanted

from .crash import Set


class Strict(Direct):
    """Has the shards of what is begun, and no other; ``errors`` is what was asked for besides.

    A group is begun when it was told that it is ready; it has its shards until each of its files
    is done. Then they go, if no later one needs them, and must not be open any more.
    """

    def __init__(
        self, origin: Folder, shards: Sequence[Shard], wanted: Iterable[Wanted], scratch: Scratch
    ) -> None:
        super().__init__(origin, shards)
        self.wanted = list(wanted)
        self.group = {file: group for group in self.wanted for file in group.files}
        self.scratch, self.origin, self.shards = scratch, origin, shards
        self.lock = threading.Condition()
        self.begun: set[str] = set()
        self.finished: list[str] = []
        self.files: dict[int, list[SourceFile]] = {}  # what was opened, by shard
        self.errors: list[str] = []
        self.calls: list[str] = []  # of begin, stop and close
        self.waited: list[str] = []

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """It is a run that is to be fed, not somebody who asks."""
        self.calls.append("begin")
        self.leaving, self.arrived = leaving, arrived

    def ready(self, file: str) -> bool:
        """Whether; if so, its group may be begun."""
        with self.lock:
            found = self.is_there(self.group[file])
            self.begun |= set(self.group[file].files) if found else set()
            return found

    def is_there(self, group: Wanted) -> bool:
        """Whether its shards are: here they always are."""
        return True

    def wait(self, file: str) -> None:
        """Until they are, or all is stopped."""
        with self.lock:
            self.waited.append(file)
            self.lock.wait_for(lambda: "stop" in self.calls or self.is_there(self.group[file]))
            if "stop" in self.calls:
                raise ResumableError("stopped")
            self.begun |= set(self.group[file].files)

    def opened(self, shard: int, io: str) -> SourceFile:
        """A shard of what is begun and not done."""
        made = self.origin.opened(self.shards[shard], io)
        with self.lock:
            self.files.setdefault(shard, []).append(made)
            at_work = self.begun - set(self.finished)
            if not any(shard in self.group[file].shards for file in at_work):
                self.errors.append(f"shard {shard} for {sorted(at_work)}")
        return made

    def done(self, file: str) -> None:
        """What was only for its group goes, with its last file."""
        with self.lock:
            if file not in self.begun or file in self.finished:
                self.errors.append(f"{file} done")
            self.finished.append(file)
            group, left = self.group[file], set(self.group) - set(self.finished)
            needed = {shard for other in left for shard in self.group[other].shards}
        for shard in group.shards - needed if not left & set(group.files) else ():
            self.leaving(shard)  # without our lock: it has one of its own, and asks us under that
            if any(found.fd >= 0 for found in self.files.get(shard, ())):
                self.errors.append(f"shard {shard} is open")
        with self.lock:
            self.lock.notify_all()

    def stop(self) -> None:
        """Count it; who waits goes on."""
        with self.lock:
            self.calls.append("stop")
            self.lock.notify_all()

    def close(self) -> None:
        """Count it."""
        self.calls.append("close")


class Coming(Strict):
    """Shards come one by one from another thread, in random order."""

    def __init__(self, *args: Any, seed: int = 0) -> None:
        super().__init__(*args)
        self.there: set[int] = set()
        self.order = sorted({s for group in self.wanted for s in group.shards})
        random.Random(seed).shuffle(self.order)
        self.thread = threading.Thread(target=self._bring)

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """From now on."""
        super().begin(leaving, arrived)
        self.thread.start()

    def is_there(self, group: Wanted) -> bool:
        """Whether they have come."""
        return group.shards <= self.there

    def _bring(self) -> None:
        for shard in self.order:
            self.arrived(self.shards[shard].size)
            with self.lock:
                self.there.add(shard)
                self.lock.notify_all()

    def close(self) -> None:
        """The end of its thread too."""
        super().close()
        self.thread.join()


class Tight(Strict):
    """Has room for the shards of one group, until each file of that is done."""

    def is_there(self, group: Wanted) -> bool:
        """Whether those before it are done."""
        before = self.wanted[: self.wanted.index(group)]
        return {file for g in before for file in g.files} <= set(self.finished)


Make = Callable[[Folder, Sequence[Shard], Iterable[Wanted], Scratch], Strict]


def feeding(set_attribute: Set, make: Make) -> Callable[[], Strict]:
    """Have the next run fed by what ``make`` makes: that."""
    made: list[Strict] = []

    def feed(
        self: Folder, shards: Sequence[Shard], wanted: Iterable[Wanted], scratch: Scratch
    ) -> Strict:
        made.append(make(self, shards, wanted, scratch))
        return made[-1]

    def fed() -> Strict:
        (found,) = [feed for feed in made if "begin" in feed.calls]
        return found

    set_attribute(Folder, "feed", feed)
    return fed
