"""Short reads, short writes, EINTR: what POSIX allows at any call, and no program may notice.

Every command, by one worker and by three, buffered and direct: exit 0 and the same bytes, at once.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..crash import Ended
from . import shim
from .lab import Lab, Work, share, takes_direct
from .tally import Campaign, Tally

NAME = "short transfers, EINTR"

# Where Linux may say EINTR. Not of names (rename, unlink, mkdir), which are not slow calls.
SLOW = ("open", "create", "read", "write", "fsync", "fsync-folder", "truncate", "allocate", "close",
        "flock")  # fmt: skip


class Fault(NamedTuple):
    """One way in which all calls of a run are disturbed."""

    action: str  # of the shim
    step: int  # EINTR at every so manieth call
    seed: int  # of the lengths

    def tamper(self, folder: Path) -> tuple[object, ...]:
        """For a child."""
        kinds = ["read", "write"] if self.action == "short" else list(SLOW)
        return ("arm", str(folder), kinds, self.action, self.step, 0, self.seed)


def faults(seed: int) -> Iterator[Fault]:
    """Without end: short with ever other lengths, interrupted at every 2nd, 3rd, 5th call."""
    rng = share(seed, NAME)
    for step in itertools.cycle((0, 2, 0, 3, 0, 5)):
        yield Fault("interrupt" if step else "short", step or 1, rng.randrange(1 << 30))


def ways(lab: Lab, seed: int) -> Iterator[tuple[str, ...]]:
    """Options of a run, without end, in an order of their own."""
    io = ("auto", "buffered", *(("direct",) if takes_direct(lab.root) else ()))
    every = [("--workers", n, "--io", i) for n, i in itertools.product(("1", "3"), io)]
    share(seed, f"{NAME}: ways").shuffle(every)
    return itertools.cycle(every)


def converted(lab: Lab, work: Work, more: tuple[str, ...], fault: Fault) -> tuple[Ended, bool]:
    """How one command ended, and whether every byte was right at once."""
    target = lab.new()
    ended = lab.run(work, target, "--quiet", *more, tamper=fault.tamper(lab.root))
    right = work.ended_right(target) and os.listdir(target.parent) == [target.name]
    shutil.rmtree(target.parent)
    return ended, right


def readings(lab: Lab) -> Iterator[list[object]]:
    """Commands that only read, without end; the model is sound, so each ends with 0."""
    for work in itertools.cycle(lab.works):
        output = lab.root / f"expected-{work.name}"
        yield ["inspect", work.source]
        yield ["verify", output, "--quiet"]
        yield ["verify", output, "--against", work.source, "--quiet"]


def run(lab: Lab, amount: int, seed: int) -> Tally:
    """``amount`` runs; one of twelve only reads."""
    tally, reading, way = Tally(), readings(lab), ways(lab, seed)
    works = itertools.cycle(lab.works)
    for n, fault in zip(range(amount), faults(seed), strict=False):
        if n % 12 == 11:
            argv = next(reading)
            ended, right = lab.forker.run(*argv, tamper=fault.tamper(lab.root)), True
            what = " ".join(map(str, argv))
        else:
            work, more = next(works), next(way)
            ended, right = converted(lab, work, more, fault)
            what = f"{work.name} {' '.join(more)}"
        tally.add(f"{what}, {fault}", ended.code == 0, right, ended)
    return tally


CAMPAIGN = Campaign(NAME, run, full=800, slice=36, missing=shim.missing, unit="runs")
