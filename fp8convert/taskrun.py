"""One task being written: its target file, the shards it reads, what decoding met."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass

from .codecs.base import Findings
from .dtypes import DTYPES
from .errors import DataError, shown
from .fileio import TargetFile
from .header import ALIGN as PAGE
from .pieces import Source, joined
from .plan import Task
from .publish import Record, Staging
from .schemes.weight import Weight
from .sources import Sources
from .tiles import Tile, room_for

_NUMPY = {d.tag: d.numpy or "uint8" for d in DTYPES.values()}


@dataclass(slots=True)
class _Extent:
    """One read: bytes of a shard from a page-aligned ``begin``, to ``place`` in the buffer."""

    shard: int
    begin: int
    end: int
    place: int

    @property
    def pages(self) -> int:
        return -(-(self.end - self.begin) // PAGE) * PAGE

    def takes(self, s: Source) -> bool:
        """Whether ``s`` begins in or right after these pages."""
        return s.shard == self.shard and s.begin // PAGE * PAGE <= self.begin + self.pages


class TaskRun:
    """One task being written: its target file, the shards it reads, what decoding met."""

    def __init__(self, task: Task, shards: list[str], sources: Sources, staging: Staging) -> None:
        self.task, self.shards, self.sources, self.staging = task, shards, sources, staging
        self.temporary = staging.temporary(staging.out, task.file)
        checksum = staging.plan.options.checksum == "sha256"
        self.target = TargetFile(self.temporary, task.size, sources.io, checksum)
        self.read: set[int] = set()  # shards
        self.overflowed: dict[str, int] = {}
        self.left = task.size
        self.lock = threading.Lock()

    def decode(self, tile: Tile, read: memoryview, write: memoryview) -> int:
        """Fill ``write`` with the tile's bytes, at the offset they have in their page."""
        import numpy as np

        base = tile.begin - tile.begin % PAGE
        for literal in tile.literals:
            at = literal.begin - base
            write[at : at + len(literal.data)] = literal.data
        places, got = self._fetch(tile, read)
        source, target = np.frombuffer(read, np.uint8), np.frombuffer(write, np.uint8)
        for piece in tile.pieces:
            weight, dtype = piece.item.weight, piece.item.dtype
            data = [
                joined(part, r.span, [source[places[s] :][: s.nbytes] for s in r.sources])
                for part, r in zip(weight.parts, piece.reads, strict=True)
            ]
            at = piece.begin - base
            out = target[at : at + piece.nbytes].view(_NUMPY[dtype])
            found = weight.codec.decode(weight.parts, piece.rect, data, out, dtype)
            self._judge(weight, found, dtype)
        return got

    def _fetch(self, tile: Tile, read: memoryview) -> tuple[dict[Source, int], int]:
        """Read the tile's sources in disk order, neighbours in one call; where each one lies."""
        wanted = {s for p in tile.pieces for r in p.reads for s in r.sources}
        extents: list[_Extent] = []
        places: dict[Source, int] = {}
        for s in sorted(s for s in wanted if s.times == 1):
            if not extents or not extents[-1].takes(s):
                place = extents[-1].place + extents[-1].pages if extents else 0
                extents.append(_Extent(s.shard, s.begin // PAGE * PAGE, s.end, place))
            extent = extents[-1]
            extent.end = max(extent.end, s.end)
            places[s] = extent.place + s.begin - extent.begin
        for e in extents:
            with self.sources.borrowed(e.shard) as source:
                source.read(read[e.place : e.place + e.pages], e.begin, e.end)
        end = extents[-1].place + extents[-1].pages if extents else 0
        for s in sorted(s for s in wanted if s.times > 1):
            with self.sources.borrowed(s.shard) as source:
                source.gather(read[end : end + s.nbytes], s.begin, s.times, s.stride)
            places[s], end = end, end + room_for(s)
        with self.lock:
            self.read |= {s.shard for s in wanted}
        return places, sum(s.nbytes for s in wanted)

    def _judge(self, weight: Weight, found: Findings, dtype: str) -> None:
        where = f"{shown(self.shards[weight.parts[0].shard])}: weight {shown(weight.name)}"
        if found.damage:
            raise DataError(f"{where}: {found.damage}")
        if not found.overflowed:
            return
        if self.staging.plan.options.strict:
            raise DataError(
                f"{where}: {found.overflowed:,} elements overflow {dtype} (refused by strict)"
            )
        with self.lock:
            count = self.overflowed.get(weight.name, 0) + found.overflowed
            self.overflowed[weight.name] = count

    def done(self, nbytes: int) -> bool:
        """Count a tile; True for the one that completes the file."""
        with self.lock:
            self.left -= nbytes
            return self.left == 0

    def finish(self) -> Record:
        digest = self.target.finish()
        self.sources.check(self.read)
        self.staging.install(self.temporary, self.staging.out / self.task.file)
        overflowed = dict(sorted(self.overflowed.items()))
        record = Record(self.task.file, self.task.size, digest, overflowed)
        self.staging.record(record)
        return record

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self.target.close()
        self.temporary.unlink(missing_ok=True)
