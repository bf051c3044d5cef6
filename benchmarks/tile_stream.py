"""Decode some tiles of a planned conversion as the engine does, writing nothing.

Usage: ``python -m benchmarks.tile_stream SOURCE TARGET COUNT RESULT``: RESULT gets the seconds that
all workers take to read and decode, and the SHA-256 of what each tile has of the coded weight.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fp8convert.convert import prepare
from fp8convert.encoding.band import Bench
from fp8convert.fileio import aligned_buffer
from fp8convert.header import ALIGN as PAGE
from fp8convert.origin import Direct
from fp8convert.plan import Task
from fp8convert.settings import Settings
from fp8convert.sources import Sources
from fp8convert.taskrun import TaskRun
from fp8convert.tile import READ_SLACK, Tile
from fp8convert.tiles import tiles

CODED = "fp8-block"


class Reading(TaskRun):
    """A task that is read and decoded, but has no file: the disk need not hold the output."""

    def __init__(self, task: Task, shards: list[str], sources: Sources) -> None:
        self.task, self.shards, self.sources = task, shards, sources
        self.read: set[int] = set()
        self.overflowed: dict[str, int] = {}
        self.lock = threading.Lock()


def spread(found: Iterable[Tile], count: int) -> list[Tile]:
    """``count`` tiles with coded weights, evenly from the first to the last."""
    coded = [t for t in found if any(p.item.weight.codec.name == CODED for p in t.pieces)]
    return [coded[n * (len(coded) - 1) // (count - 1)] for n in range(count)]


class Workers:
    """The engine's threads and buffers."""

    def __init__(self, run: Reading, settings: Settings) -> None:
        self.run, self.settings = run, settings
        self.lock = threading.Lock()
        self.digests: dict[int, str] = {}

    def go(self, chosen: list[Tile], digest: bool) -> float:
        """Seconds to decode ``chosen``; with ``digest`` also hash them."""
        begun, queue = time.perf_counter(), iter(chosen)
        with ThreadPoolExecutor(self.settings.threads) as pool:
            todo = [pool.submit(self._work, queue, digest) for _ in range(self.settings.threads)]
            for done in todo:
                done.result()
        return time.perf_counter() - begun

    def _work(self, queue: Iterator[Tile], digest: bool) -> None:
        read = memoryview(aligned_buffer(self.settings.tile + READ_SLACK + PAGE))
        write = memoryview(aligned_buffer(self.settings.tile + PAGE))
        bench = Bench(0)
        while True:
            with self.lock:
                tile = next(queue, None)
            if tile is None:
                return
            self.run.make(tile, read, write, bench)
            if digest:
                (piece,) = (p for p in tile.pieces if p.item.weight.codec.name == CODED)
                at = piece.begin - tile.begin + tile.begin % PAGE
                self.digests[tile.begin] = hashlib.sha256(write[at : at + piece.nbytes]).hexdigest()


def main() -> None:
    """Plan, choose, decode twice."""
    source, target, count, result = sys.argv[1:]
    job, settings = prepare(source, target), Settings()
    (task,) = job.plan.tasks
    chosen = spread(tiles(task, settings.tile), int(count))
    sources = Sources(Direct(job.catalogue.folder, job.catalogue.shards), settings.io)
    workers = Workers(Reading(task, job.catalogue.shard_names, sources), settings)
    workers.go(chosen, digest=True)  # and load what a conversion has loaded by its second tile
    seconds = workers.go(chosen, digest=False)
    sources.close()
    found = {"seconds": seconds, "digests": [workers.digests[t.begin] for t in chosen]}
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
