"""Hostile checkpoints by the hundred: refused in words, or converted right; never slow, never big.

Each is given to a real command in a child that may use so much memory and processor time and no
more. What is accepted is derived again by ``verify``; whatever is printed, every character of it is
one that a terminal shows.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from fp8convert.errors import Fp8ConvertError
from fp8convert.verify import verify

from ..crash import Ended, marks
from .hostile_inputs import KINDS
from .lab import Lab, share, state_of
from .tally import Campaign, Tally
from .tampering import bound

PROVING = ("against: names", "against: bits", "against: error")
LONGEST = 60_000  # characters of all that is printed


def credulous() -> None:
    """A broken tool: it takes JSON as the standard parser does, and offsets as they come."""
    import json

    from fp8convert import header, strictjson

    vars(strictjson)["loads"] = lambda raw, where, base=0, max_depth=None: json.loads(raw)
    vars(header)["_check_tiling"] = lambda *args: None
    vars(header)["_check_ints"] = lambda *args: None
    bound()


def clean(words: str) -> bool:
    """Whether a terminal shows all of it, in lines."""
    return len(words) <= LONGEST and all(c.isprintable() or c == "\n" for c in words)


def refused(ended: Ended, target: Path) -> bool:
    """In words, and nothing is there."""
    said = ended.err.startswith(("error: ", "warning: ")) and "error: " in ended.err
    return ended.code == 1 and said and not target.exists()


def right(target: Path, source: Path) -> bool:
    """Whether every weight can be derived from the source, as ``verify`` does it."""
    try:
        checks = verify(target, source, workers=1).checks
    except Fp8ConvertError:  # what was converted is not to be read at all
        return False
    found = {c.name: c.passed for c in checks if c.name.startswith("against: ")}
    return "against: bits" in found and all(found[n] for n in PROVING if n in found)


def run(lab: Lab, amount: int, seed: int, tamper: str = "bound") -> Tally:
    """So many hostile sources."""
    tally = Tally()
    for n in range(amount):
        one(lab, n, share(seed, f"hostile {n}"), tally, tamper)
    return tally


def one(lab: Lab, n: int, rng: random.Random, tally: Tally, how: str = "bound") -> None:
    """Source number ``n``, to one command in turn, and to ``inspect``."""
    work, hostile = lab.works[n % len(lab.works)], KINDS[n % len(KINDS)]
    target = lab.new()
    source = target.parent / "src"
    shutil.copytree(work.source, source)
    what = f"{n} {work.name}: {hostile(rng, source)}"
    before = marks(source)
    tamper = (how,)
    argv = work.argv(target, "--workers", 1, source=source)
    ended = lab.forker.run(*argv, tamper=tamper)
    told = lab.forker.run("inspect", source, tamper=tamper)
    clear = all(clean(e.out + e.err) and "Traceback" not in e.err for e in (ended, told))
    well = ended.code == 0 and right(target, source)
    survived = clear and told.code in (0, 1) and (well or refused(ended, target))
    foreign = {p.name for p in target.parent.iterdir()} - {"src", "dst", state_of(target).name}
    kept = marks(source) == before and not foreign
    tally.add(what, survived, kept, f"{ended} {told}"[:1500])
    shutil.rmtree(target.parent)


CAMPAIGN = Campaign("hostile input", run, full=400, slice=24)
