"""The broken control: does this very comparison notice a fault?

A block of one weight of the candidate is changed, as if one scale were wrong; its last layer and
the head are run again, and judged as the candidate was. A comparison that lets every one of the
FACTORS pass would let a broken checkpoint pass, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .walk import Walk

FACTORS = (2, 16, 256, 65536)


def control(walk: Walk, last: int, judge: Callable[[Tensor], list[str]]) -> dict[str, Any]:
    """Run layer ``last`` of the candidate with a fault, a larger one until ``judge`` sees it.

    ``judge`` takes logits [b, l, v] and gives what is beyond the thresholds. The result is as in
    the JSON of a run.
    """
    tried: list[float] = []
    failed: list[str] = []
    for factor in FACTORS:
        failed = judge(walk.again(last, factor))
        tried.append(float(factor))
        if failed:
            break
    fault = walk.fault(factor)
    return {
        "weight": fault.name,
        "rows": list(fault.rows),
        "columns": list(fault.columns),
        "factor": fault.factor,
        "detected": bool(failed),
        "failed": failed,
        "tried": tried,
    }
