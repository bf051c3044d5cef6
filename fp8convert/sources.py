"""Open shards, few at a time however many a checkpoint has, each checked before it is let go."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from .catalogue import Catalogue
from .fileio import SourceFile

LIMIT = 48  # two descriptors each; macOS gives a process 256


class Sources:
    """Shards by number, shared by all tasks; those not in use are closed beyond ``LIMIT``."""

    def __init__(self, catalogue: Catalogue, io: str) -> None:
        self._catalogue, self.io = catalogue, io
        self._open: OrderedDict[int, SourceFile] = OrderedDict()
        self._users: dict[int, int] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self, shard: int) -> Iterator[SourceFile]:
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

    def _opened(self, shard: int) -> SourceFile:
        idle = [n for n in self._open if not self._users.get(n)]
        for number in idle[: len(self._open) + 1 - LIMIT]:
            file = self._open.pop(number)
            try:
                file.check_unchanged()
            finally:
                file.close()
        s = self._catalogue.shards[shard]
        fd = self._catalogue.folder.open(s.name, "shard")
        return SourceFile(fd, s.name, self.io, s.size, s.mtime_ns)

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
