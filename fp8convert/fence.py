"""One run at a time in a state folder, also where locks do not work.

Every run goes to what is in the state folder by a link of its own in it, which leads to the folder
it is in. Whoever begins removes the links of others: of a run that was killed, or is still at work.
From then on nothing that one writes, renames or removes is found any more, and it ends with 75.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .calls import discard
from .errors import ResumableError, TargetError, shown

TOKEN = "run"
_LINK = re.compile(rf"{TOKEN}\.([0-9]{{1,15}})\.[^.]+")
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class Fence:
    """The ``way`` of one run to what is in ``state``: just that, until it has taken over."""

    def __init__(self, state: Path, target: Path) -> None:
        self.state, self.target = state, target
        self.way = state

    def take_over(self, check: Callable[[], Any]) -> tuple[Any, str]:
        """Make this the only run that can write here; what ``check`` found, which may refuse, and
        the name of this run.

        It is asked before anything is done, and again when no other run can change the answer. What
        it finds says which run was the last to begin. The numbers in the links' names decide
        between runs that begin at once.
        """
        found = check()
        last = found.get(TOKEN) if isinstance(found, dict) else None
        number = max(map(_number, [*self._links(), str(last)])) + 1
        return self._by_link(number, check, self._remove_others)

    def join(self, run: str, check: Callable[[], Any]) -> None:
        """Write here together with others, as long as no run takes over after the one that is
        named; ``check``, which looks whether it was the last to begin, may refuse."""
        check()
        self._by_link(_number(run), lambda: None, lambda mine: self._remain(mine, check))

    def _by_link(
        self, number: int, check: Callable[[], Any], then: Callable[[str], None]
    ) -> tuple[Any, str]:
        mine = f"{TOKEN}.{number}.{uuid.uuid4().hex}"
        try:
            os.symlink(".", self.state / mine)
        except OSError as e:
            if e.errno not in NO_LINKS:
                raise
            return check(), mine  # a filesystem without links: the lock has to do
        try:
            self.way = self.state / mine
            found = check()
            then(mine)
        except BaseException:
            self.let_go()
            raise
        return found, mine

    def _remain(self, mine: str, check: Callable[[], Any]) -> None:
        """Whoever takes over after this has linked finds the link, and removes it. Whoever did
        before has a link, or has ended: then ``check`` finds what it has left."""
        if any(_number(link) > _number(mine) for link in self._links()):
            raise ResumableError(f"{self.overtaken()} (or plan again, if it was killed)")
        try:
            check()
        except (OSError, TargetError):
            if self.is_overtaken():  # it looked through a link that is gone
                raise self.overtaken() from None
            raise

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
    found = _LINK.fullmatch(link)
    return int(found[1]) if found else 0
