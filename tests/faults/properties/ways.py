"""A command run in this process in a drawn way, none of which may change a byte."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from fp8convert.convert import Manifest, execute, prepare
from fp8convert.errors import UsageError
from fp8convert.options import Options
from fp8convert.plan import Needs
from fp8convert.settings import DEFAULT_MEMORY, Settings

from ..lab import Files, tree

MIB = 1 << 20
PAGE = 4096


@dataclass(frozen=True)
class Way:
    """Threads, memory (the least that they need, or the usual), bytes a tile, input and output."""

    workers: int
    least: bool
    tile: int
    io: str

    def run(self, src: Path, dst: Path, options: Options) -> Manifest:
        """One conversion."""
        job = prepare(src, dst, options)
        settings = Settings(workers=self.workers, memory=self._memory(job.plan.needs), io=self.io)
        with self.tiles():
            return execute(job, settings)

    def _memory(self, needs: Needs) -> int:
        if not self.least:
            return DEFAULT_MEMORY
        for mib in itertools.count(225):
            with contextlib.suppress(UsageError):
                memory = mib * MIB
                fitted = Settings(workers=self.workers, memory=memory).fitted(needs)
                if fitted.threads == self.workers:
                    return memory
        raise AssertionError

    def tiles(self) -> contextlib.AbstractContextManager[object]:
        """Cut within small tensors, too: no memory is as small as that."""
        size = self.tile

        def tile(self: Settings) -> int:
            return max(size, -(-self.needs.tile // PAGE) * PAGE)

        return mock.patch.object(Settings, "tile", property(tile))


WAYS: st.SearchStrategy[Way] = st.builds(
    Way,
    workers=st.integers(1, 4),
    least=st.booleans(),
    tile=st.sampled_from([1, 2, 5, 64]).map(lambda n: n * PAGE),
    io=st.sampled_from(["auto", "buffered"]),
)
PLAIN_WAY = Way(1, False, 64 * PAGE, "auto")


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder in memory where there is some, gone at the end."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fp8convert-property-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def files_of(folder: Path) -> Files:
    """Every file of a finished target."""
    assert folder.is_dir()
    return tree(folder)
