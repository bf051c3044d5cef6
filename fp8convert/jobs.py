"""The order of work: the tiles of a few files in turn, those of one band of a team as one job.

Nobody waits for ever. A worker waits only for earlier tiles of a file that it works on: for their
turn to be hashed, for scales in the spool, for what measuring tiles find. A file's tiles are given
out in its order, whether alone or with others': a file whose tile waits for its team gives out no
later one. So what a job waits for was given out in earlier jobs, and the earliest job unfinished
waits for nothing. And there always is a next job: where every file waits, the files do not have
their items in one order, and those of one band go on without the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .origin import Feed
from .plan import MOST_TOGETHER, Task
from .taskrun import TaskRun
from .teams import sharing, teams
from .tile import Shared, Tile
from .tiles import tiles

Job = list[tuple[TaskRun, Tile]]  # more than one tile: they are of one band


class _File(NamedTuple):
    run: TaskRun
    rest: Iterator[Tile]


class Jobs:
    """Jobs of ``tasks``, in tiles of ``limit`` bytes. ``begin`` opens a task's file; so many
    ``files`` are begun at once, and whole teams, each when the ``feed`` has what it is made of."""

    def __init__(
        self, tasks: Sequence[Task], begin: Callable[[Task], TaskRun], files: int, limit: int,
        feed: Feed,
    ) -> None:  # fmt: skip
        self._waiting = deque(teams(tasks))
        self._open, self._files, self._limit, self._feed = begin, files, limit, feed
        self._going: deque[_File] = deque()
        self._met: dict[tuple[Shared, int], list[tuple[_File, Tile]]] = {}  # who waits, by band

    def __iter__(self) -> Iterator[Job]:
        """Each file is hashed in order, so only several at a time keep the cores busy."""
        while True:
            while self._may_begin():
                self._begin(self._waiting.popleft())
            if self._going:
                yield from self._next()
            elif self._met:
                yield self._together(next(iter(self._met)))
            else:
                return

    def _may_begin(self) -> bool:
        begun = len(self._going) + sum(map(len, self._met.values()))
        if not self._waiting:
            return False
        if not begun:  # nothing else is to be done meanwhile
            self._feed.wait(self._waiting[0][0].file)
            return True
        room = begun < self._files and begun + len(self._waiting[0]) <= MOST_TOGETHER
        return room and self._feed.ready(self._waiting[0][0].file)

    def _begin(self, team: Sequence[Task]) -> None:
        for task, shared in zip(team, sharing(team, self._limit), strict=True):
            self._going.append(_File(self._open(task), tiles(task, self._limit, shared)))

    def _next(self) -> Iterator[Job]:
        """The next tile of the file whose turn it is, unless that tile has to wait."""
        file = self._going.popleft()
        tile = next(file.rest, None)
        if tile is None:
            return
        if tile.band is None:
            self._going.append(file)
            yield [(file.run, tile)]
            return
        met = self._met.setdefault(tile.band, [])
        met.append((file, tile))
        if len(met) == tile.band[0].files:
            yield self._together(tile.band)

    def _together(self, band: tuple[Shared, int]) -> Job:
        met = self._met.pop(band)
        self._going += [file for file, _ in met]
        return [(file.run, tile) for file, tile in met]
