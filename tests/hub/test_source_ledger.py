"""What is downloaded when, and what goes: random groups, sizes and orders of events.

The model beside the ledger is a set of shards that are there, or on their way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from fp8convert.errors import Fp8ConvertError
from fp8convert.hub.ledger import Ledger, State, Step, least

AT_ONCE = 3  # groups begun and not done


class StuckError(AssertionError):
    """Nothing can happen any more, and not all is done."""


class Run:
    """An engine and a network, whose events come in any order."""

    def __init__(
        self, rng: random.Random, groups: list[frozenset[int]], sizes: dict[int, int], room: int,
        ledger: type[Ledger] = Ledger, keep: bool = False, left: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.rng, self.groups, self.sizes, self.room, self.keep = rng, groups, sizes, room, keep
        self.ledger = ledger(groups, sizes, room, keep, left)
        self.there = set(left)  # in the scratch, whole or not
        self.whole: set[int] = set()  # and looked at
        self.coming: list[int] = []
        self.going: list[int] = []
        self.at_work: list[int] = []
        self.next = 0  # group to begin
        self.fetched: list[int] = []

    def go(self) -> None:
        """To the end; AssertionError if something is not as it must be."""
        while self.next < len(self.groups) or self.at_work:
            events = [self.ask, self.arrive, self.leave, self.begin, self.end]
            self.rng.shuffle(events)
            if not any(event() for event in events):
                raise StuckError(f"group {self.next}, there {self.there}, at work {self.at_work}")
            assert sum(self.sizes[n] for n in self.there) == self.ledger.held <= self.room
        for n in self.going:
            self.ledger.gone(n)
            self.there.discard(n)
        assert self.ledger.finished
        assert not self.coming
        assert self.keep or not self.there, "what nobody wants stays"

    def ask(self) -> bool:
        step = self.ledger.next()
        if step is None:
            return False
        if step.fetch:
            assert step.shard not in self.whole
            self.there.add(step.shard)
            self.coming.append(step.shard)
            self.fetched.append(step.shard)
        else:
            self.let_go(step.shard)
        return True

    def arrive(self) -> bool:
        if not self.coming:
            return False
        n = self.coming.pop(self.rng.randrange(len(self.coming)))
        self.whole.add(n)
        self.ledger.arrived(n)
        return True

    def leave(self) -> bool:
        if not self.going:
            return False
        n = self.going.pop()
        self.there.discard(n)
        self.ledger.gone(n)
        return True

    def begin(self) -> bool:
        if self.next == len(self.groups) or len(self.at_work) == AT_ONCE:
            return False
        if not self.ledger.begin(self.next):
            return False
        assert self.groups[self.next] <= self.whole, "begun without its shards"
        self.at_work.append(self.next)
        self.next += 1
        return True

    def end(self) -> bool:
        if not self.at_work:
            return False
        g = self.at_work.pop(self.rng.randrange(len(self.at_work)))
        for n in self.ledger.done(g):
            assert not any(n in self.groups[h] for h in [*self.at_work, *self.later()])
            self.let_go(n)
        return True

    def later(self) -> range:
        return range(self.next, len(self.groups))

    def let_go(self, n: int) -> None:
        assert not any(n in self.groups[g] for g in self.at_work), "in use"
        self.whole.discard(n)
        self.going.append(n)


def drawn(rng: random.Random) -> tuple[list[frozenset[int]], dict[int, int], int]:
    """Groups that follow each other through the shards, and some that come back to early ones."""
    shards = rng.randint(1, 12)
    sizes = {n: rng.randint(1, 9) for n in range(shards)}
    groups = []
    for g in range(rng.randint(1, 14)):
        near = {min(shards - 1, max(0, g + rng.randint(-1, 2))) for _ in range(rng.randint(0, 3))}
        far = {rng.randrange(shards)} if rng.random() < 0.2 else set()
        groups.append(frozenset(near | far))
    used = {n for group in groups for n in group}
    sizes = {n: sizes[n] for n in used}
    need = least(groups, sizes)
    return groups, sizes, need + rng.choice([0, 0, rng.randint(0, 10), sum(sizes.values())])


@pytest.mark.parametrize("part", range(10))
def test_never_too_much_never_stuck(part: int) -> None:
    for seed in range(part * 200, part * 200 + 200):
        rng = random.Random(seed)
        groups, sizes, room = drawn(rng)
        run = Run(rng, groups, sizes, room)
        run.go()
        if room >= sum(sizes.values()):
            assert sorted(run.fetched) == sorted(sizes), "something came twice though all has room"


@pytest.mark.parametrize("seed", range(200))
def test_what_an_earlier_run_has_left(seed: int) -> None:
    rng = random.Random(seed)
    groups, sizes, room = drawn(rng)
    left: list[int] = []
    for n in rng.sample(sorted(sizes), len(sizes)):
        if sum(sizes[m] for m in left) + sizes[n] <= room and rng.random() < 0.6:
            left.append(n)
    Run(rng, groups, sizes, room, left=left).go()


def test_all_is_kept() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        groups, sizes, _ = drawn(rng)
        run = Run(rng, groups, sizes, sum(sizes.values()), keep=True)
        run.go()
        assert run.there == set(sizes)
        assert sorted(run.fetched) == sorted(sizes)


class Greedy(Ledger):
    """Gives room to later groups when the first has not enough."""

    def next(self) -> Step | None:
        for g in self._pending():
            for n in sorted(self._groups[g]):
                if self._state[n] is State.AWAY and self.held + self._sizes[n] <= self.room:
                    self._take(n, State.COMING)
                    return Step(True, n)
        return None


class Generous(Ledger):
    """Gives room that there is not."""

    def _reserved(self, n: int, g: int) -> Step | None:
        self._take(n, State.COMING)
        return Step(True, n)


class Careless(Ledger):
    """Lets go what a group at work is made of."""

    def done(self, g: int) -> list[int]:
        found = super().done(g)
        more = [n for n, s in self._state.items() if s is State.HERE and n not in found]
        for n in more:
            self._move(n, State.HERE, State.GOING)
        return found + more


@pytest.mark.parametrize("broken", [Greedy, Generous, Careless])
def test_a_broken_ledger_is_found_out(broken: type[Ledger]) -> None:
    found = 0
    for seed in range(200):
        rng = random.Random(seed)
        try:
            Run(rng, *drawn(rng), ledger=broken).go()
        except (AssertionError, Fp8ConvertError):
            found += 1
    assert found > 20


def test_what_is_wanted_last_goes_first() -> None:
    groups = [frozenset({0, 1, 2}), frozenset({3}), frozenset({1}), frozenset({2}), frozenset({0})]
    ledger = Ledger(groups, dict.fromkeys(range(4), 1), 3)
    for _ in range(3):
        step = ledger.next()
        assert step
        ledger.arrived(step.shard)
    assert ledger.begin(0)
    assert ledger.next() is None  # nothing goes as long as it is in use
    assert ledger.done(0) == []
    assert ledger.next() == Step(False, 0)


def test_room_is_not_made_early() -> None:
    """For a group that is not the next one there is time: what is in its way may go by itself."""
    groups = [frozenset({0}), frozenset({1}), frozenset({2}), frozenset({0})]
    ledger = Ledger(groups, dict.fromkeys(range(3), 1), 2)
    for _ in range(2):
        step = ledger.next()
        assert step
        ledger.arrived(step.shard)
    assert ledger.begin(0)
    ledger.done(0)
    assert ledger.next() is None  # shard 0 would have to go for group 2, and group 1 ends first
    assert ledger.begin(1)
    assert ledger.next() == Step(False, 0)  # now it is the next
