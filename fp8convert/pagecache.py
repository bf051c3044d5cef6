"""Is a part of a file in the page cache already? Asked without reading it or changing the cache.

A checkpoint that was just downloaded or written is often still in memory; copying it from there is
several times as fast as direct I/O from the disk, which would also have to write dirty pages back.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable

_CACHESTAT = 451  # Linux 6.5 and newer; the same number on x86-64, aarch64 and riscv


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


@functools.cache
def _syscall() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    call: Callable[..., int] = ctypes.CDLL(None).syscall
    return call


def holds(fd: int, begin: int, end: int) -> bool:
    """Whether every page of ``[begin, end)`` is cached; False where the kernel cannot say."""
    call = _syscall()
    if call is None or end <= begin:
        return False
    page = os.sysconf("SC_PAGE_SIZE")
    pages = -(-end // page) - begin // page
    asked, found = _Range(begin // page * page, pages * page), _Stat()
    failed = call(
        ctypes.c_long(_CACHESTAT), ctypes.c_uint(fd),
        ctypes.byref(asked), ctypes.byref(found), ctypes.c_uint(0),
    )  # fmt: skip
    return not failed and found.cached >= pages


def reopened(fd: int) -> int:
    """Another descriptor of the same open file, with flags of its own; -1 where there is no way."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
