"""Files that another program cuts short while they are read: an error that names them, no SIGBUS,
no zeros in place of what is gone.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from ..crash import Ended
from . import shim
from .lab import Lab, Work, share, temporaries
from .tally import Campaign, Tally

NAME = "files cut short while read"


class Cut(NamedTuple):
    """What was done to a shard, and with what it can be undone."""

    file: Path
    data: bytes
    times: tuple[int, int]

    def undo(self) -> None:
        """As it was, its time too."""
        self.file.write_bytes(self.data)
        os.utime(self.file, ns=self.times)


class Trial(NamedTuple):
    """What was seen; whether it ended as it must, and went on well; whether anything was cut."""

    seen: object
    good: bool
    right: bool
    cut: bool


def cut(folder: Path, rng: Random) -> Cut:
    """Cut a random file of tensors at a random place."""
    file = rng.choice(sorted(folder.rglob("*.safetensors")))
    state, data = file.stat(), file.read_bytes()
    os.truncate(file, rng.randrange(len(data)))
    return Cut(file, data, (state.st_atime_ns, state.st_mtime_ns))


def disturbed(
    lab: Lab, argv: list[object], folder: Path, kinds: list[str], step: int, rng: Random
) -> tuple[Ended, list[Cut]]:
    """A command that is stopped at its ``step``-th call on ``folder``, when that is cut."""
    made: list[Cut] = []
    lab.forker.start(*argv, tamper=("arm", str(folder), kinds, "stop"))
    for n in itertools.count(1):
        if ended := lab.forker.wait():
            return ended, made
        if n == step:
            made.append(cut(folder, rng))
        lab.forker.go()
    raise AssertionError


def copied(lab: Lab, folder: Path) -> Path:
    """Of a checkpoint, times too."""
    return shutil.copytree(folder, lab.new().parent / "copy")


def named(ended: Ended, made: list[Cut]) -> bool:
    """Whether the message, or the report, has the file."""
    return all(c.file.name in ended.err + ended.out for c in made)


def converted(lab: Lab, work: Work, rng: Random) -> Trial:
    """A conversion."""
    source, target = copied(lab, work.source), lab.new()
    argv = work.argv(target, "--quiet", "--workers", rng.choice((1, 3)), source=source)
    step = rng.randrange(1, 60)
    ended, made = disturbed(lab, argv, source, ["read"], step, rng)
    if ended.code == 0:  # what it still needed was not gone
        good = work.ended_right(target)
    else:
        good = ended.code in (1, 75) and named(ended, made) and not target.exists()
        good = good and not temporaries(target.parent) and "Traceback" not in ended.err
    for one in made:
        one.undo()
    again = lab.run(work, target, "--quiet") if ended.code == 0 else lab.forker.run(*argv)
    right = again.code == 0 and work.ended_right(target)
    for folder in (source.parent, target.parent):
        shutil.rmtree(folder)
    return Trial((ended, again), good, right, bool(made))


def verified(lab: Lab, work: Work, rng: Random) -> Trial:
    """``verify``; with ``--against`` it is the source or the output that is cut."""
    output, source = copied(lab, lab.root / f"expected-{work.name}"), copied(lab, work.source)
    argv: list[object] = ["verify", output]
    folder = rng.choice((output, source))
    if folder is source or rng.random() < 0.5:
        argv += ["--against", source]
    ended, made = disturbed(lab, argv, folder, ["open", "read"], rng.randrange(1, 80), rng)
    good = ended.code in (1, 3) and named(ended, made) and "Traceback" not in ended.err
    for one in made:
        one.undo()
    for path in (output.parent, source.parent):
        shutil.rmtree(path)
    return Trial(ended, good, good, bool(made))  # it has no output


def trials(lab: Lab, seed: int) -> Iterator[tuple[str, Trial]]:
    """Without end; one of twelve verifies."""
    rng = share(seed, NAME)
    for n, work in enumerate(itertools.cycle(lab.works)):
        act = verified if n % 12 == 11 else converted
        yield f"{work.name}, {act.__name__}", act(lab, work, rng)


def run(lab: Lab, amount: int, seed: int) -> Tally:
    """``amount`` files cut; a run that had read all it needed before does not count."""
    tally = Tally()
    for what, one in itertools.islice(trials(lab, seed), 2 * amount):
        if one.cut:
            tally.add(what, one.good, one.right, one.seen)
        if tally.injected == amount:
            break
    return tally


CAMPAIGN = Campaign(NAME, run, full=250, slice=36, missing=shim.missing)
