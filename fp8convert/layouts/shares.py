"""How a weight is divided over tensor-parallel ranks: along which axis, in units of what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What the ranks get of one weight. Without an ``axis`` and an ``expert``: all of it, each.

    ``axis`` of the decoded weight is cut evenly between its ``units``, equal parts that are not
    divided further: attention heads, rows of the vocabulary, experts of a stack. Fewer units than
    ranks may ``repeat``: neighbouring ranks then have the same one. ``expert`` is the number of a
    routed expert, one of ``units``, whole on the one rank that owns it. ``of`` says for messages
    what units are, by the config's field: ``num_attention_heads``.
    """

    axis: int | None = None
    units: int = 1
    of: str = ""
    repeat: bool = False
    expert: int | None = None

    def fits(self, ranks: int) -> bool:
        """Whether so many ranks can share it."""
        if self.axis is None and self.expert is None:
            return True
        return self.units % ranks == 0 or (self.repeat and ranks % self.units == 0)

    def range(self, size: int, rank: int, ranks: int) -> tuple[int, int] | None:
        """What ``rank`` has of the ``size`` elements along ``axis``; of anything else ``(0,
        size)``. None if it has nothing: the expert is another's."""
        if self.expert is not None:
            return (0, size) if self.expert // (self.units // ranks) == rank else None
        if self.axis is None:
            return 0, size
        unit = size // self.units
        if self.units % ranks:
            first = rank * self.units // ranks
            return first * unit, (first + 1) * unit
        each = self.units // ranks * unit
        return rank * each, (rank + 1) * each


WHOLE = Share()
