"""What holds for every target: which errors may be raised, and what may be said and written."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from fp8convert import header, strictjson
from fp8convert.errors import Fp8ConvertError, ResumableError
from fp8convert.plan import Plan

SECONDS = 5  # of a processor, for one input
LONGEST = 20_000  # characters of a message; names in it are cut to 160 each


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What is inside may refuse: with an error of ours, whose message can be printed.

    Not with a ResumableError: no run of the same again would mend a file's content.
    """
    try:
        yield
    except ResumableError as e:
        raise AssertionError(f"said to be resumable: {e}") from e
    except Fp8ConvertError as e:
        printable(str(e))


def printable(message: str) -> None:
    """A message has no escapes of a terminal, no lone surrogates, and ends."""
    odd = [c for c in message if not c.isprintable() and c != "\n"]
    assert not odd, f"in a message: {odd!r}"
    assert len(message) <= LONGEST, f"a message of {len(message)} characters"
    assert "internal:" not in message, message


def readable(text: str) -> Any:
    """JSON that we write is strict: we can read it, and find what Python's own parser does."""
    with _must("read again"):
        found = strictjson.loads(text.encode(), "written by us", max_depth=None)
    assert json.loads(text) == found, "read in two ways"
    return found


def sound(plan: Plan) -> None:
    """What a plan would write, print and compare is well-formed."""
    for text in (*plan.texts.values(), json.dumps(plan.to_dict()), json.dumps(plan.identity)):
        readable(text)
    printable("\n".join((*plan.warnings, *plan.notes)))
    with _must("read again"):
        for task in plan.tasks:
            header.parse(task.header[8:], task.size, task.file)


@contextlib.contextmanager
def _must(what: str) -> Iterator[None]:
    """An error of ours is none that a target may raise."""
    try:
        yield
    except Fp8ConvertError as e:
        raise AssertionError(f"cannot be {what}: {e}") from e


@contextlib.contextmanager
def opening_only_in(folder: str) -> Iterator[None]:
    """No other file is opened meanwhile (by Python's own functions)."""
    real, inside = os.open, os.path.realpath(folder) + os.sep

    def watched(path: Any, *args: Any, **kwargs: Any) -> int:
        where = os.path.realpath(os.fspath(path))
        assert where.startswith(inside), f"opened {where!r}, outside of the folder"
        return real(path, *args, **kwargs)

    os.open = watched
    try:
        yield
    finally:
        os.open = real


def timed(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """``run``, which must not take long: its own time, whatever else the machine does."""

    def call(data: bytes) -> None:
        begun = time.process_time()
        run(data)
        took = time.process_time() - begun
        assert took < SECONDS, f"{took:.1f} seconds for {len(data)} bytes"

    return call
