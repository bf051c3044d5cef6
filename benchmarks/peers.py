"""Peers: ``to_bf16`` against compressed-tensors' converter and the published script on the CPU.

All run in one warm process on the small sample, into fresh folders, until every file is fsynced.
Both sides are timed twice: with the source in the page cache, as after a download, and with none of
it there, as a checkpoint larger than memory always is. The disk floor is shown beside them, because
no converter can be further ahead of a peer than that. Then every tensor is compared by bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import fp8convert
from fp8convert.header import Entry

from . import inputs
from .bare_io import Setting, floor
from .cast_loop import cast
from .common import MIB, Bound, Env, Report, Values, alternate, clear, timed

BOUND = Bound(at_least=5)
SLOW = 120  # seconds; a peer that takes longer has two turns only
WORKERS = (1, 2)
SETTING = Setting(8, 8 * MIB)
STATES = ("cold", "cached")
Peer = Callable[[Path, Path], None]


def run(env: Env, report: Report) -> None:
    """Each peer by itself, at its best setting, alternating with ours."""
    source = inputs.sample(env, "small")
    fp8convert.to_bf16(source, ours := env.fresh("ours"))
    library: dict[str, Peer] = {f"compressed-tensors, {n} worker(s)": _library(n) for n in WORKERS}
    script: dict[str, Peer] = {"published script on the CPU": cast}
    for peers in (library, script):
        label, seconds = _best(env, source, peers)
        slow = seconds > SLOW or env.quick
        _compare(env, report, source, label, peers[label], min(env.repeats, 2 if slow else 99))
        same, detail = _compared(ours, env.data / "scratch" / "theirs")
        report.fact(f"{label}: tensors of both outputs", same, detail)
    for name in ("ours", "theirs", "again"):
        clear(env.data / "scratch" / name)


def _best(env: Env, source: Path, peers: dict[str, Peer]) -> tuple[str, float]:
    tried = {n: _turn(p, inputs.cached(source), env.fresh("theirs")) for n, p in peers.items()}
    for name, seconds in tried.items():
        print(f"  ({name}: {seconds:.2f} s)", flush=True)
    return min(tried.items(), key=lambda row: row[1])


def _compare(env: Env, report: Report, source: Path, label: str, peer: Peer, repeats: int) -> None:
    found = alternate(_sides(env, source, peer), repeats)
    bottom = Values(f"disk floor, {SETTING}, nothing cached", found["floor"])
    for state in STATES:
        theirs = Values(f"{label}, {state} source", found[state])
        ours = Values(f"fp8convert.to_bf16(), {state} source", found[f"ours {state}"])
        report.ratio(f"{label}, {state} source, against fp8convert", theirs, ours, BOUND)
    theirs = Values(f"{label}, cold source", found["cold"])
    report.ratio(f"{label}, cold source, against the disk floor", theirs, bottom)


def _sides(env: Env, source: Path, peer: Peer) -> dict[str, Callable[[], float]]:
    files = inputs.shards(source)
    sizes = [f.stat().st_size for f in (env.data / "scratch" / "ours").iterdir()]
    return {
        "cold": lambda: _turn(peer, inputs.evicted(source), env.fresh("theirs")),
        "ours cold": lambda: _turn(_ours, inputs.evicted(source), env.fresh("again")),
        "floor": lambda: floor(files, env.fresh("again"), sizes, SETTING),
        "ours cached": lambda: _turn(_ours, inputs.cached(source), env.fresh("again")),
        "cached": lambda: _turn(peer, inputs.cached(source), env.fresh("theirs")),
    }


def _turn(peer: Peer, source: Path, target: Path) -> float:
    """Seconds of a conversion; it ends when everything it wrote is on the disk."""

    def convert() -> None:
        peer(source, target)
        sync_all(target)

    return timed(convert)


def sync_all(folder: Path) -> None:
    """Bring the files of a folder, and it, to the disk."""
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _ours(source: Path, target: Path) -> None:
    fp8convert.to_bf16(source, target)


def _library(workers: int) -> Peer:
    """compressed-tensors' own entry point with its dequantizer, silenced."""
    from loguru import logger

    library = importlib.import_module("compressed_tensors.entrypoints.convert")  # has no types
    logger.disable("compressed_tensors")

    def convert(source: Path, target: Path) -> None:
        dequantizer = library.FP8BlockDequantizer.from_pretrained(source)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            library.convert_checkpoint(
                source, target, dequantizer, max_workers=workers, device="cpu"
            )

    return convert


def _compared(ours: Path, theirs: Path) -> tuple[bool, str]:
    """Whether both folders hold the same tensors with the same dtype, shape and bytes."""
    a, b = _tensors(ours), _tensors(theirs)
    differing = sorted(a.keys() ^ b.keys())
    for name in sorted(a.keys() & b.keys()):
        (file, mine), (other, yours) = a[name], b[name]
        alike = (mine.dtype, mine.shape) == (yours.dtype, yours.shape)
        size = mine.end - mine.begin
        if not alike or not same_bytes(file, mine.begin, other, yours.begin, size):
            differing.append(name)
    return not differing, f"{len(a):,} tensors, differing: {differing[:4] or 'none'}"


def _tensors(folder: Path) -> dict[str, tuple[Path, Entry]]:
    return {e.name: (f, e) for f in inputs.shards(folder) for e in inputs.entries(f)}


def same_bytes(a: Path, a_begin: int, b: Path, b_begin: int, size: int) -> bool:
    with a.open("rb") as one, b.open("rb") as two:
        one.seek(a_begin)
        two.seek(b_begin)
        steps = [min(8 * MIB, size - at) for at in range(0, size, 8 * MIB)]
        return all(one.read(n) == two.read(n) for n in steps)
