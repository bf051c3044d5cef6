"""Runs on Ray, and the local ones that they are to be like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from fp8convert import executors
from fp8convert.convert import Manifest, execute, prepare
from fp8convert.options import Options, ToBf16
from fp8convert.settings import Progress, Settings

ROOT = Path(__file__).parents[2]
MANY = ToBf16(max_shard_size=1_000_000)  # 29 files of the tiny sample
MOST_SECONDS = 120


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def locally(source: Path, target: Path, options: Options = MANY) -> dict[str, bytes]:
    """What a local run writes."""
    execute(prepare(source, target, options))
    return contents(target)


def on_ray(source: Path, target: Path | str, options: Options = MANY, **settings: Any) -> Manifest:
    """A run in this process."""
    return executors.run("ray", prepare(source, target, options), Settings(**settings))


class Driver(threading.Thread):
    """A run on Ray that something is done to meanwhile."""

    def __init__(self, source: Path, target: Path, options: Options = MANY) -> None:
        super().__init__(daemon=True)
        self._of = source, target, options
        self.error: BaseException | None = None
        self.told: list[Progress] = []
        self.start()

    def run(self) -> None:
        """In the thread."""
        try:
            on_ray(*self._of, progress=self.told.append)
        except BaseException as e:
            self.error = e

    def ended(self) -> BaseException | None:
        """The error that it ended with."""
        self.join(MOST_SECONDS)
        assert not self.is_alive()
        return self.error


class Command:
    """``fp8convert to-bf16 SRC DST --executor ray``, as a process."""

    def __init__(self, source: Path, target: Path | str, **environment: str) -> None:
        program = Path(sys.executable).with_name("fp8convert")
        words = [program, "to-bf16", source, target, "--max-shard-size", "1000000"]
        self.process = subprocess.Popen(
            [*map(str, words), "--executor", "ray"], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment},
        )  # fmt: skip

    def send(self, signum: signal.Signals) -> None:
        """A signal."""
        self.process.send_signal(signum)

    def ended(self) -> tuple[int, str, str]:
        """Its exit code and what it said, but for how far it was (where all this takes long)."""
        out, err = self.process.communicate(timeout=MOST_SECONDS)
        lines = [
            x for x in err.splitlines(keepends=True) if not x.endswith((" written\n", " left\n"))
        ]
        return self.process.returncode, out, "".join(lines)


def raylet_of(node: Any) -> int:
    """The process of a node that starts its workers."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def parents(workers: list[int]) -> list[int]:
    """Of processes that live."""
    return [psutil.Process(pid).ppid() for pid in workers]


def wait_for_end(*pids: int) -> None:
    """Of processes, some of which are nobody's children any more."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)],
                                 timeout=MOST_SECONDS)  # fmt: skip
    assert not alive


def temporaries(target: Path) -> list[Path]:
    """What is unfinished, and plans."""
    return [*target.with_name(f".{target.name}.fp8convert").rglob("*.tmp")]
