"""``python -m tests.faults``: inject every class of faults, print what became of them.

Ends with 1 if anything was lost, or could not be tried here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from .campaigns import CAMPAIGNS
from .lab import Lab, lab
from .tally import Campaign, Tally

LINE = "{:<30}{:>11}{:>11}{:>11}{:>8}{:>9}"
SHOWN = 20  # losses of a class


def main() -> None:
    """Parse, run, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="one class; repeatable")
    parser.add_argument("--slice", action="store_true", help="as many as the tests inject")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    known = [c.name for c in CAMPAIGNS]
    if wrong := set(asked.only or ()) - set(known):
        parser.error(
            f"no class of faults {', '.join(sorted(wrong))}; there are: {', '.join(known)}"
        )
    sys.exit(_run([c for c in CAMPAIGNS if c.name in (asked.only or known)], asked))


def _run(campaigns: Sequence[Campaign], asked: argparse.Namespace) -> int:
    begun, tallies, untried = time.monotonic(), [], []
    print(LINE.format("class of faults", "injected", "survived", "identical", "lost", "seconds"))
    with lab() as made:
        for campaign in campaigns:
            if why := campaign.missing():
                untried.append(campaign.name)
                print(f"{campaign.name:<30}not tried: {why}", flush=True)
                continue
            amount = campaign.slice if asked.slice else campaign.full
            tallies.append(_row(campaign, made, amount, asked.seed))
    print(_line("all", Tally.sum(tallies), time.monotonic() - begun))
    lost = sum(len(t.losses) for t in tallies)
    print(f"seed {asked.seed}; {lost} lost, {len(untried)} classes not tried")
    return 1 if lost or untried else 0


def _row(campaign: Campaign, made: Lab, amount: int, seed: int) -> Tally:
    begun = time.monotonic()
    tally = campaign.run(made, amount, seed)
    print(_line(campaign.name, tally, time.monotonic() - begun), flush=True)
    for loss in tally.losses[:SHOWN]:
        print(f"    LOST {loss}", flush=True)
    if not tally.injected:
        tally.losses.append("nothing was injected")
        print("    LOST nothing was injected", flush=True)
    return tally


def _line(name: str, tally: Tally, seconds: float) -> str:
    counts = (tally.injected, tally.survived, tally.identical, len(tally.losses))
    return LINE.format(name, *(f"{n:,}" for n in counts), f"{seconds:.0f}")


if __name__ == "__main__":
    main()
