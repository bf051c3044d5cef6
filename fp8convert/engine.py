"""The engine: runs the tasks of a plan, tile by tile, within a memory budget.

Each worker thread owns two aligned buffers and takes the next tile of one of the files begun:
read, decode, write, hash. With several workers those overlap, for one large file as for many;
memory is buffers x workers whatever the size of tensors, files or checkpoint. A job may be tiles of
several files that read the same: then it is read once, and the rest is done file by file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from .catalogue import Catalogue
from .encoding.band import Bench
from .errors import ResumableError
from .fetch import Fetched
from .fileio import aligned_buffer
from .header import ALIGN as PAGE
from .jobs import Job, Jobs
from .journal import Record
from .origin import Direct, Feed
from .places import Places
from .plan import Task
from .settings import Progress, Settings
from .sources import Sources
from .stage import Stage
from .taskrun import TaskRun
from .teams import wanted
from .tile import READ_SLACK, Tile

LOOK_S = 0.5  # a signal that comes just before a thread begins to wait does not wake it


class Engine:
    """Runs tasks into a staging folder. One use each."""

    def __init__(
        self, catalogue: Catalogue, stage: Stage, settings: Settings,
        paced: Callable[[Feed], Feed] | None = None,
    ) -> None:  # fmt: skip
        self._paced = paced or (lambda feed: feed)  # may hold back the next files
        self.stage, self.settings = stage, settings
        self.catalogue = catalogue
        self.feed: Feed = Direct(catalogue.folder, catalogue.shards)
        self.sources = Sources(self.feed, settings.io)
        self.records: dict[str, Record] = {}
        self._total = self._written = self._read = self._arrived = 0
        self._lock = threading.Lock()  # counters, records, errors
        self._idle, self._active = threading.Condition(self._lock), 0  # workers
        self._queue_lock = threading.Lock()
        self._running: set[TaskRun] = set()
        self._error: BaseException | None = None

    def run(self, tasks: Sequence[Task]) -> list[Record]:
        """Write those of ``tasks`` that the journal does not vouch for; records in their order.

        Raises the first error met, after every worker has stopped and the unfinished files are
        removed; KeyboardInterrupt becomes ResumableError.
        """
        self._total = sum(t.size for t in tasks)
        with ThreadPoolExecutor(self.settings.threads, "fp8convert") as pool:
            try:
                self._resume(tasks, pool)
                left = [t for t in tasks if t.file not in self.records]
                self._fed(left)
                queue = iter(
                    Jobs(left, self._begin, self.settings.files, self.settings.tile, self.feed)
                )
                # Not Thread.join: interrupted, it takes a running thread for a stopped one.
                at_work = [pool.submit(self._work, queue) for _ in range(self.settings.threads)]
                while wait(at_work, LOOK_S).not_done:
                    pass
            except BaseException as e:
                self._fail(e)
        with self._lock:  # the pool does not know a thread whose start was interrupted
            self._idle.wait_for(lambda: self._active == 0)
        for run in self._running:
            run.abandon()
        self.sources.close()
        self.feed.close()
        if self._error:
            raise self._error
        return [self.records[t.file] for t in tasks]

    def _fed(self, tasks: Sequence[Task]) -> None:
        """From now on shards come for ``tasks``."""
        shards, scratch = self.catalogue.shards, self.settings.scratch
        feed = self._paced(self.catalogue.folder.feed(shards, wanted(tasks), scratch))
        with self._lock:
            self.feed = self.sources.feed = feed
        feed.begin(self.sources.forget, lambda nbytes: self._advance(0, 0, nbytes))

    def _resume(self, tasks: Sequence[Task], pool: ThreadPoolExecutor) -> None:
        """Believe the journal about the files whose bytes still have the journaled sum."""
        known = [r for r in map(self.stage.recorded, tasks) if r]
        for record, sound in zip(known, pool.map(self._sound, known), strict=True):
            if sound:
                self.records[record.file] = record

    def _sound(self, record: Record) -> bool:
        sound = self.stage.is_sound(record, lambda: self._error is not None)
        if sound:
            self._advance(record.size, 0)
        return sound

    def _begin(self, task: Task) -> TaskRun:
        run = TaskRun(task, self.catalogue.shard_names, self.sources, self.stage)
        with self._lock:
            self._running.add(run)
        return run

    def _work(self, queue: Iterator[Job]) -> None:
        with self._lock:
            self._active += 1
        try:
            read = memoryview(aligned_buffer(self.settings.tile + READ_SLACK + PAGE))
            write = memoryview(aligned_buffer(self.settings.tile + PAGE))
            bench = Bench(self.settings.needs.scratch)
            while True:
                with self._queue_lock:
                    job = None if self._error else next(queue, None)
                if job is None:
                    return
                self._do(job, read, write, bench)
        except BaseException as e:
            self._fail(e)
        finally:
            with self._lock:
                self._active -= 1
                self._idle.notify_all()

    def _do(self, job: Job, read: memoryview, write: memoryview, bench: Bench) -> None:
        fetched = self._fetched(job, read) if len(job) > 1 else None
        for run, tile in job:
            got = run.make(tile, read, write, bench, fetched)
            if tile.nbytes:  # else it only measured
                self._put(run, tile, write)
            self._advance(tile.nbytes, got)

    def _fetched(self, job: Job, read: memoryview) -> Fetched | None:
        """What all tiles of ``job`` read; None if that is too much, and each is to do it alone."""
        places = Places([tile.reads() for _, tile in job])
        if places.need > len(read):
            return None
        for run, _ in job:
            run.note(places.shards)
        fetched = Fetched(self.sources, read, places)
        self._advance(0, fetched.nbytes)
        return fetched

    def _put(self, run: TaskRun, tile: Tile, write: memoryview) -> None:
        shift = tile.begin % PAGE
        view = write[shift : shift + tile.nbytes]
        run.target.write(view, tile.begin)
        run.target.hash(view, tile.begin)
        if run.done(tile.nbytes):
            self.records[run.task.file] = run.finish()
            self.feed.done(run.task.file)
            with self._lock:
                self._running.discard(run)

    def _advance(self, written: int, read: int, arrived: int = 0) -> None:
        with self._lock:
            self._written += written
            self._read += read
            self._arrived += arrived
            now = Progress(self._written, self._total, self._read, self._arrived)
            if self.settings.progress:
                self.settings.progress(now)

    def _fail(self, error: BaseException) -> None:
        """Remember the first error, and wake whoever waits for another worker's tile."""
        if isinstance(error, KeyboardInterrupt):
            error = ResumableError("interrupted")
        with self._lock:
            self._error = self._error or error
            for run in self._running:
                run.stop()
            feed = self.feed
        feed.stop()  # without our lock: its threads may be telling us of bytes
