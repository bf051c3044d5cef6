"""Memory limits: every command in a control group with no more than the peak it announces.

Processes are new ones, since the interpreter and its libraries count. Files are on a real disk:
those of a tmpfs are memory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..sharded.deepseek import deepseek
from ..sharded.forms import blocks, fp8_config
from . import cgroup
from .lab import SIZES, Lab, share, state_of
from .tally import Campaign, Tally

NAME = "memory limits"
BIG = {**SIZES, "hidden_size": 1024, "intermediate_size": 8192}  # weights of 8 MB in FP8
# Of the announced peak this much is pages of libraries, which a limit does not count as it can have
# them back. Without it a limit is near enough to what a run needs to tell a tool that is careless.
LIBRARIES = 100 << 20

# The console script, and a line with the peak of its memory. What a process has been forked from
# does not count, as in ru_maxrss.
SCRIPT = """
import os, re, sys
from fp8convert.cli.main import main
exec(os.environ.get("FP8CONVERT_BROKEN", ""))
try:
    main()
finally:
    with open("/proc/self/status") as f:
        print("peak", re.search(r"VmHWM:\\s*(\\d+) kB", f.read())[1], file=sys.stderr)
"""


class Job(NamedTuple):
    """A command on a source of some size."""

    name: str
    source: Path
    words: tuple[str, ...]  # the command, and after source and target its options
    expected: Path  # made without a limit

    def argv(self, target: Path, *more: object) -> list[str]:
        """The command line."""
        words = (self.words[0], self.source, target, *self.words[1:], *more)
        return [str(word) for word in words]


class Limited(NamedTuple):
    """How a process ended that had so much memory; its peak resident bytes, if it got to tell."""

    code: int
    peak: int
    kills: int
    err: str


def limited(argv: Sequence[str], limit: int, broken: str = "") -> Limited:
    """A new process; ``broken`` is Python that spoils the tool first."""
    with cgroup.group() as group:
        group.limit(limit)
        enter = 'echo $$ > "$0" && exec "$@"'
        words = ["sh", "-c", enter, group.folder / "cgroup.procs", sys.executable, "-c", SCRIPT]
        ended = subprocess.run(
            [*words, *argv, "--quiet"], env={**os.environ, "FP8CONVERT_BROKEN": broken},
            capture_output=True, text=True,
        )  # fmt: skip
        *_, last = ended.stderr.split() or [""]
        peak = int(last) << 10 if last.isdigit() else 0
        return Limited(ended.returncode, peak, group.kills(), ended.stderr)


def announced(lab: Lab, argv: Sequence[str]) -> int:
    """The peak that --dry-run tells."""
    ended = lab.forker.run(*argv, "--dry-run", "--json", "--quiet")
    peak: int = json.loads(ended.out)["peak_memory"]
    return peak


@contextlib.contextmanager
def jobs(lab: Lab) -> Iterator[list[Job]]:
    """Every command, on sources of 30 and 60 MB."""
    root = Path(tempfile.mkdtemp(prefix="fp8convert-memory-"))
    try:
        coded = deepseek("big-fp8", blocks(128), fp8_config(128, fmt="e4m3"), **BIG)
        fp8, plain = coded.write(root / "fp8"), root / "to-bf16"
        made = [
            Job("to-bf16", fp8, ("to-bf16",), plain),
            Job("quantize", plain, ("quantize", "--scheme", "fp8-block"), root / "quantize"),
            Job("nvfp4", plain, ("quantize", "--scheme", "nvfp4"), root / "nvfp4"),
            Job("shard-for-tp", fp8, ("shard-for-tp", "--tp", "2"), root / "ranks"),
            Job("unshard", root / "ranks", ("unshard",), root / "unshard"),
        ]
        for job in made:
            ended = lab.forker.run(*job.argv(job.expected, "--quiet"))
            assert ended.code == 0, ended
        yield made
    finally:
        shutil.rmtree(root)


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same bytes."""
    names = [sorted(p.relative_to(f) for p in f.rglob("*")) for f in (one, other)]
    files = (n for n in names[0] if (one / n).is_file())
    return names[0] == names[1] and all(
        (one / n).read_bytes() == (other / n).read_bytes() for n in files
    )


def one(lab: Lab, job: Job, more: Sequence[str], less: int, broken: str = "") -> tuple[str, bool]:
    """What was wrong with a run in its announced peak less ``less``; whether bytes are right."""
    target = job.expected.with_name("dst")
    argv = job.argv(target, *more)
    peak = announced(lab, argv)
    ended = limited(argv, peak - less, broken)
    right = ended.code == 0 and same(target, job.expected)
    for left in (target, state_of(target)):
        shutil.rmtree(left, ignore_errors=True)
    wrong = "" if ended.code == 0 and not ended.kills else f"killed at {peak - less:,}: {ended}"
    return wrong or (f"{ended.peak:,} of {peak:,}" if ended.peak > peak else ""), right


def settings(seed: int) -> Iterator[tuple[tuple[str, ...], int]]:
    """Options of a run, without end, and what is taken off its limit."""
    rng = share(seed, NAME)
    for less in itertools.cycle((LIBRARIES, 0, LIBRARIES)):
        io, workers = rng.choice(("auto", "buffered")), rng.choice((1, 2, 3))
        memory = f"{rng.randrange(300, 600)}MiB"
        yield ("--memory", memory, "--io", io, "--workers", str(workers)), less


def run(lab: Lab, amount: int, seed: int) -> Tally:
    """``amount`` runs, all commands in turn."""
    tally = Tally()
    with jobs(lab) as found:
        turns = zip(itertools.cycle(found), settings(seed), strict=False)
        for job, (more, less) in itertools.islice(turns, amount):
            wrong, right = one(lab, job, more, less)
            tally.add(f"{job.name} {' '.join(more)}, less {less:,}", not wrong, right, wrong)
    return tally


CAMPAIGN = Campaign(NAME, run, full=60, slice=5, missing=cgroup.missing, unit="runs")
