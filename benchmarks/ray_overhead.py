"""Ray: what ``--executor ray`` costs on one machine, against a local run of the small sample.

Three ways to count it, each with local runs in turn. The executor: in a process that is connected
to a cluster and whose workers have worked before, from the plan to the target; this is what the
bound holds for. The command on a cluster that is there: with the import of Ray, connecting, and
workers, which Ray starts anew for every command. The command alone, which starts a cluster and
stops it. Of the first also the processor time of all processes that work: where other programs
want the cores too, wall time says little.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil

from fp8convert import executors
from fp8convert.convert import prepare
from fp8convert.settings import Settings

from . import inputs
from .children import fp8convert as command
from .common import Bound, Env, Report, Values, alternate, clear

OVERHEAD = Bound(at_most=1.1)
START = ("start", "--head", "--include-dashboard=false", "--disable-usage-stats", "--port=0",
         "--object-store-memory", str(80 << 20))  # fmt: skip


def run(env: Env, report: Report) -> None:
    """All three; the cluster is one of its own."""
    source = inputs.sample(env, "small")
    with _apart():
        _commands(env, report, source, "nothing there: starts a cluster and stops it")
        with _started():
            _commands(env, report, source, "on a cluster that is there")
            _executor(env, report, source)


def _commands(env: Env, report: Report, source: Path, how: str) -> None:
    def turn(executor: str) -> float:
        words = ("to-bf16", inputs.cached(source), env.fresh(), "--quiet", "--executor", executor)
        return command(*words).seconds

    found = alternate({name: partial(turn, name) for name in executors.NAMES}, env.repeats)
    clear(env.fresh())
    report.ratio(
        f"{source.name}: the command, {how}",
        Values("fp8convert to-bf16 --executor ray", found["ray"]),
        Values("fp8convert to-bf16", found["local"]),
    )


def _executor(env: Env, report: Report, source: Path) -> None:
    import ray

    cpu: dict[str, list[float]] = {name: [] for name in executors.NAMES}

    def turn(executor: str) -> float:
        target = env.fresh()
        job = prepare(inputs.cached(source), target)
        begun, before = time.perf_counter(), _cpu()
        executors.run(executor, job, Settings())
        seconds = time.perf_counter() - begun
        cpu[executor].append(_cpu() - before)
        return seconds

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        for name in executors.NAMES:  # kernels are loaded, workers started
            turn(name)
            cpu[name].clear()
        found = alternate({name: partial(turn, name) for name in executors.NAMES}, env.repeats)
    finally:
        ray.shutdown()
    clear(env.fresh())
    what = f"{source.name}: the executor, connected, workers warm"
    for title, of, unit in (("wall time", found, "s"), ("processor time", cpu, "CPU s")):
        ours, local = (Values(f"executors.run({n!r}, job)", of[n], unit) for n in ("ray", "local"))
        report.ratio(f"{what}, {title}", ours, local, OVERHEAD)


def _cpu() -> float:
    """Seconds of this process and of Ray's workers, which call themselves so."""
    found = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            title = "".join(process.cmdline()[:1])
            if process.pid == os.getpid() or title.startswith("ray::"):
                times = process.cpu_times()
                found += times.user + times.system
    return found


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """No cluster of others is found, nor theirs stopped."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # sockets: a short path
        before = dict(os.environ)
        os.environ.pop("RAY_ADDRESS", None)
        # Workers are not to be nicer than a local run, where other programs want the cores too.
        os.environ.update(RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def _started() -> Iterator[None]:
    """A cluster, as a user begins one; its processes all name the folder it has."""
    program = Path(sys.executable).with_name("ray")
    subprocess.run([str(program), *START], check=True, capture_output=True)
    try:
        yield
    finally:
        folder = os.environ["RAY_TMPDIR"]
        ours = [p for p in psutil.process_iter() if folder in " ".join(_words(p))]
        for process in ours:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(ours, timeout=10)


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        found: list[str] = process.cmdline()
        return found
    return []
