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


class _Meter(AbstractContextManager["_Meter"]):
    """A bar on a terminal, a line every LINE_EVERY_S elsewhere, nothing if quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._bar: Any = None
        self._begun = self._said = time.monotonic()

    def _due(self) -> bool:
        """Whether a line is; then none is for a while."""
        now = time.monotonic()
        if now - self._said < LINE_EVERY_S:
            return False
        self._said = now
        return True

    def _draw(self, doing: str, done: int, total: int, **unit: Any) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=doing, **unit)
        self._bar.update(done - self._bar.n)

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


class Meter(_Meter):
    """Call it with every :class:`Progress` of a conversion, or :meth:`show` with other bytes."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(quiet)
        self._doing = ""

    def __enter__(self) -> Meter:
        return self

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
            self._draw(doing, nbytes, total, unit="B", unit_scale=True)
        elif self._due():
            rate = max(nbytes, 1) / max(self._said - self._begun, 1e-3)
            click.echo(
                f"{human(nbytes)} of {human(total)} {done}, {human(rate)}/s, "
                f"{(total - nbytes) / rate:.0f} s left",
                err=True,
            )


class LayerMeter(_Meter):
    """Call it with the layers of a model that are done, of how many."""

    def __enter__(self) -> LayerMeter:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._terminal:
            self._draw("running", done, total, unit="layer")
        elif self._due():
            left = (self._said - self._begun) / done * (total - done)
            click.echo(f"layer {done} of {total}, {left:.0f} s left", err=True)
