"""Source bytes of a tile, read into a worker's buffer in disk order, neighbours in one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import Fp8ConvertError
from .header import ALIGN as PAGE
from .pieces import Source, joined
from .schemes.weight import Weight
from .sources import Sources
from .tile import Read, room_for

if TYPE_CHECKING:
    from .codecs.base import Bytes


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


class Fetched:
    """What was read: :meth:`data` finds the bytes of a weight's parts in the buffer."""

    def __init__(self, sources: Sources, buffer: memoryview, reads: Iterable[Read]) -> None:
        import numpy as np

        wanted = {s for r in reads for s in r.sources}
        self.shards = {s.shard for s in wanted}
        self.nbytes = sum(s.nbytes for s in wanted)
        self._bytes = np.frombuffer(buffer, np.uint8)
        self._places: dict[Source, int] = {}
        self._room = len(buffer)
        extents = self._extents(wanted)
        self._check(extents[-1].place + extents[-1].pages if extents else 0)
        for e in extents:
            with sources.borrowed(e.shard) as source:
                source.read(buffer[e.place : e.place + e.pages], e.begin, e.end)
        end = extents[-1].place + extents[-1].pages if extents else 0
        for s in sorted(s for s in wanted if s.times > 1):
            self._check(end + room_for(s))
            with sources.borrowed(s.shard) as source:
                source.gather(buffer[end : end + s.nbytes], s.begin, s.times, s.stride)
            self._places[s], end = end, end + room_for(s)

    def _check(self, end: int) -> None:
        if end > self._room:
            raise Fp8ConvertError(f"internal: {end:,} bytes for a buffer of {self._room:,}")

    def _extents(self, wanted: set[Source]) -> list[_Extent]:
        extents: list[_Extent] = []
        for s in sorted(s for s in wanted if s.times == 1):
            if not extents or not extents[-1].takes(s):
                place = extents[-1].place + extents[-1].pages if extents else 0
                extents.append(_Extent(s.shard, s.begin // PAGE * PAGE, s.end, place))
            extent = extents[-1]
            extent.end = max(extent.end, s.end)
            self._places[s] = extent.place + s.begin - extent.begin
        return extents

    def data(self, weight: Weight, reads: tuple[Read, ...]) -> list[Bytes]:
        """The bytes of each part's span. DataError if copies of them differ."""
        return [
            joined(part, r.span, [self._bytes[self._places[s] :][: s.nbytes] for s in r.sources])
            for part, r in zip(weight.parts, reads, strict=True)
        ]
