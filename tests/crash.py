"""Runs that end badly on purpose: traced, failing and killed system calls.

``Forker`` asks ``python -m tests.crash``, which has everything imported, to fork one child a run:
hundreds of real processes that can be killed, at the price of a fork each.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

# Whatever changes something on disk. Reads can be traced as well.
CHANGES = ("mkdir", "rmdir", "unlink", "open", "posix_fallocate", "ftruncate", "pwritev", "fsync",
           "replace", "rename")  # fmt: skip

MOST_SECONDS = 120  # of a child
MOST_BYTES = 10_000_000  # of a file whose content is compared: some are terabytes of holes
UNTAMPERED = 71  # exit code of a child whose tampering failed, which no test may take for a loss

Before = Callable[[str, tuple[Any, ...]], None]
Set = Callable[[object, str, Any], None]


def trace(set_attribute: Set, names: tuple[str, ...], before: Before, after: Before) -> None:
    """Have ``before`` and ``after`` called around the functions of ``os`` called ``names``."""

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            before(name, args)
            result = real(*args, **kwargs)
            after(name, args)
            return result

        return call

    for name in names:
        set_attribute(os, name, wrapped(name, getattr(os, name)))


def nothing(name: str, args: tuple[Any, ...]) -> None:
    """A ``before`` or ``after`` that does nothing."""


class FailAt:
    """A ``before`` or ``after``: raises OSError at the ``n``-th call (1 is the first)."""

    def __init__(self, n: int, code: int = errno.EIO) -> None:
        self.left, self.code, self.failed = n, code, ""

    def __call__(self, name: str, args: tuple[Any, ...]) -> None:
        self.left -= 1
        if self.left == 0:
            self.failed = name
            raise OSError(self.code, os.strerror(self.code))


def short_transfers(set_attribute: Set, seed: int) -> list[int]:
    """Make every positioned read and write move fewer bytes than asked; the counts moved."""
    rng, moved = random.Random(seed), []

    def shortened(real: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, views: list[memoryview], offset: int) -> int:
            (view,) = views
            direct = fcntl_flags(fd) & getattr(os, "O_DIRECT", 0)
            unit = 4096 if direct else 1  # of direct I/O the kernel, too, moves whole pages
            most = max(len(view) // unit, 1) * unit
            length = rng.randint(1, max(most // unit, 1)) * unit
            moved.append(length)
            return real(fd, [view[:length]], offset)

        return call

    set_attribute(os, "preadv", shortened(os.preadv))
    set_attribute(os, "pwritev", shortened(os.pwritev))
    return moved


def fcntl_flags(fd: int) -> int:
    """The status flags of a descriptor."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of ``folder`` (which holds nothing else)."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def marks(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below ``folder``, links as links: to tell that nothing was made or touched.

    Inode and mtime first; changes of a file's bytes, name or mode leave another ctime; reading
    leaves none. Without the links by which a run finds its own state: each has another.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        s = path.lstat()
        if stat.S_ISLNK(s.st_mode) and path.name.startswith("run."):
            continue
        small = stat.S_ISREG(s.st_mode) and s.st_size < MOST_BYTES
        same = (s.st_ino, s.st_mtime_ns, s.st_ctime_ns, s.st_mode, s.st_size)
        found[str(path.relative_to(folder))] = (*same, path.read_bytes() if small else b"")
    return found


def kept(state: Path) -> dict[str, tuple[Any, ...]]:
    """The same of what a run that goes on leaves alone: of its state, all but the job, which from
    then on names it."""
    return {name: mark for name, mark in marks(state).items() if name != "job.json"}


def state_of(target: Path) -> Path:
    """Where unfinished work on ``target`` lies."""
    return target.with_name(f".{target.name}.fp8convert")


def temporaries(folder: Path) -> list[Path]:
    """What a run has not given its final name."""
    return list(folder.rglob("*.tmp"))


def real(path: object) -> str:
    """Where ``path`` is, whatever link a run has gone by."""
    found = Path(str(path))
    return str(Path(os.path.realpath(found.parent), found.name))


# --- The children. A tampering is a function of this module, named in the request, or of one in
# tests/faults.


def signal_at(n: int, signum: int) -> None:
    """Send this process a signal before its ``n``-th call that changes something."""
    counted = 0

    def before(name: str, args: tuple[Any, ...]) -> None:
        nonlocal counted
        counted += 1
        if counted == n:
            os.kill(os.getpid(), signum)

    trace(setattr, CHANGES, before, nothing)


def slow(seconds: float) -> None:
    """Sleep before every write."""
    trace(setattr, ("pwritev",), lambda name, args: time.sleep(seconds), nothing)


def hold(path: str) -> None:
    """Say so and wait, before every write, while there is a file ``path``."""

    def before(name: str, args: tuple[Any, ...]) -> None:
        Path(path + ".held").touch()
        while Path(path).exists():
            time.sleep(0.002)

    trace(setattr, ("pwritev",), before, nothing)


def in_folders(name: str, *args: Any) -> None:
    """Have the files of the target lie in folders, and tamper as another one does."""
    from .nested import nest

    nest(setattr)
    globals()[name](*args)


class Ended(NamedTuple):
    """How a child ended: exit code (or minus the signal), and what it printed."""

    code: int
    out: str
    err: str


class Forker:
    """Runs ``fp8convert`` in forked children, one at a time.

    ``preload`` is a library that all of them have loaded, ``modules`` are imported. Commands given
    in ``warm`` are run once before, so that children find their kernels compiled.
    """

    def __init__(
        self, preload: Path | None = None, warm: Sequence[Sequence[object]] = (),
        modules: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.crash", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **({"LD_PRELOAD": str(preload)} if preload else {})},
            text=True,
        )
        self._send([[str(a) for a in argv] for argv in warm])

    def start(
        self, *argv: object, tamper: tuple[Any, ...] = (), kill_after: float | None = None
    ) -> None:
        """Begin a run; ``tamper`` is the name of a tampering and its arguments.

        The child gets SIGALRM, and ends by it, if it takes more than ``MOST_SECONDS``.
        """
        self._send({"argv": [str(a) for a in argv], "tamper": tamper, "kill_after": kill_after})

    def wait(self) -> Ended | None:
        """Wait for the run that was begun to end, or to stop (SIGSTOP): None, and :meth:`go` on."""
        assert self._server.stdout
        found = json.loads(self._server.stdout.readline())
        assert not found or found["code"] != UNTAMPERED, found["err"]
        return Ended(**found) if found else None

    def go(self) -> None:
        """Have a stopped run go on."""
        self._send("go")

    def end(self) -> Ended:
        """Wait for the run that was begun, which does not stop."""
        ended = self.wait()
        assert ended, "it stopped"
        return ended

    def _send(self, request: object) -> None:
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()

    def run(self, *argv: object, **options: Any) -> Ended:
        """Begin and wait."""
        self.start(*argv, **options)
        return self.end()

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


def _serve() -> None:
    from fp8convert.cli import (  # noqa: F401 (imported here once for all children)
        quantize,
        shard_for_tp,
        to_bf16,
        unshard,
    )

    from .faults import tampering  # noqa: F401

    for module in sys.argv[1:]:
        importlib.import_module(module)
    _warm_up(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(_one(**json.loads(line))), flush=True)


def _warm_up(commands: list[list[str]]) -> None:
    """Convert once, so that the kernels are compiled; its threads end with it."""
    from fp8convert.cli.main import cli
    from fp8convert.convert import to_bf16

    from .mini import make_mini

    with tempfile.TemporaryDirectory() as folder:
        make_mini(Path(folder) / "src")
        to_bf16(Path(folder) / "src", Path(folder) / "dst", checksum="none")
    for argv in commands:
        cli.main([*argv, "--quiet"], standalone_mode=False)
    gc.freeze()  # or every child copies most pages, to count references


def _one(argv: list[str], tamper: list[Any], kill_after: float | None) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _child(argv, tamper)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # not yet waited for: the number is still its own
        while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
            print("null", flush=True)
            sys.stdin.readline()
            os.kill(pid, signal.SIGCONT)
        code = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return {"code": code, "out": out.read(), "err": err.read()}


def _child(argv: list[str], tamper: list[Any]) -> NoReturn:
    from fp8convert.cli.main import main

    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        signal.alarm(MOST_SECONDS)
        if tamper:
            code = UNTAMPERED
            _tampering(tamper[0])(*tamper[1:])
            code = 70
        sys.argv = ["fp8convert", *argv]
        main()
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _tampering(name: str) -> Callable[..., None]:
    from .faults import tampering

    module, _, function = name.rpartition(":")  # of a module of tests/faults, if one is named
    found: Callable[..., None]
    if module:
        found = getattr(importlib.import_module(f"{__package__}.faults.{module}"), function)
    else:
        found = globals().get(name) or getattr(tampering, name)
    return found


if __name__ == "__main__":
    _serve()
