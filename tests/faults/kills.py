"""SIGKILL at random moments, at every step, and while a resumption checks what is there.

Each killed run is begun again by the same command, which must end with the bytes of an undisturbed
one and leave nothing beside them; until then the target is not there at all.
"""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import shim
from .chain import Chain, Tamper, appearance, steps
from .lab import Lab, Work, share, state_of, takes_direct
from .tally import Campaign, Tally

PAUSE = 0.0005  # before every step of a run killed at a random moment: seconds
LOOKS = ("open", "read")  # how a resumption checks what is there
MORE = (  # options of runs killed at every step; most have none
    (), (), ("--io", "buffered"), (), ("--io", "direct"), (), ("--workers", 3),
)  # fmt: skip


# --- At random moments


def at_random(lab: Lab, amount: int, seed: int, broken: str = "") -> Tally:
    """Three workers on a slow disk, killed from outside; some resumptions too, and theirs."""
    rng, tally = share(seed, "at random"), Tally()
    slow: Tamper = ("breaks:slowly", PAUSE) if not broken else ("slowly", PAUSE)
    lasts: dict[str, float] = {}
    for n in range(20 * amount):
        chain = Chain(lab, lab.works[n % len(lab.works)], ("--workers", 3), broken)
        if chain.work.name not in lasts:
            begun = time.monotonic()
            chain.run(slow)
            lasts[chain.work.name] = time.monotonic() - begun
            shutil.rmtree(chain.target.parent)
            chain = Chain(lab, chain.work, chain.more, broken)
        while True:
            moment = rng.uniform(0, lasts[chain.work.name])
            hit = chain.kill(f"killed after {moment:.3f} s", slow, kill_after=moment)
            if not hit or rng.random() < 0.5:
                break
        chain.end(tally)
        if tally.injected >= amount:
            break
    return tally


# --- At every step


class Step(NamedTuple):
    """Where and how a run is killed."""

    work: str
    action: str
    number: int  # 1 is the first
    kind: str
    more: tuple[object, ...]

    def __str__(self) -> str:
        return f"{self.action} step {self.number}, {self.kind}"


@functools.lru_cache(maxsize=1)
def every_step(lab: Lab) -> tuple[Step, ...]:
    """Before each call that changes something; within each write; after the last ones."""
    return tuple(_every_step(lab))


def _every_step(lab: Lab) -> Iterator[Step]:
    turn, ways = 0, [more for more in MORE if "direct" not in more or takes_direct(lab.root)]
    for work in lab.works:
        found = steps(lab, work)
        last = appearance(found)
        for number, kind in enumerate(found, 1):
            actions = ["kill-before"] + ["tear"] * (kind == "write")
            for action in actions + ["kill-after"] * (number >= last):
                yield Step(work.name, action, number, kind, ways[turn % len(ways)])
                turn += 1


def sample(found: Sequence[Step], amount: int, rng: random.Random) -> list[Step]:
    """``amount`` of them, or all; first those around the target's last rename, of every work."""
    names = dict.fromkeys(step.work for step in found)
    firm = [s for name in names for s in _notable([s for s in found if s.work == name])]
    rest = [s for s in found if s not in firm]
    rng.shuffle(rest)
    rng.shuffle(firm)
    return (firm + rest)[:amount]


def _notable(found: Sequence[Step]) -> list[Step]:
    """Of one work: the first step, the manifest's write, the target's rename before and after."""
    rename = next(s for s in found if s.action == "kill-after")
    manifest = [s for s in found if s.action == "tear"][-1]
    return [found[0], manifest, found[found.index(rename) - 1], rename]


def at_every_step(lab: Lab, amount: int, seed: int, broken: str = "") -> Tally:
    """Every third resumption is killed too, at a random step; every fifth target was empty."""
    rng, tally = share(seed, "at every step"), Tally()
    for n, step in enumerate(sample(every_step(lab), amount, rng)):
        chain = Chain(lab, lab.by_name[step.work], step.more, broken)
        if n % 5 == 0:
            chain.make_empty()
        chain.kill(str(step), chain.arm(shim.CHANGES, step.action, step.number))
        if n % 3 == 0:
            again = rng.randint(1, 100)
            what = f"{step}; its resumption at step {again}"
            chain.kill(what, chain.arm(shim.CHANGES, "kill-before", again))
        chain.end(tally)
        if tally.injected >= amount:
            break
    return tally


# --- While a resumption checks what is there


def unfinished(lab: Lab, work: Work, rng: random.Random, broken: str = "") -> Path:
    """The state of a run that died before its last rename, a finished file damaged since."""
    chain = Chain(lab, work, (), broken)
    last = appearance(steps(lab, work))
    chain.kill("", chain.arm(shim.CHANGES, "kill-before", last))
    state = state_of(chain.target)
    files = sorted((state / "out").rglob("*.safetensors"))
    damaged = bytearray((path := rng.choice(files)).read_bytes())
    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    return state


def while_resuming(lab: Lab, amount: int, seed: int, broken: str = "") -> Tally:
    """At each call of a resumption that finds all files finished, and one of them damaged."""
    rng, tally = share(seed, "while resuming"), Tally()
    begun = {work.name: unfinished(lab, work, rng, broken) for work in lab.works}
    kinds = (*LOOKS, *shim.CHANGES)
    places = [
        (work, number, kind)
        for work in lab.works
        for number, kind in enumerate(steps(lab, work, kinds, begun[work.name]), 1)
    ]
    rng.shuffle(places)
    for work, number, kind in places[:amount]:
        chain = Chain(lab, work, (), broken)
        shutil.copytree(begun[work.name], state_of(chain.target), symlinks=True)
        what = f"resumption killed before step {number}, {kind}"
        chain.kill(what, chain.arm(kinds, "kill-before", number))
        chain.end(tally)
    for state in begun.values():
        shutil.rmtree(state.parent)
    return tally


CAMPAIGNS = (
    Campaign("SIGKILL at random", at_random, 300, 14),
    Campaign("SIGKILL at every step", at_every_step, 5000, 50, shim.missing),
    Campaign("SIGKILL while resuming", while_resuming, 5000, 14, shim.missing),
)
