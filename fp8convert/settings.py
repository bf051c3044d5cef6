"""How a plan is run: threads, memory, I/O. None of it changes a byte of the output."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .errors import UsageError, shown
from .fileio import MODES
from .header import ALIGN as PAGE
from .origin import Scratch
from .plan import MOST_FILES, NO_NEEDS, Needs
from .tile import MIN_TILE, READ_SLACK

BASE_MEMORY = 224 << 20  # the interpreter with NumPy, numba and a plan of USUAL_ITEMS tensors
USUAL_ITEMS, ITEM_MEMORY = 60_000, 1536
DEFAULT_MEMORY = 512 << 20
MAX_TILE = 8 << 20
SCRATCH = Scratch()


def check_kind(name: str, value: object, kind: type) -> None:
    """UsageError unless ``value``, given as ``name``, is a ``kind``."""
    if not isinstance(value, kind):
        raise UsageError(f"{name} {shown(value)}, expected a {kind.__module__}.{kind.__name__}")


class Progress(NamedTuple):
    """How far a run is: output bytes written, of how many; source bytes read; bytes that have
    arrived over a network, to be read."""

    written: int
    total: int
    read: int
    arrived: int = 0


@dataclass(frozen=True)
class Settings:
    """How to run; none of it changes a byte of the output."""

    workers: int = 0  # threads; 0 chooses from the number of cores
    memory: int = DEFAULT_MEMORY  # bytes, of the whole process at its peak
    io: str = "auto"
    progress: Callable[[Progress], None] | None = None
    needs: Needs = NO_NEEDS  # the plan's: see :meth:`fitted`
    scratch: Scratch = SCRATCH  # for what is downloaded

    def __post_init__(self) -> None:
        check_kind("scratch", self.scratch, Scratch)
        if self.workers < 0:
            raise UsageError(f"workers {self.workers}, expected 1 or more (or 0 to choose)")
        if self.io not in MODES:
            raise UsageError(f"io {shown(self.io)}, expected one of {', '.join(MODES)}")
        least = self._base + self.threads * self._buffers(self._least)
        if self.memory < least:
            raise UsageError(
                f"memory {self.memory >> 20} MiB is too little for {self.threads} workers, "
                f"expected at least {-(-least >> 20)} MiB"
            )

    @property
    def threads(self) -> int:
        """Worker threads."""
        return self.workers or usual(self.needs)

    @property
    def files(self) -> int:
        """Files written at a time, for their checksums: at most one a core or thread."""
        return min(os.cpu_count() or 1, self.threads, MOST_FILES)

    @property
    def tile(self) -> int:
        """Output bytes a tile, in whole pages."""
        share = (self.memory - self._base) // self.threads - self._buffers(0)
        return max(self._least, min(MAX_TILE, share // 2 // PAGE * PAGE))

    @property
    def peak_memory(self) -> int:
        """Expected peak resident bytes."""
        return self._base + self.threads * self._buffers(self.tile)

    def fitted(self, needs: Needs) -> Settings:
        """For a plan with such needs: with fewer workers if they would not fit otherwise.

        UsageError if not even one does.
        """
        one = replace(self, workers=1, needs=needs)
        wished = self.workers or usual(needs)
        fit = (self.memory - one._base) // one._buffers(one._least)
        return replace(one, workers=max(min(wished, fit), 1))

    @property
    def _base(self) -> int:
        """Bytes without the workers': large plans take more than the usual, and so do downloads."""
        items = max(self.needs.items - USUAL_ITEMS, 0) * ITEM_MEMORY
        return BASE_MEMORY + items + self.needs.downloads

    @property
    def _least(self) -> int:
        return max(-(-self.needs.tile // PAGE) * PAGE, MIN_TILE)

    def _buffers(self, tile: int) -> int:
        """Bytes of one worker: what it reads, what it writes, what it encodes with."""
        return 2 * tile + READ_SLACK + 2 * PAGE + 9 * self.needs.scratch + self.needs.grids


def usual(needs: Needs, cores: int | None = None) -> int:
    """Threads that keep a disk's queue and every core busy: of so many, or of the machine.

    Most of those that decode wait, for the disk or for their turn to hash: on two cores 16 took 0.8
    to 0.9 of the time that 8 took. Those that encode compute: there 16 took 1.0 to 1.5 times as
    long as 4, contending for the interpreter and for memory.
    """
    waiting = 0 if needs.scratch else 12
    return min(2 * (cores or os.cpu_count() or 1) + waiting, 32)
