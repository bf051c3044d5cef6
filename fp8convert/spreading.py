"""What every rank's files hold, and where that is of the whole: for ``tp.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .catalogue import Catalogue
from .encoding.carried import CopiedShape
from .layouts.base import RankLayout
from .layouts.shares import WHOLE
from .options import ShardForTp
from .plan import Item
from .ranksets import Piece, Spread
from .schemes.weight import Weight
from .sharder import Given, renamed
from .writers import Kept

Files = dict[int, dict[int, list[Item]]]  # by rank, and by part of the checkpoint


class Ranks:
    """The tensors of each rank, in parts of the checkpoint: its shards, or runs of a size."""

    def __init__(
        self, catalogue: Catalogue, layout: RankLayout, options: ShardForTp, given: Sequence[Given]
    ) -> None:
        self.catalogue, self.layout, self.options = catalogue, layout, options
        self.files: Files = {rank: {} for rank in options.written}
        self.spreads: list[Spread] = []
        self._part, self._used = 0, dict.fromkeys(range(options.tp), 0)
        for g in given:
            found = self._items(g)
            self._next_part(g, found)
            for rank, items in found.items():
                self.files[rank].setdefault(self._part, []).extend(items)
            self.spreads += self._spreads(g, found)

    def _items(self, g: Given) -> dict[int, tuple[Item, ...]]:
        """By rank. What is whole on several is the same on all of them."""
        ranks, share = self.options.written, g.share
        if share.axis is not None:
            found = {}
            for rank in ranks:
                piece = g.piece(rank, self.options.tp)
                assert piece
                found[rank] = renamed(g.writer.items(g.weight, piece), self.layout)
            return found
        items = renamed(g.writer.items(g.weight, g.weight), self.layout)
        return {r: items for r in ranks if share.range(1, r, self.options.tp)}

    def _next_part(self, g: Given, found: dict[int, tuple[Item, ...]]) -> None:
        """The same part for all ranks, so that they read the same at the same time."""
        limit = self.options.max_shard_size
        if limit is None:
            self._part = self.catalogue.place(g.weight.parts[0])
            return
        items = next(iter(found.values()), None)  # all ranks that have some have as much
        parts = g.writer.tensors(g.weight) if items is None else items
        size = sum(p.nbytes for p in parts)
        having = [r for r in self._used if g.share.range(g.size, r, self.options.tp)]
        if any(self._used[r] and self._used[r] + size > limit for r in having):
            self._part += 1
            self._used = dict.fromkeys(self._used, 0)
        for rank in having:
            self._used[rank] += size

    def _spreads(self, g: Given, found: dict[int, tuple[Item, ...]]) -> Iterator[Spread]:
        stored, kept = (*g.weight.parts, *g.weight.dropped), isinstance(g.writer, Kept)
        items, owner, layout = next(iter(found.values()), ()), self._owner(g), self.layout
        cut = items and owner is None and g.share != WHOLE
        cut = cut and (self.options.tp > 1 or g.is_padded)
        for k, part in enumerate(g.writer.tensors(g.weight)):
            file = self.catalogue.files[self.catalogue.place(stored[k] if kept else stored[0])]
            inside, other = part.name, ""
            if layout.renames:
                inside = layout.renamed(part.name)
                dtype, _ = layout.stored_as(inside, part.dtype, part.shape)
                other = dtype if dtype != part.dtype else ""
            spread = Spread(*part, inside, file, owner, stored=other)
            if cut:
                yield self._cut(spread, g, items[k])
            else:
                yield spread._replace(adds=True) if layout.adds(g.weight.name) else spread

    def _owner(self, g: Given) -> int | None:
        """The only rank that has it."""
        if g.share.expert is None or self.options.tp == 1:
            return None
        return g.share.expert // (g.share.units // self.options.tp)

    def _cut(self, spread: Spread, g: Given, item: Item) -> Spread:
        """Along the axis where an item differs from the whole: that of the stored tensor."""
        pairs = enumerate(zip(spread.shape, item.shape, strict=True))
        axes = [0] if g.is_padded else [axis for axis, (n, m) in pairs if n != m]
        if not axes:
            return spread._replace(value=_whole_shape(item, g.weight))
        (axis,) = axes
        size, length, share, ranks = spread.shape[axis], item.shape[axis], g.share, self.options.tp
        pieces: list[Piece] = []
        for rank in range(ranks):
            lo, hi = share.range(g.size, rank, ranks) or (0, 0)
            offset = min(lo // (hi - lo) * length, size)
            pieces.append((rank, offset, min(length, size - offset)))
        padded = length * ranks if g.is_padded else 0
        return spread._replace(axis=axis, pieces=tuple(pieces), padded_to=padded)


def _whole_shape(item: Item, weight: Weight) -> tuple[int, ...] | None:
    """The shape that a tensor says a weight has, where ``item`` says that of a rank's part."""
    encoder = item.encoding.encoder if item.encoding else None
    third = encoder is not None and item.part == 2 and not encoder.two_levels
    return weight.shape if third or isinstance(item.weight.codec, CopiedShape) else None
