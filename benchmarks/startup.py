"""Start-up: ``fp8convert --help`` is instant, and converting never imports torch.

Nothing is compared: a wall time of whole processes, and the modules of one that has converted.
"""

from __future__ import annotations

import subprocess
import sys

from . import inputs
from .children import fp8convert
from .common import Bound, Env, Report, Values

HELP = Bound(at_most=0.3)  # seconds
TURNS = 10
HEAVY = ("torch", "transformers", "safetensors")
CONVERT = """
import sys, fp8convert
fp8convert.to_bf16(sys.argv[1], sys.argv[2])
print(*sorted(set(sys.modules) & set(sys.argv[3:])))
"""


def run(env: Env, report: Report) -> None:
    """Both."""
    seconds = [fp8convert("--help").seconds for _ in range(max(TURNS, env.repeats))]
    label = f"fp8convert --help, median of {len(seconds)} processes"
    report.figure("time to help", Values(label, seconds), HELP)
    source, target = inputs.sample(env, "tiny"), env.fresh()
    command = [sys.executable, "-c", CONVERT, str(source), str(target), *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy = done.stdout.split()
    detail = f"{', '.join(heavy) or 'none'} of {', '.join(HEAVY)} loaded after to_bf16"
    report.fact("modules loaded by a conversion", not heavy, detail)
