"""The process that fuzzes: ``python -m tests.faults.fuzz.child TARGET [OPTIONS of libFuzzer]``.

libFuzzer ends it, by a crash, a timeout or at its end: :mod:`.running` starts it and looks.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

BUGS = "tests.faults.fuzz.planted"
NOT_TRACED = ["fp8convert.kernels", "fp8convert.parity"]  # compiled by numba, which reads bytecode

Mutate = Callable[[bytes, int, int], bytes]


def main(name: str, seconds: float, bug: str, *options: str) -> None:
    """Fuzz one target for so long, start included; ``bug`` is one to plant, or nothing."""
    end = time.monotonic() + seconds
    with atheris.instrument_imports(include=["fp8convert"], exclude=NOT_TRACED):
        _import_all("fp8convert.schemes", "fp8convert.layouts", "fp8convert.codecs")
        from . import promises, targets
    if bug:
        importlib.import_module(BUGS).BUGS[bug](setattr)
    target = targets.targets()[name]
    target.run(b"")  # what is imported, compiled and made at first
    left = max(int(end - time.monotonic()), 1)
    argv = [sys.argv[0], f"-max_total_time={left}", *options]
    folders = [Path(o) for o in options if not o.startswith("-")]
    mutate = mutator(name, target.lines, [f.read_bytes() for d in folders for f in d.iterdir()])
    atheris.Setup(argv, promises.timed(target.run), custom_mutator=mutate, internal_libfuzzer=True)
    atheris.Fuzz()


def _import_all(*packages: str) -> None:
    """What is imported when it is needed must be traced as well."""
    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")


def mutator(name: str, lines: Sequence[bytes], seeds: Sequence[bytes]) -> Mutate:
    """For libFuzzer, which gives an input, the most bytes, and a seed."""
    from .mutation import Mutator, words_of

    said = [s.partition(b"\n")[2] if lines != [b""] else s[8:] for s in seeds]
    edit = Mutator(words_of(said), lambda b: atheris.Mutate(b, len(b) + 64))
    of = _framed if name == "header" else _headed if lines != [b""] else _plain

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return of(data, rng, edit, lines)[:most]

    return mutate


def _plain(data: bytes, rng: random.Random, edit: Callable, lines: Sequence[bytes]) -> bytes:
    return edit(data, rng)


def _headed(data: bytes, rng: random.Random, edit: Callable, lines: Sequence[bytes]) -> bytes:
    """The first line is another one now and then."""
    head, _, rest = data.partition(b"\n")
    if rng.random() < 0.1 or head not in lines:
        head = rng.choice(lines)
    return head + b"\n" + edit(rest, rng)


def _framed(data: bytes, rng: random.Random, edit: Callable, lines: Sequence[bytes]) -> bytes:
    """A length, JSON, data; mostly such that the lengths are right again."""
    if rng.random() < 0.1:
        return atheris.Mutate(data, len(data) + 64)
    length = int.from_bytes(data[:8], "little")
    body, tail = data[8 : 8 + length], data[8 + length :]
    body = edit(body, rng)
    if rng.random() < 0.9:
        length = len(body)
    if rng.random() < 0.2:
        tail = rng.choice((tail + bytes(rng.randrange(9)), tail[: rng.randrange(len(tail) + 1)]))
    return (length % (1 << 64)).to_bytes(8, "little") + body + tail


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3], *sys.argv[4:])
