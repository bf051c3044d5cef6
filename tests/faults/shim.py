"""The LD_PRELOAD library of ``shim.c``: compiled when it is first wanted, armed in a child."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")

# Kinds of calls, as in shim.c. A write is of data; a create is an open that may make a file.
KINDS = {
    name: 1 << n
    for n, name in enumerate(
        ("open", "create", "read", "write", "fsync", "fsync-folder", "rename", "unlink", "mkdir",
         "truncate", "allocate", "close", "flock")
    )
}  # fmt: skip
CHANGES = ("create", "write", "fsync", "fsync-folder", "rename", "unlink", "mkdir", "truncate",
           "allocate")  # fmt: skip
ACTIONS = ("count", "kill-before", "kill-after", "tear", "fail", "fail-on", "short", "interrupt",
           "stop", "pretend", "signal")  # fmt: skip


def missing() -> str:
    """Why the shim cannot be had here, or nothing."""
    if os.uname().sysname != "Linux":
        return "LD_PRELOAD of this kind needs Linux"
    return "" if shutil.which("gcc") else "gcc is not installed"


@functools.cache
def built() -> Path:
    """The compiled shim, in a folder that is gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fp8convert-shim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = folder / "shim.so"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(made), str(SOURCE), "-ldl"], check=True)
    return made


def arm(
    folder: str, kinds: list[str], action: str, step: int = 1, error: int = 0, seed: int = 0,
    log: str = "",
) -> None:  # fmt: skip
    """A tampering: from now on ``action`` happens to calls of ``kinds`` below ``folder``.

    ``kill-before``, ``kill-after``, ``tear`` (half of a transfer, then death), ``signal`` (number
    ``error``, to the process) and ``fail`` at call number ``step``; ``fail-on`` from that call on
    for good; ``interrupt`` (EINTR) every ``step`` calls, or with a ``seed`` one of ``step``;
    ``short``, ``stop`` (SIGSTOP) and ``pretend`` (fsync and flock do nothing and say they did) at
    every call; ``count`` nowhere. With a ``log``, each call is a line of it: kind, path.
    """
    mask = sum(KINDS[kind] for kind in kinds)
    arms = ctypes.CDLL(None).shim_arm  # AttributeError if it was not preloaded
    arms.argtypes = [
        ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_uint,
        ctypes.c_char_p,
    ]  # fmt: skip
    words = (os.path.realpath(folder).encode(), log.encode())
    if arms(words[0], mask, ACTIONS.index(action), step, error, seed, words[1]):
        raise OSError(f"the shim cannot be armed for {folder}")


def pretend(kinds: list[str]) -> None:
    """A tampering: steps of ``kinds`` (``fsync``, ``fsync-folder``) do nothing, whatever else an
    action does to them; :func:`arm` says which calls are steps."""
    ctypes.CDLL(None).shim_pretend(sum(KINDS[kind] for kind in kinds))
