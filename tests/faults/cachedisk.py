"""A disk with a write cache: a file, served through FUSE, that keeps a log of what it is told.

A loop device on it passes every block written, and every flush, on to us. What was written since
the last flush a disk may have kept in its cache: any part of it can be lost, or have come first.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import disk

BLOCK = 4096  # written whole or not at all
MOST = 1 << 17  # bytes a request

# Of the FUSE protocol, <linux/fuse.h>.
GETATTR, OPEN, READ, WRITE, RELEASE, FSYNC, FLUSH, INIT = 3, 14, 15, 16, 18, 20, 25, 26
SILENT = {2, 36, 42}  # forget, interrupt, batch forget: not answered
HEADER, ANSWER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
TRANSFER = struct.Struct("<QQIIQII")  # handle, offset, size, ...
MINOR, BIG_WRITES, KEEP_CACHE = 31, 1 << 5, 2
FOR_LONG = 1 << 30  # seconds


class Write(NamedTuple):
    """What the disk was told to write."""

    begin: int
    data: bytes


Log = list["Write | None"]  # None: a flush


@functools.cache
def missing() -> str:
    """Why there is no such disk here, or nothing."""
    return disk.missing() or ("" if os.path.exists("/dev/fuse") else "there is no /dev/fuse")


@contextlib.contextmanager
def caching(image: Path, log: Log) -> Iterator[Path]:
    """A file that holds what ``image`` does, and logs; the image stays as it is."""
    served = image.with_name("served")
    served.touch()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    thread = threading.Thread(target=_serve, args=(fd, bytearray(image.read_bytes()), log))
    try:
        options = f"fd={fd},rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
        disk.run("mount", "-i", "-t", "fuse", "-o", options, "disk", served, pass_fds=[fd])
        thread.start()
        try:
            yield served
        finally:
            disk.run("umount", "-l", served)
            thread.join()
    finally:
        os.close(fd)


def _serve(fd: int, data: bytearray, log: Log) -> None:
    while True:
        try:
            request = os.read(fd, MOST + BLOCK)
        except OSError as e:
            if e.errno == errno.ENODEV:  # not mounted any more
                return
            if e.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            raise
        _, kind, unique, *_ = HEADER.unpack_from(request)
        if kind not in SILENT:
            answer = _answer(kind, request[HEADER.size :], data, log)
            error, body = (0, answer) if answer is not None else (-errno.ENOSYS, b"")
            with contextlib.suppress(FileNotFoundError):  # unmounted before the answer
                os.write(fd, ANSWER.pack(ANSWER.size + len(body), error, unique) + body)


def _answer(kind: int, body: bytes, data: bytearray, log: Log) -> bytes | None:
    """What a request brings; None if it is not known here."""
    if kind == INIT:
        _, _, ahead, _ = struct.unpack_from("<IIII", body)
        return struct.pack(
            "<IIIIHHIIHHII24x", 7, MINOR, ahead, BIG_WRITES, 8, 6, MOST, 1, 0, 0, 0, 0
        )
    if kind == GETATTR:
        times = struct.pack("<QQQIII", 0, 0, 0, 0, 0, 0)
        head = struct.pack("<QIIQQQ", FOR_LONG, 0, 0, 1, len(data), len(data) // 512)
        return head + times + struct.pack("<IIIIIII", stat.S_IFREG | 0o600, 1, 0, 0, 0, BLOCK, 0)
    if kind == OPEN:
        return struct.pack("<QII", 0, KEEP_CACHE, 0)
    if kind in (READ, WRITE):
        _, begin, size, *_ = TRANSFER.unpack_from(body)
        if kind == READ:
            return bytes(data[begin : begin + size])
        data[begin : begin + size] = written = body[TRANSFER.size :][:size]
        log.append(Write(begin, written))
        return struct.pack("<II", size, 0)
    if kind == FSYNC:
        log.append(None)
    return b"" if kind in (FSYNC, FLUSH, RELEASE) else None


class Lost(NamedTuple):
    """A way for the power to fail after ``at`` entries of a log."""

    at: int
    how: str  # "all", "none" or "some" of what the cache held is lost

    def image(self, start: Path, log: Log, to: Path, rng: random.Random) -> str:
        """Write what the disk holds then to a file; its sum."""
        flushed = max((n for n in range(self.at) if log[n] is None), default=0)
        disk.copy_sparse(start, to)
        with open(to, "r+b") as f:
            _apply(f.fileno(), [w for w in log[:flushed] if w])
            _apply(f.fileno(), self._kept([w for w in log[flushed : self.at] if w], rng))
        return disk.sum_of(to)

    def _kept(self, held: Sequence[Write], rng: random.Random) -> list[Write]:
        if self.how == "some":
            share = rng.choice((0.1, 0.5, 0.9))
            return [block for block in _blocks(held) if rng.random() < share]
        return [] if self.how == "all" else list(held)


def _blocks(writes: Sequence[Write]) -> Iterator[Write]:
    for write in writes:
        for at in range(0, len(write.data), BLOCK):
            yield Write(write.begin + at, write.data[at : at + BLOCK])


def _apply(fd: int, writes: Sequence[Write]) -> None:
    for write in writes:
        os.pwrite(fd, write.data, write.begin)
