"""``python -m benchmarks.fleet PLAN [OPTIONS]``: how long, and what holds it up.

Options with a list (``--machines 1,8,64 --storage 2,10,50``) are tried with each value, and every
combination is a row. What the options mean is said in ``benchmarks/fleet/inputs.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .inputs import GB, OPTIONS, Fleet, Plan, read_plan
from .run import Outcome, simulate

LEAST = 0.05  # fractions below are not printed


def main(arguments: Sequence[str] | None = None) -> int:
    """A table, or JSON. Exit code 2 for a plan or options that make no sense."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    path, as_json = options.pop("plan"), options.pop("json")
    try:
        plan = read_plan(path)
        found = [(fleet, simulate(plan, fleet)) for fleet in _fleets(options)]
    except (OSError, KeyError, TypeError, ValueError) as e:
        parser.error(f"{type(e).__name__}: {e}")
    varied = [name for name, values in options.items() if len(values) > 1] or ["machines"]
    if as_json:
        print(json.dumps([_record(plan, *f) for f in found], indent=1))
    else:
        print(_table(plan, found, varied))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    said = "of fp8convert plan, or of --dry-run --json"
    parser.add_argument("plan", type=Path, metavar="PLAN", help=said)
    parser.add_argument("--json", action="store_true", help="everything, for machines")
    for name, kind in OPTIONS.items():
        default = getattr(Fleet, name)
        said = f"default: {default}"
        parser.add_argument(
            f"--{name}", type=_list_of(kind), default=[default], metavar="LIST", help=said
        )
    return parser


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """What turns ``1,8,64`` into values."""
    return lambda text: [kind(word) for word in text.split(",")]


def _fleets(options: dict[str, list[Any]]) -> Iterator[Fleet]:
    """Every combination."""
    for values in itertools.product(*options.values()):
        yield Fleet(**dict(zip(options, values, strict=True)))


def least(plan: Plan, fleet: Fleet) -> tuple[float, str]:
    """Seconds below which nothing gets, and why: bytes by rate, or one file alone.

    Of machines none of which is slow, and of downloads each of which is made once.
    """
    out = sum(t.size for t in plan.tasks)
    into = sum(sum(t.reads.values()) for t in plan.tasks)
    down = sum(plan.shards[name] for name in {name for t in plan.tasks for name in t.reads})
    work = {"cpu": out, "link out": out, "link in": 0 if fleet.hub else into, "hub": down}
    work |= {"scratch": down + into, "storage": out if fleet.hub else out + into}
    bounds = {kind: work[kind] / rate for kind, rate in fleet.limits.items()}
    one = max(t.size for t in plan.tasks) / (fleet.file * GB)
    bounds["file"] = one + fleet.each
    bound = max(bounds, key=lambda kind: bounds[kind])
    return fleet.start + bounds[bound], bound


def _record(plan: Plan, fleet: Fleet, found: Outcome) -> dict[str, Any]:
    """Everything of one row."""
    seconds, bound = least(plan, fleet)
    per = [len(done) for done in found.done]
    return {
        "fleet": {name: _plain(getattr(fleet, name)) for name in OPTIONS},
        "tasks": len(plan.tasks),
        "seconds": found.seconds,
        "least": seconds,
        "bound": bound,
        "held": found.held,
        "used": found.used,
        "most_tasks": max(per),
        "fewest_tasks": min(per),
    }


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return str(value) if value in (float("inf"),) else value


def _table(plan: Plan, found: Sequence[tuple[Fleet, Outcome]], varied: Sequence[str]) -> str:
    """Markdown: a row a fleet."""
    head = [*varied, "time", "least", "held up by", "tasks a machine"]
    lines = [head, ["---"] * len(head)]
    for fleet, outcome in found:
        facts = _record(plan, fleet, outcome)
        few, most = facts["fewest_tasks"], facts["most_tasks"]
        lines.append([
            *(_short(getattr(fleet, name)) for name in varied),
            minutes(outcome.seconds),
            f"{minutes(facts['least'])} {facts['bound']}",
            ", ".join(f"{k} {v:.0%}" for k, v in outcome.held.items() if v >= LEAST),
            f"{most}" if few == most else f"{few} to {most}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(value: Any) -> str:
    """``10`` of 10.0."""
    return value if isinstance(value, str) else f"{value:g}"


def minutes(seconds: float) -> str:
    """``1 h 02 min``, ``12.3 min``, ``45.2 s``."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{int(seconds // 3600)} h {seconds % 3600 / 60:02.0f} min"


if __name__ == "__main__":
    sys.exit(main())
