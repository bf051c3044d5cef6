"""Files as the engine sees them: positioned reads and writes between aligned buffers and a disk.

Direct I/O where the filesystem takes it, because it is two to three times as fast as the page
cache on writes and leaves other programs' pages alone; elsewhere buffered, dropping its pages.
What is in the page cache already is read from there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from . import pagecache
from .calls import MOST, close, discard, let_go, naming, sync
from .errors import FormatError, Fp8ConvertError, ResumableError, shown
from .header import ALIGN as PAGE

MODES = ("auto", "direct", "buffered")
NEAR = 1 << 15  # runs this near are read with the gaps between them: cheaper than a call each
AHEAD = 1 << 29  # bytes asked for at once, at most: a matrix of a usual size, not one of gigabytes
WINDOW = 1 << 20  # bytes of runs and gaps a call
O_DIRECT = getattr(os, "O_DIRECT", 0)


def aligned_buffer(nbytes: int) -> mmap.mmap:
    """Zeroed memory that starts on a page, as direct I/O demands."""
    return mmap.mmap(-1, max(-(-nbytes // PAGE) * PAGE, PAGE))


class _File:
    """A descriptor, owned, that does direct I/O as long as the filesystem takes it."""

    def __init__(self, fd: int, name: str, mode: str) -> None:
        self.fd, self.name, self.mode = fd, name, mode
        self.direct = False
        with self._closed_on_error():
            self.direct = mode != "buffered" and self._set_direct(True)

    def _set_direct(self, on: bool) -> bool:
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        try:
            if on and not O_DIRECT:
                raise OSError(errno.EINVAL, "no direct I/O on this platform")
            fcntl.fcntl(self.fd, fcntl.F_SETFL, (flags | O_DIRECT) if on else (flags & ~O_DIRECT))
        except OSError as e:
            self._fall_back(e)
            return False
        return on

    def _fall_back(self, error: OSError) -> None:
        if self.mode == "direct":
            raise Fp8ConvertError(
                f"{shown(self.name)}: direct I/O is refused ({error}); use --io auto"
            ) from error

    def _transfer(self, call: Callable[[], int]) -> int:
        """Run one read or write; on the first EINVAL of direct I/O go on buffered."""
        direct = self.direct  # another thread may give it up while this one is in its call
        with naming(self.name):
            try:
                return call()
            except OSError as e:
                if not direct or e.errno != errno.EINVAL:
                    raise
                self._fall_back(e)
                self.direct = self._set_direct(False)
                return call()

    def _drop(self, begin: int, length: int) -> None:
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, begin, length, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the descriptor; harmless when done twice."""
        fd, self.fd = self.fd, -1  # first: a close that fails has closed, and its number is reused
        if fd >= 0:
            with naming(self.name):
                close(fd)

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is the news
                self.close()
            raise


class SourceFile(_File):
    """A shard being read. ``size`` and ``mtime_ns`` are what it had when it was planned."""

    def __init__(self, fd: int, name: str, mode: str, size: int, mtime_ns: int) -> None:
        self._cache_fd = -1  # reads through the page cache what is there already
        self._gather_fd, self._opening = -1, threading.Lock()  # reads runs through it
        self._was_cached = False  # what it read first
        super().__init__(fd, name, mode)
        self.size, self.mtime_ns = size, mtime_ns
        with self._closed_on_error():
            self.check_unchanged()
            if self.direct and mode == "auto":
                self._cache_fd = pagecache.reopened(fd)

    def check_unchanged(self) -> None:
        """Raise FormatError if the file is not the one that was planned."""
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise FormatError(
                f"{shown(self.name)} changed since it was planned: {self.size:,} bytes then, "
                f"{now.st_size:,} now, modified {now.st_mtime_ns - self.mtime_ns:+,} ns later"
            )

    def read(self, view: memoryview, begin: int, end: int) -> None:
        """Fill ``view`` (aligned, whole pages) from page-aligned ``begin``, at least to ``end``."""
        need, got = end - begin, 0
        cached = self._cache_fd >= 0 and pagecache.holds(self._cache_fd, begin, end)
        while got < need:
            direct = self.direct and not cached
            at = got // PAGE * PAGE if direct else got  # direct I/O goes on from a whole page
            fd = self._cache_fd if cached else self.fd
            window = view[at : at + MOST]
            n = self._transfer(functools.partial(os.preadv, fd, [window], begin + at))
            if at + n <= got:
                raise self._short(begin + got)
            got = at + n
        if not cached:  # the user's own pages stay
            self._drop(begin, len(view))

    def gather(self, view: memoryview, begin: int, count: int, stride: int) -> None:
        """Fill ``view`` with ``count`` runs of equal length, ``stride`` apart from ``begin`` on.

        Always through the page cache: the next tile wants the neighbours of the same runs. What was
        not there before is dropped when the file is closed.
        """
        length = len(view) // count
        fd = self._buffered(begin, begin + length)
        with naming(self.name):
            if stride > NEAR:
                self._gather_far(fd, view, begin, length, stride)
            else:
                self._gather_near(fd, view, begin, length, stride)

    def _gather_far(self, fd: int, view: memoryview, begin: int, length: int, stride: int) -> None:
        """A call for each run; tens of thousands of them, so each is as little Python as can be."""
        count = len(view) // length
        # Or each cold run waits for a disk access of its own.
        if hasattr(os, "posix_fadvise") and count * stride <= AHEAD:
            os.posix_fadvise(fd, begin, count * stride, os.POSIX_FADV_WILLNEED)
        read = os.preadv
        for k in range(count):
            run = view[k * length : (k + 1) * length]
            if read(fd, (run,), begin + k * stride) != length:
                self._exactly(fd, run, begin + k * stride)

    def _gather_near(self, fd: int, view: memoryview, begin: int, length: int, stride: int) -> None:
        """A call for many runs and the gaps between them, then a copy without the gaps."""
        import numpy as np

        out = np.frombuffer(view, np.uint8).reshape(-1, length)
        step = WINDOW // stride
        window = memoryview(bytearray(min(step, len(out)) * stride))
        for k in range(0, len(out), step):
            n = min(step, len(out) - k)
            self._exactly(fd, window[: (n - 1) * stride + length], begin + k * stride)
            out[k : k + n] = np.lib.stride_tricks.as_strided(
                np.frombuffer(window, np.uint8), (n, length), (stride, 1)
            )

    def _buffered(self, begin: int, end: int) -> int:
        """A descriptor that reads through the page cache, whatever the other one does."""
        with self._opening:
            if self._gather_fd < 0:
                self._gather_fd = self._cache_fd if self._cache_fd >= 0 else self._reopened()
                self._was_cached = pagecache.holds(self._gather_fd, begin, end)
        return self._gather_fd

    def _reopened(self) -> int:
        fd = pagecache.reopened(self.fd)
        if fd < 0:  # no /proc: nor is there O_DIRECT where that is so
            self.direct = self._set_direct(False) and self.direct
            fd = os.dup(self.fd)
        return fd

    def _exactly(self, fd: int, view: memoryview, begin: int) -> None:
        got = 0
        while got < len(view):
            n = os.preadv(fd, [view[got:]], begin + got)
            if not n:
                raise self._short(begin + got)
            got += n

    def _short(self, at: int) -> FormatError:
        return FormatError(
            f"{shown(self.name)} ends at byte {at:,} while being read, expected {self.size:,} bytes"
        )

    def close(self) -> None:
        """Close all descriptors; harmless when done twice. Never fails, see :func:`let_go`."""
        if self._gather_fd >= 0 and not self._was_cached and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._gather_fd, 0, 0, os.POSIX_FADV_DONTNEED)
        fds = {self._cache_fd, self._gather_fd, self.fd}
        self._cache_fd = self._gather_fd = self.fd = -1
        for fd in fds - {-1}:
            let_go(fd)


class Turns:
    """Stretches of one file, taken in their order by threads that have them out of order."""

    def __init__(self) -> None:
        self._done, self._next = 0, threading.Condition()
        self._stopped = False

    @contextlib.contextmanager
    def turn(self, begin: int, nbytes: int) -> Iterator[None]:
        """Everything before ``begin`` has been taken; ``nbytes`` from there on are, if all is well.

        ResumableError when stopped.
        """
        with self._next:
            self._next.wait_for(lambda: self._stopped or self._done == begin)
            if self._stopped:
                raise ResumableError("stopped")
        yield
        with self._next:
            self._done += nbytes
            self._next.notify_all()

    def stop(self) -> None:
        """Wake every thread that waits for its turn, with an error."""
        with self._next:
            self._stopped = True
            self._next.notify_all()


class TargetFile(_File):
    """A new file written out of order and hashed in order, of exactly ``size`` bytes."""

    def __init__(self, path: Path, size: int, mode: str, checksum: bool) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666)  # the umask decides
        try:
            super().__init__(fd, path.name, mode)
            with self._closed_on_error(), naming(self.name):
                _preallocate(fd, size)
        except BaseException:
            discard(path)  # or a full disk stays full
            raise
        self.path, self.size = path, size
        self.written = 0
        self._sha = hashlib.sha256() if checksum else None
        self._turns = Turns()
        self._lock = threading.Lock()  # of what follows, and ``written``
        self._edges: dict[int, tuple[mmap.mmap, int]] = {}  # page number -> bytes so far, count
        self._paged = self.direct  # stays so if direct I/O is given up: shared pages may wait here

    def write(self, view: memoryview, begin: int) -> None:
        """Write ``view`` at ``begin``; its address and ``begin`` agree modulo PAGE.

        Direct I/O writes whole pages only: a page that two tiles share waits here for both.
        """
        end = begin + len(view)
        lo, hi = -(-begin // PAGE) * PAGE, end // PAGE * PAGE
        if not self._paged:
            self._write_all(view, begin)
        elif lo >= hi:
            for at in range(begin // PAGE * PAGE, end, PAGE):
                a, b = max(at, begin), min(at + PAGE, end)
                self._merge(view[a - begin : b - begin], a)
        else:
            self._merge(view[: lo - begin], begin)
            self._write_all(view[lo - begin : hi - begin], lo)
            self._merge(view[hi - begin :], hi)
        with self._lock:
            self.written += len(view)

    def _merge(self, part: memoryview, begin: int) -> None:
        if not part:
            return
        page, offset = divmod(begin, PAGE)
        with self._lock:
            buffer, count = self._edges.pop(page) if page in self._edges else _empty_page()
            buffer[offset : offset + len(part)] = bytes(part)
            count += len(part)
            if count < min(PAGE, self.size - page * PAGE):
                self._edges[page] = (buffer, count)
                return
        self._write_all(memoryview(buffer), page * PAGE)  # may pass the end: finish() cuts it

    def _write_all(self, view: memoryview, begin: int) -> None:
        done, size = 0, min(len(view), self.size - begin)
        while done < size:
            direct = self.direct  # writes whole pages only, also past the end
            at = done // PAGE * PAGE if direct else done
            part = view[at:] if direct else view[at:size]
            n = self._transfer(functools.partial(os.pwritev, self.fd, [part], begin + at))
            if at + n <= done and not direct:
                raise OSError(errno.EIO, "write made no progress", self.name)
            if at + n <= done:  # a limit within a page: buffered it is met, or said which it is
                self.direct = self._set_direct(False)
            done = max(done, at + n)
        self._drop(begin, len(view))

    def hash(self, view: memoryview, begin: int) -> None:
        """Feed ``view`` to the checksum when everything before ``begin`` has been fed."""
        if self._sha is None:
            return
        with self._turns.turn(begin, len(view)):
            self._sha.update(view)

    def stop(self) -> None:
        """Wake every thread waiting for its turn to hash, with an error."""
        self._turns.stop()

    def finish(self) -> str | None:
        """Cut to size, check it, make it durable; the SHA-256, if one was asked for."""
        if self.written != self.size or self._edges:
            raise Fp8ConvertError(f"{self.name}: wrote {self.written:,} of {self.size:,} bytes")
        with naming(self.name):
            os.ftruncate(self.fd, self.size)
            sync(self.fd)
            self._drop(0, self.size)
            actual = os.fstat(self.fd).st_size
        if actual != self.size:
            raise Fp8ConvertError(f"{self.name}: {actual:,} bytes on disk, expected {self.size:,}")
        self.close()
        return self._sha.hexdigest() if self._sha else None


def _empty_page() -> tuple[mmap.mmap, int]:
    return aligned_buffer(PAGE), 0


def _preallocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                raise
    os.ftruncate(fd, size)


def hash_file(path: Path, stopped: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file, leaving no pages of it behind."""
    sha, step = hashlib.sha256(), 4 << 20
    view = memoryview(aligned_buffer(step))
    file = _File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path.name, "buffered")
    try:
        begin = 0
        while n := file._transfer(functools.partial(os.preadv, file.fd, [view], begin)):
            if stopped():
                raise ResumableError("stopped")
            sha.update(view[:n])
            file._drop(begin, n)
            begin += n
    finally:
        let_go(file.fd)
    return sha.hexdigest()
