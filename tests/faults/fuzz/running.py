"""Fuzzing a target in a process of its own, and what came of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from .benches import HERE

CORPUS, CRASHES = HERE / "corpus", HERE / "crashes"
HANGS = 60  # seconds for one input: it does not end. What is slow, promises.timed tells
MEGABYTES = 1024  # of the process; what torch takes comes on top
TORCH = 1024
LONGEST = 20_000  # bytes of an input
GRACE = 120  # seconds beyond the time that was asked for
DONE = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
LAST = re.compile(r"#(\d+)\s")


class Found(NamedTuple):
    """How many inputs were run, and the one that a promise broke on, with what was said of it."""

    executed: int
    crash: bytes | None = None
    why: str = ""
    log: str = ""


def missing() -> str:
    """Why there can be no fuzzing here, or nothing."""
    found = importlib.util.find_spec("atheris")
    return "" if found else "atheris is not installed (it is for Linux and some versions of Python)"


def fuzz(
    target: str, seconds: float, seed: int, new: Path | None = None, kept: Path | None = None,
    bug: str = "",
) -> Found:  # fmt: skip
    """Fuzz for so many seconds, start included, from the ``kept`` inputs, else those of the corpus.

    What is found goes to the folder ``new``, which is read as well, or is gone. ``bug`` plants one.
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fp8convert-fuzz-", dir=memory) as place:
        Path(place, "new").mkdir()
        folders = [new or Path(place, "new"), kept or CORPUS / target]
        most = MEGABYTES + (TORCH if target in ("model", "words") else 0)
        options = [
            f"-seed={seed + 1}", f"-timeout={HANGS}", f"-rss_limit_mb={most}",  # 0 is random
            f"-artifact_prefix={place}/crash/", "-print_final_stats=1", f"-max_len={LONGEST}",
            *map(str, folders),
        ]  # fmt: skip
        Path(place, "crash").mkdir()
        words = [sys.executable, "-m", f"{__package__}.child", target, str(seconds), bug, *options]
        # By a shell that forks: what we start ourselves begins with our own peak of memory as its.
        words = ["sh", "-c", '"$@"; exit $?', "sh", *words]
        ended = subprocess.run(
            words, cwd=HERE.parents[2], env={**os.environ, "TMPDIR": place}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
            timeout=seconds + GRACE, check=False,
        )  # fmt: skip
        return _found(ended, Path(place, "crash"))


def _found(ended: subprocess.CompletedProcess[str], crashes: Path) -> Found:
    log = ended.stdout
    counts = DONE.findall(log) or LAST.findall(log) or ["0"]
    inputs = sorted(crashes.iterdir())
    crash = inputs[0].read_bytes() if inputs else None
    if not ended.returncode and crash is None:
        return Found(int(counts[-1]), log=log)
    return Found(int(counts[-1]), crash, _why(log), log)


def _why(log: str) -> str:
    """The last line of a traceback, or what libFuzzer says."""
    lines = log.splitlines()
    for n, line in enumerate(lines):
        if "Uncaught Python exception" in line:
            rest = [x for x in lines[n + 1 :] if x and not x.startswith((" ", "Traceback", "="))]
            return rest[0] if rest else line
    said = [x for x in lines if "ERROR" in x or "Error" in x]
    return said[0] if said else (lines[-1] if lines else "nothing was said")
