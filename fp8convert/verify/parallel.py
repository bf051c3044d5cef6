"""Threads for the checks that read every byte, and the count of what they have read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Found = TypeVar("Found")
Progress = Callable[[str, int, int], None]  # what is read, bytes done, bytes in all
MOST_WORKERS = 16


def cores() -> int:
    """Threads to use if nobody says: as many as this process may run on, within reason."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable or 1, MOST_WORKERS)


def each(work: Callable[[Job], Found], jobs: Iterable[Job], workers: int) -> list[Found]:
    """``work`` of every job, in order; after an error or an interruption no job is begun."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Tally:
    """Bytes read by all threads of one check, told to ``progress`` as they come."""

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self._what, self._total, self._progress = what, total, progress
        self._lock = threading.Lock()
        self.done = 0

    def add(self, nbytes: int) -> None:
        """So many more."""
        with self._lock:
            self.done += nbytes
            if self._progress is not None:
                self._progress(self._what, self.done, self._total)
