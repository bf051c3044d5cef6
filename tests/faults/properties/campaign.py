"""Campaign "random checkpoints": every property, each with a share of the examples."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, configuration, given, seed, settings
from hypothesis import strategies as st

from ..lab import Lab
from ..tally import Campaign, Tally
from . import decoding, defects, encodings, models, sameness, sharding

SHOWN = 600  # characters of a message
EVERY = tuple(phase for phase in Phase if phase is not Phase.explain)


class Property(NamedTuple):
    """``holds`` of every case that is drawn; ``share`` of a hundred examples."""

    name: str
    cases: st.SearchStrategy[Any]
    holds: Callable[[Any], None]
    share: int


PROPERTIES = (
    Property("to-bf16 is the plain loop", decoding.decodings(), decoding.decoding, 26),
    Property("reading is the plain loop", decoding.readings(), decoding.reading, 8),
    Property("quantize is the plain rule", encodings.encodings(), encodings.encoding, 20),
    Property("ranks are slices, and the way back", models.shardings(), sharding.sharding, 14),
    Property("any way gives the same", sameness.several(), sameness.sameness, 9),
    Property("verify accepts it, changed not", sameness.verified(), sameness.verifying, 4),
    Property("verify accepts codes", sameness.accepted_quantized(), sameness.verifying, 2),
    Property("one defect is refused", defects.damages(), defects.damage, 17),
)


def run(lab: Lab, amount: int, number: int) -> Tally:
    """Each property, until it fails; a loss is the smallest example that was found."""
    tally = Tally()
    for one in PROPERTIES:
        examples, failed = tried(one, max(amount * one.share // 100, 1), number)
        for n in range(max(examples, 1)):
            held = not failed or n > 0
            tally.add(one.name, held, held, failed)
    return tally


def tried(
    one: Property, examples: int, number: int, phases: tuple[Phase, ...] = EVERY
) -> tuple[int, str]:
    """How many examples were run before a failure was made smaller, and what it was, or ""."""
    count, last = 0, ""

    def body(case: Any) -> None:
        nonlocal count, last
        count += not last
        try:
            one.holds(case)
        except BaseException as e:
            if type(e).__module__.partition(".")[0] != "hypothesis":
                at = traceback.extract_tb(e.__traceback__)[-1]
                where = f"{Path(at.filename).name}:{at.lineno} {at.line}"
                last = f"{type(e).__name__}: {str(e)[:SHOWN]} at {where}; {case!r}"[: 3 * SHOWN]
            raise

    how = settings(
        max_examples=examples, deadline=None, database=None, derandomize=False, print_blob=True,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, phases=phases,
    )  # fmt: skip
    with _home():
        try:
            seed(number)(how(given(one.cases)(body)))()
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                raise
            return count, last or f"{type(e).__name__}: {e}"[:SHOWN]
    return count, ""


@contextlib.contextmanager
def _home() -> Iterator[None]:
    """Where hypothesis keeps what it finds out: not in the tree."""
    with tempfile.TemporaryDirectory(prefix="fp8convert-hypothesis-") as folder:
        configuration.set_hypothesis_home_dir(Path(folder))
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(None)


CAMPAIGN = Campaign("random checkpoints", run, full=3000, slice=150, unit="examples")
