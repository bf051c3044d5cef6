"""Hub: a source on the hub, two shards of scratch, against downloading and converting apart.

A hub of the tests on this machine sends at a given rate a checkpoint of many shards, as the large
models are, and so long that starting takes little of the time. Three whole commands take turns:
huggingface_hub's own download of the shards; ``to-bf16`` of a folder; ``to-bf16`` of the hub. The
last must take little longer than the slower of the others. What lies on the disk is looked at all
the time. All of it, the hub included, runs on this machine: where the cores cannot keep up with a
rate, nothing is asked of it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import inputs
from .children import Child, child, fp8convert
from .common import FREE, MIB, Bound, Env, Report, Values, alternate, clear

REPO = "org/model"
SHARD = 64 * MIB
RATES = (100, 200, 400)  # MB/s
THROUGHPUT, DISK = Bound(at_least=0.9), Bound(at_most=1)
CPU = 8.0  # seconds a GB: to send it, to receive it, to sum it, to convert it
KEPT = 256 << 10  # bytes of huggingface_hub's notes, of our state, and of folders
EVERY_S = 0.02
SNAPSHOT = "from huggingface_hub import snapshot_download as s; import sys; s(sys.argv[1], \
local_dir=sys.argv[2], allow_patterns='*.safetensors')"


def run(env: Env, report: Report) -> None:
    """At several rates: the network is slower, then the conversion is."""
    source = inputs.recut(env, inputs.sample(env, "small"), SHARD, 1 if env.quick else 3)
    for rate in RATES[:1] if env.quick else RATES:
        with _hub(env, source, rate) as environment:
            _measure(env, report, source, rate, environment)


def _measure(
    env: Env, report: Report, source: Path, rate: int, environment: Mapping[str, str]
) -> None:
    room = 2 * max(f.stat().st_size for f in inputs.shards(source))
    peaks: list[float] = []
    runs: dict[str, list[Child]] = {"download": [], "local": [], "hub": []}

    def turn(name: str, found: Child) -> float:
        runs[name].append(found)
        return found.seconds

    def download() -> float:
        words = [sys.executable, "-c", SNAPSHOT, REPO, str(env.fresh())]
        return turn("download", child(words, environment))

    def local() -> float:
        words = ("to-bf16", inputs.evicted(source), env.fresh(), "--quiet")
        return turn("local", fp8convert(*words))

    def hub() -> float:
        target, scratch = env.fresh(), env.fresh("downloads")
        words = ("--scratch", scratch, "--scratch-size", str(room), "--quiet")
        with _watching(target.parent) as peak:
            found = fp8convert("to-bf16", f"hf://{REPO}", target, *words, environment=environment)
        output = sum(f.stat().st_size for f in target.iterdir())
        peaks.append((peak[0] - KEPT) / (output + room))
        return turn("hub", found)

    sides = {"download": download, "local": local, "hub": hub}
    found = alternate(sides, env.repeats)
    clear(env.fresh())
    title = f"{source.name} at {rate} MB/s, two shards of scratch"
    slower = [max(pair) for pair in zip(found["download"], found["local"], strict=True)]
    for name in ("download", "local"):
        report.figure(f"{title}: {name} alone", Values(name, found[name]))
    report.ratio(
        f"{title}: throughput against the slower of download and local conversion",
        Values("slower of the two", slower), Values("from the hub", found["hub"]),
        THROUGHPUT if rate / 1000 * CPU < 0.9 * (os.cpu_count() or 1) else FREE,
    )  # fmt: skip
    both = [a.cpu + b.cpu for a, b in zip(runs["download"], runs["local"], strict=True)]
    report.ratio(
        f"{title}: processor time against the sum of both",
        Values("from the hub", [r.cpu for r in runs["hub"]]), Values("both", both),
    )  # fmt: skip
    report.figure(f"{title}: peak disk of scratch and output", Values("peak", peaks, "x"), DISK)
    report.figure(
        f"{title}: peak memory", Values("peak", [r.peak / MIB for r in runs["hub"]], "MiB")
    )


@contextlib.contextmanager
def _hub(env: Env, source: Path, rate: int) -> Iterator[dict[str, str]]:
    """The environment of who uses a hub that has ``source``; it is a process of its own."""
    root = env.data / "hub"
    words = [sys.executable, "-m", "tests.hub", str(root), "--rate", str(rate * 10**6),
             "--add", f"{REPO}={source}"]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            lines = [process.stdout.readline().strip() for _ in range(4)]
            yield {**os.environ, **dict(line.split("=", 1) for line in lines)}
        finally:
            process.terminate()
            process.wait()
    clear(root)


@contextlib.contextmanager
def _watching(folder: Path) -> Iterator[list[int]]:
    """The most bytes that were below ``folder``, allocated, so far."""
    peak, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(EVERY_S):
            peak[0] = max(peak[0], _allocated(folder))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _allocated(folder: Path) -> int:
    found = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                found += os.lstat(os.path.join(place, name)).st_blocks * 512
    return found
