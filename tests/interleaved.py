"""Two pieces of work in one process, of which exactly one goes on at a time, step by step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .crash import Set


class Stepped:
    """A thread that stops before each of its steps, and before the first."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.ended = False
        self._work, self._go, self._stopped = work, threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def go(self, steps: int) -> int:
        """So many steps more, or to its end; how many there were."""
        for done in range(steps):
            if self.ended:
                return done
            self._go.release()
            self._stopped.acquire()
        return steps

    def finish(self) -> None:
        """All that is left of it."""
        while not self.ended:
            self.go(1)
        self._thread.join()

    def is_me(self) -> bool:
        """Whether it is this thread that calls."""
        return threading.current_thread() is self._thread

    def pause(self) -> None:
        """Before a step."""
        self._stopped.release()
        self._go.acquire()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.result = self._work()
        except Exception as e:
            self.error = e
        finally:
            self.ended = True
            self._stopped.release()


def stepping(
    set_attribute: Set, where: object, names: tuple[str, ...], players: list[Stepped],
    counts: Callable[[str, tuple[Any, ...]], bool],
) -> None:  # fmt: skip
    """Have each of ``players`` stop before calls of these functions that ``counts`` says are
    steps."""

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            for player in players:
                if player.is_me() and counts(name, args):
                    player.pause()
            return real(*args, **kwargs)

        return call

    for name in names:
        set_attribute(where, name, wrapped(name, getattr(where, name)))
