"""A parity run: two models side by side, a layer at a time, measured, judged, with a control.

    embed tokens on both sides
    for each layer: run it on both, measure how far the states are apart
    logits, and those of the MTP head where both have one: measure, judge by a profile
    the candidate's last layer once more, with a fault: judge, and expect a failure

No states are kept but the current ones, and no weights at all: memory is that of one layer.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any

from ..errors import Fp8ConvertError
from ..reference.groups import Gloo
from .memory import enough, lacking
from .run import Options, Run
from .sides import blamed, check_same, open_side
from .walk import Walk, follow, telling

__all__ = ["Options", "compare", "plain"]
PASS, FAIL, ERROR = range(3)  # what process 0 ends with


def compare(
    reference: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    options: Options,
    group: Gloo | None = None,
) -> dict[str, Any]:
    """The result of a run, as JSON has it but for NaN. ``candidate`` is judged by ``reference``.

    Raises Fp8ConvertError where the two cannot be compared. With ``group`` each process runs a rank
    of the candidate; process 0 has the result, the others its ``verdict`` alone.
    """
    with blamed("REF"):
        ref = open_side(reference, options.compute, options.device)
    said = ref.model.config.found
    with blamed("CANDIDATE"):
        other = open_side(candidate, options.compute, options.device, said, group)
    check_same(said, other.model.config.found)
    with enough():
        tokens = options.wanted.tokens(ref.path, ref.model.vocabulary)
        run = Run(ref, other, tokens, options)
        if group is None:
            return run.result()
        try:
            return _lead(run, group) if group.rank == 0 else _follow(run, group)
        except RuntimeError as e:  # of gloo, where the other side is gone
            if lacking(e):
                raise
            raise Fp8ConvertError(f"another process of this run has failed: {e}") from e


def _follow(run: Run, group: Gloo) -> dict[str, Any]:
    with blamed("CANDIDATE"):
        code = follow(run.sides[1].model, run.tokens.ids, group)
    if code == ERROR:
        raise Fp8ConvertError("process 0 of this run has failed")
    return {"verdict": "pass" if code == PASS else "fail"}


def _lead(run: Run, group: Gloo) -> dict[str, Any]:
    run.candidate = Walk(run.sides[1].model, run.tokens.ids, telling(group))
    try:
        result = run.result()
    except BaseException:
        # others may have met the same, and are gone
        with contextlib.suppress(RuntimeError, Fp8ConvertError):
            run.candidate.end(ERROR)
        raise
    run.candidate.end(PASS if result["verdict"] == "pass" else FAIL)
    return result


def plain(value: Any) -> Any:
    """A result as strict JSON: NaN and infinity become strings."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
