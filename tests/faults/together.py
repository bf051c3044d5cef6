"""Two and three runs on one target at once, with locks, without, and with locks that do not lock.

Every run stops before each step, and a scheduler says which goes on, and for how many steps: any
order of the steps of both may come, and the same seed has the same one. Before each a reader looks
at what is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import crash
from ..crash import Ended, Forker
from . import shim
from .kills import steps
from .lab import Files, Lab, Work, share, state_of, tree
from .tally import Campaign, Tally

STEPS = ("open", *shim.CHANGES)
BURSTS = ((1, 2), (1, 3, 10, 30), (40, 100))  # steps that one run goes on for: ways to alternate
LOCKS = ("pretend", "ENOLCK", "EOPNOTSUPP")  # how locks fail
FEW = ("to-bf16", "shard-hf", "unshard-deepseek")  # works of a slice
MOST = 3  # runs at once


def unlocked(how: str, *tamperings: list[Any]) -> None:
    """A tampering: locks do nothing, or are not to be had; and others, each with its arguments."""

    def flock(fd: int, operation: int) -> None:
        if how != "pretend":
            raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)))

    fcntl.flock = flock
    for name, *args in tamperings:
        crash._tampering(name)(*args)


def sharing() -> None:
    """A broken tool: nobody takes over, all that run at once work in one folder by one way."""
    from fp8convert.fence import Fence

    vars_of: Any = Fence
    vars_of.take_over = lambda self, check: (check(), "run.1.all")


class Player:
    """A run that stops before each of its steps."""

    def __init__(self, forker: Forker, argv: Sequence[object], expected: Files) -> None:
        self.forker, self.argv, self.expected = forker, argv, expected
        self.ended: Ended | None = None
        self.begun = False
        self.steps = 0

    def start(self, tamper: Sequence[Any]) -> None:
        """Begin; it stops before its first step."""
        self.begun, self.steps = True, 1
        self.forker.start(*self.argv, tamper=tuple(tamper))
        self.ended = self.forker.wait()

    def go(self) -> None:
        """One step more, or to its end."""
        self.steps += 1
        self.forker.go()
        self.ended = self.forker.wait()

    @property
    def clean(self) -> bool:
        """Whether it ended as it may: done, refused, or to be run again; with a word on it."""
        assert self.ended
        if self.ended.code == -signal.SIGKILL:
            return True
        said = self.ended.code == 0 or "error: " in [n[:7] for n in self.ended.err.splitlines()]
        return self.ended.code in (0, 1, 75) and said and "Traceback" not in self.ended.err


class Reader:
    """Looks at a target and beside it; ``wrong`` is what should not have been there."""

    def __init__(self, target: Path, *right: Files) -> None:
        self.target, self.right = target, right
        self.wrong: list[str] = []
        self.looks = self.whole = 0

    def look(self) -> None:
        """Nothing or an empty folder, or all there is to be."""
        self.looks += 1
        with contextlib.suppress(FileNotFoundError):
            self.beside(os.listdir(self.target.parent))
        if not os.path.lexists(self.target) or not os.listdir(self.target):
            return
        self.whole += 1
        found = tree(self.target)
        if found not in self.right:
            self.wrong.append(f"a target of {sorted(found)}")

    def beside(self, names: list[str]) -> None:
        """Nothing has another name than the target and its state."""
        if others := set(names) - {self.target.name, state_of(self.target).name}:
            self.wrong.append(f"beside it: {sorted(others)}")


class Stage(NamedTuple):
    """What the cases need: forkers, and works with what they end with."""

    lab: Lab
    forkers: list[Forker]
    works: list[Work]
    other: list[tuple[Work, Work]]  # works whose plans or sources differ, of files of one size
    broken: list[Any]  # tamperings that break the tool, for a control
    steps: dict[str, list[str]]

    def players(self, *works: Work) -> tuple[Path, list[Player]]:
        """Runs of ``works`` on one new target."""
        target = self.lab.new()
        argvs = [w.argv(target, "--workers", 1) for w in works]
        parts = zip(self.forkers, argvs, works, strict=False)  # there may be more forkers
        return target, [Player(forker, argv, work.expected) for forker, argv, work in parts]

    def kinds(self, work: Work) -> list[str]:
        """Of the steps of an undisturbed run."""
        if work.name not in self.steps:
            self.steps[work.name] = steps(self.lab, work, STEPS)
        return self.steps[work.name]

    def unlocked(self, how: str, target: Path, *more: list[Any]) -> tuple[Any, ...]:
        """The tampering of a run without locks that stops before each of its steps."""
        return ("together:unlocked", how, *self.broken, *more, steps_of(target))


@contextlib.contextmanager
def stage(lab: Lab, few: bool, broken: Sequence[Any] = ()) -> Iterator[Stage]:
    """Forkers of one's own, whose children find their kernels compiled."""
    works = [lab.by_name[name] for name in FEW] if few else lab.works
    place = lab.new().parent
    warm = [[w.argv(place / f"{w.name}-{n}") for w in works] for n in range(1, MOST)]
    forkers = [lab.forker, *map(lab.new_forker, warm)]
    try:
        yield Stage(lab, forkers, works, [_dtypes(lab), _sources(lab)], [*broken], {})
    finally:
        for forker in forkers[1:]:
            forker.close()
        shutil.rmtree(place)


def _dtypes(lab: Lab) -> tuple[Work, Work]:
    """BF16 and F16 of the same tensors: every file has the same size and name."""
    one = lab.by_name["to-bf16"]
    return one, _expecting(lab, one._replace(options=(*one.options, "--dtype", "float16")))


def _sources(lab: Lab) -> tuple[Work, Work]:
    """Two models of the same headers."""
    one = lab.by_name["shard-hf"]
    copy = lab.new().parent / "other"
    shutil.copytree(one.source, copy)
    for shard in copy.glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    return one, _expecting(lab, one._replace(source=copy))


def _expecting(lab: Lab, work: Work) -> Work:
    target = lab.new()
    assert lab.run(work, target).code == 0
    found = tree(target)
    shutil.rmtree(target.parent)
    return work._replace(expected=found)


# --- The cases. Each is counted once, with all that was seen.


def steps_of(target: Path) -> list[Any]:
    """The tampering that stops a run before each step."""
    return ["arm", str(target.parent), list(STEPS), "stop"]


def play(players: Sequence[Player], reader: Reader, rng: random.Random,
         tampers: Sequence[Sequence[Any]], kinds: list[str]) -> None:  # fmt: skip
    """Have all run to their ends, by turns of random length, and the reader look at each step."""
    bursts = rng.choice(BURSTS)
    player, more = players[0], _ahead(rng, kinds)
    while True:
        for _ in range(more):
            if player.ended:
                break
            if not player.begun:
                player.start(tampers[players.index(player)])
            else:
                player.go()
            reader.look()
        if not (left := [p for p in players if p.ended is None]):
            return
        others = [p for p in left if p is not player]
        player, more = rng.choice(others or left), rng.choice(bursts)


def _ahead(rng: random.Random, kinds: list[str]) -> int:
    """Steps that the first one of these kinds has come to when the others begin.

    Hardly any, or any; or a file is about to get its name: the job, or what is before the last
    rename, that of the target, or another.
    """
    renames = [n for n, kind in enumerate(kinds, 1) if kind == "rename"]
    some = (rng.randint(0, 9), rng.randint(0, len(kinds)), renames[0], renames[-1], renames[-1])
    return rng.choice((*some, rng.choice(renames)))


def locked(stage: Stage, rng: random.Random, tally: Tally) -> None:
    """The second begins at any step of the first: it is refused, or finds the target finished."""
    work = rng.choice(stage.works)
    target, (first, second) = stage.players(work, work)
    reader = Reader(target, work.expected)
    ahead = rng.randint(0, len(stage.kinds(work)))
    first.start(steps_of(target))
    for _ in range(ahead):
        if first.ended is None:
            first.go()
            reader.look()
    second.ended = second.forker.run(*second.argv)
    while first.ended is None:
        first.go()
        reader.look()
    words = ("another run is writing", "has just finished", "taken over")
    refused = second.ended.code in (1, 75) and any(w in second.ended.err for w in words)
    before = second.ended.code == 0 and "done: " in second.ended.out
    # It may have been the first to lock, and the other the second.
    ended = first.ended.code == 0 or (before and first.ended.code == 1)
    judge(stage, tally, f"two runs of {work.name}, locked", target, [first, second], reader,
          ended and (refused or before))  # fmt: skip


def free(stage: Stage, rng: random.Random, tally: Tally) -> None:
    """Both begin within the time of one run, and the reader looks all the time."""
    work = rng.choice(stage.works)
    target, players = stage.players(work, work)
    reader, how = Reader(target, work.expected), rng.choice(("", *LOCKS))
    for player in players:
        player.forker.start(*player.argv, tamper=("together:unlocked", how) if how else ())
        until = time.monotonic() + rng.uniform(0, 0.05)
        while time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):
                reader.look()
    for player in players:
        player.ended = player.forker.wait()
    right = any(p.ended and p.ended.code == 0 for p in players)
    judge(stage, tally, f"two runs of {work.name}, lock {how}", target, players, reader, right)


def without(stage: Stage, rng: random.Random, tally: Tally, runs: int = 2) -> None:
    """Runs of one command, that no lock keeps apart; at least one of them ends right."""
    work, how = rng.choice(stage.works), rng.choice(LOCKS)
    target, players = stage.players(*[work] * runs)
    reader = Reader(target, work.expected)
    play(players, reader, rng, [stage.unlocked(how, target)] * runs, stage.kinds(work))
    right = any(p.ended and p.ended.code == 0 for p in players)
    judge(stage, tally, f"{runs} runs of {work.name}, {how}", target, players, reader, right)


def three(stage: Stage, rng: random.Random, tally: Tally) -> None:
    """As :func:`without`, three of them."""
    without(stage, rng, tally, 3)


def killed(stage: Stage, rng: random.Random, tally: Tally) -> None:
    """One of two is killed at a random step; the other need not have been disturbed by it."""
    work, how = rng.choice(stage.works), rng.choice(LOCKS)
    target, players = stage.players(work, work)
    reader = Reader(target, work.expected)
    kill = ["signal_at", rng.randint(1, 90), signal.SIGKILL]
    tampers = [stage.unlocked(how, target, kill), stage.unlocked(how, target)]
    play(players, reader, rng, tampers, stage.kinds(work))
    judge(stage, tally, f"two runs of {work.name}, one killed, {how}", target, players, reader)


def unlike(stage: Stage, rng: random.Random, tally: Tally) -> None:
    """Two commands of other options, or sources, on one target: what is there is of one of them."""
    works = rng.sample(rng.choice(stage.other), 2)
    how = rng.choice(LOCKS)
    target, players = stage.players(*works)
    reader = Reader(target, *(w.expected for w in works))
    play(players, reader, rng, [stage.unlocked(how, target)] * 2, stage.kinds(works[0]))
    right = any(p.ended and p.ended.code == 0 for p in players)
    judge(stage, tally, f"{works[0].name} of two kinds, {how}", target, players, reader, right)


Case = Callable[[Stage, random.Random, Tally], None]
CASES: tuple[Case, ...] = (
    without, unlike, locked, without, three, unlike, killed, free,
)  # fmt: skip


def judge(
    stage: Stage, tally: Tally, what: str, target: Path, players: Sequence[Player], reader: Reader,
    right: bool = True,
) -> None:  # fmt: skip
    """Count it: all ended cleanly, who says "done" is right, and the same again ends right."""
    reader.look()
    seen = [*(p.ended for p in players), reader.wrong]
    done = [p for p in players if p.ended and p.ended.code == 0]
    survived = right and not reader.wrong and all(p.clean for p in players)
    same = all(target.is_dir() and tree(target) == p.expected for p in done)
    again = done[0] if done else players[-1]
    last = stage.lab.forker.run(*again.argv)
    same = same and last.code == 0 and target.is_dir() and tree(target) == again.expected
    alike = all(p.expected is again.expected for p in players)
    left = os.listdir(target.parent)
    tally.add(what, survived, same and (left == ["dst"] or not alike), (*seen, last, left))
    shutil.rmtree(target.parent)


def run(
    lab: Lab, amount: int, seed: int, cases: Sequence[Case] = CASES, broken: Sequence[Any] = ()
) -> Tally:
    """All cases in turn; ``broken`` are tamperings of those where locks do not work."""
    with stage(lab, amount <= 2 * CAMPAIGN.slice, broken) as made:
        return rounds(made, amount, seed, cases)


def rounds(stage: Stage, amount: int, seed: int, cases: Sequence[Case]) -> Tally:
    """The same on a stage that is there."""
    rng, tally = share(seed, "together"), Tally()
    for n in range(amount):
        cases[n % len(cases)](stage, rng, tally)
    return tally


CAMPAIGN = Campaign("two runs at once", run, 300, 24, shim.missing)
