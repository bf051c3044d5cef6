"""Open shards, few at a time however many a checkpoint has, each checked before it is let go."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from .origin import Feed, Readable

LIMIT = 48  # two descriptors each; macOS gives a process 256


class Sources:
    """Shards by number, shared by all tasks; those not in use are closed beyond ``LIMIT``."""

    def __init__(self, feed: Feed, io: str) -> None:
        self.feed, self.io = feed, io
        self._open: OrderedDict[int, Readable] = OrderedDict()
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self, shard: int) -> Iterator[Readable]:
        """The shard, open and unchanged since it was planned."""
        with self._lock:
            file = self._open.get(shard) or self._opened(shard)
            self._open[shard] = file
            self._open.move_to_end(shard)
            self._users[shard] = self._users.get(shard, 0) + 1
        try:
            yield file
        finally:
            with self._lock:
                self._users[shard] -= 1

    def _opened(self, shard: int) -> Readable:
        idle = [n for n in self._open if not self._users.get(n)]
        for number in idle[: len(self._open) + 1 - LIMIT]:
            file = self._open.pop(number)
            try:
                file.check_unchanged()
            finally:
                file.close()
        return self.feed.opened(shard, self.io)

    def forget(self, shard: int) -> None:
        """Close ``shard``, which nobody reads, and is about to go: open, it would keep its room."""
        with self._lock:
            file = self._open.pop(shard, None)
        if file is not None:
            try:
                file.check_unchanged()
            finally:
                file.close()

    def check(self, shards: set[int]) -> None:
        """Raise FormatError if one of ``shards`` changed (a closed one was checked then)."""
        with self._lock:
            for shard in shards & self._open.keys():
                self._open[shard].check_unchanged()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            for file in self._open.values():
                with contextlib.suppress(OSError):
                    file.close()
            self._open.clear()
