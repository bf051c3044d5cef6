"""Source bytes of tiles, read into a worker's buffer in disk order, neighbours in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import Fp8ConvertError
from .pieces import Source, joined
from .places import Places
from .schemes.weight import Weight
from .sources import Sources
from .tile import Read

if TYPE_CHECKING:
    from .codecs.base import Bytes


class Fetched:
    """What was read: :meth:`data` finds the bytes of a weight's parts in the buffer."""

    def __init__(self, sources: Sources, buffer: memoryview, places: Places) -> None:
        import numpy as np

        if places.need > len(buffer):
            raise Fp8ConvertError(
                f"internal: {places.need:,} bytes for a buffer of {len(buffer):,}"
            )
        self.shards, self.nbytes = places.shards, places.nbytes
        self._places, self._bytes = places, np.frombuffer(buffer, np.uint8)
        for e in places.extents:
            view = buffer[e.place : e.place + e.pages]
            if e.shard < 0:  # no file's: see Stored
                self._bytes[e.place : e.place + e.pages] = ~e.shard
                continue
            with sources.borrowed(e.shard) as source:
                source.read(view, e.begin, e.end)
        for s in places.gathered:
            self._gather(sources, buffer, s)

    def _gather(self, sources: Sources, buffer: memoryview, s: Source) -> None:
        at = self._places.place[s]
        if s.shard < 0:
            self._bytes[at : at + s.nbytes] = ~s.shard
            return
        with sources.borrowed(s.shard) as source:
            source.gather(buffer[at : at + s.nbytes], s.begin, s.times, s.stride)

    def data(self, weight: Weight, reads: tuple[Read, ...]) -> list[Bytes]:
        """The bytes of each part's span, good until the next call. DataError if copies differ."""
        place, spare, found = self._places.place, self._places.spare, []
        for part, read in zip(weight.parts, reads, strict=True):
            pieces = []
            for s in read.sources:
                at = place.get(s, -1)
                if at < 0:
                    at, spare = self._pick(s, spare), spare + s.nbytes
                pieces.append(self._bytes[at : at + s.nbytes])
            found.append(joined(part, read.span, pieces))
        return found

    def _pick(self, s: Source, to: int) -> int:
        """Copy the runs of ``s`` together, to ``to``."""
        import numpy as np

        length = s.end - s.begin
        runs = np.lib.stride_tricks.as_strided(
            self._bytes[self._places.picked[s] :], (s.times, length), (s.stride, 1)
        )
        self._bytes[to : to + s.nbytes].reshape(s.times, length)[:] = runs
        return to
