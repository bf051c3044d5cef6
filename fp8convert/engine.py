"""The engine: runs the tasks of a plan, tile by tile, within a memory budget.

Each worker thread owns two aligned buffers and takes the next tile of the next unfinished file:
read, decode, write, hash. With several workers those overlap, for one large file as for many;
memory is buffers x workers whatever the size of tensors, files or checkpoint.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from .catalogue import Catalogue
from .codecs.base import Findings
from .dtypes import DTYPES
from .errors import DataError, ResumableError, UsageError, shown
from .fileio import MODES, SourceFile, TargetFile, aligned_buffer, hash_file
from .header import ALIGN as PAGE
from .plan import Options, Task
from .publish import Record, Staging
from .tiles import READ_SLACK, Source, Tile, tiles

_NUMPY = {d.tag: d.numpy or "uint8" for d in DTYPES.values()}
BASE_MEMORY = 224 << 20  # the interpreter with NumPy, numba and a plan of 92,000 tensors
DEFAULT_MEMORY = 512 << 20
MIN_TILE, MAX_TILE = 256 << 10, 8 << 20


class Progress(NamedTuple):
    """How far a run is: output bytes written, of how many; source bytes read."""

    written: int
    total: int
    read: int


@dataclass(frozen=True)
class Settings:
    """How to run; none of it changes a byte of the output."""

    workers: int = 0  # threads; 0 chooses from the number of cores
    memory: int = DEFAULT_MEMORY  # bytes, of the whole process at its peak
    io: str = "auto"
    progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"workers {self.workers}, expected 1 or more (or 0 to choose)")
        if self.io not in MODES:
            raise UsageError(f"io {shown(self.io)}, expected one of {', '.join(MODES)}")
        least = BASE_MEMORY + self.threads * _buffers(MIN_TILE)
        if self.memory < least:
            raise UsageError(
                f"memory {self.memory >> 20} MiB is too little for {self.threads} workers, "
                f"expected at least {-(-least >> 20)} MiB"
            )

    @property
    def threads(self) -> int:
        """Worker threads: enough to keep a disk's queue and every core busy."""
        return self.workers or min(2 * (os.cpu_count() or 1) + 4, 16)

    @property
    def tile(self) -> int:
        """Output bytes a tile, in whole pages."""
        share = (self.memory - BASE_MEMORY) // self.threads
        return max(MIN_TILE, min(MAX_TILE, (share - READ_SLACK - 2 * PAGE) // 2 // PAGE * PAGE))

    @property
    def peak_memory(self) -> int:
        """Expected peak resident bytes."""
        return BASE_MEMORY + self.threads * _buffers(self.tile)


def _buffers(tile: int) -> int:
    return 2 * tile + READ_SLACK + 2 * PAGE


@dataclass(slots=True)
class _Extent:
    """One read: bytes of a shard from a page-aligned ``begin``, to ``place`` in the buffer."""

    shard: int
    begin: int
    end: int
    place: int

    @property
    def pages(self) -> int:
        return -(-(self.end - self.begin) // PAGE) * PAGE

    def takes(self, s: Source) -> bool:
        """Whether ``s`` begins in or right after these pages."""
        return s.shard == self.shard and s.begin // PAGE * PAGE <= self.begin + self.pages


class _Run:
    """One task being written: its target file, the shards it reads, what decoding met."""

    def __init__(self, task: Task, catalogue: Catalogue, staging: Staging, io: str) -> None:
        self.task, self.catalogue, self.staging, self.io = task, catalogue, staging, io
        self.temporary = staging.temporary(staging.out, task.file)
        checksum = staging.plan.options.checksum == "sha256"
        self.target = TargetFile(self.temporary, task.size, io, checksum)
        self.sources: dict[int, SourceFile] = {}
        self.overflowed: dict[str, int] = {}
        self.left = task.size
        self.lock = threading.Lock()

    def source(self, shard: int) -> SourceFile:
        with self.lock:
            if shard not in self.sources:
                s = self.catalogue.shards[shard]
                fd = self.catalogue.folder.open(s.name, "shard")
                self.sources[shard] = SourceFile(fd, s.name, self.io, s.size, s.mtime_ns)
            return self.sources[shard]

    def note(self, name: str, found: Findings) -> None:
        if found.overflowed:
            with self.lock:
                self.overflowed[name] = self.overflowed.get(name, 0) + found.overflowed

    def done(self, nbytes: int) -> bool:
        """Count a tile; True for the one that completes the file."""
        with self.lock:
            self.left -= nbytes
            return self.left == 0

    def finish(self) -> Record:
        digest = self.target.finish()
        for source in self.sources.values():
            source.check_unchanged()
            source.close()
        self.staging.install(self.temporary, self.staging.out / self.task.file)
        overflowed = dict(sorted(self.overflowed.items()))
        record = Record(self.task.file, self.task.size, digest, overflowed)
        self.staging.record(record)
        return record

    def abandon(self) -> None:
        for file in (self.target, *self.sources.values()):
            file.close()
        self.temporary.unlink(missing_ok=True)


class Engine:
    """Runs tasks into a staging folder. One use each."""

    def __init__(self, catalogue: Catalogue, staging: Staging, settings: Settings) -> None:
        self.catalogue, self.staging, self.settings = catalogue, staging, settings
        self.options: Options = staging.plan.options
        self.records: dict[str, Record] = {}
        self._total = sum(t.size for t in staging.plan.tasks)
        self._written = self._read = 0
        self._lock = threading.Lock()  # counters, records, errors
        self._queue_lock = threading.Lock()
        self._running: set[_Run] = set()
        self._error: BaseException | None = None

    def run(self) -> list[Record]:
        """Write every task that the journal does not vouch for; records in plan order.

        Raises the first error met, after every worker has stopped and the unfinished files are
        removed; KeyboardInterrupt becomes ResumableError.
        """
        tasks = self.staging.plan.tasks
        workers: list[threading.Thread] = []
        try:
            self._resume(tasks)
            queue = self._tiles([t for t in tasks if t.file not in self.records])
            workers = [
                threading.Thread(target=self._work, args=(queue,), name=f"fp8convert-{i}")
                for i in range(self.settings.threads)
            ]
            for w in workers:
                w.start()
            for w in workers:
                w.join()
        except KeyboardInterrupt:
            self._fail(ResumableError("interrupted"))
        finally:
            for w in workers:
                if w.ident is not None:
                    w.join()
            for run in list(self._running):
                run.abandon()
        if self._error:
            raise self._error
        return [self.records[t.file] for t in tasks]

    def _resume(self, tasks: Sequence[Task]) -> None:
        """Believe the journal about the files whose bytes still have the journaled sum."""
        known = [r for r in map(self.staging.recorded, tasks) if r]
        with ThreadPoolExecutor(self.settings.threads) as pool:
            try:
                sound = list(pool.map(self._sound, known))
            except BaseException:
                self._error = self._error or ResumableError("interrupted")
                raise
        for record, ok in zip(known, sound, strict=True):
            if ok:
                self.records[record.file] = record

    def _sound(self, record: Record) -> bool:
        path = self.staging.out / record.file
        stopped = lambda: self._error is not None  # noqa: E731
        if self.options.checksum == "sha256" and hash_file(path, stopped) != record.sha256:
            return False
        self._advance(record.size, 0)
        return True

    def _tiles(self, tasks: Sequence[Task]) -> Iterator[tuple[_Run, Tile]]:
        for task in tasks:
            run = _Run(task, self.catalogue, self.staging, self.settings.io)
            with self._lock:
                self._running.add(run)
            for tile in tiles(task, self.settings.tile):
                yield run, tile

    def _work(self, queue: Iterator[tuple[_Run, Tile]]) -> None:
        try:
            read = memoryview(aligned_buffer(self.settings.tile + READ_SLACK + PAGE))
            write = memoryview(aligned_buffer(self.settings.tile + PAGE))
            while True:
                with self._queue_lock:
                    job = None if self._error else next(queue, None)
                if job is None:
                    return
                self._do(*job, read, write)
        except BaseException as e:
            self._fail(e)

    def _do(self, run: _Run, tile: Tile, read: memoryview, write: memoryview) -> None:
        got = self._decode(run, tile, read, write)
        shift = tile.begin % PAGE
        view = write[shift : shift + tile.nbytes]
        run.target.write(view, tile.begin)
        run.target.hash(view, tile.begin)
        if run.done(tile.nbytes):
            self.records[run.task.file] = run.finish()
            self._running.discard(run)
        self._advance(tile.nbytes, got)

    def _decode(self, run: _Run, tile: Tile, read: memoryview, write: memoryview) -> int:
        """Fill ``write`` with the tile's bytes, at the offset they have in their page."""
        import numpy as np

        base = tile.begin - tile.begin % PAGE
        for literal in tile.literals:
            at = literal.begin - base
            write[at : at + len(literal.data)] = literal.data
        places, got = self._fetch(run, tile, read)
        source, target = np.frombuffer(read, np.uint8), np.frombuffer(write, np.uint8)
        for piece in tile.pieces:
            weight, dtype = piece.item.weight, piece.item.dtype
            data = [source[places[s] : places[s] + s.end - s.begin] for s in piece.sources]
            at = piece.begin - base
            out = target[at : at + piece.nbytes].view(_NUMPY[dtype])
            found = weight.codec.decode(weight.parts, piece.rect, data, out, dtype)
            self._judge(run, piece.item.weight.name, weight.parts[0].shard, found, dtype)
        return got

    def _fetch(self, run: _Run, tile: Tile, read: memoryview) -> tuple[dict[Source, int], int]:
        """Read the tile's sources in disk order, neighbours in one call; where each one lies."""
        extents: list[_Extent] = []
        places: dict[Source, int] = {}
        for s in sorted({s for p in tile.pieces for s in p.sources}):
            if not extents or not extents[-1].takes(s):
                place = extents[-1].place + extents[-1].pages if extents else 0
                extents.append(_Extent(s.shard, s.begin // PAGE * PAGE, s.end, place))
            extent = extents[-1]
            extent.end = max(extent.end, s.end)
            places[s] = extent.place + s.begin - extent.begin
        for e in extents:
            run.source(e.shard).read(read[e.place : e.place + e.pages], e.begin, e.end)
        return places, sum(e.end - e.begin for e in extents)

    def _judge(self, run: _Run, name: str, shard: int, found: Findings, dtype: str) -> None:
        where = f"{shown(self.catalogue.shards[shard].name)}: weight {shown(name)}"
        if found.damage:
            raise DataError(f"{where}: {found.damage}")
        if found.overflowed and self.options.strict:
            raise DataError(
                f"{where}: {found.overflowed:,} elements overflow {dtype} (refused by strict)"
            )
        run.note(name, found)

    def _advance(self, written: int, read: int) -> None:
        with self._lock:
            self._written += written
            self._read += read
            now = Progress(self._written, self._total, self._read)
            if self.settings.progress:
                self.settings.progress(now)

    def _fail(self, error: BaseException) -> None:
        """Remember the first error, and wake whoever waits for another worker's tile."""
        with self._lock:
            self._error = self._error or error
            for run in self._running:
                run.target.stop()

