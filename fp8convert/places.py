"""Where the source bytes of tiles go in a worker's buffer: neighbours in one read, each once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .fileio import NEAR
from .header import ALIGN as PAGE
from .pieces import Source
from .tile import Read, room_for


@dataclass(slots=True)
class Extent:
    """One read: bytes of a shard from a page-aligned ``begin``, to ``place`` in the buffer."""

    shard: int
    begin: int
    end: int
    place: int

    @property
    def pages(self) -> int:
        """Bytes of the buffer that it takes."""
        return -(-(self.end - self.begin) // PAGE) * PAGE

    def takes(self, s: Source) -> bool:
        """Whether ``s`` begins in or right after these pages."""
        return s.shard == self.shard and s.begin // PAGE * PAGE <= self.begin + self.pages


class Places:
    """Where the sources of what each of some ``tiles`` reads go, in a buffer of ``need`` bytes.

    ``extents`` first, in disk order. Runs of bytes with gaps between them are ``gathered`` behind
    those, without the gaps; but where several tiles want runs among each other, all of it is read,
    and each tile in its turn has its runs ``picked`` from there, copied to ``spare`` and behind.
    """

    def __init__(self, tiles: Sequence[Iterable[Read]]) -> None:
        each = [{s for r in reads for s in r.sources} for reads in tiles]
        wanted = set().union(*each)
        runs = {s for s in wanted if s.times > 1}
        hulls = {s: hull(s) for s in (_mingled(runs) if len(each) > 1 else ())}
        self.shards = {s.shard for s in wanted if s.shard >= 0}
        self.nbytes = sum(s.nbytes for s in wanted if s.shard >= 0)
        self.extents: list[Extent] = []
        self.gathered = sorted(runs - hulls.keys()) if runs else []
        self.place: dict[Source, int] = {}
        end = self._extend({*(wanted - runs), *hulls.values()} if runs else wanted)
        for s in self.gathered:
            self.place[s] = end
            end += room_for(s)
        self.picked = {s: self.place[whole] for s, whole in hulls.items()}
        self.spare = end
        self.need = end + max(sum(s.nbytes for s in t & hulls.keys()) for t in each)

    def _extend(self, wanted: set[Source]) -> int:
        """Where the buffer goes on behind all extents."""
        extents = self.extents
        for s in sorted(wanted):
            if not extents or not extents[-1].takes(s):
                place = extents[-1].place + extents[-1].pages if extents else 0
                extents.append(Extent(s.shard, s.begin // PAGE * PAGE, s.end, place))
            extent = extents[-1]
            extent.end = max(extent.end, s.end)
            self.place[s] = extent.place + s.begin - extent.begin
        return extents[-1].place + extents[-1].pages if extents else 0


def hull(runs: Source) -> Source:
    """All from the first byte to the last."""
    return Source(runs.shard, runs.begin, runs.end + (runs.times - 1) * runs.stride)


def _mingled(runs: Iterable[Source]) -> Iterator[Source]:
    """Those that lie among or beside others, where reading the gaps is no more than they are, or
    is what :meth:`~fp8convert.fileio.SourceFile.gather` would do for each of them."""
    for cluster in _clusters(runs):
        length = max(hull(s).end for s in cluster) - cluster[0].begin
        near = all(s.stride <= NEAR for s in cluster)
        if len(cluster) > 1 and (near or 2 * sum(s.nbytes for s in cluster) >= length):
            yield from cluster


def _clusters(runs: Iterable[Source]) -> Iterator[list[Source]]:
    """Those whose hulls overlap or touch."""
    cluster: list[Source] = []
    end = 0
    for s in sorted(runs):
        if cluster and (s.shard != cluster[0].shard or s.begin > end):
            yield cluster
            cluster = []
        end = max(end, hull(s).end) if cluster else hull(s).end
        cluster.append(s)
    if cluster:
        yield cluster
