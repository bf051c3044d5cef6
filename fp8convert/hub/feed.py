"""Shards of the hub for a run: downloaded a few ahead, gone when nobody needs them any more."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..calls import let_go
from ..errors import ResumableError
from ..fileio import SourceFile
from ..origin import Scratch, Shard, Wanted
from . import xet
from .demand import Demand
from .download import Downloads
from .ledger import Ledger, Step
from .scratch import Slot
from .sums import check_header

if TYPE_CHECKING:
    from .repo import HubRepo

PATIENCE = 0.5  # seconds that downloads get to end
MEMORY, LANE_MEMORY = 48 << 20, 32 << 20  # bytes: huggingface_hub, and its buffers for a download


class HubFeed:
    """See :class:`~fp8convert.origin.Feed`. UsageError if the scratch is too small, or none."""

    def __init__(
        self, repo: HubRepo, shards: Sequence[Shard], wanted: Sequence[Wanted], scratch: Scratch
    ) -> None:
        self._demand = Demand(repo, shards, wanted, scratch)
        self._paths = dict(self._demand.here)
        self._mtimes = {n: p.stat().st_mtime_ns for n, p in self._paths.items()}
        self._files = [set(w.files) for w in wanted]  # that are not finished
        self._group = {file: g for g, w in enumerate(wanted) for file in w.files}
        self._changed = threading.Condition()
        self._ledger = self._new_ledger(())
        self._error: BaseException | None = None
        self._stopped = False
        self._slot: Slot | None = None
        self._downloads: Downloads | None = None
        self._threads: list[threading.Thread] = []
        self._leaving: Callable[[int], None] = _nothing
        self._arrived: Callable[[int], None] = _nothing
        self._latest, self._first_bytes = -1, 0  # download; how much of it before another begins

    def _new_ledger(self, left: Iterable[int]) -> Ledger:
        d = self._demand
        return Ledger(d.groups, d.sizes, d.size, d.scratch.keep, left)

    @property
    def room(self) -> int:
        """Bytes that it may fill, beside what is in the scratch already."""
        return self._demand.room

    @property
    def memory(self) -> int:
        """Bytes."""
        lanes = self._demand.lanes
        return MEMORY + (xet.memory() + lanes * LANE_MEMORY if lanes else 0)

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """Take a place in the scratch, and begin to download."""
        scratch = self._demand.scratch
        root = scratch.folder
        if root is None or not (self._demand.sizes or root.is_dir()):
            return
        xet.tame(self._demand.lanes)
        self._leaving, self._arrived = leaving, arrived
        self._slot = Slot(root, self._demand.name, scratch.own, scratch.keep)
        self._downloads = Downloads(self._demand.repo.pinned, self._slot)
        left = self._slot.left(self._demand.by_name, self._demand.size)
        numbers = self._demand.numbers
        self._paths |= {numbers[name]: self._slot.place(name) for name in left}
        self._ledger = self._new_ledger(numbers[name] for name in left)
        self._threads = [
            threading.Thread(target=self._run, name=f"download-{n}", daemon=True)
            for n in range(self._demand.lanes)
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
                    share = self._demand.sizes[step.shard] // self._demand.lanes
                    self._first_bytes = share if step.fetch else 0
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
        name = self._demand.shards[n].name
        held = self._demand.repo.held(name, "shard")
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
        path, planned = self._paths[shard], self._demand.shards[shard]
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            check_header(fd, planned)
        except BaseException:
            let_go(fd)
            raise
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
            finished = self._ledger.finished
        if self._downloads:
            self._downloads.stop()
        if not finished and any(thread.is_alive() for thread in self._threads):
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
