"""Commands run as a user runs them, with their wall time and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LAUNCHER = Path(__file__).with_name("launcher.py")


class Child(NamedTuple):
    """A command that ended well: wall and CPU seconds, peak resident bytes."""

    seconds: float
    cpu: float
    peak: int


def child(command: list[str], environment: Mapping[str, str] | None = None) -> Child:
    """Run ``command`` to its end; RuntimeError with what it said if it fails."""
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER)]
    done = subprocess.run(
        launcher + command, capture_output=True, text=True, check=True, env=environment
    )
    found = json.loads(done.stdout)
    if found["code"]:
        said = done.stderr.strip()[-500:]
        raise RuntimeError(f"{' '.join(command)} ended with {found['code']}: {said}")
    return Child(found["seconds"], found["cpu"], found["peak"])


def fp8convert(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Child:
    """Run the installed ``fp8convert`` of this Python."""
    script = Path(sys.executable).with_name("fp8convert")
    if not script.exists():
        raise RuntimeError(f"no {script.name} beside {sys.executable}: install the project first")
    return child([str(script), *map(str, arguments)], environment)
