"""I/O errors: each call that a command makes on its source or beside its target fails, once or for
good, and what must become of it is a table.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..crash import Ended
from . import shim
from .lab import Lab, Work, share, state_of, temporaries
from .tally import Campaign, Tally

NAME = "I/O errors"
ERRORS = (errno.EIO, errno.EIO, errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EIO, errno.ESTALE,
          errno.EIO, errno.ENOMEM)  # fmt: skip
OPENS = (*ERRORS, errno.EMFILE)
OWN = re.compile(r"\.[0-9a-f]{32}\.tmp$")  # of a temporary's name


class Call(NamedTuple):
    """A line of the shim's log."""

    kind: str
    path: str

    @property
    def name(self) -> str:
        """What a message has to contain."""
        return OWN.sub("", os.path.basename(self.path.removesuffix(" (deleted)")))


class Case(NamedTuple):
    """One fault. ``call`` is what the ``step``-th call was without it."""

    work: Work
    side: str  # "source" or "target"
    action: str  # "fail": once, "fail-on": this call and all after it
    step: int
    call: Call
    code: int

    def __str__(self) -> str:
        what = f"{self.call.kind} {self.call.name}, {self.side} {self.step}"
        return f"{self.work.name}, {self.action} {errno.errorcode[self.code]}: {what}"


def survivable(side: str, call: Call) -> bool:
    """Whether a run ends with 0 all the same if this call fails.

    | call | if it fails |
    |---|---|
    | close of what was only read: the source, a folder, the lock | nothing is lost: 0 |
    | close of a spool of scales, after its last use | nothing is lost: 0 |
    | flock | as on a filesystem without locks: 0 |
    | unlink of the state folder's files, the target being in place | 0; the next run removes them |
    | everything else | 75 |
    """
    if call.kind == "close":
        return side == "source" or not call.path.endswith(".tmp")
    return call.kind == "flock" or (call.kind == "unlink" and ".spool." not in call.path)


def calls(log: Path) -> list[Call]:
    """All of a run, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Call(*line.split(" ", 1)) for line in lines]


def tampered(
    lab: Lab, work: Work, target: Path, side: str, action: str, step: int = 1, code: int = 0,
    broken: Sequence[Sequence[object]] = (),
) -> tuple[Ended, list[Call]]:  # fmt: skip
    """A run, and the calls it made on that side."""
    log = lab.root / "calls"
    log.unlink(missing_ok=True)
    folder = work.source if side == "source" else target.parent
    arm = ("arm", str(folder), list(shim.KINDS), action, step, code, 0, str(log))
    ended = lab.run(work, target, "--quiet", tamper=("several", *broken, arm))
    return ended, calls(log)


def cases(lab: Lab, seed: int, works: Sequence[Work] = ()) -> list[Case]:
    """Every call of every work, once and for good; first one of each kind, then another of each."""
    by_kind: dict[tuple[str, ...], list[Case]] = {}
    rng, turns = share(seed, NAME), itertools.cycle(ERRORS)
    for work, side in itertools.product(works or lab.works, ("source", "target")):
        target = lab.new()
        _, found = tampered(lab, work, target, side, "count")
        shutil.rmtree(target.parent)
        for (step, call), action in itertools.product(enumerate(found, 1), ("fail", "fail-on")):
            code = rng.choice(OPENS) if call.kind in ("open", "create") else next(turns)
            case = Case(work, side, action, step, call, code)
            by_kind.setdefault((side, call.kind, action), []).append(case)
    for some in by_kind.values():
        rng.shuffle(some)
    rounds = itertools.zip_longest(*by_kind.values())
    return [case for some in rounds for case in some if case]


def wrongs(case: Case, target: Path, ended: Ended, made: list[Call]) -> Iterator[str]:
    """What was not as it must be after the run with the fault."""
    failed = made[case.step - 1]
    synced = [c.path for c in made if c.kind == "fsync"]
    if len(set(synced)) != len(synced):
        yield "a file was synced twice"
    if ended.code == 0:
        if not (survivable(case.side, failed) and case.work.ended_right(target)):
            yield "exit 0"
        return
    if ended.code != 75 or (survivable(case.side, failed) and case.action == "fail"):
        yield f"exit {ended.code}"
    if "Traceback" in ended.err or "Run the same command again" not in ended.err:
        yield "no proper message"
    names = [c.name for c in made[case.step - 1 :]] if case.action == "fail-on" else [failed.name]
    if not any(name in ended.err for name in names):
        yield f"no word of {failed.name}"
    renamed = Call("rename", str(target)) in made[: case.step - 1]
    if renamed != target.exists() or (renamed and not case.work.ended_right(target)):
        yield "something stands under the final name"
    left = temporaries(target.parent)
    if left and case.action == "fail" and failed.kind != "unlink":
        yield f"{left[0].name} is left"


def one(lab: Lab, case: Case, tally: Tally, broken: Sequence[Sequence[object]] = ()) -> None:
    """Inject, judge, run again, judge."""
    target = lab.new()
    args = (case.side, case.action, case.step, case.code, broken)
    ended, made = tampered(lab, case.work, target, *args)
    if len(made) >= case.step:  # else it came to less than when counted: nothing failed
        wrong = list(wrongs(case, target, ended, made))
        again = lab.run(case.work, target, "--quiet")
        right = again.code == 0 and case.work.ended_right(target)
        right = right and not state_of(target).exists()
        tally.add(str(case), not wrong, right, (wrong, ended, again.code, again.err))
    shutil.rmtree(target.parent)


def run(lab: Lab, amount: int, seed: int, broken: Sequence[Sequence[object]] = ()) -> Tally:
    """``amount`` of the cases, or all there are."""
    tally = Tally()
    for case in cases(lab, seed)[:amount]:
        one(lab, case, tally, broken)
    return tally


CAMPAIGN = Campaign(NAME, run, full=10_000, slice=75, missing=shim.missing)
