"""Power loss: what is on a disk at every step of a run is mounted again and gone on with.

This disk writes what it is told to at once, in that order; ``powercache`` has one that does not.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection

from . import disk, shim
from .aftermath import Case, Cut, examined
from .lab import Lab, share
from .stepping import Steps, cuts, place, started, steps
from .tally import Campaign, Tally

FEW = 5  # cases, if not all
EVERY = 1_000_000  # cuts: more than there are
WORKS = ("to-bf16", "quantize", "quantize-nvfp4", "shard-deepseek", "shard-hf",
         "unshard-deepseek", "unshard-hf")  # fmt: skip
CASES = (
    *(Case(work) for work in WORKS),
    *(Case(work, "buffered") for work in WORKS),
    *(Case(work, before=how) for work in ("to-bf16", "quantize") for how in ("power", "killed")),
    Case("shard-deepseek", "buffered", before="power"),
    *(Case(work, "buffered", before="killed") for work in ("shard-deepseek", "unshard-hf")),
    Case("to-bf16", workers=3),
    Case("quantize-nvfp4", "buffered", workers=3),
    *(Case("quantize-nvfp4", io, f"{disk.STRICT},data=writeback") for io in ("auto", "buffered")),
    *(Case("shard-deepseek", io, f"{disk.STRICT},data=writeback") for io in ("auto", "buffered")),
    Case("to-bf16", "buffered", f"{disk.STRICT},data=journal"),
    Case("to-bf16", "buffered", "commit=300"),
    Case("unshard-deepseek", place="deep"),
    Case("shard-hf", place="empty"),
)


def run(lab: Lab, amount: int, seed: int) -> Tally:
    """Cut the power at about ``amount`` steps, of all kinds, in a few cases; or at every step."""
    tally, rng = Tally(), share(seed, "power loss")
    few = amount < EVERY
    for case in rng.sample(CASES, FEW) if few else CASES:
        run_case(lab, case, amount // FEW if few else EVERY, rng, tally)
    return tally


def run_case(lab: Lab, case: Case, many: int, rng: random.Random, tally: Tally) -> None:
    """Cut the power at ``many`` steps of a case, and when it has ended."""
    with place(lab) as folder:
        case, image = started(lab, case, folder, rng)
        chosen = spread(steps(lab, case, image), many, rng)
        for cut in cuts(lab, case, image, chosen):
            judge(lab, case, cut, tally)


def judge(lab: Lab, case: Case, cut: Cut, tally: Tally) -> None:
    """Mount, look, go on, count."""
    notes, after = examined(lab, case, cut)
    cut.image.unlink()
    tally.add(f"{case}, {cut.when}", not notes, not after, "; ".join(notes + after))


def spread(steps: Steps, many: int, rng: random.Random) -> Collection[int]:
    """``many`` of the steps, the same of each kind (what is done, and to what) as far as can be."""
    kinds: dict[object, list[int]] = defaultdict(list)
    for n, step in enumerate(steps):
        kind, path = step.split(" ", 1)
        kinds[kind, "/out" in path, "/journal" in path, ".tmp" in path].append(n)
    for same in kinds.values():
        rng.shuffle(same)
    left, chosen = list(kinds.values()), set[int]()
    rng.shuffle(left)
    while left and len(chosen) < many:
        chosen.add(left[0].pop())
        left = [*left[1:], left[0]] if left[0] else left[1:]
    return chosen


CAMPAIGN = Campaign("power loss", run, EVERY, 30, lambda: shim.missing() or disk.missing(), "cuts")
