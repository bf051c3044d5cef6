"""The floor: the bytes of a conversion moved by overlapped direct I/O, and nothing computed.

Every source file is read whole, files of the output's sizes are preallocated, written and fsynced;
reads and writes are interleaved in proportion and shared out among threads with aligned buffers.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .common import MIB, timed

PAGE = 4096


class Setting(NamedTuple):
    """How many threads move blocks of how many bytes."""

    threads: int
    block: int

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.block / MIB:g} MiB"


class _File:
    """One open file and how many of its blocks are still to be moved."""

    def __init__(self, path: Path, size: int, writes: bool, block: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL if writes else os.O_RDONLY
        self.fd = os.open(path, flags | os.O_DIRECT, 0o666)
        self.size, self.writes, self.block = size, writes, block
        self.left = -(-size // block)
        self._lock = threading.Lock()
        if writes and size:
            os.posix_fallocate(self.fd, 0, size)

    def moves(self) -> Iterator[tuple[_File, int]]:
        """The blocks, by where they begin."""
        return ((self, begin) for begin in range(0, self.size, self.block))

    def move(self, begin: int, buffer: memoryview) -> None:
        """Read or write one block; whoever moves the last one makes the file durable."""
        length = min(self.block, self.size - begin)
        view = buffer[: -(-length // PAGE) * PAGE]
        call = os.pwritev if self.writes else os.preadv
        done = call(self.fd, [view], begin)
        if done < length:
            raise OSError(f"moved {done} of {length} bytes at {begin}")
        with self._lock:
            self.left -= 1
            last = self.left == 0
        if last:
            self.finish()

    def finish(self) -> None:
        """Cut what the last page has too much, fsync, close."""
        if self.writes:
            os.ftruncate(self.fd, self.size)
            os.fsync(self.fd)
        os.close(self.fd)


def floor(sources: Sequence[Path], target: Path, sizes: Sequence[int], setting: Setting) -> float:
    """Seconds to read ``sources`` and write files of ``sizes`` into the new folder ``target``."""
    noise = os.urandom(setting.block)  # not zeros, which a disk may store as nothing
    buffers = []
    for _ in range(setting.threads):
        buffers.append(mmap.mmap(-1, setting.block))
        buffers[-1].write(noise)
    return timed(lambda: _run(sources, target, sizes, setting, buffers))


def _run(
    sources: Sequence[Path],
    target: Path,
    sizes: Sequence[int],
    setting: Setting,
    buffers: Sequence[mmap.mmap],
) -> None:
    target.mkdir()
    inputs = [_File(p, p.stat().st_size, False, setting.block) for p in sources]
    outputs = [_File(target / str(n), s, True, setting.block) for n, s in enumerate(sizes)]
    queue = iter(_interleaved(inputs, outputs))
    lock = threading.Lock()
    with ThreadPoolExecutor(setting.threads) as pool:
        for done in [pool.submit(_work, queue, lock, buffer) for buffer in buffers]:
            done.result()


def _interleaved(inputs: Sequence[_File], outputs: Sequence[_File]) -> list[tuple[_File, int]]:
    """Both sides' blocks in order, spread so that both end together."""
    lists = [[move for f in files for move in f.moves()] for files in (inputs, outputs)]
    placed = [((n + 0.5) / len(moves), m) for moves in lists for n, m in enumerate(moves)]
    return [move for _, move in sorted(placed, key=lambda row: row[0])]


def _work(queue: Iterator[tuple[_File, int]], lock: threading.Lock, buffer: mmap.mmap) -> None:
    view = memoryview(buffer)
    while True:
        with lock:
            file, begin = next(queue, (None, 0))
        if file is None:
            return
        file.move(begin, view)
