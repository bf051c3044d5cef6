"""One run at a time in a state folder, also where locks do not work.

Every run goes to what is in the state folder by a link of its own in it, which leads to the folder
it is in. Whoever begins removes the links of others: of a run that was killed, or is still at work.
From then on nothing that one writes, renames or removes is found any more, and it ends with 75.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .calls import discard
from .errors import ResumableError, shown

TOKEN = "run"
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
T = TypeVar("T")


class Fence:
    """The ``way`` of one run to what is in ``state``: just that, until it has taken over."""

    def __init__(self, state: Path, target: Path) -> None:
        self.state, self.target = state, target
        self.way = state

    def take_over(self, check: Callable[[], T]) -> T:
        """Make this the only run that can write here; what ``check`` found, which may refuse.

        It is asked before anything is done, and again when no other run can change the answer. The
        numbers in the links' names decide between runs that begin at once.
        """
        found = check()
        number = max((_number(link) for link in self._links()), default=0) + 1
        mine = f"{TOKEN}.{number}.{uuid.uuid4().hex}"
        try:
            os.symlink(".", self.state / mine)
        except OSError as e:
            if e.errno not in NO_LINKS:
                raise
            return found  # a filesystem without links: the lock has to do
        try:
            self.way = self.state / mine
            found = check()
            self._remove_others(mine)
        except BaseException:
            self.let_go()
            raise
        return found

    def _remove_others(self, mine: str) -> None:
        for link in self._links():
            if (_number(link), link) > (_number(mine), mine):
                raise self.overtaken()
            if link != mine:
                (self.state / link).unlink(missing_ok=True)

    def _links(self) -> list[str]:
        return [name for name in os.listdir(self.state) if is_link(name)]

    def let_go(self) -> None:
        """The end of this run, finished or not."""
        if self.way != self.state:
            discard(self.way)
            self.way = self.state

    def overtaken(self) -> ResumableError:
        """What this run ends with."""
        return ResumableError(
            f"another run on {shown(self.target)} has taken over, or {shown(self.state)} was "
            "removed: let it end, and run the same again"
        )

    def is_overtaken(self) -> bool:
        """Whether nothing that this run does is found any more."""
        return self.way != self.state and not os.path.lexists(self.way)


def is_link(name: str) -> bool:
    """Whether something in a state folder has the name of a run's link."""
    return name.startswith(f"{TOKEN}.")


def _number(link: str) -> int:
    """Of a run's link; 0 of a stray name."""
    parts = link.split(".")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0
