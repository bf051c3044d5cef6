"""Files mapped by the safetensors library, and what happens if one is cut short meanwhile.

A page of a mapping that lies behind the file's end cannot be had: the kernel sends SIGBUS, which
ends a process without a word. A command (:func:`watched`) ends with a message instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import EXIT_REFUSED, FormatError, listed, shown

SUFFIX = ".safetensors"
State = tuple[int, int]  # size, time
StrPath = str | os.PathLike[str]


def opened(path: StrPath) -> Any:
    """The library's reader of a file, for torch. FormatError, OSError if it cannot be had."""
    from safetensors import safe_open

    while True:
        try:
            with reading(path):
                return safe_open(path, framework="pt")
        except InterruptedError:
            continue


@contextlib.contextmanager
def reading(path: StrPath) -> Iterator[None]:
    """The library's errors, and torch's, which have no number, as ours, that name the file.

    No memory left is no fault of the file: MemoryError.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as e:
        raise FormatError(f"{shown(path)}: the safetensors library: {e}") from e
    except RuntimeError as e:
        if os.strerror(errno.ENOMEM) in str(e):
            raise MemoryError(str(e)) from e
        code = errno.EINTR if os.strerror(errno.EINTR) in str(e) else errno.EIO
        raise OSError(code, str(e), os.fspath(path)) from e


class Watch:
    """The safetensors files of some folders, and of folders in these, as they are now."""

    def __init__(self, folders: Sequence[StrPath]) -> None:
        self.folders = folders
        self._before = self._states()

    def changes(self) -> list[str]:
        """A line for each that is gone, or has another size or time."""
        now = self._states()
        return [
            f"{shown(path)} changed while being read: {_words(before)}, now {_words(now.get(path))}"
            for path, before in self._before.items()
            if now.get(path) != before
        ]

    def check(self) -> None:
        """FormatError if one has changed."""
        if changes := self.changes():
            raise FormatError("\n".join(changes))

    def _states(self) -> dict[str, State]:
        found: dict[str, State] = {}
        for folder in self.folders:
            for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}"):
                for path in sorted(Path(folder).glob(pattern)):
                    with contextlib.suppress(OSError):
                        state = path.stat()
                        found[str(path)] = (state.st_size, state.st_mtime_ns)
        return found


def _words(state: State | None) -> str:
    return f"{state[0]:,} bytes (modified at {state[1]:,} ns)" if state else "gone"


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Within, a SIGBUS ends the process with exit code 1 and says which file it was.

    Not for a program that goes on: the thread that was sent it cannot. The handler is Python, which
    a thread may run here: it was looking at a mapped page, not in the middle of an allocation.
    """

    def ended(signum: int) -> None:
        try:
            gone = f"a file of {listed(watch.folders)} cannot be read from disk"
            lines = watch.changes() or [gone]
            os.write(2, "".join(f"error: {line}\n" for line in lines).encode())
        finally:  # even if nobody listens any more: to return would be to fault again, without end
            os._exit(EXIT_REFUSED)

    if not sys.platform.startswith("linux"):
        yield
        return
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler, install = kind(ended), ctypes.CDLL(None).signal
    install.restype, install.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    before = install(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        install(signal.SIGBUS, before)
