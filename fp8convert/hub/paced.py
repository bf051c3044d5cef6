"""A run that goes no faster than its files are sent, so that they do not fill the disk."""

from __future__ import annotations

from collections.abc import Callable

from ..origin import Feed, Readable
from ..plan import MOST_FILES, MOST_TOGETHER, Plan
from .uploads import MOST_WAITING, Uploads


class Paced:
    """A feed of which no more is asked while too much waits to be sent."""

    def __init__(self, feed: Feed, uploads: Uploads) -> None:
        self._feed, self._uploads = feed, uploads

    @property
    def room(self) -> int:
        """As that feed's."""
        return self._feed.room

    @property
    def memory(self) -> int:
        """As that feed's."""
        return self._feed.memory

    def begin(self, leaving: Callable[[int], None], arrived: Callable[[int], None]) -> None:
        """As that feed's."""
        self._feed.begin(leaving, arrived)

    def ready(self, file: str) -> bool:
        """As that feed's, if there is room."""
        return self._uploads.has_room() and self._feed.ready(file)

    def wait(self, file: str) -> None:
        """As that feed's, once there is room."""
        self._uploads.wait_for_room()
        self._feed.wait(file)

    def opened(self, shard: int, io: str) -> Readable:
        """As that feed's."""
        return self._feed.opened(shard, io)

    def done(self, file: str) -> None:
        """As that feed's."""
        self._feed.done(file)

    def stop(self) -> None:
        """Nothing is sent any more either."""
        self._feed.stop()
        self._uploads.stop()

    def close(self) -> None:
        """As that feed's; what is on its way goes on."""
        self._feed.close()


def most_at_once(plan: Plan) -> int:
    """Bytes on the disk of a plan whose weights are dropped: the files at work, those that wait."""
    together = MOST_TOGETHER if any(t.team >= 0 for t in plan.tasks) else MOST_FILES
    sizes = sorted(task.size for task in plan.tasks)
    beside = plan.disk_needed - sum(sizes)  # small files, spools
    return sum(sizes[-together - MOST_WAITING :]) + beside
