"""A terminal with one command in it: keys are pressed, and the screen is read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any

LEADER = Path(__file__).with_name("leader.py")
SIZE = (50, 240)  # lines and columns: nothing is wrapped
MOST_SECONDS = 120
_PIECES = re.compile(r"\r|\n|\x1b\[(\d*)([A-Za-z])|[^\r\n\x1b]+|\x1b")


def screen(text: str) -> tuple[list[str], int]:
    """The lines that a terminal shows after ``text``, and the column of its cursor."""
    lines, row, column = [""], 0, 0
    for piece in _PIECES.finditer(text):
        if piece[0] == "\r":
            column = 0
        elif piece[0] == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece[2] == "A":
            row = max(0, row - int(piece[1] or 1))
        elif piece[2] == "K":
            lines[row] = lines[row][:column]
        elif not piece[2]:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + piece[0] + line[column + len(piece[0]) :]
            column += len(piece[0])
    return [line.rstrip() for line in lines], column


class Terminal:
    """Runs ``command`` as a shell would; closes it, and all that runs in it, at the end."""

    def __init__(self, command: list[object], env: dict[str, str], **streams: Any) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        self.modes = termios.tcgetattr(slave)
        self._report, report = os.pipe()
        orders, self._orders = os.pipe()
        words = [sys.executable, "-IS", LEADER, report, orders, *command]
        self._leader = subprocess.Popen(
            [str(w) for w in words], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, pass_fds=(report, orders), env={**os.environ, **env},
        )  # fmt: skip
        os.close(report)
        os.close(orders)
        self._slave = slave
        self._shown = b""
        self.said = ""  # by the leader
        self.until(lambda: "pid " in self.said)
        self.pid = int(self.said.split()[1])

    def until(self, done: Any, seconds: float = MOST_SECONDS) -> bool:
        """Read on until ``done()``, or for so long; whether it is."""
        end = time.monotonic() + seconds
        while not done():
            if (left := end - time.monotonic()) <= 0:
                return False
            fds = [self._report] + [self.master] * (self.master >= 0)
            for fd in select.select(fds, [], [], min(left, 0.05))[0]:
                self._take(fd)
        return True

    def _take(self, fd: int) -> None:
        data = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            data = os.read(fd, 1 << 16)
        if fd == self.master:
            self._shown += data
        else:
            self.said += data.decode()

    def press(self, keys: bytes) -> None:
        """As if typed."""
        os.write(self.master, keys)

    def foreground(self) -> None:
        """``fg``."""
        self.said = self.said.replace("stopped", "went on")
        os.write(self._orders, b"\n")

    def hang_up(self) -> None:
        """The terminal's window is closed."""
        os.close(self._slave)
        os.close(self.master)
        self.master = self._slave = -1

    def end(self) -> int | None:
        """Wait for the command's end; its exit code."""
        if not self.until(lambda: "exit " in self.said):
            return None
        if self.master >= 0:
            self.until(lambda: False, 0.02)  # what is still on its way
        return int(self.said.split("exit ")[1])

    @property
    def same_modes(self) -> bool:
        """Whether the terminal is as it was."""
        return self._slave < 0 or termios.tcgetattr(self._slave) == self.modes

    @property
    def shown(self) -> str:
        """All that was written to it."""
        return self._shown.decode(errors="replace")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for fd in (self.master, self._slave, self._report, self._orders):
            if fd >= 0:
                os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            if "exit " not in self.said:
                os.kill(self.pid, 9)
        self._leader.kill()
        self._leader.wait()
