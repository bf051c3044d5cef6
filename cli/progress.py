"""Progress on stderr: a bar with GB/s and ETA on a terminal, a plain line at times elsewhere.

And notes of what holds it up, which the library has for its log.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from . import stopping
from .sizes import human

if TYPE_CHECKING:
    from fp8convert.settings import Progress

LINE_EVERY_S = 10.0
LOG = logging.getLogger("fp8convert")


class _Meter(AbstractContextManager["_Meter"]):
    """A bar on a terminal, a line every LINE_EVERY_S elsewhere, nothing if quiet."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet or sys.stderr is None
        self._terminal = not self._quiet and sys.stderr.isatty()
        self._bar: Any = None
        self._begun = self._said = time.monotonic()

    def _due(self) -> bool:
        """Whether a line is; then none is for a while."""
        now = time.monotonic()
        if now - self._said < LINE_EVERY_S:
            return False
        self._said = now
        return True

    def _draw(self, doing: str, done: int, total: int, more: str = "", **unit: Any) -> None:
        with self._heard():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=total, desc=doing, **unit)
                stopping.drawn = True
            if more:
                self._bar.set_postfix_str(more, refresh=done == self._bar.n)
            self._bar.update(done - self._bar.n)

    def _line(self, text: str) -> None:
        with self._heard():
            if (bar := self._bar) is None:
                click.echo(text, err=True)
            else:
                bar.write(text, file=sys.stderr)  # above it

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """An hour's work does not end because the terminal is closed that shows how far it is."""
        try:
            yield
        except OSError:
            self._quiet = True

    def _close(self) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()
            self._bar = None
            stopping.drawn = False

    def __exit__(self, *error: object) -> None:
        self._close()


class _Notes(logging.Handler):
    """Tells ``tell`` of the first record, and of no more than one every LINE_EVERY_S: several
    threads may wait for the same hub."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell
        self._told = -LINE_EVERY_S

    def emit(self, record: logging.LogRecord) -> None:
        """One thread at a time."""
        now = time.monotonic()
        if now - self._told >= LINE_EVERY_S:
            self._told = now
            self._tell(f"note: {record.getMessage()}")


class Meter(_Meter):
    """Call it with every :class:`Progress` of a conversion, or :meth:`show` with other bytes.

    Within it, what the library logs is shown, too.
    """

    def __init__(self, quiet: bool) -> None:
        super().__init__(quiet)
        self._doing = ""
        self._notes = _Notes(self._line)

    def __enter__(self) -> Meter:
        if not self._quiet:
            LOG.addHandler(self._notes)
            LOG.setLevel(logging.INFO)
        return self

    def __exit__(self, *error: object) -> None:
        LOG.removeHandler(self._notes)
        super().__exit__(*error)

    def __call__(self, now: Progress) -> None:
        more = f"{human(now.arrived)} downloaded" if now.arrived else ""
        self.show("writing", "written", now.written, now.total, more)

    def show(self, doing: str, done: str, nbytes: int, total: int, more: str = "") -> None:
        """So many bytes of ``total`` are done; another ``doing`` than before is another bar."""
        if self._quiet:
            return
        if doing != self._doing:
            self._close()
            self._doing, self._begun = doing, time.monotonic()
        if self._terminal:
            self._draw(doing, nbytes, total, more, unit="B", unit_scale=True)
        elif self._due():
            rate = nbytes / max(self._said - self._begun, 1e-3)
            left = f", {human(rate)}/s, {(total - nbytes) / rate:.0f} s left" if rate else ""
            self._line(
                f"{human(nbytes)} of {human(total)} {done}{left}{', ' if more else ''}{more}"
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
            self._line(f"layer {done} of {total}, {left:.0f} s left")
