"""Faults that a test asks of the hub, and the rates that it sends at."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

from .traffic import Request

# The kinds, by the moment at which they strike.
ARRIVAL = ("delay", "drop", "status")
METADATA = ("etag", "size")
BODY = ("cut", "flip", "rate")


@dataclass(eq=False)
class Fault:
    """One thing that goes wrong with requests whose path ``path`` (a regular expression) is found
    in. It is of one kind; add two faults where two things are to happen.

    Args:
        method: only of this method; any if empty (``flip`` and ``cut`` need a body all the same).
        times: how often, and then no more; None: always.
        skip: so many requests, that it would strike, go undisturbed first.
        status: the hub answers this, with ``retry_after`` (seconds), ``code`` (``X-Error-Code``),
            ``message`` and ``headers``.
        drop: the connection is closed without an answer.
        delay: seconds until the request is looked at.
        cut: the connection is closed after so many bytes of the body: of the answer, or, where the
            request has a body, of the request's.
        flip: a bit of the byte at this offset of the file is another; of what isn't a file, of the
            body. It strikes requests that get that byte.
        rate: bytes a second, each connection by itself.
        etag, size: what HEAD says of a file, in place of the truth.
    """

    path: str = ""
    _: KW_ONLY
    method: str = ""
    times: int | None = None
    skip: int = 0
    status: int | None = None
    retry_after: int | None = None
    code: str = ""
    message: str = "a fault that was asked for"
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool | None = None
    delay: float | None = None
    cut: int | None = None
    flip: int | None = None
    rate: float | None = None
    etag: str | None = None
    size: int | None = None
    struck: int = field(default=0, init=False)  # how often it has happened

    def __post_init__(self) -> None:
        kinds = [k for k in (*ARRIVAL, *METADATA, *BODY) if getattr(self, k) is not None]
        if not kinds or (len(kinds) > 1 and set(kinds) != set(METADATA)):
            raise ValueError(f"a fault is of one kind, not of {kinds}")
        self.kind = kinds[0]

    def meets(self, request: Request) -> bool:
        """Whether this is the method and the path."""
        of_method = not self.method or self.method == request.method
        return of_method and re.search(self.path, request.path) is not None


class Faults:
    """Those that stand. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standing: list[Fault] = []

    def add(self, *faults: Fault) -> Fault:
        """From now on; the first is given back, so that its ``struck`` can be looked at."""
        with self._lock:
            self._standing += faults
        return faults[0]

    def clear(self) -> None:
        """No more faults."""
        with self._lock:
            self._standing.clear()

    def strike(
        self,
        request: Request,
        kinds: tuple[str, ...],
        would: Callable[[Fault], bool] = lambda fault: True,
    ) -> list[Fault]:
        """Those of ``kinds`` that happen to this request now, counted; ``would``: it can matter."""
        struck: list[Fault] = []
        with self._lock:
            for fault in self._standing:
                if fault.kind not in kinds or not fault.meets(request) or not would(fault):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                elif fault.times is None or fault.struck < fault.times:
                    fault.struck += 1
                    struck.append(fault)
        return struck


class Rate:
    """Bytes a second that everybody who holds it shares."""

    def __init__(self, per_second: float, closing: threading.Event) -> None:
        self.per_second = per_second
        self._closing = closing
        self._lock = threading.Lock()
        self._free = 0.0  # when the next bytes may go, by time.monotonic()

    @property
    def piece(self) -> int:
        """Bytes to send at once: a twentieth of a second's."""
        return max(1, int(self.per_second / 20))

    def wait(self, count: int) -> None:
        """Until ``count`` bytes may go; at once if the hub is closing.

        Who wakes up late may catch up, by what goes in a twentieth of a second.
        """
        with self._lock:
            begin = max(self._free, time.monotonic() - 1 / 20)
            self._free = begin + count / self.per_second
        if (seconds := begin - time.monotonic()) > 0:
            self._closing.wait(seconds)
