"""Which shards are to be downloaded, and which to go, so that never too many are there at once.

Files that are written together are a group, and need certain shards. Groups are begun in order,
when all their shards are here. Room is given strictly in that order, so the first group that is not
begun can always be completed: whatever holds the room that it lacks is wanted by groups before it,
which end, or only by later ones, and then goes, the one first that is wanted last.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..errors import Fp8ConvertError


class State(enum.Enum):
    """Of a shard. All but those AWAY take their room."""

    AWAY = enum.auto()
    LEFT = enum.auto()  # by an earlier run: to be looked at
    COMING = enum.auto()
    HERE = enum.auto()
    GOING = enum.auto()


class Step(NamedTuple):
    """What is to be done: ``fetch`` a shard (or look at the one that was left), or let it go."""

    fetch: bool
    shard: int


def least(groups: Iterable[frozenset[int]], sizes: Mapping[int, int]) -> int:
    """Bytes of room that ``groups`` need, one after the other."""
    return max((sum(sizes[n] for n in group) for group in groups), default=0)


class Ledger:
    """See the module. Not safe for threads by itself. ``sizes`` are bytes by shard, ``room`` is for
    all of them; with ``keep`` nothing goes. ``left`` are those that are there from before."""

    def __init__(
        self, groups: Sequence[frozenset[int]], sizes: Mapping[int, int], room: int,
        keep: bool = False, left: Iterable[int] = (),
    ) -> None:  # fmt: skip
        self._groups, self._sizes, self.room, self._keep = groups, sizes, room, keep
        self._state = dict.fromkeys(sizes, State.AWAY)
        self._uses: dict[int, list[int]] = {n: [] for n in sizes}  # groups that are not done
        for g, group in enumerate(groups):
            for n in group:
                self._uses[n].append(g)
        self._begun: set[int] = set()
        self._done: set[int] = set()
        self._first = 0  # group that is not done
        self.held = 0
        for n in left:
            self._take(n, State.LEFT)

    def next(self) -> Step | None:
        """What to do now; None if there is nothing, or no room, until something changes."""
        for g in self._pending():
            for n in sorted(self._groups[g]):
                state = self._state[n]
                if state is State.LEFT:
                    self._state[n] = State.COMING
                    return Step(True, n)
                if state is State.AWAY:
                    return self._reserved(n, g)
                if state is State.GOING:
                    return None  # its room first
        return None

    def _reserved(self, n: int, g: int) -> Step | None:
        if self.held + self._sizes[n] <= self.room:
            self._take(n, State.COMING)
            return Step(True, n)
        victim = self._victim(g)
        if victim is None:
            return None
        self._state[victim] = State.GOING
        return Step(False, victim)

    def _victim(self, g: int) -> int | None:
        """What makes room for ``g``, if that is the next to be begun: for others there is time."""
        if any(h not in self._begun for h in self._pending() if h < g):
            return None
        later = {
            n: self._uses[n][0]
            for n, state in self._state.items()
            if state in (State.HERE, State.LEFT) and self._uses[n][0] > g
        }
        return max(later, key=lambda n: later[n], default=None)

    def _take(self, n: int, state: State) -> None:
        self._state[n] = state
        self.held += self._sizes[n]

    def _pending(self) -> Iterator[int]:
        return (g for g in range(self._first, len(self._groups)) if g not in self._done)

    @property
    def finished(self) -> bool:
        """Whether all groups are done."""
        return len(self._done) == len(self._groups)

    def arrived(self, n: int) -> None:
        """A shard is here, and is what it should be."""
        self._move(n, State.COMING, State.HERE)

    def gone(self, n: int) -> None:
        """A shard that was to go has gone."""
        self._move(n, State.GOING, State.AWAY)
        self.held -= self._sizes[n]

    def _move(self, n: int, before: State, now: State) -> None:
        if self._state[n] is not before:
            raise Fp8ConvertError(f"internal: shard {n} is {self._state[n]}, expected {before}")
        self._state[n] = now

    def begin(self, g: int) -> bool:
        """Whether all shards of a group are here; if so it is begun, and they stay."""
        if not all(self._state[n] is State.HERE for n in self._groups[g]):
            return False
        self._begun.add(g)
        return True

    def done(self, g: int) -> list[int]:
        """A group is done; the shards that no other one needs: they are to go."""
        self._done.add(g)
        while self._first in self._done:
            self._first += 1
        for n in self._groups[g]:
            self._uses[n].remove(g)
        if self._keep:
            return []
        going = [n for n in sorted(self._groups[g]) if not self._uses[n]]
        for n in going:
            self._move(n, State.HERE, State.GOING)
        return going
