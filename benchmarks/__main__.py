"""``python -m benchmarks``: run the named benchmarks, or all; exit code 1 if a bound was missed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import traceback
from collections import Counter
from pathlib import Path

from .common import Env, Report

NAMES = ("startup", "kernel", "codecs", "scale", "huge", "floor", "families", "peers", "memory",
         "encode", "quantize_speed", "quantize_error", "shard", "proof", "hub",
         "ray_overhead")  # fmt: skip
DATA = Path(__file__).resolve().parents[1] / "bench-data"


def main() -> int:
    """Run, summarise; 0 if nothing was missed."""
    parser = _parser()
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {sorted(unknown)}, there are {', '.join(NAMES)}")
    repeats = options.repeats or (2 if options.quick else 5)
    env, report = Env(options.data.resolve(), repeats, options.quick), Report()
    for name in options.names or NAMES:
        _run(name, env, report)
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
        found = {"machine": machine, "quick": env.quick, "results": report.records}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return _summary(report)


def _summary(report: Report) -> int:
    """Print what needs attention; the exit code."""
    counts = Counter(r["status"] for r in report.records)
    print("\n" + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    for record in report.records:
        if record["status"] in ("MISSED", "skipped"):
            print(f"{record['status']}: {record['benchmark']}: {record['title']}")
    return 1 if counts["MISSED"] else 0


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<14} {_headline(name)}" for name in NAMES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="benchmarks:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--data", type=Path, default=DATA, help="keeps samples; takes outputs")
    parser.add_argument("--repeats", type=int, help="turns of each side (default 5, quick 2)")
    parser.add_argument("--quick", action="store_true", help="fewer turns, smaller inputs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser


def _headline(name: str) -> str:
    source = Path(__file__).with_name(f"{name}.py").read_text()
    return source.split('"""', 2)[1].split("\n", 1)[0]


def _run(name: str, env: Env, report: Report) -> None:
    """One benchmark; an error in it is a miss, and the others still run."""
    report.benchmark = name
    print(f"\n{name}: {_headline(name)}", flush=True)
    try:
        importlib.import_module(f".{name}", __package__).run(env, report)
    except Exception as error:
        traceback.print_exc()
        report.fact("ran to its end", False, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
