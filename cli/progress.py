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
    """Call it with every :class:`Progress` of a conversion, or :meth:`show` with other bytes."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._bar: Any = None
        self._doing = ""
        self._begun = self._said = time.monotonic()

    def __call__(self, now: Progress) -> None:
        self.show("writing", "written", now.written, now.total)

    def show(self, doing: str, done: str, nbytes: int, total: int) -> None:
        """So many bytes of ``total`` are done; another ``doing`` than before is another bar."""
        if self._quiet:
            return
        if doing != self._doing:
            self._close()
            self._doing, self._begun = doing, time.monotonic()
        if self._terminal:
            self._draw(doing, nbytes, total)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._said = time.monotonic()
            rate = max(nbytes, 1) / max(self._said - self._begun, 1e-3)
            click.echo(
                f"{human(nbytes)} of {human(total)} {done}, {human(rate)}/s, "
                f"{(total - nbytes) / rate:.0f} s left",
                err=True,
            )

    def _draw(self, doing: str, nbytes: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc=doing)
        self._bar.update(nbytes - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()


class LayerMeter(AbstractContextManager["LayerMeter"]):
    """Call it with the layers of a model that are done, of how many."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._bar: Any = None
        self._begun = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if self._terminal:
            self._draw(done, total)
        elif now - self._said >= LINE_EVERY_S:
            self._said = now
            left = (now - self._begun) / done * (total - done)
            click.echo(f"layer {done} of {total}, {left:.0f} s left", err=True)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="layer", desc="running")
        self._bar.update(done - self._bar.n)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
