"""Progress on stderr: a bar with GB/s and ETA on a terminal, a plain line at times elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from .sizes import human

if TYPE_CHECKING:
    from fp8convert.settings import Progress

LINE_EVERY_S = 10.0


class Meter(AbstractContextManager["Meter"]):
    """Call it with every :class:`Progress`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._bar: Any = None
        self._begun = self._said = time.monotonic()

    def __call__(self, now: Progress) -> None:
        if self._quiet:
            return
        if self._terminal:
            self._draw(now)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            rate = now.written / (self._said - self._begun)
            left = (now.total - now.written) / rate
            click.echo(
                f"{human(now.written)} of {human(now.total)} written, {human(rate)}/s, "
                f"{left:.0f} s left",
                err=True,
            )

    def _draw(self, now: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=now.total, unit="B", unit_scale=True, desc="writing")
        self._bar.update(now.written - self._bar.n)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
