"""Shards of the hub for a run: downloaded a few ahead, gone when nobody needs them any more."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ResumableError, UsageError
from ..fileio import SourceFile
from ..origin import Scratch, Shard, Wanted
from . import xet
from .download import Downloads
from .ledger import Ledger, Step, least
from .scratch import Slot, is_there, kept, slot_name, waiting

if TYPE_CHECKING:
    from .repo import HubRepo

AHEAD = 4  # shards that wait, or come, where nothing else is said
LANES = 4  # downloads at once, at most
PATIENCE = 0.5  # seconds that downloads get to end
MEMORY, LANE_MEMORY = 48 << 20, 32 << 20  # bytes: huggingface_hub, and its buffers for a download


class HubFeed:
    """See :class:`~fp8convert.origin.Feed`. UsageError if the scratch is too small, or none."""

    def __init__(
        self, repo: HubRepo, shards: Sequence[Shard], wanted: Sequence[Wanted], scratch: Scratch
    ) -> None:
        self._repo, self._shards, self._scratch = repo, shards, scratch
        self._name = slot_name(repo.pinned)
        numbers = sorted({n for w in wanted for n in w.shards})
        self._paths = {n: p for n in numbers if (p := self._there(shards[n]))}
        self._sizes = {n: shards[n].size for n in numbers if n not in self._paths}
        self._groups = [w.shards & self._sizes.keys() for w in wanted]
        self._files = [set(w.files) for w in wanted]  # that are not finished
        self._group = {file: g for g, w in enumerate(wanted) for file in w.files}
        self._size = self._bound(scratch)
        self._mtimes = {n: p.stat().st_mtime_ns for n, p in self._paths.items()}
        self._changed = threading.Condition()
        self._ledger = Ledger(self._groups, self._sizes, self._size, scratch.keep)
        self._error: BaseException | None = None
        self._stopped = False
        self._slot: Slot | None = None
        self._downloads: Downloads | None = None
        self._threads: list[threading.Thread] = []
        self._leaving: Callable[[int], None] = _nothing
        self._arrived: Callable[[int], None] = _nothing
        self._latest, self._first_bytes = -1, 0  # download; how much of it before another begins

    def _there(self, shard: Shard) -> Path | None:
        """Where it is if it is in a cache, or was kept by an earlier run; it stays there."""
        root = self._scratch.folder
        path = kept(root, self._name) / shard.name if root else None
        return path if path and is_there(path, shard.size) else self._repo.cached(shard.name)

    def _bound(self, scratch: Scratch) -> int:
        """Bytes of shards in the scratch at once; refuses less than is needed."""
        every = sum(self._sizes.values())
        need = every if scratch.keep else least(self._groups, self._sizes)
        largest = max(self._sizes.values(), default=0)
        size = min(every, need + AHEAD * largest) if scratch.size is None else scratch.size
        if size < need:
            why = "to keep all" if scratch.keep else "as files are made of so much at once"
            raise UsageError(f"--scratch-size {size:,} bytes, expected at least {need:,}: {why}")
        if need and scratch.folder is None:
            raise UsageError("--scratch DIR is needed, for downloads: the target is not on a disk")
        return size

    @property
    def _lanes(self) -> int:
        """Downloads at once."""
        largest = max(self._sizes.values(), default=1)
        return max(1, min(LANES, self._size // largest // 2 + 1, len(self._sizes)))

    @property
    def _by_name(self) -> dict[str, int]:
        """Shards that are not in the cache, and their numbers, in the order of use."""
        return {self._shards[n].name: n for g in self._groups for n in sorted(g)}

    @property
    def room(self) -> int:
        """Bytes that it may fill, beside what is in the scratch already."""
        if not self._sizes or self._scratch.folder is None:
            return 0
        sizes = {name: self._sizes[n] for name, n in self._by_name.items()}
        size = min(self._size, sum(sizes.values()))
        return max(0, size - waiting(self._scratch.folder, self._name, sizes))

    @property
    def memory(self) -> int:
        """Bytes."""
        return MEMORY + xet.memory() + self._lanes * LANE_MEMORY

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """Take a place in the scratch, and begin to download."""
        root = self._scratch.folder
        if root is None or not (self._sizes or root.is_dir()):
            return
        xet.tame(self._lanes)
        self._leaving, self._arrived = leaving, arrived
        self._slot = Slot(root, self._name, self._scratch.own, self._scratch.keep)
        self._downloads = Downloads(self._repo.pinned, self._slot)
        names = self._by_name
        left = self._slot.left({name: self._sizes[n] for name, n in names.items()}, self._size)
        self._paths |= {names[n]: self._slot.place(n) for n in left}
        self._ledger = Ledger(
            self._groups, self._sizes, self._size, self._scratch.keep, [names[n] for n in left]
        )
        self._threads = [
            threading.Thread(target=self._run, name=f"download-{n}", daemon=True)
            for n in range(self._lanes if self._sizes else 0)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while (step := self._next()) is not None:
                if step.fetch:
                    self._fetch(step.shard)
                else:
                    self._go([step.shard])
        except BaseException as e:
            with self._changed:
                self._error = self._error or e
                self._changed.notify_all()

    def _next(self) -> Step | None:
        """What to do, once there is something; None at the end.

        Downloads do not begin at the same time. They would come, and be converted, at the same
        time, and meanwhile, where there is little room, none would come.
        """
        with self._changed:
            while not (self._stopped or self._error or self._ledger.finished):
                if self._first_bytes <= 0 and (step := self._ledger.next()):
                    self._first_bytes = self._sizes[step.shard] // self._lanes * step.fetch
                    self._latest = step.shard
                    return step
                self._changed.wait()
        return None

    def _came(self, n: int, nbytes: int) -> None:
        with self._changed:
            if n == self._latest and self._first_bytes > 0:
                self._first_bytes -= nbytes
                self._changed.notify_all()
        self._arrived(nbytes)

    def _fetch(self, n: int) -> None:
        assert self._downloads
        name = self._shards[n].name
        held = self._repo.held(name, "shard")
        path = self._downloads.fetch(name, held, functools.partial(self._came, n))
        with self._changed:
            if n == self._latest:
                self._first_bytes = 0
            self._paths[n], self._mtimes[n] = path, path.stat().st_mtime_ns
            self._ledger.arrived(n)
            self._changed.notify_all()

    def _go(self, shards: Sequence[int]) -> None:
        for n in shards:
            self._leaving(n)  # without our lock: it may wait for who asks us for another
            self._paths[n].unlink()
            with self._changed:
                self._ledger.gone(n)
                self._changed.notify_all()

    def ready(self, file: str) -> bool:
        """Whether its shards are here. Raises what went wrong with any: the run would not end."""
        with self._changed:
            if self._error:
                raise self._error
            begun = self._ledger.begin(self._group[file])
            if begun:
                self._changed.notify_all()  # another group is the next
            return begun

    def wait(self, file: str) -> None:
        """Until they are."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.ready(file))
            if self._stopped:
                raise ResumableError("stopped")

    def opened(self, shard: int, io: str) -> SourceFile:
        """One of them."""
        path, planned = self._paths[shard], self._shards[shard]
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return SourceFile(fd, planned.name, io, planned.size, self._mtimes[shard])

    def done(self, file: str) -> None:
        """Shards that only it, and those written with it, were made of go."""
        group = self._group[file]
        with self._changed:
            self._files[group].discard(file)
            going = [] if self._files[group] else self._ledger.done(group)
            self._changed.notify_all()
        self._go(going)

    def stop(self) -> None:
        """No more; what is being downloaded ends at its next bytes."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._downloads:
            self._downloads.stop()
        if any(thread.is_alive() for thread in self._threads):
            xet.abort()

    def close(self) -> None:
        """Not waiting for a network that is silent: threads do not keep a process alive."""
        self.stop()
        end = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self._slot:
            self._slot.close()
            self._slot = None


def _nothing(number: int) -> None:
    """Nobody wants to know."""
