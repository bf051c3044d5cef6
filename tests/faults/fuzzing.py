"""The class of faults ``fuzzed files``: what others wrote, mutated where that reaches new code."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

from .fuzz.running import Found, fuzz, missing
from .fuzz.targets import targets
from .lab import Lab
from .tally import Campaign, Tally

WIDTH = 2  # targets at a time, each in a process
SHOWN = 400  # characters of an input


def run(lab: Lab, amount: int, seed: int) -> Tally:
    """``amount`` seconds for all targets together, starts included."""
    names = list(targets())
    share = amount * WIDTH / len(names)
    with ThreadPoolExecutor(WIDTH) as pool:
        found = list(pool.map(lambda name: fuzz(name, share, seed), names))
    tally = Tally()
    for name, one in zip(names, found, strict=True):
        count(tally, name, one)
    return tally


def count(tally: Tally, name: str, found: Found) -> None:
    """One target's inputs, all survived but the last if it broke a promise."""
    executed = max(found.executed, bool(found.why))
    tally.injected += executed
    tally.survived += executed - bool(found.why)
    tally.identical += executed - bool(found.why)
    if not found.executed:
        tally.losses.append(f"{name}: no input was run: {found.log[-SHOWN:]}")
    if found.why:
        text = base64.b64encode(found.crash or b"").decode()
        cut = f"{text[:SHOWN]}..." if len(text) > SHOWN else text
        tally.losses.append(f"{name}: {found.why}: base64 {cut}")


CAMPAIGN = Campaign("fuzzed files", run, full=600, slice=20, missing=missing, unit="seconds")
