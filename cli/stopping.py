"""Ctrl-C, SIGTERM and a closed terminal: a run ends in order, however often it is told to.

The first signal becomes KeyboardInterrupt; the second changes nothing, as the end has begun; the
third leaves at once, which is as safe as a kill. Where nothing has begun yet, and within an import,
where an exception may be swallowed, the first one leaves at once as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

SCRIPTS = ("fp8convert", "shard-for-tp")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT = 75
WORDS = "error: interrupted\nRun the same command again to resume.\n"
LAST = 3  # the signal that leaves at once

drawn = False  # whether the cursor is behind a bar
echoed = False  # whether the terminal has shown ^C where nothing will end its line
_asked = 0  # signals since begin()
_script = False  # whether this process is the console script
_before: dict[int, Any] = {}  # what signals did


def before_anything() -> None:
    """Of a console script, before what takes a while to import: a signal says one line and ends it.

    Also, whatever is opened must not get the number of a closed stdout or stderr.
    """
    global _script
    _script = bool(sys.argv) and os.path.basename(sys.argv[0]) in SCRIPTS
    if not _script:
        return  # a program that imports this has its own ways
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    _handle(_leave_early)


def begin() -> None:
    """From now on a signal is KeyboardInterrupt."""
    global _asked, echoed
    _asked, echoed = 0, False
    _before.update({signum: signal.getsignal(signum) for signum in SIGNALS})
    _handle(_stop)


def asked() -> bool:
    """Whether there was a signal: then whatever else goes wrong does so because of it."""
    return _asked > 0


def end() -> None:
    """All is said: until the process is gone, nothing more is to be. (In a program that goes on,
    signals do again what they did.)"""
    for signum, before in _before.items():
        if before is not None:  # a handler that is not Python's was left alone
            signal.signal(signum, signal.SIG_IGN if _script else before)


def _handle(how: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for signum in SIGNALS:  # nohup, or a shell's background job, ignores some
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):
            signal.signal(signum, how)


def _stop(signum: int, frame: FrameType | None) -> None:
    global _asked
    _asked += 1
    _note(signum)
    if _asked >= LAST or (_asked == 1 and _importing(frame)):
        _leave()
    if _asked == 1:
        raise KeyboardInterrupt


def _leave_early(signum: int, frame: FrameType | None) -> None:
    _note(signum)
    _leave()


def _note(signum: int) -> None:
    global echoed
    echoed = echoed or (signum == signal.SIGINT and not drawn and os.isatty(2))


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave() -> NoReturn:
    """As if killed, but for a word on it. What is on the disk is sound at any moment."""
    with contextlib.suppress(OSError):  # the terminal is closed
        os.write(2, (("\n" if drawn or echoed else "") + WORDS).encode())
    os._exit(EXIT)
