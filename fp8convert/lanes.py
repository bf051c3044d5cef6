"""Small things that wait for a network, several at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
PATIENCE = 0.5  # seconds
LOOK_S = 0.5  # a signal that comes just before a thread begins to wait does not wake it


def mapped(work: Callable[[A], B], items: Sequence[A], lanes: int) -> list[B]:
    """``work`` of each item, in order, by so many threads; the first error, as soon as it is met.

    The others are given a moment then, and none when this is interrupted: a pool of the standard
    library would keep the process until a silent network has answered.
    """
    found: dict[int, B] = {}
    errors: list[BaseException] = []
    numbers = iter(range(len(items)))
    changed = threading.Condition()

    def run() -> None:
        while True:
            with changed:
                n = None if errors else next(numbers, None)
            if n is None:
                return
            try:
                got = work(items[n])
                with changed:
                    found[n] = got
                    changed.notify_all()
            except BaseException as e:
                with changed:
                    errors.append(e)
                    changed.notify_all()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(lanes, len(items)))]
    try:
        for thread in threads:
            thread.start()
        with changed:
            while not errors and len(found) < len(items):
                changed.wait(LOOK_S)
    except BaseException as e:
        errors.append(e)  # nothing more is begun
        raise
    if errors:
        end = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        raise errors[0]
    return [found[n] for n in range(len(items))]
