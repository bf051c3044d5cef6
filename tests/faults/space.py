"""No space, of every kind: bytes, inodes, quota, the size of one file, write access.

A run gets as far as it can, says what it lacks (75), and the same command goes on once it is there.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from ..crash import Ended
from . import mounts, shim
from .disk import private_mounts
from .lab import Lab, Work, share, temporaries
from .tally import Campaign, Tally

NAME = "no space, no access"
NOBODY = 65534
LEAST = 4096  # RLIMIT_FSIZE: the message of the child has to fit in a file as well

REFUSED = r"not enough disk for '.*': [0-9,]+ bytes needed, [0-9,]+ free"
# What a message says besides the file, and what the system says of it.
WORDS = {
    errno.ENOSPC: ("No space left on device", "free some space"),
    errno.EDQUOT: ("quota exceeded", "free some of the quota"),
    errno.EFBIG: ("File too large", "lift the limit"),
    errno.EROFS: ("Read-only file system", "make it writable"),
    errno.EACCES: ("Permission denied", "permit it"),
}


class Outcome(NamedTuple):
    """How the run that lacked something ended, and how the same command did once it was there."""

    ended: Ended
    lacking: int  # an errno; 0: refused before anything was made
    left: list[str]  # what should not have been there between the two
    again: Ended
    right: bool  # every byte, and nothing else


def as_nobody() -> None:
    """A tampering: whom root's rights do not help."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def stepwise(
    lab: Lab, work: Work, target: Path, act: Callable[[], None], step: int, *more: object
) -> Ended:
    """A run; ``act`` is called before the ``step``-th call that changes something."""
    arm = ("arm", str(target.parent), list(shim.CHANGES), "stop")
    run = work.argv(target, "--workers", 1, "--quiet")
    lab.forker.start(*run, tamper=("several", ("enter", os.getpid()), *more, arm))
    for n in itertools.count(1):
        if ended := lab.forker.wait():
            return ended
        if n == step:
            act()
        lab.forker.go()
    raise AssertionError


def attempt(lab: Lab, work: Work, target: Path, *more: object) -> Ended:
    """A run that sees the mounts."""
    run = work.argv(target, "--workers", 1, "--quiet")
    return lab.forker.run(*run, tamper=("several", ("enter", os.getpid()), *more))


def again(lab: Lab, work: Work, target: Path, *more: object) -> tuple[Ended, bool]:
    """The same command, now that nothing is lacking; whether all is as it should be."""
    ended = attempt(lab, work, target, *more)
    right = ended.code == 0 and work.ended_right(target)
    right = right and os.listdir(target.parent) == [target.name]
    shutil.rmtree(target, ignore_errors=True)
    return ended, right


def needed(work: Work) -> int:
    """Bytes of the target, in whole pages, and those of the journal."""
    pages = sum(-(-len(data) // mounts.PAGE) for data in work.expected.values())
    return (pages + 2 * len(work.expected) + 16) * mounts.PAGE


def unfinished(target: Path) -> list[str]:
    """What must not be there after a run that failed: the target, or temporaries."""
    return [str(p) for p in (target, *temporaries(target.parent)) if p.exists()]


def bytes_gone(lab: Lab, work: Work, rng: Random) -> Outcome:
    """Another program fills the filesystem while the run is at work."""
    with mounts.tmpfs(lab.root / "small", 2 * needed(work)) as place:
        target = place / "dst"
        made: list[Path] = []
        left = rng.randrange(max(needed(work) // 2, 1))
        step = rng.randrange(2, 60)
        ended = stepwise(lab, work, target, lambda: made.append(mounts.fill(place, left)), step)
        return _mended(lab, work, target, ended, errno.ENOSPC, made)


def inodes_gone(lab: Lab, work: Work, rng: Random) -> Outcome:
    """The same, by empty files."""
    with mounts.tmpfs(lab.root / "small", 4 * needed(work), inodes=300) as place:
        target = place / "dst"
        made: list[Path] = []
        left = rng.randrange(8)
        step = rng.randrange(1, 40)
        act = lambda: made.append(mounts.fill_inodes(place, left))  # noqa: E731
        ended = stepwise(lab, work, target, act, step)
        return _mended(lab, work, target, ended, errno.ENOSPC, made)


def refused(lab: Lab, work: Work, rng: Random) -> Outcome:
    """Less room than the plan needs, from the start: nothing is begun."""
    total = sum(len(data) for data in work.expected.values())
    with mounts.tmpfs(lab.root / "small", rng.randrange(mounts.PAGE, total - 20_000)) as place:
        ended = attempt(lab, work, place / "dst")
        left = [p.name for p in place.iterdir()]
        mounts.resize(place, 2 * needed(work))
        return Outcome(ended, 0, left, *again(lab, work, place / "dst"))


def file_limit(lab: Lab, work: Work, rng: Random) -> Outcome:
    """RLIMIT_FSIZE below the largest file."""
    target = lab.new()
    largest = max(len(data) for data in work.expected.values())
    limit = ("limit", "RLIMIT_FSIZE", rng.randrange(LEAST, largest))
    ended = attempt(lab, work, target, limit)
    return _mended(lab, work, target, ended, errno.EFBIG)


def quota(lab: Lab, work: Work, rng: Random) -> Outcome:
    """From some write on there is none left."""
    target = lab.new()
    kinds = ["create", "write", "allocate", "mkdir"]
    arm = ("arm", str(target.parent), kinds, "fail-on", rng.randrange(1, 30), errno.EDQUOT)
    ended = attempt(lab, work, target, arm)
    return _mended(lab, work, target, ended, errno.EDQUOT)


def made_read_only(lab: Lab, work: Work, rng: Random) -> Outcome:
    """A run is killed, and its folder is mounted read-only when it is to go on; or at the start."""
    with mounts.tmpfs(lab.root / "small", 2 * needed(work)) as place:
        target = place / "dst"
        if step := rng.randrange(40):
            arm = ("arm", str(place), list(shim.CHANGES), "kill-before", step)
            attempt(lab, work, target, arm)
        before = {str(p) for p in temporaries(place)}  # of the run that was killed
        with mounts.read_only(place):
            ended = attempt(lab, work, target)
        left = [p for p in unfinished(target) if p not in before]
        return Outcome(ended, errno.EROFS, left, *again(lab, work, target))


def turned_read_only(lab: Lab, work: Work, rng: Random) -> Outcome:
    """As after an error of the filesystem: from one change on none is allowed, nor any removal."""
    target = lab.new()
    arm = ("arm", str(target.parent), list(shim.CHANGES), "fail-on", rng.randrange(1, 50))
    ended = attempt(lab, work, target, (*arm, errno.EROFS))
    left = [p for p in unfinished(target) if not p.endswith(".tmp")]  # it cannot be removed
    return Outcome(ended, errno.EROFS, left, *again(lab, work, target))


def forbidden(lab: Lab, work: Work, rng: Random) -> Outcome:
    """Another user's folder; or one's own, whose rights are taken away meanwhile."""
    with mounts.tmpfs(lab.root / "small", 2 * needed(work)) as place:
        target, user = place / "dst", ("space:as_nobody",)
        step, state = rng.randrange(40), place / ".dst.fp8convert"
        if not step:
            place.chmod(0o755)
            ended = attempt(lab, work, target, user)
            place.chmod(0o777)
        else:
            place.chmod(0o777)
            ended = stepwise(lab, work, target, lambda: _lock_up(state), step, user)
        left = [p for p in unfinished(target) if not p.endswith(".tmp")]  # nor may it remove any
        _lock_up(state, 0o755)
        return Outcome(ended, errno.EACCES, left, *again(lab, work, target, user))


def _lock_up(state: Path, mode: int = 0o555) -> None:
    for folder in (state, state / "out", state / "journal"):
        if folder.exists():
            folder.chmod(mode)


def _mended(
    lab: Lab, work: Work, target: Path, ended: Ended, lacking: int, made: Sequence[Path] = ()
) -> Outcome:
    left = unfinished(target) if ended.code else []
    for ballast in made:
        mounts.remove(ballast)
    return Outcome(ended, lacking, left, *again(lab, work, target))


LACKS = (bytes_gone, refused, inodes_gone, file_limit, quota, made_read_only, turned_read_only,
         forbidden)  # fmt: skip


def wrongs(found: Outcome) -> Iterator[str]:
    """What was not as it must be when something was lacking."""
    code, _, err = found.ended
    if code == 0:
        return  # it had enough: what was left over sufficed
    if found.left:
        yield f"there is {found.left}"
    if code != 75 or "Traceback" in err or "Run the same command again" not in err:
        yield "no proper end"
    if found.lacking in (0, errno.ENOSPC) and re.search(REFUSED, err):
        return
    if not found.lacking:
        yield "no word of what is needed"
    elif not all(word in err for word in WORDS[found.lacking]) or not re.search(r"\('.+'\)", err):
        yield "no word of what is lacking, and where"


def run(lab: Lab, amount: int, seed: int) -> Tally:
    """``amount`` runs that lack something, all works and kinds in turn."""
    tally, rng = Tally(), share(seed, NAME)
    mode = lab.root.stat().st_mode
    lab.root.chmod(0o755)  # for whom root's rights do not help
    try:
        with private_mounts():
            turns = zip(itertools.cycle(lab.works), itertools.cycle(LACKS), strict=False)
            for work, lack in itertools.islice(turns, amount):  # 7 and 8: each with each
                _one(lab, work, lack, rng, tally)
    finally:
        lab.root.chmod(mode)
    return tally


def _one(
    lab: Lab, work: Work, lack: Callable[[Lab, Work, Random], Outcome], rng: Random, tally: Tally
) -> None:
    found = lack(lab, work, rng)
    wrong = list(wrongs(found))
    tally.add(f"{work.name}, {lack.__name__}", not wrong, found.right, (wrong, found))


CAMPAIGN = Campaign(NAME, run, full=600, slice=56, missing=mounts.missing)
