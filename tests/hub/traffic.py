"""What came in and went out: the log, and what a test wants to be told of."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

QUIET = 5.0  # seconds that whoever reads the log waits for requests to end


@dataclass(eq=False)
class Request:
    """One request, and what became of it."""

    host: str  # "hub" or "cdn"
    method: str
    path: str  # unquoted, without the query
    query: str
    range: str | None  # the header
    authorization: str | None  # the header
    headers: dict[str, str] = field(repr=False)  # names in lower case
    status: int = 0  # of the answer; 0: there was none
    sent: int = 0  # bytes of the answer's body
    received: int = 0  # bytes of the request's body


Callback = Callable[[Request], object]


@dataclass(eq=False)
class _Hook:
    path: str
    callback: Callback
    method: str
    at: int | None  # bytes of body, of either direction
    times: int | None


class Traffic:
    """The log and the hooks of one hub. Safe for threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._log: list[Request] = []
        self._open: dict[int, Request] = {}  # by the thread that serves it
        self._hooks: list[_Hook] = []

    @contextmanager
    def serving(self, request: Request) -> Iterator[None]:
        """While it is served."""
        me = threading.get_ident()
        with self._changed:
            self._log.append(request)
            self._open[me] = request
        try:
            yield
        finally:
            with self._changed:
                del self._open[me]
                self._changed.notify_all()

    def log(self) -> list[Request]:
        """All so far, in the order in which they came.

        A client has the last byte a moment before the hub has counted it: this waits until
        nothing is being served, unless a hook asks, or something takes longer than five seconds.
        """
        with self._changed:
            if threading.get_ident() not in self._open:
                self._changed.wait_for(lambda: not self._open, QUIET)
            return list(self._log)

    def clear(self) -> None:
        """Forget what was."""
        self.log()
        with self._changed:
            self._log.clear()

    def on(
        self, path: str, callback: Callback, method: str = "", at: int | None = None,
        times: int | None = None,
    ) -> None:  # fmt: skip
        """See :meth:`tests.hub.Hub.on`."""
        with self._changed:
            self._hooks.append(_Hook(path, callback, method, at, times))

    def arrived(self, request: Request) -> None:
        """Call who waits for it."""
        for hook in self._due(request, lambda hook: hook.at is None):
            hook.callback(request)

    def marks(self, request: Request) -> list[int]:
        """The amounts of body at which somebody wants to be called, ascending."""
        with self._changed:
            found = {h.at for h in self._hooks if h.at is not None and self._fits(h, request)}
        return sorted(found)

    def reached(self, request: Request, amount: int) -> None:
        """Call who waits for this amount of body."""
        for hook in self._due(request, lambda hook: hook.at == amount):
            hook.callback(request)

    def _due(self, request: Request, wanted: Callable[[_Hook], bool]) -> list[_Hook]:
        with self._changed:
            due = [h for h in self._hooks if wanted(h) and self._fits(h, request)]
            for hook in due:
                if hook.times is not None:
                    hook.times -= 1
        return due

    @staticmethod
    def _fits(hook: _Hook, request: Request) -> bool:
        if hook.times == 0 or (hook.method and hook.method != request.method):
            return False
        return re.search(hook.path, request.path) is not None
