"""Which files a process, and every child of it, opened, changed and executed: by strace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HEX = r"((?:\\x[0-9a-f]{2})+)"
OPENED = re.compile(rf"\d+ +(?:open|openat|openat2|creat)\((.*)\) += \d+<{HEX}")
EXECUTED = re.compile(rf'\d+ +execve(?:at)?\("{HEX}".*= 0$')
CALL = re.compile(r"\d+ +(\w+)\((.*)\) += 0$")
NAMED = re.compile(rf'(?:\w+<{HEX}>, )?"{HEX}"')
CHANGES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir",
           "symlink", "symlinkat", "link", "linkat", "truncate", "chmod", "fchmodat", "chown",
           "utimensat", "mknod", "mknodat")  # fmt: skip
WRITING = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")


def missing() -> str:
    """Why nothing can be traced here, or nothing."""
    return "" if shutil.which("strace") else "strace is not installed"


class Trace(NamedTuple):
    """Real paths. ``changed``: opened for writing, or made, renamed, removed."""

    code: int
    out: str
    err: str
    opened: set[Path]
    changed: set[Path]
    executed: list[Path]


def traced(argv: Sequence[object], cwd: Path, log: Path) -> Trace:
    """Run a program in the folder ``cwd``; ``log`` is a new file."""
    temporary = log.with_suffix(".tmp")
    temporary.mkdir(exist_ok=True)
    more = {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = ["strace", "-f", "-yy", "-xx", "-s", "5000", "-e", "trace=%file", "-o", str(log)]
    done = subprocess.run(
        [*command, *map(str, argv)], cwd=cwd, env={**os.environ, **more}, capture_output=True,
        text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    opened, changed, executed = set(), set(), []
    for line in log.read_text().splitlines():
        if found := OPENED.match(line):
            path = _path(found[2])
            opened.add(path)
            if any(flag in found[1] for flag in WRITING):
                changed.add(path)
        elif found := EXECUTED.match(line):
            executed.append(_path(found[1]))
        elif (found := CALL.match(line)) and found[1] in CHANGES:
            names = NAMED.findall(found[2])
            for folder, name in names[-1:] if "symlink" in found[1] else names:  # not what is said
                changed.add(Path(os.path.normpath(cwd / _path(folder or "") / _path(name))))
    return Trace(done.returncode, done.stdout, done.stderr, opened, changed, executed)


def _path(words: str) -> Path:
    raw = bytes.fromhex(words.replace("\\x", ""))
    return Path(os.fsdecode(raw.removesuffix(b" (deleted)")))
