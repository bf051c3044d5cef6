"""Families: ``to-bf16`` of every family's sample against the disk floor, and its peak memory.

As :mod:`.floor`, for the forms of weight that there are: each family's small sample, and made-up
AWQ and GPTQ checkpoints with the linear layers of a 70B model. All sides take turns; a ratio is
one of wall times, so a machine that is busy with something else gives none worth reading, while
the CPU time that is shown beside it means the same then.
"""

from __future__ import annotations

from dataclasses import replace

from fp8convert.samples import FAMILIES

from . import inputs, integer_inputs
from .common import Env, Report
from .floor import QUICK, compare, warm

TURNS = 3  # there are many families


def run(env: Env, report: Report) -> None:
    """One after the other; outputs are deleted in between."""
    env = replace(env, repeats=min(env.repeats, TURNS))
    warm(env)
    for family in FAMILIES:
        compare(env, report, inputs.sample(env, "small", family), QUICK)
    for form in integer_inputs.FORMS:
        compare(env, report, integer_inputs.checkpoint(env, form), QUICK)
