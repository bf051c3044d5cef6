"""One task being written: its target file, the shards it reads, what its tiles met."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .codecs.base import Findings
from .coderun import CodeRun
from .dtypes import DTYPES
from .encoding.band import Bench, UnfitError
from .errors import DataError, shown
from .fetch import Fetched
from .header import ALIGN as PAGE
from .journal import Record
from .places import Places
from .plan import Task
from .schemes.weight import Weight
from .sources import Sources
from .stage import Stage
from .tile import Chunk, Coding, Read, Tile

if TYPE_CHECKING:
    from .codecs.base import Array, Bytes

_NUMPY = {d.tag: d.numpy or "uint8" for d in DTYPES.values()}


class TaskRun:
    """One task being written: its target file, the shards it reads, what its tiles met."""

    def __init__(self, task: Task, shards: list[str], sources: Sources, stage: Stage) -> None:
        self.task, self.shards, self.sources, self.stage = task, shards, sources, stage
        exact = getattr(stage.plan.options, "require_exact", False)
        self.codes = CodeRun(task, stage.spool(task), exact)
        try:
            self.target = stage.create(task, sources.io)
        except BaseException:
            self.codes.close()
            raise
        self.read: set[int] = set()  # shards
        self.overflowed: dict[str, int] = {}
        self.left = task.size
        self.lock = threading.Lock()

    def make(
        self, tile: Tile, read: memoryview, write: memoryview, bench: Bench,
        fetched: Fetched | None = None,
    ) -> int:  # fmt: skip
        """Fill ``write`` with the tile's bytes, at the offset they have in their page.

        Returns how many bytes were read: none if they are ``fetched`` already.
        """
        import numpy as np

        work = _TileWork(self, tile, read, bench, fetched)
        base = tile.begin - tile.begin % PAGE
        target = np.frombuffer(write, np.uint8)
        for literal in tile.literals:
            at = literal.begin - base
            write[at : at + len(literal.data)] = literal.data
        if tile.measure:
            work.measure()
        for piece in tile.pieces:
            weight, dtype = piece.item.weight, piece.item.dtype
            at = piece.begin - base
            out = target[at : at + piece.nbytes].view(_NUMPY[dtype])
            data = work.data(weight, piece.reads)
            found = weight.codec.decode(weight.parts, piece.rect, data, out, dtype)
            self.judge(weight, found, dtype)
        for coding in tile.codings:
            at = coding.begin - base
            work.encode(coding, target[at : at + coding.nbytes])
        for part in tile.spooled:
            at = part.begin - base
            self.codes.read(part, target[at : at + part.nbytes])
        return work.got

    def where(self, weight: Weight) -> str:
        """Words that begin a message on ``weight``."""
        shard = weight.parts[0].shard
        file = self.shards[shard] if shard >= 0 else self.task.file  # all of it is padding
        return f"{shown(file)}: weight {shown(weight.name)}"

    def judge(self, weight: Weight, found: Findings, dtype: str, encoded: bool = False) -> None:
        """Refuse damage; count what overflows, or refuse it: what is ``encoded`` must be finite."""
        if found.damage:
            raise DataError(f"{self.where(weight)}: {found.damage}")
        if not found.overflowed:
            return
        if encoded or self.stage.plan.options.strict:
            why = "cannot be encoded" if encoded else "refused by strict"
            raise DataError(
                f"{self.where(weight)}: {found.overflowed:,} elements overflow {dtype} ({why})"
            )
        with self.lock:
            count = self.overflowed.get(weight.name, 0) + found.overflowed
            self.overflowed[weight.name] = count

    def note(self, shards: set[int]) -> None:
        """Remember what was read, to see at the end whether it has changed."""
        with self.lock:
            self.read |= shards

    def done(self, nbytes: int) -> bool:
        """Count a tile; True for the one that completes the file."""
        with self.lock:
            self.left -= nbytes
            return self.left == 0

    def finish(self) -> Record:
        digest = self.target.finish()
        self.codes.close()
        self.sources.check(self.read)
        self.target.install()
        overflowed = dict(sorted(self.overflowed.items()))
        errors = self.codes.errors
        record = Record(self.task.file, self.task.size, digest, overflowed, errors)
        self.stage.record(record)
        return record

    def stop(self) -> None:
        """Wake every worker that waits for another's tile."""
        self.target.stop()
        self.codes.stop()

    def abandon(self) -> None:
        """Let go of everything, whatever fails: the error that led here is told, and no other."""
        with contextlib.suppress(OSError):
            self.codes.close()
        self.target.abandon()


class _TileWork:
    """What one tile reads, at once or chunk by chunk, and how its chunks are decoded."""

    def __init__(
        self, run: TaskRun, tile: Tile, read: memoryview, bench: Bench, fetched: Fetched | None
    ) -> None:
        self.run, self.tile, self.buffer, self.bench = run, tile, read, bench
        self.got = 0
        self.whole = fetched
        if not fetched and not tile.piecemeal:
            self.whole = self._fetched(tile.reads())

    def _fetched(self, reads: Iterable[Read]) -> Fetched:
        found = Fetched(self.run.sources, self.buffer, Places([reads]))
        self.run.note(found.shards)
        self.got += found.nbytes
        return found

    def data(self, weight: Weight, reads: tuple[Read, ...]) -> list[Bytes]:
        """Bytes of the parts of ``weight``."""
        return (self.whole or self._fetched(reads)).data(weight, reads)

    def load(self, weight: Weight, chunk: Chunk, x: Array) -> list[Bytes]:
        """Decode a chunk into float32 ``x``; the bytes it was decoded from."""
        data = self.data(weight, chunk.reads)
        found = weight.codec.decode(weight.parts, chunk.rect, data, x.reshape(-1), "F32")
        self.run.judge(weight, found, "F32", encoded=True)
        return data

    def measure(self) -> None:
        """See :meth:`CodeRun.measure`."""
        assert self.tile.measure
        with self._naming(self.tile.measure.weight):
            self.run.codes.measure(self.tile.measure, self.load, self.bench)

    def encode(self, coding: Coding, out: Bytes) -> None:
        """See :meth:`CodeRun.encode`."""
        with self._naming(coding.item.weight):
            self.run.codes.encode(coding, self.load, self.bench, out)

    @contextlib.contextmanager
    def _naming(self, weight: Weight) -> Iterator[None]:
        try:
            yield
        except UnfitError as e:
            raise DataError(f"{self.run.where(weight)}: {e}") from e
